"""The official data in figures: games per split and task type, and what its splits hash to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from stepopsd.envs.alfworld.games import OFFICIAL_FOLDER, OFFICIAL_SPLITS, TASK_TYPES, read_game
from stepopsd.envs.base import Task

#: split -> task type -> games, in the order of ``TASK_TYPES``
OFFICIAL_COUNTS: dict[str, dict[str, int]] = {
    split: dict(zip(TASK_TYPES, counts, strict=True))
    for split, counts in {
        "train": (790, 308, 650, 459, 533, 813),
        "seen": (35, 13, 27, 16, 25, 24),
        "unseen": (24, 18, 31, 23, 21, 17),
    }.items()
}
#: ``fingerprint`` of the splits as released with alfworld 0.4; that of ``unseen`` is not recorded
OFFICIAL_FINGERPRINTS = {
    "train": "2430427cb418fe052bd16fd4e58212b3feaf63bff38986f3a2bd7eb231cbff95",
    "seen": "a54eab541d9b815022d44ccb8acd505985712fcb46768689385f497c6a4dfffb",
}
_HASHED_PARTS = ("pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough")


def looks_official(root: str | os.PathLike[str]) -> bool:
    """Whether a folder is laid out as alfworld's downloader leaves it: ``json_2.1.1``, or ``valid_…`` splits."""
    base = Path(root).expanduser()
    evaluation = [folder for split, folder in OFFICIAL_SPLITS.items() if split != "train"]
    return (base / OFFICIAL_FOLDER).is_dir() or any((base / folder).is_dir() for folder in evaluation)


def fingerprint(tasks: Iterable[Task]) -> str:
    """SHA-256 of the content of games and their names, whatever the order of tasks or of keys in the files.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken; the message names it.
    """
    whole = hashlib.sha256()
    for task in sorted(tasks, key=lambda task: task.task_id):
        game = read_game(task.source)
        parts = json.dumps([game.get(part) for part in _HASHED_PARTS])
        whole.update(f"{task.task_id}\n{hashlib.sha256(parts.encode()).hexdigest()}\n".encode())
    return whole.hexdigest()
