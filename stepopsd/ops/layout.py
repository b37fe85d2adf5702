"""From any leading shape and strides to the (B, R, V) blocks that kernels take, without copying logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

Index = tuple[int, ...]


def row_blocks(*logits: torch.Tensor) -> Iterator[tuple[Index, tuple[torch.Tensor, ...]]]:
    """Views (B, R, V) that together cover tensors of one shape (..., V).

    Tensors of two or three dimensions are such a block as they are. Of others, dimensions that are contiguous with
    each other in every tensor are merged. Up to two groups are left in practice and give one block; more are walked
    along the outermost dimensions.

    Yields:
        The index into the leading dimensions, () for everything, and the block of each tensor.
    """
    if logits[0].ndim == 3:
        yield (), logits
    elif logits[0].ndim == 2:
        yield (), tuple(x.unsqueeze(0) for x in logits)
    elif all(x.is_contiguous() for x in logits):
        yield (), tuple(x.view(1, -1, x.shape[-1]) for x in logits)
    else:
        yield from _walk((), logits)


def _walk(index: Index, logits: tuple[torch.Tensor, ...]) -> Iterator[tuple[Index, tuple[torch.Tensor, ...]]]:
    lead = logits[0].shape[:-1]
    breaks = [i for i in range(1, len(lead)) if lead[i] != 1 and not all(_continues(x, i) for x in logits)]
    if len(breaks) > 1:
        for i in range(lead[0]):
            yield from _walk((*index, i), tuple(x[i] for x in logits))
        return
    split = breaks[0] if breaks else 0
    rows = lead[split:].numel()
    yield index, tuple(x.view(lead[:split].numel(), rows, x.shape[-1]) for x in logits)


def _continues(x: torch.Tensor, i: int) -> bool:
    """Dimension ``i`` and the next outer one that is not 1 long are walked with one stride."""
    outer = next((j for j in range(i - 1, -1, -1) if x.shape[j] != 1), None)
    return outer is None or x.stride(outer) == x.stride(i) * x.shape[i]


def check_ids(ids: torch.Tensor, active: torch.Tensor, vocab: int) -> None:
    """Raise IndexError that names the first active token whose id is outside [0, ``vocab``)."""
    bad = active & ((ids < 0) | (ids >= vocab))
    if not bool(bad.any()):
        return
    place = tuple(bad.nonzero()[0].tolist())
    raise IndexError(f"token_ids must lie in [0, {vocab}), got {int(ids[place])} at position {place}")
