"""Per-step statistics of any token values, from segments that are reduced in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stepopsd.ops.segments import StepSegments

EPS = 1e-6
SCALE_LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Statistics per step in (trajectory, step) order; M slots, unused ones have count 0 and value 0.

    Attributes:
        count: (M,) int64 tokens.
        sum, mean, std, min, max: (M,) float64; std is the population's.
    """

    count: torch.Tensor
    sum: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    min: torch.Tensor
    max: torch.Tensor


def step_statistics(values: torch.Tensor, segments: StepSegments) -> StepStatistics:
    """Count, sum, mean, standard deviation and extremes of ``values`` in every step.

    Args:
        values: (M,) float. NaN and infinite values make their own step's moments so, and no other's.
        segments: Steps of the M tokens, from ``step_segments``.

    Returns:
        ``StepStatistics`` with M slots. Deterministic; a step's bits do not depend on the other steps.

    Example:
        >>> ids = torch.tensor([0, 0])
        >>> s = step_statistics(torch.tensor([1.0, 3.0]), step_segments(ids, ids))
        >>> s.mean[0].item(), s.count.tolist()
        (2.0, [2, 0])
    """
    x = values.gather(0, segments.order).double()
    count = segments.step_starts.diff()
    total = segment_sum(x, count)
    mean = total / count.clamp(min=1)
    centred = (x - mean.gather(0, step_of_place(segments))).square()
    variance = segment_sum(centred, count) / count.clamp(min=1)
    low, high = (torch.segment_reduce(x, how, lengths=count, unsafe=True) for how in ("min", "max"))
    return StepStatistics(count, *(v.where(count > 0, 0) for v in (total, mean, variance.sqrt(), low, high)))


def step_of_place(segments: StepSegments) -> torch.Tensor:
    """(M,) step slot of each place in ``segments.order``; places of tokens in no step get the last slot."""
    tokens = segments.order.numel()
    places = torch.arange(tokens, device=segments.order.device)
    slot = torch.searchsorted(segments.step_starts[1:].contiguous(), places, right=True)
    return slot.clamp(max=max(0, tokens - 1))


def segment_sum(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(M,) sums of consecutive segments, each in its own order; what lies after the last segment is left out."""
    # unsafe skips a check of the lengths that would wait for the device
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
