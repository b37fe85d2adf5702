"""Tokens sorted by trajectory and step: what segment reductions over steps need, made once per batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepSegments:
    """Steps of M tokens as contiguous segments. All int64, on the tokens' device; nothing waits for the device.

    A step is a (trajectory id, step id) pair; its tokens may lie in several rows and in any order. There cannot be
    more steps than tokens, so every table has a slot per token.

    Attributes:
        order: (M,) tokens sorted by (trajectory id, step id, position); tokens in no step come last, by position.
        step_starts: (M + 1,) place in ``order`` where each step begins; slots after the last step hold the number of
            tokens in steps, so their length is 0.
        trajectory_starts: (M + 1,) first step of each trajectory; slots after the last hold the number of steps.
        counts: (2,) number of steps and of trajectories.

    Made by ``step_segments``.
    """

    order: Tensor
    step_starts: Tensor
    trajectory_starts: Tensor
    counts: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.order, self.step_starts, self.trajectory_starts, self.counts]


def sort_steps(step_ids: Tensor, trajectory_ids: Tensor) -> StepSegments:
    """``StepSegments`` of (M,) step and trajectory ids of any integer dtype, in plain PyTorch.

    Negative step ids mean in no step. Sorting is stable: inside a step the tokens keep their order.
    """
    steps = step_ids.long().clamp(min=-1)
    trajectories = trajectory_ids.long().where(steps >= 0, 0)
    order = steps.argsort(stable=True)
    order = order.gather(0, trajectories.gather(0, order).argsort(stable=True))
    inside = steps.gather(0, order) >= 0
    order = order.gather(0, inside.byte().argsort(descending=True, stable=True))

    inside = steps.gather(0, order) >= 0
    tokens = inside.sum()
    new_trajectory = _changes(trajectories.gather(0, order)) & inside
    new_step = (_changes(steps.gather(0, order)) & inside) | new_trajectory
    step = new_step.long().cumsum(0) - 1  # place -> step slot
    places = torch.arange(steps.numel(), device=steps.device)
    step_starts = _starts(new_step, step, places, tokens)
    trajectory_starts = _starts(new_trajectory, new_trajectory.long().cumsum(0) - 1, step, new_step.sum())
    return StepSegments(order, step_starts, trajectory_starts, torch.stack((new_step.sum(), new_trajectory.sum())))


def _starts(new: Tensor, slot: Tensor, values: Tensor, end: Tensor) -> Tensor:
    """(M + 1,): at each slot the value where it begins, ``end`` in the slots that are not used."""
    size = new.numel()
    starts = end.expand(size + 2).clone()
    starts.scatter_(0, slot.where(new, size + 1), values)  # the last place collects what begins nothing
    return starts[: size + 1]


def _changes(keys: Tensor) -> Tensor:
    new = torch.ones_like(keys, dtype=torch.bool)
    new[1:] = keys[1:] != keys[:-1]
    return new
