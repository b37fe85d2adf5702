"""Rows side by side in one sequence: compute follows real tokens instead of the longest row (arXiv 2107.02027).

Rows go into bins as wide as the longest of them, each attending to itself alone and counting its positions from 0, so
that what a row reads is what it would read alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Bins = list[list[int]]


@dataclass(frozen=True, slots=True)
class Packed:
    """B bins of W positions.

    Attributes:
        ids: (B, W) int64, padding id where no row is.
        positions: (B, W) int64, place of a token in its row; 0 in padding.
        segments: (B, W) int64, number of the row in its bin, from 1; 0 in padding.
        at: (N, T) int64, index of a row's token in the flattened bins; 0 beyond the row's end.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    at: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, W, W) additive mask in ``dtype``: causal inside a row, nothing else; padding sees itself."""
        width = self.ids.shape[1]
        same = self.segments[:, :, None] == self.segments[:, None, :]
        allowed = same & torch.ones(width, width, dtype=torch.bool, device=self.ids.device).tril()
        return torch.zeros(allowed.shape, dtype=dtype, device=self.ids.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )[:, None]


def fill_bins(lengths: Sequence[int], capacity: int, most: int) -> Bins:
    """First fit: every row into the first of ``most`` bins that has room; rows that find none are left out.

    Example:
        >>> fill_bins([5, 4, 3, 2, 1], 5, 2)
        [[0], [1, 4]]
    """
    bins: Bins = []
    room: list[int] = []
    for row, length in enumerate(lengths):
        place = next((b for b, left in enumerate(room) if left >= length), len(bins))
        if place == len(bins):
            if place == most or length > capacity:
                continue
            bins.append([])
            room.append(capacity)
        bins[place].append(row)
        room[place] -= length
    return bins


def packed_microbatches(lengths: Tensor, max_tokens: int) -> Iterator[tuple[Tensor, int]]:
    """Row indices and width of the longest row of each micro-batch, whose bins hold at most ``max_tokens`` positions.

    Rows of length 0 are left out; a row longer than ``max_tokens`` gets a micro-batch of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    left = order[lengths[order] > 0].tolist()
    sizes = lengths.tolist()
    while left:
        width = sizes[left[0]]
        taken = {i for own in fill_bins([sizes[row] for row in left], width, max(1, max_tokens // width)) for i in own}
        yield torch.tensor([row for i, row in enumerate(left) if i in taken], device=lengths.device), width
        left = [row for i, row in enumerate(left) if i not in taken]


def pack(input_ids: Tensor, lengths: Tensor, pad_id: int, *, flat: bool = False) -> Packed:
    """Put rows into bins, as ``packed_microbatches`` chose them.

    Args:
        input_ids: (N, T) int64, right-padded.
        lengths: (N,) int64.
        pad_id: Fills the ends of bins.
        flat: One bin for all, for attention kernels that take rows of any length.
    """
    sizes = [int(size) for size in lengths.tolist()]
    capacity = sum(sizes) if flat else max(sizes)
    bins = [list(range(len(sizes)))] if flat else fill_bins(sizes, capacity, len(sizes))
    width = max(sum(sizes[row] for row in own) for own in bins)
    segments = torch.zeros((len(bins), width), dtype=torch.int64)
    positions = torch.zeros((len(bins), width), dtype=torch.int64)
    at = torch.zeros(input_ids.shape, dtype=torch.int64)
    for b, own in enumerate(bins):
        start = 0
        for number, row in enumerate(own, start=1):
            end = start + sizes[row]
            segments[b, start:end] = number
            positions[b, start:end] = torch.arange(sizes[row])
            at[row, : sizes[row]] = torch.arange(b * width + start, b * width + end)
            start = end
    device = input_ids.device
    at, real = at.to(device), torch.arange(input_ids.shape[1], device=device) < lengths[:, None]
    ids = torch.full((len(bins) * width,), pad_id, dtype=torch.int64, device=device)
    ids[at[real]] = input_ids[real]
    return Packed(ids.view(len(bins), width), positions.to(device), segments.to(device), at)


def takes_rows_of_any_length(model: Any) -> bool:
    """Whether transformers can forward rows one after the other with flash-attn, which knows them by their positions.

    Not with gradient checkpointing, whose second forward would come after the attention has been switched back.
    """
    from transformers.utils import is_flash_attn_2_available

    half = model.dtype in (torch.float16, torch.bfloat16)
    # transformers 5 has the other name
    flags = ("is_activation_checkpointing", "is_gradient_checkpointing")
    recomputes = bool(next((getattr(model, flag) for flag in flags if hasattr(model, flag)), False))
    return model.device.type == "cuda" and half and not recomputes and bool(is_flash_attn_2_available())


@contextmanager
def flash_attention(model: Any) -> Iterator[None]:
    """Attention of the model by flash-attn; sampling needs masks of its own, so that it is switched back."""
    before = model.config._attn_implementation
    model.set_attn_implementation("flash_attention_2")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
