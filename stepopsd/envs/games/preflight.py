"""Before anything starts: the games of a split are all there, all readable, and a sample of them is won."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from stepopsd.envs.alfworld import AlfworldEnv, list_tasks, read_game, walkthrough
from stepopsd.envs.alfworld.games import GAME_FILE, OFFICIAL_SPLITS, TASK_TYPES, split_alias, split_folder
from stepopsd.envs.alfworld.official import OFFICIAL_COUNTS, looks_official
from stepopsd.envs.base import Task
from stepopsd.envs.games.verify import check_game

_NAMED = 3  #: broken files that an error names; it counts the rest


def require_games(root: str | os.PathLike[str], split: str, *, per_type: int = 1) -> list[Task]:
    """The games of a split as tasks, or an error that names the file to look at.

    Every file is read (2 ms each); ``per_type`` games of every task type, spread over the split, are also won by
    their walkthrough on the real engine.

    Args:
        root: As for ``list_tasks``.
        split: As for ``list_tasks``.
        per_type: Games of each task type to play; 0 for none.

    Raises:
        FileNotFoundError: No such folder or split, or a split without games.
        ValueError: A game file is missing beside its description, does not parse, says that it cannot be solved,
            stores no walkthrough, or is not won by it; or an official split is incomplete.

    Example:
        >>> tasks = require_games("$ALFWORLD_DATA", "train")  # doctest: +SKIP
    """
    if per_type < 0:
        raise ValueError(f"per_type must be at least 0, got {per_type}")
    tasks = list_tasks(root, split)
    _require_complete(root, split, tasks)
    require_readable(tasks)
    _require_won(spread(tasks, per_type))
    return tasks


def require_readable(tasks: Iterable[Task]) -> None:
    """Read every game file; raises ValueError with the first broken ones and their number."""
    broken = [problem for task in tasks if (problem := file_problem(task))]
    if broken:
        more = f"\nand {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise ValueError("\n".join(broken[:_NAMED]) + more)


def file_problem(task: Task) -> str:
    """What is wrong with a game's file, naming it; empty when it can be read, is solvable and has a walkthrough."""
    try:
        read_game(task.source)
        walkthrough(task.source)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return ""


def spread(tasks: Sequence[Task], per_type: int) -> list[Task]:
    """``per_type`` tasks of each type, or all there are, evenly over their order; -1 takes every task."""
    chosen: list[Task] = []
    for kind in TASK_TYPES:
        of_kind = [task for task in tasks if task.kind == kind]
        count = len(of_kind) if per_type == -1 else min(per_type, len(of_kind))
        chosen += [of_kind[index * len(of_kind) // count] for index in range(count)]
    return chosen


def missing_files(root: str | os.PathLike[str], split: str) -> list[Path]:
    """Trial folders with a description and no game file, which a copy that stopped half-way leaves behind.

    Official data has such folders on purpose (trials that are no text games), so there it is always empty.
    """
    if looks_official(root):
        return []
    descriptions = sorted(split_folder(root, split).rglob("traj_data.json"))
    return [path.parent for path in descriptions if not (path.parent / GAME_FILE).is_file()]


def shortfall(split: str, tasks: Iterable[Task]) -> dict[str, tuple[int, int]]:
    """Task types of which there are fewer than in the official split: type -> (games here, official games)."""
    expected = OFFICIAL_COUNTS.get(split_alias(split), {})
    have = Counter(task.kind for task in tasks)
    return {kind: (have[kind], count) for kind, count in expected.items() if have[kind] < count}


def _require_complete(root: str | os.PathLike[str], split: str, tasks: list[Task]) -> None:
    if absent := missing_files(root, split):
        raise ValueError(
            f"{absent[0]}: has a traj_data.json and no {GAME_FILE} ({len(absent)} such folders); copy the set again"
        )
    short = shortfall(split, tasks) if looks_official(root) else {}
    if short:
        lacking = ", ".join(f"{kind} {have} of {count}" for kind, (have, count) in short.items())
        raise ValueError(
            f"{split_folder(root, split)}: incomplete official split {split!r}: {lacking}; finish it with"
            f" `stepopsd games download --dest {root}`, or keep a set of your own in folders named"
            f" {', '.join(OFFICIAL_SPLITS)} outside json_2.1.1"
        )


def _require_won(tasks: list[Task]) -> None:
    env = AlfworldEnv()
    try:
        for task in tasks:
            verdict = check_game(env, task, expert_limit=None)
            if verdict.walkthrough_steps is None:
                raise ValueError(verdict.problem or f"{task.source}: its walkthrough does not win the game")
    finally:
        env.close()
