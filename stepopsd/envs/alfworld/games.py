"""Finding and reading game files: ``<split>/<task type>-<object>-<...>-<scene>/<trial>/game.tw-pddl``."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepopsd.envs.base import Task

GAME_FILE = "game.tw-pddl"
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
#: Our name of a split -> its folder in the official data.
OFFICIAL_SPLITS = {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}
#: A folder of the official data that holds the splits.
OFFICIAL_FOLDER = "json_2.1.1"
_REQUIRED_TEXT = ("pddl_domain", "grammar", "pddl_problem")


def list_tasks(root: str | os.PathLike[str], split: str) -> list[Task]:
    """All games of a split, sorted by their folder names.

    Args:
        root: Folder with the splits, directly or under ``json_2.1.1`` (what ``$ALFWORLD_DATA`` points at).
        split: ``train``, ``seen`` or ``unseen``; the official folder names work too, as does any other folder name.

    Returns:
        One task per game file. Games with sliced or movable parts are left out, as in ALFWorld.

    Raises:
        FileNotFoundError: The root or the split does not exist, or the split holds no game.
        ValueError: A game is of none of the six task types.

    Example:
        >>> [task.kind for task in list_tasks(os.environ["ALFWORLD_DATA"], "seen")][:2]
        ['look_at_obj_in_light', 'look_at_obj_in_light']
    """
    folder = split_folder(root, split)
    alias = split_alias(split)
    tasks = [
        Task(
            task_id=f"{alias}/{path.parent.relative_to(folder).as_posix()}",
            env="alfworld",
            kind=task_kind(path),
            split=alias,
            source=str(path),
        )
        for path in sorted(folder.rglob(GAME_FILE))
        if not any(word in path.parent.relative_to(folder).as_posix() for word in ("Sliced", "movable"))
    ]
    if not tasks:
        raise FileNotFoundError(f"split {split!r}: no {GAME_FILE} below {folder}")
    return tasks


def split_alias(split: str) -> str:
    """Our name of a split, which may be given by its official folder; other names stay."""
    return {official: ours for ours, official in OFFICIAL_SPLITS.items()}.get(split, split)


def split_folder(root: str | os.PathLike[str], split: str) -> Path:
    """The folder of a split, in either layout and by either name."""
    base = Path(root).expanduser()
    if not base.is_dir():
        raise FileNotFoundError(
            f"games root {str(root)!r} is not a folder; allowed is a folder that holds the splits "
            f"{', '.join(OFFICIAL_SPLITS)}, directly or under {OFFICIAL_FOLDER}"
        )
    names = dict.fromkeys((split, OFFICIAL_SPLITS.get(split, split)))
    for parent in (base / OFFICIAL_FOLDER, base):
        for name in names:
            if (parent / name).is_dir():
                return parent / name
    found = sorted(
        entry.name
        for parent in (base / OFFICIAL_FOLDER, base)
        if parent.is_dir()
        for entry in parent.iterdir()
        if entry.is_dir() and entry.name != OFFICIAL_FOLDER
    )
    raise FileNotFoundError(f"split {split!r} not found in {base}; found: {', '.join(found) or 'no folders'}")


def task_kind(path: Path) -> str:
    """Task type of a game: ``traj_data.json`` beside it says so, else the name of the folder above its trial."""
    description = path.parent / "traj_data.json"
    if description.is_file():
        kind = _read_json(description).get("task_type")
    else:
        kind = next((part.split("-")[0] for part in reversed(path.parent.parts) if part.startswith(TASK_TYPES)), None)
    if kind not in TASK_TYPES:
        raise ValueError(f"{path}: task type {kind!r} is none of {', '.join(TASK_TYPES)}")
    return str(kind)


def read_game(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a game file, checked for the parts the engine needs and cached while the file is unchanged.

    The dictionary is shared by all callers: do not change it.
    Grammar expressions in a game are evaluated as Python by TextWorld: play only games from sources you trust.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON, a part is missing or not text, or the file itself says that it cannot be solved.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise FileNotFoundError(f"game file {str(path)!r} cannot be read: {error.strerror}") from error
    return _read_game(str(path), stat.st_mtime_ns, stat.st_size)


def walkthrough(path: str | os.PathLike[str]) -> list[str]:
    """The commands that win the game, as stored in its file.

    Raises:
        ValueError: The file stores none.
    """
    commands = read_game(path).get("walkthrough")
    if not commands or not all(isinstance(command, str) for command in commands):
        raise ValueError(f"{path}: stores no walkthrough")
    return list(commands)


# One string object per game part: the engine's caches are keyed by these texts and compare them by identity first.
@lru_cache(maxsize=48)
def _read_game(path: str, _mtime_ns: int, _size: int) -> dict[str, Any]:
    game = _read_json(Path(path))
    for part in _REQUIRED_TEXT:
        if not isinstance(game.get(part), str) or not game[part].strip():
            raise ValueError(f"{path}: {part!r} must be a non-empty text, got {game.get(part)!r}")
    if game.get("solvable") is False:
        raise ValueError(f"{path}: the file says that this game cannot be solved")
    return game


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content
