"""One record per update out of those of all ranks: counts add up, means are weighted by what they are means of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stepopsd.train.metrics import plain

#: Names, and ends of names, whose values add up.
SUMS = ("env_failures", "/count", "/rows", "/tokens", "/steps", "anchor/groups", "branches/asked", "branches/played",
        "teacher/with_peer", "teacher/cut_blocks", "teacher/cut_tokens", "teacher/label_only", "teacher/untold",
        "tokens/generated", "tokens/teacher", "tokens/teacher_saved", "tokens/student", "tokens/forward_generation",
        "tokens/forward_student", "tokens/forward_loss", "tokens/forward_reference")  # fmt: skip
SUM_ROOMS = ("dropped/", "retriever/")
LARGEST = ("seconds", "_max", "/max", "_mib")
MEANS = ("delta/step_abs_max",)  # of each step's largest
SMALLEST = ("/min", "microbatch_tokens")
#: Name, or its beginning -> what a value of it is a mean over; the rest goes by trained tokens.
OVER = {
    "success": "episodes", "reward_mean": "episodes", "turns_mean": "episodes", "context_limit_share": "episodes",
    "env/": "episodes", "invalid_share": "turns", "mixed_groups": "groups", "kept_groups": "groups",
    "advantage/std": "rows", "teacher/failed_with_peer": "failed", "branches/reward_mean": "branches/played",
    "delta/step_": "delta/steps", "delta/": "delta/count",
    "weight/": "delta/count", "advantage/": "delta/count", "step_scale/": "delta/count", "appo/": "appo/tokens",
    "oar/": "oar/rows",
}  # fmt: skip


def merge_records(records: Sequence[Mapping[str, Any]], sizes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The record of the whole update.

    Spreads are pooled about the common mean where the record has one, else about 0; quantiles, correlations and shares
    of sums are means of the ranks' own. A value that only some ranks have is of these.

    Args:
        records: One per rank; 0-d tensors are read.
        sizes: What each rank's means are over: ``episodes``, ``turns``, ``groups``, ``rows``, ``failed``, ``tokens``.

    Example:
        >>> merge_records([{"success": 1.0}, {"success": 0.0}], [{"episodes": 3}, {"episodes": 1}])
        {'success': 0.75}
    """
    plainly = [{key: plain(value) for key, value in record.items()} for record in records]
    names = list(dict.fromkeys(key for record in plainly for key in record))
    return {name: _merged(name, plainly, sizes) for name in names}


def _merged(name: str, records: Sequence[Mapping[str, Any]], sizes: Sequence[Mapping[str, float]]) -> Any:
    having = [(record[name], record, size) for record, size in zip(records, sizes, strict=True) if name in record]
    values = [value for value, _, _ in having]
    if _adds_up(name):
        return sum(values)
    same = all(value == values[0] for value in values) and not name.endswith("std")
    if same or not isinstance(values[0], (int, float)):
        return values[0]
    if name.endswith(LARGEST) and name not in MEANS:
        return max(values)
    if name.endswith(SMALLEST):
        return min(values)
    weights = [_weight(name, record, size) for _, record, size in having]
    if not sum(weights):
        weights = [1.0] * len(values)
    # A rank without a single episode or token has nothing to say about their mean, not even NaN.
    told = [(record, weight) for (_, record, _), weight in zip(having, weights, strict=True) if weight]
    if name.endswith("rms"):
        return math.sqrt(_mean([(record[name] ** 2, weight) for record, weight in told]))
    if name.endswith("std"):
        return _spread(name, told)
    return _mean([(record[name], weight) for record, weight in told])


def _spread(name: str, told: Sequence[tuple[Mapping[str, Any], float]]) -> float:
    """Of the values of all ranks together, from each rank's spread and mean."""
    middle = name.removesuffix("std").rstrip("_")
    middle = middle + "mean" if middle.endswith("/") else middle
    common = _mean([(record.get(middle, 0.0), weight) for record, weight in told])
    square = _mean([(record[name] ** 2 + record.get(middle, 0.0) ** 2, weight) for record, weight in told])
    return math.sqrt(max(0.0, square - common**2))


def _mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(weight * value for value, weight in values) / sum(weight for _, weight in values)


def _adds_up(name: str) -> bool:
    return name.endswith(SUMS) or (name.startswith(SUM_ROOMS) and not name.endswith("_s"))


def _weight(name: str, record: Mapping[str, Any], size: Mapping[str, float]) -> float:
    cell = name.rpartition("/")[0] + "/count"  # delta/peer/up/mean goes by delta/peer/up/count
    if name.count("/") > 1 and cell in record:
        return float(record[cell])
    rooms = (what for start, what in OVER.items() if start.endswith(("/", "_")) and name.startswith(start))
    over = OVER.get(name) or next(rooms, "")
    return float(size.get(over, record.get(over, size.get("tokens", 1.0))))
