"""Reads run directories into plain records; absent files are listed, broken ones are errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Record = dict[str, Any]
TOKEN_LISTS = ("advantages", "shaped", "delta", "weights", "in_span")


@dataclass(frozen=True, slots=True)
class Run:
    """One training run as it lies on disk.

    Attributes:
        method: Label that the report shows.
        path: The run directory.
        seed: The run's training seed; its position under the method where the configuration does not say.
        config: Resolved configuration tree, empty if absent.
        environment: Versions, command and device, empty if absent.
        metrics: One record per update, ascending; a resumed run keeps the newest record of each update.
        episodes: Evaluation episodes, ascending by update.
        transcripts: Stored trajectories with token advantages.
        missing: Names of files that are absent or were cut off while being written.
    """

    method: str
    path: Path
    seed: int
    config: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    episodes: list[Record] = field(default_factory=list)
    transcripts: list[Record] = field(default_factory=list)
    missing: tuple[str, ...] = ()

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Updates and values of one metric, records without it left out.

        Returns:
            (U,) int64 and (U,) float64, NaN where the record holds null.
        """
        rows = [row for row in self.metrics if key in row]
        values = [math.nan if row[key] is None else float(row[key]) for row in rows]
        return np.array([row["update"] for row in rows], dtype=np.int64), np.array(values, dtype=np.float64)

    def total(self, key: str) -> float:
        """Sum of a metric over the updates, NaN entries ignored; NaN when it was never recorded."""
        values = self.series(key)[1]
        return float(np.nansum(values)) if values.size and not np.isnan(values).all() else math.nan

    def setting(self, name: str, default: Any = None) -> Any:
        """A configuration value by its dotted name, e.g. ``rollout.group_size``."""
        node: Any = self.config
        for part in name.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node


def load_runs(runs: Mapping[str, Iterable[Path]]) -> dict[str, list[Run]]:
    """Load every run of every method.

    Args:
        runs: Method label -> run directories, one per seed; the first method is the baseline of comparisons.

    Returns:
        The same labels in the same order with their runs, ascending by seed.

    Raises:
        ValueError: No methods, a method without runs, or a broken file.
        FileNotFoundError: A run directory does not exist.
    """
    if not runs:
        raise ValueError("runs must name at least one method, got none")
    loaded = {}
    for method, paths in runs.items():
        members = [load_run(Path(path), method=method, position=i) for i, path in enumerate(paths)]
        if not members:
            raise ValueError(f"runs[{method!r}] must hold at least one run directory, got none")
        loaded[method] = sorted(members, key=lambda run: run.seed)
    return loaded


def load_run(path: Path, *, method: str, position: int = 0) -> Run:
    """Load one run directory.

    Args:
        path: The directory.
        method: Label that the report shows.
        position: Stands in for the seed when there is no configuration.

    Returns:
        The run; files that are absent are named in ``missing``.

    Raises:
        FileNotFoundError: The directory does not exist.
        ValueError: A file that cannot be read as what it should be; the message names file and line.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"run directory of {method!r} does not exist: {path}")
    missing: list[str] = []
    config = _document(path / "config.yaml", yaml.safe_load, missing)
    metrics = _lines(path / "metrics.jsonl", _check_metrics, missing)
    episodes = _lines(path / "evaluations.jsonl", _check_episode, missing)
    episodes = [record for record in episodes if record.get("decoding", "sample") == "sample"]
    episodes = [record for record in episodes if record.get("status") != "infra_error"]  # not played
    transcripts = _lines(path / "transcripts.jsonl", _check_transcript, missing)
    return Run(
        method=method,
        path=path,
        seed=int(config.get("seed", position)),
        config=config,
        environment=_document(path / "environment.json", json.loads, missing),
        metrics=_newest(metrics, ("update",)),
        episodes=_newest(episodes, ("update", "panel", "task_id", "sample")),
        transcripts=_newest(transcripts, ("update", "group", "member")),
        missing=tuple(missing),
    )


def _document(path: Path, parse: Callable[[str], Any], missing: list[str]) -> Record:
    if not path.is_file():
        missing.append(path.name)
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def _lines(path: Path, check: Callable[[Record], str | None], missing: list[str]) -> list[Record]:
    """Records of a JSON-lines file; a last line without its end is a run still writing and is left out."""
    if not path.is_file():
        missing.append(path.name)
        return []
    records = []
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                missing.append(f"end of {path.name}")
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        complaint = check(record) if isinstance(record, dict) else "not an object"
        if complaint:
            raise ValueError(f"{path}, line {number}: {complaint}")
        records.append(record)
    return records


def _newest(records: list[Record], keys: tuple[str, ...]) -> list[Record]:
    """The last record written per key, ascending by update: a resumed run writes some of them twice."""
    unique = {tuple(record[key] for key in keys): record for record in records}
    return sorted(unique.values(), key=lambda record: record["update"])


def _lacks(record: Record, keys: tuple[str, ...]) -> str | None:
    absent = [key for key in keys if key not in record]
    return f"keys missing: {', '.join(absent)}" if absent else None


def _check_metrics(record: Record) -> str | None:
    return _lacks(record, ("update",))


def _check_episode(record: Record) -> str | None:
    record.setdefault("sample", 0)
    return _lacks(record, ("update", "panel", "task_id", "kind", "success"))


def _check_transcript(record: Record) -> str | None:
    complaint = _lacks(record, ("update", "task_id", "group", "member", "success", "turns"))
    if complaint:
        return complaint
    for index, turn in enumerate(record["turns"]):
        length = len(turn.get("tokens", ()))
        for key in TOKEN_LISTS:
            if turn.get(key) is not None and len(turn[key]) != length:
                return f"turn {index}: {key} must have one entry per token ({length}), got {len(turn[key])}"
    return None
