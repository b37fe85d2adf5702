"""From a seed to a world: entities, facts, passages with distractors, and questions by set."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stepopsd.envs.searchqa.questions import Question, write_questions
from stepopsd.envs.searchqa.scoring import normalize
from stepopsd.envs.searchqa.world.names import Entity, draw_entities
from stepopsd.envs.searchqa.world.relations import RELATIONS, VALUES, Relation
from stepopsd.retrieval import Passage

Level = Literal["easy", "medium", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")
#: Our stand-ins for the seven evaluation sets, in the published order.
WORLD_SETS = ("world_nq", "world_triviaqa", "world_popqa", "world_hotpotqa", "world_2wiki", "world_musique",
              "world_bamboogle")  # fmt: skip
TRAIN_SETS = ("world_nq", "world_hotpotqa")


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """Everything a world depends on.

    Attributes:
        persons: Number of persons; everything else grows with it.
        level: ``easy``: one passage tells all of an entity, so its name finds it. ``medium``: one fact a passage,
            beside passages under the same title that tell nothing, so the other words of a query decide. ``hard``:
            as medium, with namesakes, and passages that use a fact's words for something untrue.
        train: Training questions.
        per_set: Questions of each evaluation set.
        seed: The same values give the same world, byte for byte.
    """

    persons: int = 120
    level: Level = "easy"
    train: int = 400
    per_set: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        for name, low in (("persons", 40), ("train", 1), ("per_set", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class World:
    """A corpus and the questions that it answers.

    Attributes:
        questions: ``train`` and the names in ``WORLD_SETS`` -> questions; no subject of a training question is one
            of an evaluation question.
    """

    config: WorldConfig
    passages: tuple[Passage, ...]
    questions: dict[str, list[Question]]

    def floors(self) -> dict[str, float]:
        """Set -> exact match of always giving its commonest answer: what a closed book can reach."""
        found = {}
        for name, questions in self.questions.items():
            answers = Counter(answer for q in questions for answer in {normalize(a) for a in q.golden_answers})
            found[name] = max(answers.values()) / len(questions)
        return found

    def manifest(self) -> dict[str, Any]:
        """Counts and floors as plain data."""
        return {
            "world": asdict(self.config),
            "passages": len(self.passages),
            "questions": {name: len(questions) for name, questions in self.questions.items()},
            "closed_book_floor": {name: round(floor, 4) for name, floor in self.floors().items()},
        }


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true in a world, and which passage says so.

    Attributes:
        entities: Kind -> entities.
        values: (relation, subject's name) -> value: an entity's name, a year or a word.
        told_in: (relation, subject's name) -> passage id.
        by_name: Name -> entity.
    """

    entities: dict[str, list[Entity]]
    values: dict[tuple[str, str], str]
    told_in: dict[tuple[str, str], str]
    by_name: dict[str, Entity]

    def answers(self, value: str) -> tuple[str, ...]:
        """A value with its aliases."""
        return (value, *self.by_name[value].aliases) if value in self.by_name else (value,)


def make_world(config: WorldConfig | None = None, *, words: Sequence[str] = ()) -> World:
    """Make a world.

    Args:
        config: Everything it depends on.
        words: Make names of these words instead of inventing some, so that worlds can share a vocabulary.

    Raises:
        ValueError: The world is too small for so many questions, or has too few ``words``; the message says how many
            there are.

    Example:
        >>> world = make_world(WorldConfig(persons=60, train=50, per_set=10))
        >>> world.questions["world_nq"][0].hops
        1
    """
    from stepopsd.envs.searchqa.world.ask import ask_all

    config = config or WorldConfig()
    facts = draw_facts(config, words=words)
    passages = tell(config, facts)
    return World(config, tuple(passages), ask_all(config, facts))


def write_world(world: World, out: Path) -> None:
    """Write ``corpus.jsonl`` in wiki-18's layout, one file of questions per set, and ``manifest.json``.

    Raises:
        ValueError: The folder already holds a corpus.
    """
    if (out / "corpus.jsonl").exists():
        raise ValueError(f"out must not hold a world yet, got {str(out)!r}")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for p in world.passages:
            file.write(json.dumps({"id": p.id, "contents": f'"{p.title}"\n{p.text}'}, ensure_ascii=False) + "\n")
    for name, questions in world.questions.items():
        write_questions(out / f"{name}.jsonl", questions)
    (out / "manifest.json").write_text(json.dumps(world.manifest(), indent=2) + "\n", encoding="utf-8")


def draw_facts(config: WorldConfig, *, words: Sequence[str] = ()) -> Facts:
    """Entities, and one value for each of their relations."""
    rng = random.Random(f"world/{config.seed}/{config.persons}/{config.level == 'hard'}")
    entities = draw_entities(rng, config.persons, namesakes=config.level == "hard", words=words)
    values: dict[tuple[str, str], str] = {}
    for relation in RELATIONS.values():
        for index, entity in enumerate(entities[relation.subject]):
            values[relation.key, entity.name] = _value(rng, relation.object, index, entities, values, relation.key)
    by_name = {entity.name: entity for group in entities.values() for entity in group}
    return Facts(entities, values, {}, by_name)


def _value(
    rng: random.Random, kind: str, index: int, entities: dict[str, list[Entity]],
    values: dict[tuple[str, str], str], relation: str,
) -> str:  # fmt: skip
    if kind == "year":
        return str(rng.randrange(1850, 2000))
    if kind in VALUES:
        return rng.choice(VALUES[kind])
    if relation == "father":  # one of the next seven in a ring
        persons = entities["person"]
        return persons[(index + 1 + rng.randrange(7)) % len(persons)].name
    if relation == "capital":
        country = entities["country"][index].name
        own = [city.name for city in entities["city"] if values.get(("country", city.name)) == country]
        return rng.choice(own) if own else rng.choice(entities["city"]).name
    return rng.choice(entities[kind]).name


def tell(config: WorldConfig, facts: Facts) -> list[Passage]:
    """The corpus; fills ``facts.told_in``."""
    rng = random.Random(f"passages/{config.seed}/{config.persons}/{config.level}")
    told: list[tuple[str, list[tuple[str, str]], str]] = []  # title, facts, text
    for kind, entities in facts.entities.items():
        relations = [r for r in RELATIONS.values() if r.subject == kind]
        for entity in entities:
            lines = [
                ((r.key, entity.name), rng.choice(r.tells).format(s=entity.name, o=facts.values[r.key, entity.name]))
                for r in relations
            ]
            rng.shuffle(lines)
            if config.level == "easy":
                text = " ".join([*_also(entity), *(line for _, line in lines)])
                told.append((entity.name, [key for key, _ in lines], text or f"{entity.name} is a {kind} ."))
                continue
            told += [(entity.name, [key], line) for key, line in lines]
            told += [(entity.name, [], line) for line in (*_also(entity), *_empty(rng, entity.name, kind))]
            if config.level == "hard" and relations:
                told += _misleading(rng, entity, rng.choice(relations), facts)
    rng.shuffle(told)
    passages = []
    for number, (title, keys, text) in enumerate(told):
        facts.told_in.update(dict.fromkeys(keys, str(number)))
        passages.append(Passage(str(number), title, text))
    return passages


def _also(entity: Entity) -> list[str]:
    return [f"{entity.name} is also called {alias} ." for alias in entity.aliases]


def _empty(rng: random.Random, name: str, kind: str) -> list[str]:
    """Passages under the right title that tell nothing."""
    lines = [
        f"Much has been said about {name} , and little of it is known for sure .",
        f"The name {name} turns up in many old letters .",
        f"A {kind} like {name} is seldom seen .",
        f"People still speak of {name} on long evenings .",
    ]
    return rng.sample(lines, 2)


def _misleading(
    rng: random.Random, entity: Entity, relation: Relation, facts: Facts
) -> list[tuple[str, list[tuple[str, str]], str]]:
    """Passages with the words of one of an entity's facts and wrong values, one of them under another title."""
    true = facts.values[relation.key, entity.name]
    peers = [e.name for e in facts.entities[relation.subject] if e.name != entity.name]
    wrong = [v for v in dict.fromkeys(facts.values[relation.key, name] for name in rng.sample(peers, 5)) if v != true]
    lines = [rng.choice(relation.tells).format(s=entity.name, o=value) for value in wrong[:3]]
    denied: list[tuple[str, list[tuple[str, str]], str]]
    denied = [(entity.name, [], f"It is not true that once was said : {line}") for line in lines]
    other = rng.choice(peers)
    line = relation.tells[0].format(s=other, o=facts.values[relation.key, other])
    return [*denied, (other, [], f"{line} This is often told of {entity.name} , wrongly .")]
