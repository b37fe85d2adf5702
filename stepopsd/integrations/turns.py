"""What GiGPO asks about turns, from what a host's rollout says about each of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def turn_extras(
    rewards: Sequence[Sequence[float]], states: Sequence[Sequence[Hashable]], turn_ids: Tensor
) -> dict[str, Tensor]:
    """The extras of ``gigpo``, see ``credit/gigpo.py``, for rows that each hold a whole episode.

    Args:
        rewards: Per row and turn, what the environment paid.
        states: Per row and turn, anything hashable that is equal where two turns saw the same (their observations).
        turn_ids: (N, T) int, the turn of each sampled token, -1 elsewhere.

    Raises:
        ValueError: Numbers of turns that differ.

    Example:
        >>> turn_extras([[0.0, 1.0]], [["door", "room"]], torch.tensor([[0, -1, 1]]))["turn_anchors"]
        tensor([[0, 1]])
    """
    counts = (turn_ids.max(1).values + 1).tolist()
    for name, values in (("turn_rewards", rewards), ("turn_states", states)):
        found = [len(row) for row in values]
        if found != counts:
            raise ValueError(f"{name} must hold one value per turn: {counts} turns in the rows, got {found}")
    width, device = max(1, *counts), turn_ids.device
    known: dict[Hashable, int] = {}
    paid = torch.zeros(len(counts), width, device=device)
    numbers = torch.full((len(counts), width), -1, dtype=torch.int64, device=device)
    anchors = numbers.clone()
    for i, count in enumerate(counts):
        paid[i, :count] = torch.tensor(list(rewards[i]), device=device)
        numbers[i, :count] = torch.arange(count, device=device)
        anchors[i, :count] = torch.tensor([known.setdefault(s, len(known)) for s in states[i]], device=device)
    return {
        "turn_rewards": paid, "turn_penalties": torch.zeros_like(paid), "turn_numbers": numbers,
        "turn_anchors": anchors, "turn_of_token": turn_ids.long(),
    }  # fmt: skip
