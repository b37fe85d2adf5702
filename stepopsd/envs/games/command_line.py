"""``stepopsd games make | check | stats | download``: options as tyro reads them, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from stepopsd.envs.games.check import check_games
from stepopsd.envs.games.commands import download_games, make_games
from stepopsd.envs.games.stats import compare_games


def check(path: Positional[Path], *, sample: int = 5, split: tuple[str, ...] = (), workers: int = 2) -> int:
    """Count, read and hash the games of a folder, and play a sample of them.

    Args:
        path: Folder with the splits, directly or under json_2.1.1.
        sample: Games of each task type and split to play by walkthrough and expert; 0 for none, -1 for all.
        split: Splits to check; all that are there unless given.
        workers: Processes that run the engine.
    """
    problems = check_games(path, sample=sample, splits=split, workers=workers).problems
    print(f"{len(problems)} problems" if problems else "no problems")
    return int(bool(problems))


def stats(
    a: Positional[str],
    b: Positional[str],
    *,
    split: str = "train",
    b_split: str | None = None,
    per_type: int = 25,
    workers: int = 2,
) -> int:
    """What an agent meets in two sets of games, side by side: lengths of texts, offered actions, steps of the expert.

    Args:
        a: Folder with the splits, or "bundled".
        b: The set to compare with.
        split: Split to take from both.
        b_split: Split to take from the second set, where it is another.
        per_type: Games of each task type to play.
        workers: Processes that run the engine.
    """
    compare_games(a, b, split=split, second_split=b_split, per_type=per_type, workers=workers)
    return 0


COMMANDS: dict[str, Callable[..., Any]] = {
    "make": make_games,
    "check": check,
    "stats": stats,
    "download": download_games,
}


def main(args: Sequence[str]) -> int:
    """Run one command; returns the exit code, 1 when a check found problems."""
    if not args or args[0] not in COMMANDS:
        print(f"usage: stepopsd games {{{','.join(COMMANDS)}}} [--help]", file=sys.stderr)
        return 2
    result = tyro.cli(COMMANDS[args[0]], args=list(args[1:]), prog=f"stepopsd games {args[0]}")
    return result if isinstance(result, int) else 0
