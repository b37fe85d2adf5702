"""Invented names: nobody can know them by heart, and no two entities share one."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stepopsd.envs.searchqa.world.relations import SHARES

_HEADS = "b br d dr f g gr h k l m n p r s st t tr v z".split()
_VOWELS = "a e i o u".split()
_TAILS = "l m n r s th x k".split()
_FORMS = {
    "city": "{}", "country": "{}", "river": "{}", "currency": "{}", "school": "{} College", "company": "{} Works",
    "book": "The {} Diary", "film": "{} at Night",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entity:
    """Somebody or something. ``aliases`` are other names that mean nobody else."""

    name: str
    kind: str
    aliases: tuple[str, ...] = ()


def draw_entities(
    rng: random.Random, persons: int, *, namesakes: bool, words: Sequence[str] = ()
) -> dict[str, list[Entity]]:
    """Kind -> entities, persons first; with ``namesakes`` many persons share a family name.

    Names grow longer with the world, so that their number never runs out; with ``words`` they are made of these.

    Raises:
        ValueError: There are fewer ``words`` than the world needs.
    """
    counts = {kind: max(low, round(share * persons)) for kind, (share, low) in SHARES.items()}
    families = max(8, persons // (12 if namesakes else 3))
    firsts = max(12, persons // 4)
    wanted = sum(counts.values()) + families + firsts
    if words and len(words) < wanted:
        raise ValueError(f"words must hold at least {wanted} for {persons} persons, got {len(words)}")
    drawn = iter(rng.sample(words, wanted)) if words else _invented(rng, wanted)
    first, family = [next(drawn) for _ in range(firsts)], [next(drawn) for _ in range(families)]
    pairs: dict[str, None] = {}
    while len(pairs) < persons:
        pairs.setdefault(f"{rng.choice(first)} {rng.choice(family)}")
    shorts = Counter(_short(name) for name in pairs)
    found = {"person": [Entity(n, "person", (_short(n),) if shorts[_short(n)] == 1 else ()) for n in pairs]}
    for kind, count in counts.items():
        found[kind] = [_thing(kind, next(drawn)) for _ in range(count)]
    return found


def _short(name: str) -> str:
    first, family = name.split()
    return f"{first[0]}. {family}"


def _thing(kind: str, word: str) -> Entity:
    aliases = {"school": (f"College of {word}",), "company": (f"{word} Group",), "book": (f"{word}'s Diary",)}
    return Entity(_FORMS[kind].format(word), kind, aliases.get(kind, ()))


def name_words(entities: Mapping[str, Sequence[Entity]]) -> list[str]:
    """The invented words in the names of entities, sorted."""
    fixed = {word for form in _FORMS.values() for word in form.split()}
    words = {word for group in entities.values() for entity in group for word in re.findall(r"\w+", entity.name)}
    return sorted(words - fixed)


def _invented(rng: random.Random, wanted: int) -> Iterator[str]:
    """Distinct words without end, long enough for ``wanted`` of them to be a small part of what there is."""
    syllable = len(_HEADS) * len(_VOWELS)
    syllables = 2
    while syllable**syllables * len(_TAILS) < 20 * wanted:
        syllables += 1
    seen: set[str] = set()
    while True:
        parts = [rng.choice(_HEADS) + rng.choice(_VOWELS) for _ in range(syllables)]
        word = ("".join(parts) + rng.choice(_TAILS)).capitalize()
        if word not in seen:
            seen.add(word)
            yield word
