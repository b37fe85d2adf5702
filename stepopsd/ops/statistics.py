"""Statistics of one shaping call as 0-d tensors, computed without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops.results import ShapingStats
from stepopsd.ops.steps import SCALE_LIMIT

_EDGE = 1e-6  # distance below which a value counts as clipped; backends differ in the last bits


def shaping_statistics(
    delta: Tensor, weights: Tensor, active: Tensor, alpha_clip: float, step_factors: Tensor | None
) -> ShapingStats:
    """Count, moments, extremes and clip shares of Δ, w and the step factors.

    Args:
        delta, weights: (...) float.
        active: (...) bool, tokens of steps.
        alpha_clip: α of the clip.
        step_factors: (M,) float, c_k per live step and 0 elsewhere; None when the budget did not run.
    """
    counted = (active & delta.isfinite() & weights.isfinite()).reshape(-1)
    count = counted.sum()
    # the three rows are reduced together: on a GPU the number of launches is what this costs
    rows = torch.stack((delta.reshape(-1), delta.reshape(-1).abs(), weights.reshape(-1)))  # (3, M)
    mean, std, low, high = _summary(rows, counted, count)
    w = rows[2]
    steps, scale_min, scale_max, clamped = _factors(delta, step_factors)
    return ShapingStats(
        count=count,
        nonfinite=active.sum() - count,
        delta_mean=mean[0],
        delta_std=std[0],
        delta_min=low[0],
        delta_max=high[0],
        delta_abs_mean=mean[1],
        weight_mean=mean[2],
        weight_std=std[2],
        weight_min=low[2],
        weight_max=high[2],
        at_low=_share((w <= 1 - alpha_clip + _EDGE) & counted, count),
        at_high=_share((w >= 1 + alpha_clip - _EDGE) & counted, count),
        steps=steps,
        scale_min=scale_min,
        scale_max=scale_max,
        scale_clamped=clamped,
    )


def _summary(rows: Tensor, counted: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, population standard deviation, minimum and maximum per row of (K, M), 0 where nothing is counted."""
    if counted.numel() == 0:
        zero = rows.new_zeros(rows.shape[0])
        return zero, zero.clone(), zero.clone(), zero.clone()
    wide, divisor = rows.double(), count.clamp(min=1)
    mean = wide.where(counted, 0).sum(1) / divisor
    variance = (wide - mean[:, None]).where(counted, 0).square().sum(1) / divisor
    there = count > 0
    low = rows.where(counted, float("inf")).amin(1).where(there, 0)
    high = rows.where(counted, float("-inf")).amax(1).where(there, 0)
    return mean.to(rows.dtype), variance.sqrt().to(rows.dtype), low, high


def _factors(like: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Live steps, smallest and largest factor, and share at the clamp; 0, 1, 1, 0 where no step is live."""
    if factors is None or factors.numel() == 0:
        one = like.new_ones(())
        return torch.zeros((), dtype=torch.int64, device=like.device), one, one.clone(), like.new_zeros(())
    live = factors > 0
    steps = live.sum()
    low = factors.where(live, float("inf")).amin().where(steps > 0, 1)
    high = factors.amax().where(steps > 0, 1)
    edge = (factors <= 1 / SCALE_LIMIT + _EDGE) | (factors >= SCALE_LIMIT - _EDGE)
    return steps, low, high, _share(edge & live, steps)


def _share(mask: Tensor, count: Tensor) -> Tensor:
    return mask.sum() / count.clamp(min=1)
