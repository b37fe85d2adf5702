"""Who trains which cell: claims in a shared directory, taken atomically, kept alive by a heartbeat.

A claim is a file ``claim-<n>.json`` that is made with O_EXCL. A worker whose machine died leaves a claim without
heartbeat behind; another takes the cell over by making the claim with the next number, which only one of them can.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

HEARTBEAT_S = 20.0


class Claim:
    """A cell that is this worker's until ``release``; made by ``take``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def release(self) -> None:
        """Let others have the cell."""
        self._stop.set()
        self._beat.join()
        self.path.with_suffix(".released").touch()

    def lost(self) -> bool:
        """Whether another worker took the cell over, thinking that this one had died."""
        newest = _newest(self.path.parent)
        return newest is not None and newest != self.path

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
            except OSError:  # a network file system that is away for a moment
                continue


def take(folder: Path, *, stale_after_s: float) -> Claim | None:
    """Claim a cell.

    Args:
        folder: The cell's directory; made when it is not there.
        stale_after_s: A claim without heartbeat for so long belongs to nobody.

    Returns:
        The claim, or None where another worker has the cell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    newest = _newest(folder)
    if newest is not None and not _free(newest, stale_after_s):
        return None
    number = 0 if newest is None else _number(newest) + 1
    path = folder / f"claim-{number}.json"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    with os.fdopen(handle, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, file)
    return Claim(path)


def holder(folder: Path, *, stale_after_s: float) -> str | None:
    """``host:pid`` of the worker that has the cell now, or None."""
    newest = _newest(folder) if folder.is_dir() else None
    if newest is None or _free(newest, stale_after_s):
        return None
    owner = _owner(newest)
    return f"{owner.get('host', '?')}:{owner.get('pid', '?')}"


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("claim-*.json"), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("claim-"))


def _free(claim: Path, stale_after_s: float) -> bool:
    if claim.with_suffix(".released").exists() or time.time() - claim.stat().st_mtime > stale_after_s:
        return True
    owner = _owner(claim)
    return owner.get("host") == socket.gethostname() and not _alive(owner.get("pid"))


def _owner(claim: Path) -> dict[str, Any]:
    try:
        owner = json.loads(claim.read_text())
    except json.JSONDecodeError:  # being written this moment
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
