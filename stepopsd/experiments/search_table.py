"""The table of a Search-QA evaluation: exact match of every question set, what it cost, and both averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from stepopsd.experiments.statistics import panel_interval

SEARCH_TABLE = "search_table.json"
#: Episodes per validation batch in the evaluations that most published tables come from.
PUBLISHED_BATCH = 512
Record = dict[str, Any]


def search_table(records: Iterable[Record]) -> list[Record]:
    """One object per decoding and data source, then ``macro`` and ``micro``.

    Args:
        records: Episodes of Search-QA, see ``train.evaluation.episode_records``. One that lost its retriever was not
            played: it is counted (``infra_errors``) and left out of every other figure.

    Returns:
        Exact match with a 95 % interval (``panel_interval``), F1, sub-EM and the Unicode-folding EM; searches per
        episode and how many episodes made 0, 1, 2, ... of them; the share that searched at all (``tool_use``), that
        found a golden answer in what was retrieved (``hit``), that never answered (``unanswered``); response tokens
        per episode and the share of invalid turns. ``micro`` is the mean over episodes, ``macro`` the plain mean over
        data sources, its interval by squaring and adding theirs. ``em_batch_mean`` is exact match as published tables
        have it, for comparison with them alone, see ``batch_mean``; None where questions were played more than once.

    Example:
        >>> search_table(records)[-1]["em"]                        # doctest: +SKIP
        0.312

    Source: G. Y. Zou, A. Donner, Statistics in Medicine 27 (2008), for the interval of the macro mean.
    """
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record["decoding"], record["temperature"]), []).append(record)
    table = []
    for (decoding, temperature), members in groups.items():
        head = {"decoding": "greedy" if temperature == 0 else decoding, "temperature": temperature}
        names = dict.fromkeys(r["kind"] for r in members)
        rows = {name: _figures([r for r in members if r["kind"] == name]) for name in names}
        as_published = batch_means(members)
        for name, row in rows.items():
            row["em_batch_mean"] = as_published.get(name)
        table += [{"data_source": name, **head, **row} for name, row in rows.items()]
        table.append({"data_source": "macro", **head, **_macro(list(rows.values()))})
        table.append({"data_source": "micro", **head, **_figures(members), "em_batch_mean": None})
    return table


def batch_mean(scores: Sequence[float], batches: Sequence[int]) -> float:
    """Plain mean over batches of the mean within each batch, however few of the set a batch holds.

    A set's last item, alone in a batch, weighs as much as all others together: Bamboogle's 125 questions at the end of
    the seven sets fall into batches of 512 as 124 + 1, which turns 38 right (0.304) into 0.649 if the last one is among
    them, and into 0.153 if it is not.

    Args:
        scores: Score of each item, at least one.
        batches: Index of the batch that each item was in; same length.

    Returns:
        The mean that published Search-QA tables of the verl-agent lineage print, in the unit of ``scores``.

    Raises:
        ValueError: No items, or lengths that differ.

    Example:
        >>> round(batch_mean([1.0] * 37 + [0.0] * 87 + [1.0], [100] * 124 + [101]), 3)
        0.649

    Source: verl-agent issues #210 and #267.
    """
    if not scores or len(scores) != len(batches):
        raise ValueError(f"scores and batches must have equal lengths above 0, got {len(scores)} and {len(batches)}")
    parts: dict[int, list[float]] = {}
    for score, batch in zip(scores, batches, strict=True):
        parts.setdefault(batch, []).append(score)
    return fmean(fmean(part) for part in parts.values())


def batch_means(records: Sequence[Record]) -> dict[str, float]:
    """Exact match of every data source by ``batch_mean``, the episodes dealt to batches of 512 in their order.

    Args:
        records: Episodes of one evaluation; those that lost their retriever are left out.

    Returns:
        Data source -> mean; empty where a question was played more than once.
    """
    if len({r["task_id"] for r in records}) < len(records):
        return {}
    played = [r for r in records if r["status"] != "infra_error"]
    dealt: dict[str, tuple[list[float], list[int]]] = {}
    for index, record in enumerate(played):
        scores, batches = dealt.setdefault(record["kind"], ([], []))
        scores.append(_score(record, "em"))
        batches.append(index // PUBLISHED_BATCH)
    return {name: batch_mean(*lists) for name, lists in dealt.items()}


#: Mean of a score that every episode has.
_SCORES = ("f1", "sub_em", "unicode_em", "searches", "tool_use", "hit")


def _figures(records: Sequence[Record]) -> Record:
    played = [r for r in records if r["status"] != "infra_error"]
    questions: dict[str, list[bool]] = {}
    for record in played:
        questions.setdefault(record["task_id"], []).append(_score(record, "em") == 1.0)
    em = panel_interval(list(questions.values()))
    turns = sum(r["steps"] for r in played)
    searches = [int(_score(r, "searches")) for r in played]
    return {
        "questions": len(questions), "episodes": len(played), "infra_errors": len(records) - len(played),
        "em": _known(em.estimate), "em_low": em.low, "em_high": em.high,
        **{name: _mean([_score(r, name) for r in played]) for name in _SCORES},
        "searches_histogram": [searches.count(n) for n in range(max(searches, default=0) + 1)],
        "unanswered": _mean([1.0 - _score(r, "answered") for r in played]),
        "response_tokens": _mean([r["response_tokens"] for r in played]),
        "invalid": sum(r["invalid_actions"] for r in played) / turns if turns else None,
    }  # fmt: skip


def _macro(rows: Sequence[Record]) -> Record:
    """Plain means over the sets that were played."""
    told = [row for row in rows if row["episodes"]]
    counts = {name: sum(row[name] for row in rows) for name in ("questions", "episodes", "infra_errors")}
    names = ("em", "em_batch_mean", *_SCORES, "unanswered", "response_tokens", "invalid")
    means = {name: _mean([row[name] for row in told if row[name] is not None]) for name in names}
    em = means["em"]
    if em is None:
        return counts | means | {"em_low": 0.0, "em_high": 1.0}
    below = math.sqrt(sum((row["em"] - row["em_low"]) ** 2 for row in told)) / len(told)
    above = math.sqrt(sum((row["em_high"] - row["em"]) ** 2 for row in told)) / len(told)
    return counts | means | {"em_low": em - below, "em_high": em + above}


#: Key, title and digits of what stands beside the exact match.
_COLUMNS = (
    ("em_batch_mean", "batch EM", 3), ("f1", "F1", 3), ("sub_em", "sub-EM", 3), ("searches", "searches", 2),
    ("tool_use", "tool use", 3), ("response_tokens", "tokens", 1), ("unanswered", "no answer", 3),
    ("invalid", "invalid turns", 3),
)  # fmt: skip

_NOTE = f"  batch EM: mean over batches of {PUBLISHED_BATCH}, as published tables have it; to compare with those alone"


def format_search_table(table: Sequence[Record]) -> str:
    """The table as text, one line per data source and average."""
    lines: list[str] = []
    titles = "  ".join(f"{title:>6}" for _, title, _ in _COLUMNS)
    for row in table:
        at = row["decoding"] if row["temperature"] == 0 else f"T = {row['temperature']:g}"
        head = f"Search-QA, {at}: exact match with 95 % intervals"
        if head not in lines:
            lines += ["", head, _NOTE, f"  {'set':16} {'questions':>9}  {'EM':19}  {titles}"]
        rate = "–" if row["em"] is None else f"{row['em']:.3f} ({row['em_low']:.3f}–{row['em_high']:.3f})"
        cells = "  ".join(_cell(row[key], digits, max(6, len(title))) for key, title, digits in _COLUMNS)
        lost = f"  {row['infra_errors']} lost to infrastructure" if row["infra_errors"] else ""
        lines.append(f"  {row['data_source']:16} {row['questions']:9,}  {rate:19}  {cells}{lost}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int, width: int) -> str:
    return f"{'–' if value is None else f'{value:.{digits}f}':>{width}}"


def _score(record: Record, name: str) -> float:
    """A score of the episode; 0 where it ended before it had any."""
    return float((record.get("scores") or {}).get(name, 0.0))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
