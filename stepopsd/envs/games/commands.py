"""Making and fetching games: what ``stepopsd games make`` and ``download`` run, and how the bundled set was made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from stepopsd.envs.games.bundle import PACK, write_pack
from stepopsd.envs.games.generator import Difficulty
from stepopsd.envs.games.goals import TASK_TYPES
from stepopsd.envs.games.layout import SIZES
from stepopsd.envs.games.make import MadeGame, draw_checked
from stepopsd.envs.games.progress import progress
from stepopsd.envs.install import INSTALL_HINT


def make_games(
    out: Path,
    *,
    train: int = 240,
    seen: int = 60,
    unseen: int = 60,
    size: str = "tiny",
    seed: int = 0,
    workers: int = 2,
    receptacles: tuple[int, int] | None = None,
    distance: tuple[int, int] | None = None,
    sliced: float = 0.0,
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
        receptacles: Fewest and most receptacles in a room; none is left out or dropped unless given.
        distance: Fewest and most places that look likelier than the one where the wanted object lies.
        sliced: Share of wanted food that has to be sliced first, 0 to 1; full size only.

    Returns:
        Games made per split.

    Raises:
        ValueError: a negative count, an unknown size, a difficulty out of range or out of reach, or an output folder
            in use.
    """
    counts = {"train": train, "seen": seen, "unseen": unseen}
    _require_counts(counts, size)
    difficulty = Difficulty(receptacles, distance, sliced)
    for split in counts:
        if (out / split).exists():
            raise ValueError(f"out must not hold games yet, got {str(out)!r} which has {split!r}")
    started = time.perf_counter()
    games = draw_checked(out, counts, size=size, seed=seed, workers=workers, difficulty=difficulty)
    made = list(progress(games, sum(counts.values()), "games made and won"))
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
    made = list(progress(games, sum(counts.values()), "games made and won"))
    write_pack(out / PACK, ((item.split, item.game) for item in made))
    return out / PACK


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
