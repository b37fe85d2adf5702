"""Making a folder of games: drawn in order, checked by the engine in worker processes, written when they pass."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stepopsd.envs.base import Task
from stepopsd.envs.games.game import Game
from stepopsd.envs.games.generator import Difficulty, iter_games
from stepopsd.envs.games.goals import TASK_TYPES
from stepopsd.envs.games.verify import STEP_LIMIT, Verdict, checker
from stepopsd.envs.games.wheel import write_game

_MAX_FRUITLESS = 20  #: rounds of draws without a single game kept


@dataclass(frozen=True, slots=True)
class MadeGame:
    """A game that passed, the split that it belongs to, and how the engine's check went."""

    split: str
    game: Game
    verdict: Verdict


def draw_checked(
    folder: Path,
    counts: dict[str, int],
    *,
    size: str,
    seed: int,
    workers: int,
    expert_limit: int = STEP_LIMIT,
    difficulty: Difficulty | None = None,
) -> Iterator[MadeGame]:
    """Draw games, write them below ``folder/<split>`` and keep those that walkthrough and expert win.

    The result depends on ``counts``, ``size`` and ``seed`` alone, not on ``workers``. A task type that comes up
    short is made up for by drawing on, so the six types differ by at most one game within a split. No two games of
    any split have the same content.

    Args:
        folder: Where to write; existing games stay.
        counts: Games per split, in the order in which the splits are drawn.
        size: ``tiny`` or ``full``.
        seed: Any integer.
        workers: Processes; 0 for none besides this one.
        expert_limit: Steps within which the expert has to win.
        difficulty: As for ``iter_games``.

    Yields:
        The games kept, split by split.

    Raises:
        RuntimeError: if no further game passes, e.g. because ``expert_limit`` is too small for a task type.
    """
    used: set[str] = set()
    with checker(workers, expert_limit=expert_limit) as check:
        for split, count in counts.items():
            drawn = iter_games(seed, size=size, split=split, exclude=used, difficulty=difficulty)
            for made in _fill_split(folder / split, split, count, drawn, check):
                used.add(made.game.content_key)
                yield made


def write_task(game: Game, folder: Path, split: str = "train") -> Task:
    """Write one game below ``folder`` (for passing use, a temporary one) and return it as a task.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for game in iter_games(0, 4000):
        ...         observation = env.reset(write_task(game, Path(folder)), seed=0)
    """
    path = write_game(game, folder)
    return Task(f"{split}/{game.folder}", "alfworld", game.task_type, split, str(path))


def _fill_split(
    folder: Path,
    split: str,
    count: int,
    drawn: Iterator[Game],
    check: Callable[[Iterable[Task]], Iterator[Verdict]],
) -> Iterator[MadeGame]:
    wanted = Counter({kind: len(range(i, count, len(TASK_TYPES))) for i, kind in enumerate(TASK_TYPES)})
    fruitless = 0
    while wanted.total():
        if fruitless == _MAX_FRUITLESS:
            missing = ", ".join(kind for kind, number in wanted.items() if number)
            raise RuntimeError(
                f"{split}: {fruitless} rounds of draws gave no game that walkthrough and expert win;"
                f" still missing: {missing}"
            )
        # Every type once per six games, so this many more draws can fill the largest gap.
        batch = islice(drawn, len(TASK_TYPES) * max(wanted.values()))
        games = _first_wanted(batch, wanted)
        tasks = [write_task(game, folder, split) for game in games]
        fruitless += 1
        for game, verdict in zip(games, check(tasks), strict=True):
            if verdict.walkthrough_steps is None or verdict.expert_steps is None:
                shutil.rmtree(folder / game.folder)
                continue
            fruitless = 0
            wanted[game.task_type] -= 1
            yield MadeGame(split, game, verdict)


def _first_wanted(batch: Iterator[Game], wanted: Counter[str]) -> list[Game]:
    taken: Counter[str] = Counter()
    games = []
    for game in batch:
        if taken[game.task_type] < wanted[game.task_type]:
            taken[game.task_type] += 1
            games.append(game)
    return games
