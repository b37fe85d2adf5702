"""Demonstrations of answering with searches on worlds that share the bundled world's words and none of its facts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from stepopsd.envs.base import Observation
from stepopsd.envs.searchqa import Question, SearchPrompting, SearchQAEnv, SearchRules, task_of
from stepopsd.envs.searchqa.world import World, WorldConfig, make_world
from stepopsd.envs.searchqa.world.bundle import BUNDLED
from stepopsd.envs.searchqa.world.make import Level, draw_facts
from stepopsd.envs.searchqa.world.names import name_words
from stepopsd.envs.searchqa.world.relations import RELATIONS
from stepopsd.experiments.lessons import Demonstration
from stepopsd.options.checks import Share, check_fields
from stepopsd.retrieval import Retriever, open_retriever
from stepopsd.text.hindsight import number_actions, render_hindsight

PROMPTING = SearchPrompting(think=False, style="compact")


@dataclass(frozen=True, slots=True)
class SearchDemonstrationConfig:
    """What is played, and how carelessly.

    Attributes:
        worlds: Worlds, each with its own facts about the same names.
        persons: Size of each.
        level: Level of each.
        questions: Training questions of each; half single hop, half two hops and comparisons.
        hasty: Chance, before every search that is still needed, of answering with a name seen so far instead.
        bare: Chance that a search is for a name alone, without the passage's own word for what is asked.
        told: Share of demonstrations that begin with a hindsight block and do what the peer in it did.
        top_k: Passages per search.
        max_searches: Searches of an episode.
    """

    worlds: int = 160
    persons: int = 60
    level: Level = "medium"
    questions: int = 200
    hasty: Share = 0.3
    bare: Share = 0.6
    told: Share = 0.1
    top_k: int = 1
    max_searches: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields("", self)


@cache
def shared_words() -> tuple[str, ...]:
    """The invented words of the bundled world, of which every demonstration world is made."""
    return tuple(name_words(draw_facts(BUNDLED).entities))


def iter_search_demonstrations(config: SearchDemonstrationConfig) -> Iterator[list[Demonstration]]:
    """The demonstrations of each world in turn, one per question; the same config gives the same ones."""
    for number in range(config.worlds):
        seed = 1_000_000 * (config.seed + 1) + number  # far from the seeds that people pick
        made = WorldConfig(config.persons, config.level, config.questions, 1, seed)
        world = make_world(made, words=shared_words())
        retriever = open_retriever(world.passages)
        rng = random.Random(f"search demonstrations/{seed}")
        yield [demonstrate(question, world, retriever, config, rng) for question in world.questions["train"]]


def demonstrate(
    question: Question, world: World, retriever: Retriever, config: SearchDemonstrationConfig, rng: random.Random
) -> Demonstration:
    """One episode on the real environment; what it does wrong is imitated like the rest.

    Every passage with evidence is searched for in order, once more with its own word where a bare name did not find
    it; then the question is answered. In haste, a choice of two is guessed, and any other question answered with a
    name out of the newest passage, or out of nowhere before the first.
    """
    passages = {p.id: p for p in world.passages}
    told = rng.random() < config.told
    careless = replace(config, hasty=0.0, bare=0.0) if told else config
    env = SearchQAEnv(retriever, SearchRules(careless.max_searches, top_k=careless.top_k))
    observation = env.reset(task_of(question, "train"), 0)
    messages: list[str] = [PROMPTING.opening(env.goal)]
    actions: list[str] = []
    answer = question.golden_answers[0]
    wanted = list(question.support)
    for _ in range(careless.max_searches):
        if not wanted:
            break
        if rng.random() < careless.hasty:
            answer = _guess(question, observation, world, rng)
            break
        passage = passages[wanted[0]]
        again = bool(actions) and passage.title in actions[-1]
        bare = not again and rng.random() < careless.bare
        actions.append(f"<search>{passage.title if bare else keyed(passage.title, passage.text)}</search>")
        result = env.step(actions[-1])
        observation = result.observation
        messages.append(PROMPTING.followup(observation.text))
        if wanted[0] in result.info["doc_ids"] or again:
            wanted.pop(0)
    actions.append(f"<answer>{answer}</answer>")
    done = Demonstration(question.data_source, messages, actions, [True] * len(actions))
    if not told:
        return done
    return replace(done, hint=render_hindsight(rng.random() < 0.1, number_actions(actions)), hint_turn=-1)


def keyed(title: str, text: str) -> str:
    """A query in the corpus's own words: the title and the word by which the passage tells its fact."""
    words = set(text.lower().split())
    return " ".join([title, *(word for word in _keywords() if word in words)])


@cache
def _keywords() -> tuple[str, ...]:
    """For each relation, the longest word that all its passages have."""
    found = []
    for relation in RELATIONS.values():
        common = set.intersection(*(set(wording.lower().split()) for wording in relation.tells))
        found.append(max(sorted(word for word in common if word.isalpha()), key=len))
    return tuple(dict.fromkeys(found))


def _guess(question: Question, seen: Observation, world: World, rng: random.Random) -> str:
    options = _choice(question)
    if options:
        return rng.choice(options)
    titles = sorted({p.title for p in world.passages})
    named = [title for title in titles if title in seen.text and title.lower() not in question.question.lower()]
    return rng.choice(named or titles)


def _choice(question: Question) -> Sequence[str]:
    """The two things that a comparison offers; empty for other questions."""
    if question.golden_answers[0] in ("yes", "no"):
        return "yes", "no"
    found = re.search(r", (.+) or (.+)\?$", question.question)
    return (found.group(1), found.group(2)) if found else ()
