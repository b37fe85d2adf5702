"""Group normalisation with the population's standard deviation and a zero rule, for groups of any kind of row."""

from __future__ import annotations

import torch
from torch import Tensor


def population_normalize(
    rewards: Tensor, group_ids: Tensor, trajectory_ids: Tensor | None = None, *, eps: float = 1e-8, min_size: int = 2
) -> Tensor:
    """A = (r - mean) / std of each row's group, std the population's, with nothing added to it.

    Args:
        rewards: (N,) float.
        group_ids: (N,) int64, any numbers.
        trajectory_ids: (N,) int64: mean and std are those of one vote per trajectory, the mean over its rows; None
            gives every row a vote.
        eps: Groups whose standard deviation is below it get 0.
        min_size: Smaller groups get 0.

    Returns:
        (N,) float32.

    Raises:
        ValueError: Shapes that differ.

    Example:
        >>> population_normalize(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64))
        tensor([ 1.7321, -0.5774, -0.5774, -0.5774])
    """
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            f"rewards and group_ids must have one shape (N,), got {tuple(rewards.shape)} and {tuple(group_ids.shape)}"
        )
    out = torch.zeros(rewards.shape, dtype=torch.float64, device=rewards.device)
    for group in torch.unique(group_ids).tolist():
        rows = group_ids == group
        cast = votes(rewards[rows], None if trajectory_ids is None else trajectory_ids[rows])
        mean, std = moments(cast)
        if len(cast) >= min_size and std >= eps:
            out[rows] = (rewards[rows].double() - mean) / std
    return out.float()


def votes(rewards: Tensor, trajectory_ids: Tensor | None) -> Tensor:
    """float64, sorted: the mean reward of each trajectory, or all rewards without ``trajectory_ids``."""
    values = rewards.double()
    if trajectory_ids is not None:
        _, which = torch.unique(trajectory_ids, return_inverse=True)
        count = torch.bincount(which)
        values = torch.zeros(len(count), dtype=torch.float64, device=values.device).index_add_(0, which, values) / count
    # Sorted, so that the order of the rows does not reach the last bits of the mean.
    return values.sort().values


def moments(values: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of at least one value; (0, 0) of none."""
    if not values.numel():
        return 0.0, 0.0
    return float(values.double().mean()), float(values.double().std(correction=0))
