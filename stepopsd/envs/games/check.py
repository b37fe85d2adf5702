"""``stepopsd games check``: counts, files and fingerprints of a folder of games, and a sample of them played."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stepopsd.envs.alfworld import TASK_TYPES, list_tasks
from stepopsd.envs.alfworld.games import split_alias
from stepopsd.envs.alfworld.official import OFFICIAL_COUNTS, OFFICIAL_FINGERPRINTS, fingerprint, looks_official
from stepopsd.envs.base import Task
from stepopsd.envs.games.layout import SPLITS
from stepopsd.envs.games.preflight import file_problem, missing_files, shortfall, spread
from stepopsd.envs.games.progress import progress
from stepopsd.envs.games.verify import Verdict, checker

_SHOWN = 10  #: broken files printed per split


@dataclass(frozen=True, slots=True)
class PlayedGame:
    """A task that was played, and how it went."""

    task: Task
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found.

    Attributes:
        counts: Games per split and task type.
        fingerprints: Split -> hash of its games; empty when a file cannot be read.
        problems: One line each: unreadable files, games that their walkthrough does not win, incomplete official
            splits. Games that the expert loses are no problem.
        played: The sample, in order.
    """

    counts: dict[str, dict[str, int]]
    fingerprints: dict[str, str]
    problems: list[str]
    played: list[PlayedGame]


def check_games(
    path: Path, *, sample: int = 5, splits: tuple[str, ...] = (), workers: int = 2, say: Callable[[str], None] = print
) -> CheckResult:
    """Check a folder of games: how many of each type, whether every file can be read, and whether games are won.

    Args:
        path: Folder with the splits, directly or under ``json_2.1.1``.
        sample: Games of each task type and split to play, spread evenly, by their walkthrough and by the expert;
            0 for none, -1 for all.
        splits: Splits to look at; those that are there unless given.
        workers: Processes that run the engine; 0 or 1 for this one alone.
        say: Receives the report, line by line.

    Returns:
        Counts, fingerprints, problems and the sample's outcome.

    Raises:
        FileNotFoundError: ``path`` holds no split, or not one that was asked for.
        ValueError: ``sample`` below -1, or a game of an unknown task type.

    Example:
        >>> check_games(Path("games"), sample=0).problems
        []
    """
    if sample < -1:
        raise ValueError(f"sample must be -1 (all), 0 (none) or more, got {sample}")
    found = {split_alias(split): list_tasks(path, split) for split in splits} if splits else find_splits(path)
    problems: list[str] = []
    fingerprints: dict[str, str] = {}
    sound: list[Task] = []
    for split, tasks in found.items():
        broken = {task.task_id: problem for task in tasks if (problem := file_problem(task))}
        fingerprints[split] = "" if broken else fingerprint(tasks)
        lines = [*broken.values(), *(f"{folder}: no game.tw-pddl" for folder in missing_files(path, split))]
        if looks_official(path) and (short := shortfall(split, tasks)):
            lines.append(f"{split}: {sum(official - have for have, official in short.values())} official games missing")
        _say_split(split, tasks, fingerprints[split], lines, official=looks_official(path), say=say)
        problems += lines
        sound += spread([task for task in tasks if task.task_id not in broken], sample)
    for split in OFFICIAL_COUNTS if looks_official(path) and not splits else ():
        if split not in found:
            say(f"{split}: not here (official: {sum(OFFICIAL_COUNTS[split].values())} games)")
    played = _play(sound, workers)
    for game in played:
        if game.verdict.walkthrough_steps is None:
            problems.append(f"{game.task.source}: {game.verdict.problem or 'its walkthrough does not win'}")
            say(problems[-1])
    _say_played(played, say)
    counts = {split: dict(Counter(task.kind for task in tasks)) for split, tasks in found.items()}
    return CheckResult(counts, fingerprints, problems, played)


def find_splits(path: Path | str | os.PathLike[str]) -> dict[str, list[Task]]:
    """The splits that a folder holds; FileNotFoundError when there is none."""
    splits = {}
    for split in SPLITS:
        try:
            splits[split] = list_tasks(path, split)
        except FileNotFoundError as error:
            missing = error
    if not splits:
        raise missing
    return splits


def _say_split(
    split: str, tasks: list[Task], digest: str, problems: list[str], *, official: bool, say: Callable[[str], None]
) -> None:
    expected = OFFICIAL_COUNTS.get(split, {}) if official else {}
    say(f"{split}: {_count(len(tasks), sum(expected.values()))}")
    have = Counter(task.kind for task in tasks)
    for kind in TASK_TYPES:
        say(f"  {kind:32s} {_count(have[kind], expected.get(kind, 0))}")
    recorded = OFFICIAL_FINGERPRINTS.get(split) if official else None
    note = "" if recorded is None or not digest else (
        ", the recorded one" if digest == recorded else ": not the recorded one, so texts or games differ"
    )
    say(f"  sha256 {digest or 'not taken: a file cannot be read'}{note}")
    for problem in problems[:_SHOWN]:
        say(f"  {problem}")
    if len(problems) > _SHOWN:
        say(f"  and {len(problems) - _SHOWN} more")


def _count(have: int, official: int) -> str:
    if not official:
        return f"{have:5d} games"
    return f"{have:5d} games, " + ("the official number" if have == official else f"official {official}")


def _play(tasks: list[Task], workers: int) -> list[PlayedGame]:
    if not tasks:
        return []
    with checker(workers) as check:
        verdicts = progress(check(tasks), len(tasks), "games played")
        return [PlayedGame(task, verdict) for task, verdict in zip(tasks, verdicts, strict=True)]


def _say_played(played: list[PlayedGame], say: Callable[[str], None]) -> None:
    for split in dict.fromkeys(game.task.split for game in played):
        say(f"{split}, played:{'':25} walkthrough          expert")
        games = [game for game in played if game.task.split == split]
        for kind in TASK_TYPES:
            _say_won(kind, [game.verdict for game in games if game.task.kind == kind], say)
        _say_won("all", [game.verdict for game in games], say)


def _say_won(name: str, verdicts: list[Verdict], say: Callable[[str], None]) -> None:
    if verdicts:
        columns = ([v.walkthrough_steps for v in verdicts], [v.expert_steps for v in verdicts])
        say(f"  {name:32s} {'  '.join(_won(steps) for steps in columns)}")


def _won(steps: list[int | None]) -> str:
    """``won/played`` and the mean number of steps of the games won."""
    counted = [step for step in steps if step is not None]
    mean = f"{sum(counted) / len(counted):4.1f} steps" if counted else f"{'-':>10}"
    return f"{len(counted):4d}/{len(steps):<4d} {mean}"
