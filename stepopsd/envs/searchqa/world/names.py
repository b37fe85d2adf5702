"""Invented names: nobody can know them by heart, and no two entities share one."""

from __future__ import annotations

import random
from collections import Counter
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


def draw_entities(rng: random.Random, persons: int, *, namesakes: bool) -> dict[str, list[Entity]]:
    """Kind -> entities, persons first; with ``namesakes`` many persons share a family name.

    Names grow longer with the world, so that their number never runs out.
    """
    counts = {kind: max(low, round(share * persons)) for kind, (share, low) in SHARES.items()}
    families = max(8, persons // (12 if namesakes else 3))
    firsts = max(12, persons // 4)
    words = _Words(rng, sum(counts.values()) + families + firsts)
    first, family = [words.draw() for _ in range(firsts)], [words.draw() for _ in range(families)]
    pairs: dict[str, None] = {}
    while len(pairs) < persons:
        pairs.setdefault(f"{rng.choice(first)} {rng.choice(family)}")
    shorts = Counter(_short(name) for name in pairs)
    found = {"person": [Entity(n, "person", (_short(n),) if shorts[_short(n)] == 1 else ()) for n in pairs]}
    for kind, count in counts.items():
        found[kind] = [_thing(kind, words.draw()) for _ in range(count)]
    return found


def _short(name: str) -> str:
    first, family = name.split()
    return f"{first[0]}. {family}"


def _thing(kind: str, word: str) -> Entity:
    aliases = {"school": (f"College of {word}",), "company": (f"{word} Group",), "book": (f"{word}'s Diary",)}
    return Entity(_FORMS[kind].format(word), kind, aliases.get(kind, ()))


class _Words:
    """Distinct invented words."""

    def __init__(self, rng: random.Random, wanted: int) -> None:
        self._rng = rng
        self._seen: set[str] = set()
        syllable = len(_HEADS) * len(_VOWELS)
        self._syllables = 2
        while syllable**self._syllables * len(_TAILS) < 20 * wanted:
            self._syllables += 1

    def draw(self) -> str:
        while True:
            parts = [self._rng.choice(_HEADS) + self._rng.choice(_VOWELS) for _ in range(self._syllables)]
            word = ("".join(parts) + self._rng.choice(_TAILS)).capitalize()
            if word not in self._seen:
                self._seen.add(word)
                return word
