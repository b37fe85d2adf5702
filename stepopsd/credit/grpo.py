"""GRPO: every response token carries its trajectory's group-normalised return (arXiv 2402.03300)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepopsd.credit.base import CreditInputs, CreditMethod, CreditResult, broadcast_advantages, register

STD_EPS = 1e-6


def group_normalize(
    rewards: Tensor,
    group_ids: Tensor,
    trajectory_ids: Tensor,
    *,
    statistics: str = "trajectory",
    divide_by_std: bool = True,
) -> Tensor:
    """Group-relative scalar advantages, A = (r - mean) / (std + 1e-6).

    Args:
        rewards: (N,) float, one value per row; rows of one trajectory may differ by their own penalties.
        group_ids: (N,) int64.
        trajectory_ids: (N,) int64.
        statistics: ``trajectory`` gives every trajectory of a group one vote (the mean over its rows), ``row`` gives
            every row one vote, so that long trajectories weigh more (verl-agent's default).
        divide_by_std: False keeps A = r - mean (Dr. GRPO).

    Returns:
        (N,) float32. Groups whose votes are all equal, or that hold a single vote, give exactly r - mean with no
        division; for equal rows that is 0. The standard deviation is the unbiased one.

    Raises:
        ValueError: an unknown ``statistics``, or shapes that differ.

    Example:
        >>> group_normalize(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([0, 1]))
        tensor([ 0.7071, -0.7071])
    """
    if statistics not in ("trajectory", "row"):
        raise ValueError(f"statistics must be one of trajectory, row, got {statistics!r}")
    if not rewards.shape == group_ids.shape == trajectory_ids.shape:
        raise ValueError(
            "rewards, group_ids and trajectory_ids must have one shape (N,), got "
            f"{tuple(rewards.shape)}, {tuple(group_ids.shape)}, {tuple(trajectory_ids.shape)}"
        )
    values = rewards.double()
    out = torch.zeros_like(values)
    for group in torch.unique(group_ids).tolist():
        rows = (group_ids == group).nonzero().squeeze(1)
        votes = _votes(values[rows], trajectory_ids[rows], statistics)
        centred = values[rows] - votes.mean()
        if float(votes.max() - votes.min()) == 0.0:
            # Equal votes: rounding of the mean must not become an advantage of its own.
            centred = values[rows] - votes[0]
        elif divide_by_std:
            centred = centred / (votes.std() + STD_EPS)
        out[rows] = centred
    return out.float()


def _votes(values: Tensor, trajectory_ids: Tensor, statistics: str) -> Tensor:
    if statistics == "row":
        return values
    return torch.stack([values[trajectory_ids == t].mean() for t in torch.unique(trajectory_ids).tolist()])


@dataclass(frozen=True)
class Grpo(CreditMethod):
    """The scalar advantage on every response token; no teacher."""

    role: ClassVar[Any] = "base"

    def assign(self, inputs: CreditInputs) -> CreditResult:
        return CreditResult(broadcast_advantages(inputs.advantages, inputs.response_mask))


@register("grpo")
def build(options: Mapping[str, Any]) -> Grpo:
    """GRPO takes no options of its own."""
    return Grpo()
