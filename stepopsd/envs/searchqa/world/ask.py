"""Questions about a world: seven kinds, each standing for one of the seven evaluation sets."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stepopsd.envs.searchqa.questions import Question, make_question
from stepopsd.envs.searchqa.world.make import TRAIN_SETS, WORLD_SETS, Facts, WorldConfig
from stepopsd.envs.searchqa.world.relations import HELD_OUT_CHAINS, LONG_CHAINS, RELATIONS, TRAIN_CHAINS

_Asker = Callable[[random.Random, Facts, "Sequence[str]"], Iterator[Question]]


def ask_all(config: WorldConfig, facts: Facts) -> dict[str, list[Question]]:
    """``train`` and every evaluation set; subjects of one are never subjects of the other.

    Raises:
        ValueError: The world has too few questions of a set.
    """
    everyone = [entity.name for group in facts.entities.values() for entity in group]
    random.Random(f"held-out/{config.seed}").shuffle(everyone)
    cut = len(everyone) // 2
    seen, held_out = everyone[:cut], everyone[cut:]
    half = [config.train - config.train // 2, config.train // 2]
    training = [q for name, count in zip(TRAIN_SETS, half, strict=True) for q in _ask(config, facts, name, seen, count)]
    random.Random(f"order/{config.seed}").shuffle(training)
    found = {"train": training}
    for name in WORLD_SETS:
        found[name] = _ask(config, facts, name, held_out, config.per_set)
    return found


def _ask(config: WorldConfig, facts: Facts, name: str, subjects: Sequence[str], count: int) -> list[Question]:
    rng = random.Random(f"questions/{config.seed}/{name}")
    possible = list({q.question: q for q in _ASKERS[name](rng, facts, subjects)}.values())
    if len(possible) < count:
        raise ValueError(
            f"a world of {config.persons} persons has {len(possible)} questions of {name}, not {count}: "
            "ask for fewer (train, per_set) or for more persons"
        )
    rng.shuffle(possible)
    return [replace(q, question_id=str(i), data_source=name) for i, q in enumerate(_balanced(possible, count))]


def _balanced(possible: list[Question], count: int) -> list[Question]:
    """The first ``count``, with as many yes as no among them where there are such questions."""
    yes = [q for q in possible if q.golden_answers == ("yes",)]
    no = [q for q in possible if q.golden_answers == ("no",)]
    rest = [q for q in possible if q.golden_answers not in (("yes",), ("no",))]
    pairs = min(len(yes), len(no), count // 8)
    kept = [*yes[:pairs], *no[:pairs]]
    chosen = {q.question for q in [*kept, *rest[: count - len(kept)]]}
    found = [q for q in possible if q.question in chosen]
    return found if len(found) == count else possible[:count]


def _chain(facts: Facts, subject: str, keys: Sequence[str], wording: int = 0) -> Question:
    """Follow relations from a subject: the last one asks, the others are phrases inside it."""
    phrase, name, support = subject, subject, []
    for key in keys[:-1]:
        support.append(facts.told_in[key, name])
        phrase, name = RELATIONS[key].noun.format(s=phrase), facts.values[key, name]
    support.append(facts.told_in[keys[-1], name])
    asks = RELATIONS[keys[-1]].asks
    words = asks[wording % len(asks)].format(s=phrase)
    answers = facts.answers(facts.values[keys[-1], name])
    return make_question("0", "world", words, answers, hops=len(keys), support=tuple(dict.fromkeys(support)))


def _subjects(facts: Facts, subjects: Sequence[str], key: str) -> list[str]:
    return [name for name in subjects if facts.by_name[name].kind == RELATIONS[key].subject]


def _single(rng: random.Random, facts: Facts, subjects: Sequence[str]) -> Iterator[Question]:
    """One hop, lower case, as people type."""
    for key in RELATIONS:
        for name in _subjects(facts, subjects, key):
            question = _chain(facts, name, [key], rng.randrange(8))
            yield replace(question, question=question.question.lower())


#: Facts that together point at one thing, and how to ask for it.
_CLUES = {
    ("founder",): "Which company did {0} found?",
    ("author",): "Which book did {0} write?",
    ("school_city",): "Which school is in the city of {0}?",
    ("director", "film_year"): "Which film of {1} did {0} direct?",
    ("birthplace", "school"): "Who was born in {0} and studied at {1}?",
    ("trade", "birthplace"): "Which {0} was born in {1}?",
}


def _clue(rng: random.Random, facts: Facts, subjects: Sequence[str]) -> Iterator[Question]:
    """From what is true of a thing back to its name, which has aliases; asked only where it is one thing."""
    for keys, wording in _CLUES.items():
        told = {
            entity.name: tuple(facts.values[key, entity.name] for key in keys)
            for entity in facts.entities[RELATIONS[keys[0]].subject]
        }
        count = Counter(told.values())
        for name in _subjects(facts, subjects, keys[0]):
            if count[told[name]] == 1:
                support = tuple(dict.fromkeys(facts.told_in[key, name] for key in keys))
                words = wording.format(*told[name])
                yield make_question("0", "world", words, facts.answers(name), hops=1, support=support)


def _tail(rng: random.Random, facts: Facts, subjects: Sequence[str]) -> Iterator[Question]:
    """One hop in one fixed wording, about persons whom no other entity leads to."""
    known = {value for (key, _), value in facts.values.items() if key != "father"}
    for key in ("trade", "birthplace", "school", "father", "birth_year"):
        for name in _subjects(facts, subjects, key):
            if name not in known:
                yield _chain(facts, name, [key])


def _bridge_or_compare(rng: random.Random, facts: Facts, subjects: Sequence[str]) -> Iterator[Question]:
    """Two hops through a bridge, or two entities compared, some with yes and no."""
    for keys in TRAIN_CHAINS:
        for name in _subjects(facts, subjects, keys[0]):
            yield _chain(facts, name, keys, rng.randrange(8))
    yield from _compare(rng, facts, subjects, ("birth_year",), "Who was born first, {a} or {b}?")
    yield from _compare(rng, facts, subjects, ("film_year",), "Which came out first, {a} or {b}?")
    yield from _same(rng, facts, subjects, "birthplace", "Were {a} and {b} born in the same city?")


def _infer(rng: random.Random, facts: Facts, subjects: Sequence[str]) -> Iterator[Question]:
    """Bridges, grandfathers, and comparisons over a bridge."""
    for name in _subjects(facts, subjects, "father"):
        question = _chain(facts, name, ["father", "father"])
        yield replace(question, question=f"Who is the paternal grandfather of {name}?")
    for keys in (("director", "birthplace"), ("author", "trade"), ("founder", "father")):
        for name in _subjects(facts, subjects, keys[0]):
            yield _chain(facts, name, keys)
    for key, words in (("director", "film has the older director"), ("author", "book has the older author")):
        yield from _compare(rng, facts, subjects, (key, "birth_year"), f"Which {words}, {{a}} or {{b}}?")


def _compare(
    rng: random.Random, facts: Facts, subjects: Sequence[str], keys: Sequence[str], words: str
) -> Iterator[Question]:
    names = _subjects(facts, subjects, keys[0])
    for a, b in zip(names, rng.sample(names, len(names)), strict=True):
        ends = {name: _chain(facts, name, keys) for name in (a, b)}
        years = {name: int(end.golden_answers[0]) for name, end in ends.items()}
        if a != b and years[a] != years[b]:
            winner = min(years, key=lambda name: years[name])
            support = dict.fromkeys([*ends[a].support, *ends[b].support])
            yield make_question(
                "0", "world", words.format(a=a, b=b), facts.answers(winner), hops=2 * len(keys), support=tuple(support)
            )


def _same(
    rng: random.Random, facts: Facts, subjects: Sequence[str], key: str, words: str
) -> Iterator[Question]:
    names = _subjects(facts, subjects, key)
    for a in names:
        alike = [b for b in names if b != a and facts.values[key, a] == facts.values[key, b]]
        other = [b for b in names if facts.values[key, a] != facts.values[key, b]]
        for pool, answer in ((alike, "yes"), (other, "no")):
            if pool:
                b = rng.choice(pool)
                support = tuple(dict.fromkeys((facts.told_in[key, a], facts.told_in[key, b])))
                yield make_question("0", "world", words.format(a=a, b=b), answer, hops=2, support=support)


def _chains(chains: Sequence[Sequence[str]]) -> _Asker:
    def ask(rng: random.Random, facts: Facts, subjects: Sequence[str]) -> Iterator[Question]:
        for keys in chains:
            for name in _subjects(facts, subjects, keys[0]):
                yield _chain(facts, name, keys, rng.randrange(8))

    return ask


_ASKERS: dict[str, _Asker] = {
    "world_nq": _single,
    "world_triviaqa": _clue,
    "world_popqa": _tail,
    "world_hotpotqa": _bridge_or_compare,
    "world_2wiki": _infer,
    "world_musique": _chains(LONG_CHAINS),
    "world_bamboogle": _chains(HELD_OUT_CHAINS),
}
