"""The bundled world: small, easy, packed with the package, so that tests and the demo need no network."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from stepopsd.envs.searchqa.questions import Question, from_record
from stepopsd.envs.searchqa.world.make import World, WorldConfig
from stepopsd.retrieval import Passage

PACK = "world.jsonl.xz"
#: What the bundled world was made with; ``make_world(BUNDLED)`` gives it again.
BUNDLED = WorldConfig(persons=100, level="easy", train=320, per_set=40, seed=0)


def bundled_passages() -> list[Passage]:
    """The corpus of the bundled world."""
    return [Passage(*line["passage"]) for line in _lines() if "passage" in line]


def bundled_questions(split: str) -> list[Question]:
    """Its questions of ``train`` or of one evaluation set.

    Raises:
        FileNotFoundError: No such split.
    """
    lines = [line for line in _lines() if "split" in line]
    found = [from_record(line) for line in lines if line["split"] == split]
    if not found:
        known = ", ".join(dict.fromkeys(line["split"] for line in lines))
        raise FileNotFoundError(f"the bundled world has no questions of {split!r}; it has {known}")
    return found


def pack(world: World) -> bytes:
    """A world as the bytes that ship."""
    lines: list[dict[str, Any]] = [{"passage": [p.id, p.title, p.text]} for p in world.passages]
    for split, questions in world.questions.items():
        lines += [{"split": split} | _record(question) for question in questions]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def _record(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in Question.__slots__}


@cache
def _lines() -> tuple[dict[str, Any], ...]:
    return tuple(_decode((resources.files("stepopsd.envs.searchqa.world") / "bundled" / PACK).read_bytes()))


def _decode(packed: bytes) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in lzma.decompress(packed).decode().splitlines())


def write_pack(path: Path, world: World) -> None:
    """Write the pack."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(world))
