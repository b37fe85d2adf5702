"""The specification of the (N, T) token ops in plain Python, in float64: one row, one token at a time.

Slow on purpose and independent of the backends and the input checks; tests compare everything with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepopsd.ops.future_options import FutureOptions

TINY = 1e-8


def oar_reference(
    scores: Tensor,
    mask: Tensor,
    *,
    quantile: float = 0.25,
    beta: float = 1.0,
    floor: float = 0.1,
    cut: str = "quantile",
    preserve: bool = True,
    min_tokens: int = 4,
) -> Tensor:
    """(N, T) float64, what ``oar_reshape`` means."""
    weights = torch.ones(scores.shape, dtype=torch.float64)
    for row in range(scores.shape[0]):
        places = mask[row].nonzero()[:, 0].tolist()
        if len(places) < max(1, min_tokens):
            continue
        s = [float(scores[row, t]) for t in places]
        w = _weights(s, quantile, beta, floor, cut, preserve) if all(map(math.isfinite, s)) else [math.nan] * len(s)
        for t, value in zip(places, w, strict=True):
            weights[row, t] = value
    return weights


def _weights(s: list[float], level: float, beta: float, floor: float, cut: str, preserve: bool) -> list[float]:
    z = [math.log1p(max(x, 0.0)) for x in s]
    low, high = min(z), max(z)
    n = [(x - low) / (high - low if high > low else 1.0) for x in z]
    threshold = level if cut == "absolute" else _quantile(n, level)
    w = []
    for x in n:
        if x < threshold:
            w.append(max(x / (threshold + TINY), floor))
        else:
            w.append(1 + beta * (x - threshold) / (1 - threshold + TINY))
    if not preserve:
        return w
    total = math.fsum(w)
    return [x * len(w) / total for x in w]


def _quantile(values: list[float], level: float) -> float:
    ordered = sorted(values)
    position = level * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def future_reference(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, entropies: Tensor | None, options: FutureOptions
) -> Tensor:
    """(1, N, T) future values in float64, or (2, N, T) with the branching scores; what ``future_branching`` means."""
    shape = mask.shape
    future, scores = torch.ones(shape, dtype=torch.float64), torch.full(shape, -math.inf, dtype=torch.float64)
    for row in range(shape[0]):
        sums = _future_sums(logprobs[row].tolist(), old_logprobs[row].tolist(), mask[row].tolist(), options)
        for t, value in sums.items():
            future[row, t] = _clipped_exp(value, options.low, options.high)
        if entropies is None or not sums:
            continue
        ratios = {t: _clipped_exp(value, options.branch_low, options.branch_high) for t, value in sums.items()}
        of_entropy = {t: float(entropies[row, t]) for t in sums}
        for t, value in _branching(ratios, of_entropy, options.gate, options.std_eps).items():
            scores[row, t] = value
    return future[None] if entropies is None else torch.stack((future, scores))


def _future_sums(new: list[float], old: list[float], mask: list[bool], options: FutureOptions) -> dict[int, float]:
    """Place -> Σ_{j >= t} γ^(j - t) log ρ_j, by its definition: quadratic in the length."""
    gaps = {}
    for t, counted in enumerate(mask):
        if counted:
            gap = new[t] - old[t]
            bounded = gap if math.isnan(gap) else max(-options.log_clamp, min(gap, options.log_clamp))
            gaps[t] = 0.0 if gap > options.drop_above else bounded
    places = list(gaps)
    distance = {t: t if options.decay == "position" else i for i, t in enumerate(places)}
    return {
        t: math.fsum(options.gamma ** (distance[j] - distance[t]) * gaps[j] for j in places[i:])
        for i, t in enumerate(places)
    }


def _clipped_exp(x: float, low: float, high: float) -> float:
    return x if math.isnan(x) else max(low, min(math.exp(min(x, 700.0)), high))


def _branching(ratios: dict[int, float], entropies: dict[int, float], gate: bool, eps: float) -> dict[int, float]:
    of_entropy = _z_scores(entropies, eps)
    of_ratio = _z_scores(ratios, eps)
    if of_ratio is None:
        return of_entropy or dict.fromkeys(entropies, 0.0)
    of_entropy = of_entropy or dict.fromkeys(entropies, 0.0)
    scores = {}
    for t in ratios:
        product = of_ratio[t] * of_entropy[t]
        out = gate and (of_ratio[t] <= 0 or of_entropy[t] <= 0) and not math.isnan(product)
        scores[t] = -math.inf if out else product
    return scores


def _z_scores(values: dict[int, float], eps: float) -> dict[int, float] | None:
    """Distances from the mean in population standard deviations; None where these are at most ``eps``."""
    mean = math.fsum(values.values()) / len(values)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in values.values()) / len(values))
    return None if std <= eps else {t: (x - mean) / std for t, x in values.items()}
