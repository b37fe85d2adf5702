"""What ``stepopsd games`` runs: make, check, download, bundle. Plain functions; the command line wraps them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from stepopsd.envs.alfworld import list_tasks
from stepopsd.envs.base import Task
from stepopsd.envs.games.bundle import PACK, write_pack
from stepopsd.envs.games.goals import TASK_TYPES
from stepopsd.envs.games.layout import SIZES, SPLITS
from stepopsd.envs.games.make import MadeGame, draw_checked
from stepopsd.envs.games.verify import Checker
from stepopsd.envs.install import INSTALL_HINT

#: games per split in the official data
OFFICIAL_COUNTS = {"train": 3553, "seen": 140, "unseen": 134}
_T = TypeVar("_T")


def make_games(
    out: Path,
    *,
    train: int = 240,
    seen: int = 60,
    unseen: int = 60,
    size: str = "tiny",
    seed: int = 0,
    workers: int = 2,
) -> dict[str, int]:
    """Make a set of games, each of which the real engine has seen won by its walkthrough and by the expert.

    Args:
        out: Folder to make; gets ``train``, ``seen`` and ``unseen``. Must not hold any of them yet.
        train: Games with training layouts.
        seen: Games with the same layouts and new placements.
        unseen: Games with the held-out layouts.
        size: ``tiny`` (about a quarter of the receptacles and object types) or ``full``.
        seed: The same seed and counts give the same games.
        workers: Processes that run the engine; 0 or 1 for this one alone.

    Returns:
        Games made per split.

    Raises:
        ValueError: a negative count, an unknown size, or an output folder in use.
    """
    counts = {"train": train, "seen": seen, "unseen": unseen}
    _require_counts(counts, size)
    for split in counts:
        if (out / split).exists():
            raise ValueError(f"out must not hold games yet, got {str(out)!r} which has {split!r}")
    started = time.perf_counter()
    games = draw_checked(out, counts, size=size, seed=seed, workers=workers)
    made = list(_progress(games, sum(counts.values()), "games made and won"))
    _print_made(made, time.perf_counter() - started)
    return dict(Counter(item.split for item in made))


def bundle_games(
    *, out: Path, train: int = 240, seen: int = 60, unseen: int = 60, seed: int = 0, workers: int = 2
) -> Path:
    """Make tiny games in ``out`` and pack them into ``out``; the packed file is what the package ships.

    Returns:
        Path of the pack.
    """
    counts = {"train": train, "seen": seen, "unseen": unseen}
    _require_counts(counts, "tiny")
    games = draw_checked(out, counts, size="tiny", seed=seed, workers=workers, expert_limit=20)
    made = list(_progress(games, sum(counts.values()), "games made and won"))
    write_pack(out / PACK, ((item.split, item.game) for item in made))
    return out / PACK


def check_games(path: Path, *, sample: int = 20, seed: int = 0, workers: int = 2) -> int:
    """Count the games of a folder per split and type, and play a sample of each split on the real engine.

    Args:
        path: Folder with the splits, directly or under ``json_2.1.1``.
        sample: Games per split to play by their walkthrough and by the expert; 0 for none, -1 for all.
        seed: Picks the sample.
        workers: Processes that run the engine; 0 or 1 for this one alone.

    Returns:
        The number of problems found: games that cannot be loaded, or that their walkthrough does not win. Counts
        that differ from the official ones, where the folder looks official, and games that the expert loses are
        reported but are no problem.

    Raises:
        FileNotFoundError: ``path`` holds no split.
        ValueError: ``sample`` below -1.
    """
    if sample < -1:
        raise ValueError(f"sample must be -1 (all), 0 (none) or more, got {sample}")
    splits = _find_splits(path)
    for split, tasks in splits.items():
        _print_counts(split, tasks, official=_looks_official(path))
    rng = random.Random(seed)
    picked = [
        task
        for tasks in splits.values()
        for task in (tasks if sample == -1 else rng.sample(tasks, min(sample, len(tasks))))
    ]
    return _play_sample(picked, workers)


def download_games(dest: Path) -> Path:
    """Download the official games with alfworld's own downloader.

    Args:
        dest: Folder for the data; point ``ALFWORLD_DATA`` at it afterwards.

    Returns:
        ``dest``.

    Raises:
        ModuleNotFoundError: alfworld, or something its downloader needs, is not installed.
        RuntimeError: the downloader failed; says how it ended.
    """
    if find_spec("alfworld") is None:
        raise ModuleNotFoundError(f"download needs alfworld: {INSTALL_HINT}")
    if find_spec("requests") is None:
        raise ModuleNotFoundError("alfworld's downloader needs requests: pip install requests")
    beside_python = Path(sys.executable).parent / "alfworld-download"
    script = str(beside_python) if beside_python.is_file() else shutil.which("alfworld-download")
    if script is None:
        raise ModuleNotFoundError("alfworld is installed without its command alfworld-download; reinstall alfworld")
    dest.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ALFWORLD_DATA": str(dest)}
    ended = subprocess.run([sys.executable, script, "--data-dir", str(dest)], env=environment, check=False)
    if ended.returncode:
        raise RuntimeError(
            f"alfworld-download ended with code {ended.returncode} (its messages are above); the games come from"
            f" github.com/alfworld, so check the network, then run it again: finished files are kept in {dest}"
        )
    print(f"done; now: export ALFWORLD_DATA={dest}")
    return dest


def _require_counts(counts: dict[str, int], size: str) -> None:
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"{split} must be at least 0, got {count}")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")


def _print_made(made: list[MadeGame], seconds: float) -> None:
    for split in dict.fromkeys(item.split for item in made):
        print(f"{split}:")
        for kind in TASK_TYPES:
            steps = [
                item.verdict.expert_steps or 0 for item in made if (item.split, item.game.task_type) == (split, kind)
            ]
            if steps:
                print(f"  {kind:32s} {len(steps):5d} games, expert {sum(steps) / len(steps):.1f} steps on average")
    print(f"{len(made)} games in {seconds:.1f} s: {60 * len(made) / max(seconds, 1e-9):.0f} a minute")


def _find_splits(path: Path) -> dict[str, list[Task]]:
    splits = {}
    for split in SPLITS:
        try:
            splits[split] = list_tasks(path, split)
        except FileNotFoundError as error:
            missing = error
    if not splits:
        raise missing
    return splits


def _looks_official(path: Path) -> bool:
    return any((parent / "valid_seen").is_dir() for parent in (path, path / "json_2.1.1"))


def _print_counts(split: str, tasks: list[Task], *, official: bool) -> None:
    expected = OFFICIAL_COUNTS[split]
    note = ""
    if official:
        note = ", the official number" if len(tasks) == expected else f" (official: {expected})"
    print(f"{split}: {len(tasks)} games{note}")
    for kind, count in sorted(Counter(task.kind for task in tasks).items()):
        print(f"  {kind:32s} {count:5d}")


def _play_sample(tasks: list[Task], workers: int) -> int:
    problems = expert_wins = 0
    with Checker(workers) as check:
        for task, verdict in zip(tasks, _progress(check(tasks), len(tasks), "games played"), strict=True):
            if verdict.walkthrough_steps is None:
                problems += 1
                print(f"{task.task_id}: {verdict.problem or 'its walkthrough does not win'}")
            expert_wins += verdict.expert_steps is not None
    if tasks:
        print(f"played {len(tasks)}: {len(tasks) - problems} won by walkthrough, {expert_wins} by the expert")
    return problems


def _progress(items: Iterable[_T], total: int, label: str) -> Iterator[_T]:
    if find_spec("rich") is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=label, total=total, console=Console(stderr=True))
