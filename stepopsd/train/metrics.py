"""Numbers that outlive the run: one JSON object per line, plain floats, no tracker needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class JsonLines:
    """An append-only JSON-lines file that a resumed run can cut back to the update it resumes from.

    Args:
        path: Of the file.
        writes: False in a process that must not touch it, because another one does.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one object and flush it to disk."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({k: plain(v) for k, v in record.items()}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def count(self, update: int) -> int:
        """How many records of one update there are."""
        if not self.path.exists():
            return 0
        return sum(json.loads(line)["update"] == update for line in self.path.read_text().splitlines())

    def total(self, key: str) -> float:
        """Sum of one number over all records that have it."""
        if not self.path.exists():
            return 0.0
        return float(sum(json.loads(line).get(key, 0) for line in self.path.read_text().splitlines()))

    def cut_after(self, update: int) -> None:
        """Drop the records of later updates, and a half-written last line."""
        if not self.writes or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the process died while writing this line
            if record.get("update", 0) <= update:
                kept.append(line)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self.path)


def plain(value: Any) -> Any:
    """A tensor as numbers or lists; everything else unchanged."""
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else value.tolist()
    return value
