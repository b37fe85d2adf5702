"""Which tokens of a host's rows belong to one step of one episode, where the host says so by masks and names alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def step_ids(masks: Sequence[Tensor], sessions: Sequence[int], places: Sequence[int]) -> list[Tensor]:
    """int32 step of every token, -1 outside: sampled stretches, counted through a session's rows.

    Example:
        >>> step_ids([torch.tensor([True, False, True])], [0], [0])
        [tensor([ 0, -1,  1], dtype=torch.int32)]
    """
    out: list[Tensor] = [torch.empty(0)] * len(masks)
    taken: dict[int, int] = {}
    for i in sorted(range(len(masks)), key=lambda i: (sessions[i], places[i])):
        mask = masks[i]
        begins = mask & ~torch.cat([mask.new_zeros(1), mask[:-1]])
        first = taken.get(sessions[i], 0)
        out[i] = torch.where(mask, begins.cumsum(0) - 1 + first, -1).int()
        taken[sessions[i]] = first + int(begins.sum())
    return out


def numbered(names: Sequence[Any]) -> list[int]:
    """Equal names -> equal numbers, from 0 in the order of their first appearance.

    Example:
        >>> numbered(["b", "a", "b"])
        [0, 1, 0]
    """
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]
