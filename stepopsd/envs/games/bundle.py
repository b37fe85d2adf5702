"""The bundled games: packed as problems and walkthroughs, unpacked once into a cache folder."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from stepopsd.envs.alfworld import list_tasks
from stepopsd.envs.base import Task
from stepopsd.envs.games.game import Game
from stepopsd.envs.games.wheel import engine_hash, write_game

PACK = "tiny.jsonl.xz"


def bundled_root(cache_folder: str | os.PathLike[str] | None = None) -> Path:
    """Folder with the bundled games as ``train``, ``seen`` and ``unseen``, made on first use.

    Safe when several processes ask at once. A new version of the pack, or of alfworld's domain and grammar, gets a
    folder of its own.

    Args:
        cache_folder: Where to keep it; ``$XDG_CACHE_HOME/stepopsd``, else ``~/.cache/stepopsd``, unless given.

    Raises:
        ModuleNotFoundError: if alfworld is not installed.
        OSError: if the folder cannot be written.

    Warns:
        RuntimeWarning: if the games were checked under another domain and grammar than the installed alfworld's.

    Example:
        >>> tasks = list_tasks(bundled_root(), "seen")
    """
    base = Path(cache_folder) if cache_folder is not None else _default_cache()
    pack = _pack_bytes()
    key = hashlib.sha256(pack + engine_hash().encode()).hexdigest()[:16]
    root = base / f"games-{key}"
    if not root.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        _unpack(root)
    return root


def bundled_tasks(split: str, cache_folder: str | os.PathLike[str] | None = None) -> list[Task]:
    """The bundled games of ``train``, ``seen`` or ``unseen`` as tasks."""
    return list_tasks(bundled_root(cache_folder), split)


@cache
def bundled_games() -> tuple[tuple[str, Game], ...]:
    """Every bundled game with its split, in memory."""
    return tuple(_read_pack()[1])


def bundled_keys() -> frozenset[str]:
    """``Game.content_key`` of the bundled games, to keep other draws apart from them."""
    return frozenset(game.content_key for _, game in bundled_games())


def write_pack(path: Path, games: Iterable[tuple[str, Game]]) -> None:
    """Write (split, game) pairs as a pack; the first line says under which engine texts they were checked."""
    lines = [{"engine_hash": engine_hash()}, *({"split": split} | asdict(game) for split, game in games)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepopsd"


def _pack_bytes() -> bytes:
    return (resources.files("stepopsd.envs.games") / "bundled" / PACK).read_bytes()


def _read_pack() -> tuple[str, Iterator[tuple[str, Game]]]:
    header, *lines = lzma.decompress(_pack_bytes()).decode().splitlines()
    return json.loads(header)["engine_hash"], (_read_line(json.loads(line)) for line in lines)


def _read_line(fields: dict[str, Any]) -> tuple[str, Game]:
    split = fields.pop("split")
    return split, Game(**fields | {"walkthrough": tuple(fields["walkthrough"])})


def _unpack(root: Path) -> None:
    if _read_pack()[0] != engine_hash():
        warnings.warn(
            "the bundled games were checked with alfworld 0.4.2; the domain or grammar of the installed alfworld"
            " differs, so texts may differ and games may be lost: `stepopsd games check` tells",
            RuntimeWarning,
            stacklevel=3,
        )
    # Written aside and renamed as a whole, so that nobody ever sees half a set.
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for split, game in bundled_games():
            write_game(game, aside / split)
        os.chmod(aside, 0o755)
        os.rename(aside, root)
    except OSError:
        if not root.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
