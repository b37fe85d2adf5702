"""Turns loaded runs into the tables and comparisons that the report shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepopsd.experiments.report.load import Run
from stepopsd.experiments.statistics import (
    Interval,
    macro_interval,
    paired_difference,
    success_by_kind,
    success_interval,
    success_matrix,
)

Method = dict[str, list[Run]]
Panel = Mapping[str, Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference between two methods on one panel after one update.

    Attributes:
        seeds: Training seeds that both methods have.
        wins: Episodes won by (both, only the candidate, only the baseline, neither).
    """

    baseline: str
    candidate: str
    panel: str
    update: int
    seeds: int
    difference: Interval
    wins: tuple[int, int, int, int]


def panels(methods: Method) -> list[str]:
    """Evaluation panels of all runs in the order in which they were first written."""
    return list(dict.fromkeys(e["panel"] for run in _all(methods) for e in run.episodes))


def evaluated_updates(runs: Iterable[Run], panel: str) -> list[int]:
    """Updates after which every one of the runs played this panel, ascending."""
    played = [{e["update"] for e in run.episodes if e["panel"] == panel} for run in runs]
    return sorted(set.intersection(*played)) if played else []


def outcomes(run: Run, panel: str, update: int) -> dict[str, list[bool]]:
    """Game -> success flags of one evaluation, samples in ascending order."""
    games: dict[str, list[tuple[int, bool]]] = {}
    for episode in run.episodes:
        if episode["panel"] == panel and episode["update"] == update:
            games.setdefault(episode["task_id"], []).append((episode["sample"], bool(episode["success"])))
    return {game: [won for _, won in sorted(flags)] for game, flags in games.items()}


def success_curve(runs: list[Run], panel: str) -> tuple[list[int], list[Interval]]:
    """Evaluated updates and the success interval after each."""
    updates = evaluated_updates(runs, panel)
    return updates, [success_of([outcomes(run, panel, u) for run in runs]) for u in updates]


def success_of(played: Sequence[Panel]) -> Interval:
    """``success_interval`` of one ``outcomes`` per run, in which episodes of a game are alike."""
    names = [[game for game, flags in panel.items() for _ in flags] for panel in played]
    return success_interval([_flat(panel) for panel in played], games=names)


def kind_rates(runs: list[Run], panel: str, update: int) -> dict[str, Interval]:
    """Success interval per task type after one update."""
    return rates_by_kind([[e for e in run.episodes if e["panel"] == panel and e["update"] == update] for run in runs])


def rates_by_kind(played: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Interval]:
    """``success_by_kind`` of one list of episode records per run."""
    return success_by_kind(*_kinds_and_flags(played), games=_column(played, "task_id"))


def macro_of(played: Sequence[Sequence[Mapping[str, Any]]]) -> Interval:
    """``macro_interval`` of one list of episode records per run."""
    return macro_interval(*_kinds_and_flags(played), games=_column(played, "task_id"))


def _kinds_and_flags(played: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[list[str]], list[list[bool]]]:
    return _column(played, "kind"), [[bool(e["success"]) for e in episodes] for episodes in played]


def _column(played: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[list[str]]:
    return [[e[key] for e in episodes] for episodes in played]


def gain(runs: list[Run], panel: str) -> Interval | None:
    """Paired difference between the last and the first evaluation of the same runs on the same games."""
    updates = evaluated_updates(runs, panel)
    if len(updates) < 2:
        return None
    first = [outcomes(run, panel, updates[0]) for run in runs]
    last = [outcomes(run, panel, updates[-1]) for run in runs]
    games = _common_games(first + last)
    return paired_difference(success_matrix(first, games), success_matrix(last, games))


def compare(
    methods: Method, baseline: str, candidate: str, panel: str, *, resamples: int = 10_000
) -> list[Comparison]:
    """Paired differences after every update at which both methods played the panel, ascending.

    Runs are paired by training seed and episodes by game; a seed or game that one side lacks is left out.
    Without a common seed the list is empty.
    """
    left = {run.seed: run for run in methods[baseline]}
    right = {run.seed: run for run in methods[candidate]}
    pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    updates = evaluated_updates([run for pair in pairs for run in pair], panel)
    return [_compare_at(pairs, baseline, candidate, panel, update, resamples) for update in updates]


def _compare_at(
    pairs: list[tuple[Run, Run]], baseline: str, candidate: str, panel: str, update: int, resamples: int
) -> Comparison:
    left = [outcomes(run, panel, update) for run, _ in pairs]
    right = [outcomes(run, panel, update) for _, run in pairs]
    games = _common_games(left + right)
    difference = paired_difference(
        success_matrix(left, games), success_matrix(right, games), resamples=resamples
    )
    cells = np.zeros((2, 2), dtype=int)
    for a, b in zip(left, right, strict=True):
        for game in games:
            for lost, won in zip(a[game], b[game], strict=False):
                cells[int(lost), int(won)] += 1
    wins = (int(cells[1, 1]), int(cells[0, 1]), int(cells[1, 0]), int(cells[0, 0]))
    return Comparison(baseline, candidate, panel, update, len(pairs), difference, wins)


def differing_settings(methods: Method) -> list[tuple[str, list[str]]]:
    """Configuration entries whose value is not the same in every method, seeds and paths left out.

    Returns:
        (dotted name, one text per method) in alphabetical order; values of several runs are joined.
    """
    flat = {label: [_flatten(run.config) for run in runs] for label, runs in methods.items()}
    names = sorted({name for runs in flat.values() for run in runs for name in run})
    rows = []
    for name in names:
        if name in ("seed", "run_dir", "resume"):
            continue
        cells = [", ".join(dict.fromkeys(str(run.get(name, "–")) for run in runs)) for runs in flat.values()]
        if len(set(cells)) > 1:
            rows.append((name, cells))
    return rows


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _common_games(evaluations: Sequence[Panel]) -> list[str]:
    return sorted(set.intersection(*(set(panel) for panel in evaluations))) if evaluations else []


def _flat(panel: Panel) -> list[bool]:
    return [won for flags in panel.values() for won in flags]


def _all(methods: Method) -> list[Run]:
    return [run for runs in methods.values() for run in runs]
