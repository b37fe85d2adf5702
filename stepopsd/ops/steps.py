"""Per-step statistics and the per-step credit budget: sort once, then reduce segments in a fixed order.

A step is a (trajectory id, step id) pair; its tokens may lie in several rows and in any order. Sums run in float64
over each step's own tokens in position order, without float atomics, so a step's bits do not depend on its batch.
Buffers have one slot per token (there cannot be more steps), so nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

EPS = 1e-6
SCALE_LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Statistics per step in (trajectory, step) order; M slots, unused ones have count 0 and value 0.

    Attributes:
        trajectory_ids, step_ids: (M,) int64, -1 in unused slots.
        count: (M,) int64 tokens.
        sum, mean, std, min, max: (M,) float64; std is the population's.
    """

    trajectory_ids: torch.Tensor
    step_ids: torch.Tensor
    count: torch.Tensor
    sum: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    min: torch.Tensor
    max: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Segments:
    """Tokens sorted by (trajectory, step), position order inside a step. All tensors are (M,) int64."""

    order: torch.Tensor  # sorted place -> token
    slot: torch.Tensor  # sorted place -> step slot
    length: torch.Tensor  # step slot -> tokens; 0 in unused slots
    first: torch.Tensor  # step slot -> sorted place of its first token (clamped in unused slots)


def step_statistics(
    values: torch.Tensor, step_ids: torch.Tensor, trajectory_ids: torch.Tensor
) -> StepStatistics:
    """Count, sum, mean, standard deviation and extremes of ``values`` in every step.

    Args:
        values: (M,) float. NaN and infinite values make their own step's moments so, and no other's.
        step_ids: (M,) int; negative means in no step.
        trajectory_ids: (M,) int.

    Returns:
        ``StepStatistics`` with M slots. Deterministic; a step's bits do not depend on the other steps.

    Example:
        >>> s = step_statistics(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), torch.tensor([5, 5]))
        >>> s.mean[0].item(), s.count.tolist()
        (2.0, [2, 0])
    """
    seg = _segments(step_ids, trajectory_ids)
    live = step_ids.gather(0, seg.order) >= 0
    x = values.gather(0, seg.order).double().where(live, 0)
    token = seg.order.gather(0, seg.first)
    step, trajectory = step_ids.gather(0, token).long(), trajectory_ids.gather(0, token).long()
    used = (seg.length > 0) & (step >= 0)
    count = seg.length.where(used, 0)
    total = _sum(x, seg.length)
    mean = total / count.clamp(min=1)
    variance = _sum((x - mean.gather(0, seg.slot)).square().where(live, 0), seg.length) / count.clamp(min=1)
    low, high = (torch.segment_reduce(x, how, lengths=seg.length, unsafe=True) for how in ("min", "max"))
    return StepStatistics(
        trajectory.where(used, -1),
        step.where(used, -1),
        count,
        *(v.where(used, 0) for v in (total, mean, variance.sqrt(), low, high)),
    )


def step_scales(
    values: torch.Tensor, step_ids: torch.Tensor, trajectory_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors c_k = clamp(mean_k m_k / (m_k + 1e-6), 1/2, 2) that give every step of a trajectory the same budget.

    m_k is the mean |value| of step k, and mean_k runs over the trajectory's live steps, each counted once.

    Args:
        values: (M,) float, shaped advantages or their ratio to the plain ones. Tokens with NaN or infinite values
            are left out of the means, so that one broken row does not reach its neighbours.
        step_ids: (M,) int; negative means in no step.
        trajectory_ids: (M,) int.

    Returns:
        (M,) factor per token, 1 outside steps and in trajectories with fewer than two live steps or without any
        advantage; and (M,) factor per live step in (trajectory, step) order, 0 in unused slots. Dtype of
        ``values``.

    Source: ``equal_step_mean_abs`` of StepOPSD (arXiv 2605.27140).
    """
    seg = _segments(step_ids, trajectory_ids)
    x = values.gather(0, seg.order).double().abs()
    counted = (step_ids.gather(0, seg.order) >= 0) & x.isfinite()
    count = _sum(counted.double(), seg.length)
    live = count > 0
    m = _sum(x.where(counted, 0), seg.length) / count.clamp(min=1)

    group, steps_in_group = _groups(seg, trajectory_ids.gather(0, seg.order))
    live_steps = _sum(live.double(), steps_in_group)
    mean = (_sum(m.where(live, 0), steps_in_group) / live_steps.clamp(min=1)).gather(0, group)
    budgeted = live & (live_steps.gather(0, group) >= 2) & (mean > 0)
    c = (mean / (m + EPS)).clamp(1 / SCALE_LIMIT, SCALE_LIMIT).where(budgeted, 1)

    in_step = step_ids.gather(0, seg.order) >= 0
    scale = torch.ones_like(values)
    scale.scatter_(0, seg.order, c.gather(0, seg.slot).where(in_step, 1).to(values.dtype))
    return scale, c.where(live, 0).to(values.dtype)


def _segments(step_ids: torch.Tensor, trajectory_ids: torch.Tensor) -> _Segments:
    steps = step_ids.long().clamp(min=-1)
    trajectories = trajectory_ids.long()
    order = steps.argsort(stable=True)
    order = order.gather(0, trajectories.gather(0, order).argsort(stable=True))
    new = _changes(trajectories.gather(0, order)) | _changes(steps.gather(0, order))
    slot = new.long().cumsum(0) - 1
    length = _lengths(slot)
    first = (length.cumsum(0) - length).clamp(max=max(0, slot.numel() - 1))
    return _Segments(order, slot, length, first)


def _groups(seg: _Segments, trajectory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Step slot -> trajectory slot, and steps per trajectory slot, from the sorted trajectory ids."""
    group = (_changes(trajectory).long().cumsum(0) - 1).gather(0, seg.first)
    return group, _lengths(group.where(seg.length > 0, group.numel()))


def _changes(keys: torch.Tensor) -> torch.Tensor:
    new = torch.zeros_like(keys, dtype=torch.bool)
    new[1:] = keys[1:] != keys[:-1]
    new[:1] = True
    return new


def _lengths(slot: torch.Tensor) -> torch.Tensor:
    """How often each of 0..M-1 occurs in the (M,) slots; M stands for none."""
    counts = slot.new_zeros(slot.numel() + 1)  # integer adds: exact in any order
    return counts.scatter_add_(0, slot, torch.ones_like(slot))[:-1]


def _sum(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    # unsafe skips a check of the lengths that would wait for the device
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
