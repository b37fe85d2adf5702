"""Folders that are whole or absent, on disk and not only in a cache, and that notice when they were damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``final`` when the block ends without an error.

    Every file is hashed into a manifest and flushed to disk before the rename, the rename after it; an older ``final``
    is replaced. What a killed process leaves behind is hidden, and removed by the next writer.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    manifest = {path.relative_to(partial).as_posix(): [path.stat().st_size, _digest(path)] for path in files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [*files, partial / MANIFEST, *[p for p in partial.rglob("*") if p.is_dir()], partial]:
        flush(path)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def damage(folder: Path) -> str:
    """What is wrong with a folder of ``whole_folder``; empty when every file is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} cannot be read"
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{name} does not have the content that was written"
    return ""


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
