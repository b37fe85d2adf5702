"""Two evaluations of one panel side by side: paired differences per game with cluster-bootstrap intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stepopsd.experiments.evaluate import EPISODES, Record, read_episodes
from stepopsd.experiments.statistics import Interval, detectable, paired_difference, verdict

Key = tuple[str, str]  # panel, decoding
BROKEN = ("time_limit", "env_error")
FEW_GAMES = 10


def compare_evaluations(
    *, compare: tuple[Path, Path], out: Path | None = None, confidence: float = 0.95, resamples: int = 10_000
) -> list[Record]:
    """Differences B - A of two evaluations that played the same panels the same way.

    Args:
        compare: A and B: folders that ``stepopsd eval`` wrote, or folders of such folders, one per training seed
            (paired by name).
        out: Also write the table to this JSON file.
        confidence: Coverage of the intervals.
        resamples: Bootstrap resamples.

    Returns:
        One object per panel, decoding, figure and task type; success and the environment's scores per task type, steps
        and valid actions over all games. Where one decoding has several panels, also panel ``micro`` (all games as one
        panel) and ``macro`` (plain mean over panels, its interval by squaring and adding theirs).

    Raises:
        FileNotFoundError: No evaluation there.
        ValueError: The two did not play the same games with the same seeds and decoding; the message says where.
    """
    sides = [load_side(path) for path in compare]
    seeds = _common_seeds(sides[0], sides[1], compare)
    _check_panels(sides, seeds, compare)
    rows: list[Record] = []
    print(f"B − A with A = {compare[0]}, B = {compare[1]}; {len(seeds)} training seed{'s' * (len(seeds) != 1)}")
    for key in _panels(sides[0][seeds[0]]):
        baseline, candidate = ([_part(side[seed], key) for seed in seeds] for side in sides)
        found = _differences(baseline, candidate, confidence, resamples)
        rows += [{"panel": key[0], "decoding": key[1], **row} for row in found]
        print("\n".join(_format(key, found, len(seeds), confidence)))
        for label, runs in (("A", baseline), ("B", candidate)):
            broken = sum(r.get("status") in BROKEN for run in runs for r in run)
            if broken:
                print(f"  {broken} episodes of {label} were broken by the environment and count as lost")
    for key, found in _averages(rows, [[side[seed] for seed in seeds] for side in sides], confidence, resamples):
        rows += [{"panel": key[0], "decoding": key[1], **row} for row in found]
        print("\n".join(_format(key, found, len(seeds), confidence)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def load_side(path: Path) -> dict[str, list[Record]]:
    """Training seed (folder name, empty for a single evaluation) -> episode records."""
    if (path / EPISODES).is_file():
        return {"": read_episodes(path / EPISODES)}
    members = sorted(path.glob(f"*/{EPISODES}")) if path.is_dir() else []
    if not members:
        raise FileNotFoundError(
            f"{path} holds no evaluation: expected {EPISODES} in it, or in folders of it, one per training seed"
        )
    return {member.parent.name: read_episodes(member) for member in members}


def _common_seeds(a: Mapping[str, Any], b: Mapping[str, Any], paths: tuple[Path, Path]) -> list[str]:
    if set(a) != set(b):
        raise ValueError(
            f"both sides must hold the same training seeds: {paths[0]} has {', '.join(a) or 'a single evaluation'}, "
            f"{paths[1]} has {', '.join(b) or 'a single evaluation'}"
        )
    return sorted(a)


def _panels(records: Sequence[Record]) -> list[Key]:
    return list(dict.fromkeys((r["panel"], r["decoding"]) for r in records))


def _part(records: Sequence[Record], key: Key) -> list[Record]:
    return [r for r in records if (r["panel"], r["decoding"]) == key]


def _averages(
    rows: Sequence[Record], sides: Sequence[Sequence[Sequence[Record]]], confidence: float, resamples: int
) -> list[tuple[Key, list[Record]]]:
    """``micro`` and ``macro`` of every decoding that has several panels."""
    averages: list[tuple[Key, list[Record]]] = []
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        parts = [row for row in rows if row["decoding"] == decoding and row["kind"] == "all"]
        if len({row["panel"] for row in parts}) < 2:
            continue
        pooled = [[[r for r in run if r["decoding"] == decoding] for run in side] for side in sides]
        found = _differences(pooled[0], pooled[1], confidence, resamples)
        averages.append((("micro", decoding), [row for row in found if row["kind"] == "all"]))
        averages.append((("macro", decoding), _macro(parts)))
    return averages


def _macro(parts: Sequence[Record]) -> list[Record]:
    """Plain means over panels, of every figure that all of them have."""
    panels = {row["panel"] for row in parts}
    rows = []
    for name in dict.fromkeys(row["figure"] for row in parts):
        told = [row for row in parts if row["figure"] == name and row["games"]]
        if len(told) < len(panels):
            continue
        a, b, difference = (fmean(row[column] for row in told) for column in ("a", "b", "difference"))
        below = math.hypot(*(row["difference"] - row["low"] for row in told)) / len(told)
        above = math.hypot(*(row["high"] - row["difference"] for row in told)) / len(told)
        rows.append({
            "figure": name, "kind": "all", "games": sum(row["games"] for row in told), "a": a, "b": b,
            "difference": difference, "low": difference - below, "high": difference + above,
        })  # fmt: skip
    return rows


def _check_panels(sides: Sequence[Mapping[str, list[Record]]], seeds: Sequence[str], paths: tuple[Path, Path]) -> None:
    """Raise ValueError unless every evaluation of both sides played one and the same plan."""
    named = [(path / seed, side[seed]) for path, side in zip(paths, sides, strict=True) for seed in seeds]
    first_path, first = named[0]
    for path, records in named[1:]:
        if set(_panels(records)) != set(_panels(first)):
            raise ValueError(
                f"the same panels must be played: {first_path} has {_names(first)}, {path} has {_names(records)}"
            )
        for key in _panels(first):
            mine, theirs = _plan(_part(first, key)), _plan(_part(records, key))
            for what in mine:
                if mine[what] != theirs[what]:
                    raise ValueError(
                        f"panel {key[0]} ({key[1]}) was not played the same way: {what} differ between {first_path} "
                        f"({_brief(mine[what])}) and {path} ({_brief(theirs[what])})"
                    )


def _plan(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "games": sorted({r["task_id"] for r in records}),
        "temperatures": sorted({r["temperature"] for r in records}),
        "samples": sorted((r["task_id"], r["sample"], r["seed"]) for r in records),
    }


def _brief(value: Sequence[Any]) -> str:
    return ", ".join(map(str, value)) if len(value) < 4 else f"{len(value)}, first {value[0]}"


def _names(records: Sequence[Record]) -> str:
    return ", ".join(f"{name} ({decoding})" for name, decoding in _panels(records))


def _differences(
    baseline: Sequence[Sequence[Record]], candidate: Sequence[Sequence[Record]], confidence: float, resamples: int
) -> list[Record]:
    everyone = [r for run in (*baseline, *candidate) for r in run]
    kinds = sorted({r["kind"] for r in everyone})
    scores = sorted({name for r in everyone for name in r["scores"]})
    rows = []
    for name in ("success", *scores, "steps", "valid actions"):
        bounds = (-1.0, 1.0) if name in ("success", "valid actions") else (-math.inf, math.inf)
        for kind in ["all", *(kinds if name not in ("steps", "valid actions") else [])]:
            runs = [[_by_game(run, name, kind) for run in side] for side in (baseline, candidate)]
            games = sorted(set.intersection(*(set(run) for side in runs for run in side)))
            a, b = (_matrix(side, games) for side in runs)
            interval = paired_difference(a, b, confidence=confidence, resamples=resamples, bounds=bounds)
            rows.append({
                "figure": name, "kind": kind, "games": len(games), "a": _mean(a), "b": _mean(b),
                "difference": interval.estimate, "low": interval.low, "high": interval.high,
            })  # fmt: skip
    return rows


def _figure(record: Record, name: str) -> float | None:
    if record.get("status") == "infra_error":  # not played
        return None
    if name == "success":
        return float(record["success"])
    if name == "steps":
        return float(record["steps"])
    if name == "valid actions":
        return 1 - record["invalid_actions"] / record["steps"] if record["steps"] else None
    return record["scores"].get(name)


def _by_game(records: Sequence[Record], name: str, kind: str) -> dict[str, float]:
    """Game -> mean over its episodes; episodes and games without the figure are left out."""
    games: dict[str, list[float]] = {}
    for record in records:
        figure = _figure(record, name)
        if kind in ("all", record["kind"]) and figure is not None:
            games.setdefault(record["task_id"], []).append(figure)
    return {game: sum(values) / len(values) for game, values in games.items()}


def _matrix(runs: Sequence[Mapping[str, float]], games: Sequence[str]) -> np.ndarray:
    return np.array([[run[game] for game in games] for run in runs], dtype=np.float64).reshape(len(runs), len(games))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _format(key: Key, rows: Sequence[Record], seeds: int, confidence: float) -> list[str]:
    lines = ["", f"{key[0]} ({key[1]})", f"  {'figure':14} {'task type':32} {'games':>5} {'A':>8} {'B':>8}   B − A"]
    for row in rows:
        lines.append(
            f"  {row['figure']:14} {row['kind']:32} {row['games']:5} {row['a']:8.3f} {row['b']:8.3f}   "
            f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        )
    if any(row["games"] < FEW_GAMES for row in rows):
        lines.append(f"  Intervals over fewer than {FEW_GAMES} games are too narrow: a bootstrap knows no others.")
    total = rows[0]
    interval = Interval(total["difference"], total["low"], total["high"], total["games"])
    said = verdict(interval, candidate="B", baseline="A", panel=key[0], seeds=seeds, confidence=confidence)
    lines.append(f"  {said}")
    if interval.half_width > 0:
        least = 100 * detectable(interval, confidence=confidence)
        lines.append(f"  A true difference of {least:.1f} points would show in four of five comparisons of this size.")
    return lines
