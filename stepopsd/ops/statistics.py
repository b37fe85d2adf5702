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
        step_factors: (M,) float, c_k per live step and NaN elsewhere; None when the budget did not run.
    """
    counted = active & delta.isfinite() & weights.isfinite()
    count = counted.sum()
    delta_mean, delta_std = _moments(delta, counted, count)
    delta_min, delta_max = _extremes(delta, counted, 0)
    weight_mean, weight_std = _moments(weights, counted, count)
    weight_min, weight_max = _extremes(weights, counted, 0)
    factors = delta.new_full((1,), float("nan")) if step_factors is None else step_factors
    live = factors.isfinite()
    steps = live.sum()
    scale_min, scale_max = _extremes(factors, live, 1)
    clamped = (factors <= 1 / SCALE_LIMIT + _EDGE) | (factors >= SCALE_LIMIT - _EDGE)
    return ShapingStats(
        count=count,
        nonfinite=active.sum() - count,
        delta_mean=delta_mean,
        delta_std=delta_std,
        delta_min=delta_min,
        delta_max=delta_max,
        delta_abs_mean=_moments(delta.abs(), counted, count)[0],
        weight_mean=weight_mean,
        weight_std=weight_std,
        weight_min=weight_min,
        weight_max=weight_max,
        at_low=_share((weights <= 1 - alpha_clip + _EDGE) & counted, count),
        at_high=_share((weights >= 1 + alpha_clip - _EDGE) & counted, count),
        steps=steps,
        scale_min=scale_min,
        scale_max=scale_max,
        scale_clamped=_share(clamped & live, steps),
    )


def _moments(x: Tensor, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of the masked values, 0 where there is none."""
    wide = x.double()
    mean = wide.where(mask, 0).sum() / count.clamp(min=1)
    variance = (wide - mean).square().where(mask, 0).sum() / count.clamp(min=1)
    return mean.to(x.dtype), variance.sqrt().to(x.dtype)


def _extremes(x: Tensor, mask: Tensor, empty: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest masked value, ``empty`` where there is none."""
    low, high = x.where(mask, float("inf")).reshape(-1), x.where(mask, float("-inf")).reshape(-1)
    # one more element, so that tensors without elements have extremes too
    low, high = (torch.cat((v, v.new_full((1,), end))) for v, end in ((low, float("inf")), (high, float("-inf"))))
    there = mask.any()
    return low.amin().where(there, empty), high.amax().where(there, empty)


def _share(mask: Tensor, count: Tensor) -> Tensor:
    return mask.sum() / count.clamp(min=1)
