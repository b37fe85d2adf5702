"""``stepopsd games stats A B``: what an agent meets in two sets of games, side by side.

Every game of a sample is played by the expert on the real engine. Text lengths are words as the agent reads them,
admissible actions are those offered (``help`` is not), lengths of episodes are steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stepopsd.envs.alfworld import TASK_TYPES, AlfworldEnv, read_game, walkthrough
from stepopsd.envs.base import Task
from stepopsd.envs.games.bundle import bundled_tasks
from stepopsd.envs.games.expert import HandExpert
from stepopsd.envs.games.preflight import require_games, spread
from stepopsd.envs.games.progress import progress
from stepopsd.envs.games.verify import STEP_LIMIT, on_engines

_FACT = re.compile(r"\((\w+) ([^\s()?]+)(?: ([^\s()?]+))?\)")
_SHARES = ((10, "10 %"), (50, "50 %"), (90, "90 %"))


@dataclass(frozen=True, slots=True)
class GameFigures:
    """One game as its expert episode showed it.

    Attributes:
        kind: Task type.
        goal: The instruction.
        first_words: Words of the first observation.
        words: Words of each later observation.
        admissible: Actions offered at each step.
        expert_steps: Steps that the expert needed; None if it did not win.
        walkthrough_steps: Length of the stored walkthrough.
        receptacles: Places that can be gone to.
        closed: Those of them that are closed at the start.
        beside: Those of them that share their location with another.
        objects: Things that can be picked up.
        instances: Things of the wanted type.
    """

    kind: str
    goal: str
    first_words: int
    words: tuple[int, ...]
    admissible: tuple[int, ...]
    expert_steps: int | None
    walkthrough_steps: int
    receptacles: int
    closed: int
    beside: int
    objects: int
    instances: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity in two sets.

    Attributes:
        name: What was measured, and of which task type where it is not all of them.
        first: Its values in the first set.
        second: Its values in the second set.
        distance: Largest difference of the two distribution functions (Kolmogorov-Smirnov), 0 to 1.
    """

    name: str
    first: np.ndarray = field(repr=False)
    second: np.ndarray = field(repr=False)
    distance: float


def compare_games(
    first: str | Path,
    second: str | Path,
    *,
    split: str = "train",
    second_split: str | None = None,
    per_type: int = 25,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> list[Comparison]:
    """Measure two sets of games on the real engine and print them side by side.

    Equally many games of each task type are taken from both, spread evenly over the split, so that a set's mixture
    of types does not show.

    Args:
        first: Folder with the splits, or ``bundled``.
        second: The same; the set to compare with.
        split: Split of the first set, and of the second unless given.
        second_split: Split of the second set.
        per_type: Games of each task type; a type with fewer in either set is measured on as many in both.
        workers: Processes that run the engine; 0 or 1 for this one alone.
        say: Receives the report, line by line.

    Returns:
        One comparison per quantity.

    Raises:
        FileNotFoundError, ValueError: a set or split is missing or broken, or ``per_type`` below 1.

    Example:
        >>> compare_games("official", "made", per_type=50)  # doctest: +SKIP
    """
    if per_type < 1:
        raise ValueError(f"per_type must be at least 1, got {per_type}")
    names = (f"{first}, {split}", f"{second}, {second_split or split}")
    tasks = [_tasks(first, split), _tasks(second, second_split or split)]
    counts = {kind: min(per_type, *(sum(t.kind == kind for t in some) for some in tasks)) for kind in TASK_TYPES}
    picked = [
        [task for kind, count in counts.items() for task in spread([t for t in some if t.kind == kind], count)]
        for some in tasks
    ]
    figures = measure([*picked[0], *picked[1]], workers=workers)
    halves = figures[: len(picked[0])], figures[len(picked[0]) :]
    comparisons = [_compared(name, *values) for name, *values in _quantities(*halves) if all(map(len, values))]
    for letter, name, half in zip("AB", names, halves, strict=True):
        won = sum(game.expert_steps is not None for game in half)
        wordings = len({_wording(game) for game in half})
        say(f"{letter}: {name}: {len(half)} games, {won} won by the expert, {wordings} goal wordings")
    _say_table(comparisons, say)
    return comparisons


def measure(tasks: Sequence[Task], *, workers: int = 0) -> list[GameFigures]:
    """Play the tasks with the expert and take their figures, in order."""
    with on_engines(game_figures, workers) as run:
        return list(progress(run(tasks), len(tasks), "games measured"))


def game_figures(env: AlfworldEnv, task: Task) -> GameFigures:
    """Play one game with the expert, up to 50 steps, and take its figures.

    Raises:
        FileNotFoundError, ValueError: the game cannot be loaded; the message names its file.
    """
    observation = env.reset(task, 0)
    expert, goal = HandExpert(env.goal), env.goal
    first, words, admissible = len(observation.text.split()), [], [len(observation.admissible)]
    won_at = None
    for step in range(1, STEP_LIMIT + 1):
        result = env.step(expert.act(observation))
        observation = result.observation
        words.append(len(observation.text.split()))
        if result.done:
            won_at = step
            break
        admissible.append(len(observation.admissible))
    return GameFigures(
        task.kind, goal, first, tuple(words), tuple(admissible), won_at, len(walkthrough(task.source)),
        *_problem_figures(task),
    )


def _problem_figures(task: Task) -> tuple[int, int, int, int, int]:
    """Receptacles, closed ones, ones that share a location, portable things, things of the wanted type."""
    init, _, goal = read_game(task.source)["pddl_problem"].partition("(:goal")
    facts: dict[str, list[tuple[str, str]]] = {}
    for name, one, other in _FACT.findall(init):
        facts.setdefault(name, []).append((one, other))
    places = [where for _, where in facts["receptacleAtLocation"]]
    wanted = re.findall(r"\(objectType \?o1? (\w+)\)", goal)
    kinds = dict(facts["objectType"])
    return (
        len(places),
        len(facts.get("openable", ())) - len(facts.get("opened", ())),
        sum(places.count(where) > 1 for where in places),
        len(facts.get("pickupable", ())),
        sum(kind in wanted for kind in kinds.values()),
    )


def _tasks(games: str | Path, split: str) -> list[Task]:
    return bundled_tasks(split) if str(games) == "bundled" else require_games(games, split, per_type=0)


def _quantities(
    first: list[GameFigures], second: list[GameFigures]
) -> Iterable[tuple[str, list[int], list[int]]]:
    per_game: tuple[tuple[str, Callable[[GameFigures], int]], ...] = (
        ("words of the first observation", lambda game: game.first_words),
        ("receptacles", lambda game: game.receptacles),
        ("  closed at the start", lambda game: game.closed),
        ("  at a shared location", lambda game: game.beside),
        ("portable objects", lambda game: game.objects),
        ("  of the wanted type", lambda game: game.instances),
    )
    for name, value in per_game:
        yield name, [value(game) for game in first], [value(game) for game in second]
    per_kind: tuple[tuple[str, Callable[[GameFigures], Sequence[int]]], ...] = (
        ("words of later observations", lambda game: game.words),
        ("admissible actions per step", lambda game: game.admissible),
        ("walkthrough steps", lambda game: (game.walkthrough_steps,)),
        ("expert steps", lambda game: () if game.expert_steps is None else (game.expert_steps,)),
    )
    for name, values in per_kind:
        yield name, [v for game in first for v in values(game)], [v for game in second for v in values(game)]
        for kind in TASK_TYPES:
            yield (
                f"  {kind}",
                [v for game in first if game.kind == kind for v in values(game)],
                [v for game in second if game.kind == kind for v in values(game)],
            )


def _compared(name: str, first: Iterable[int], second: Iterable[int]) -> Comparison:
    one, other = np.sort(np.fromiter(first, float)), np.sort(np.fromiter(second, float))
    points = np.concatenate([one, other])
    below = [np.searchsorted(values, points, side="right") / len(values) for values in (one, other)]
    return Comparison(name, one, other, float(np.abs(below[0] - below[1]).max()))


def _wording(game: GameFigures) -> str:
    """The goal's template: its sentence without the names in it."""
    from stepopsd.envs.games.goals import parse_goal

    goal = parse_goal(game.goal)
    words = [{goal.obj: "{obj}", goal.target: "{recep}"}.get(word, word) for word in re.findall(r"\w+", game.goal)]
    return json.dumps([game.kind, *words])


def _say_table(comparisons: list[Comparison], say: Callable[[str], None]) -> None:
    heads = "".join(f"{head:>7}" for head in ("mean", *(name for _, name in _SHARES)))
    say(f"{'':34}{'A' + heads[1:]}  {'B' + heads[1:]}   distance")
    for row in comparisons:
        say(f"{row.name:34}{_columns(row.first)}  {_columns(row.second)}     {row.distance:6.2f}")
    say("distance: the largest difference of the two distribution functions (Kolmogorov-Smirnov), 0 alike to 1 apart")


def _columns(values: np.ndarray) -> str:
    quantiles = np.percentile(values, [share for share, _ in _SHARES])
    return f"{values.mean():7.1f}" + "".join(f"{value:7.0f}" for value in quantiles)
