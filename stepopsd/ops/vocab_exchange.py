"""Rows whose vocabulary is cut among the ranks of a process group: one exchange of small statistics per call.

Each rank scores its own slice. What it sends for a row are three numbers, or four with the entropy; every rank merges
the numbers of all ranks in rank order, so all of them arrive at the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stepopsd.ops import layout

LN2 = math.log(2)
NOT_OWNED = 1.0  # no log-prob is positive


@dataclass(frozen=True, slots=True)
class Slice:
    """This rank's part of the vocabulary.

    Attributes:
        group: The process group; its ranks hold consecutive slices in rank order.
        start: Id of the first column of the local logits.
        size: Number of local columns.
    """

    group: dist.ProcessGroup
    start: int
    size: int

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Column of each id in the local logits (0 where another rank has it), and whether it is here."""
        column = ids.long() - self.start
        here = (column >= 0) & (column < self.size)
        return column.where(here, 0), here


def merge(scored: Tensor, here: Tensor, ids: Tensor, active: Tensor, part: Slice, *, entropy: bool) -> Tensor:
    """(K, 5, ...) rows of the whole vocabulary from the local ``score_rows`` with normaliser, (K, 5, ...).

    Args:
        scored: Log-prob of the local column, log-sum-exp, entropy, peak and log-mass of the local slice.
        here: (...) bool, the id belongs to this rank.
        ids: (...) ids in the whole vocabulary; checked on CPU, NaN on a GPU where they are outside.
        active: (...) bool, the same on every rank, as is the number of rows.
        part: The local slice.

    Raises:
        ValueError: On CPU: the slices of the ranks do not follow each other without gap. NaN on a GPU.
        IndexError: On CPU: an active id outside the vocabulary.
    """
    logprob, _, spread, peak, mass = scored.unbind(1)
    sent = torch.stack((logprob.where(here, NOT_OWNED), peak, mass, *([spread] if entropy else [])), 1)
    received, slices = _gather(sent, part)
    fits = _fitting(slices)
    if ids.device.type == "cpu":
        _check(slices, fits)
        layout.check_ids(ids, active, int(slices[-1].sum()))
    rows = _merged(received.double()).to(scored.dtype)
    return rows.where(fits, math.nan).where(active, 0)


def _gather(sent: Tensor, part: Slice) -> tuple[Tensor, Tensor]:
    """(ranks, *sent.shape) of what each rank sent, and (ranks, 2) start and size of each slice, in one collective."""
    place = torch.stack([torch.full((), x, dtype=torch.int64, device=sent.device) for x in (part.start, part.size)])
    header = place.view(sent.dtype)  # bits, not numbers: a gather does no arithmetic
    packed = torch.cat((header, sent.reshape(-1)))
    ranks = dist.get_world_size(part.group)
    received = packed.new_empty((ranks, packed.numel()))
    dist.all_gather(list(received.unbind(0)), packed, group=part.group)
    # A clone has strides of its own: those of one row of many would not divide into int64.
    slices = received[:, : header.numel()].clone(memory_format=torch.contiguous_format).view(torch.int64)
    return received[:, header.numel() :].view(ranks, *sent.shape), slices


def _fitting(slices: Tensor) -> Tensor:
    """0-d bool: the slices follow each other from 0 on, in rank order."""
    ends = slices.sum(1).roll(1)
    ends[0] = 0
    return (slices[:, 0] == ends).all()


def _check(slices: Tensor, fits: Tensor) -> None:
    if not bool(fits):
        held = ", ".join(f"[{start}, {start + size})" for start, size in slices.tolist())
        raise ValueError(
            f"vocab_start and the local vocabulary sizes must add up to one vocabulary, slice after slice in rank "
            f"order; the ranks hold {held}"
        )


def _merged(received: Tensor) -> Tensor:
    """(K, 5, ...) rows from (ranks, K, 3 or 4, ...) float64 statistics; entropy 0 where it was not sent.

    With q_r = mass of slice r / mass of all, log p = log p_r + log q_r where slice r has the token, and the entropy is
    Σ q_r (H_r - log q_r): nothing cancels. A slice of -inf only has mass 0 and says nothing else.
    """
    logprobs, peaks, masses, *entropies = received.unbind(2)
    empty = masses == -math.inf
    peak = peaks.where(~empty, -math.inf).amax(0)
    height = (peaks - peak + masses).where(~empty, -math.inf)  # log2 of each slice's mass, seen from the peak
    total = _add_up(height.exp2())
    mass = total.log2().where(total > 0, math.nan)  # nothing but -inf: no distribution
    log_share = (height - mass) * LN2

    logprob = torch.full_like(mass, math.nan)
    for rank in range(len(received)):
        own = logprobs[rank].where(~empty[rank], 0).where(logprobs[rank] != NOT_OWNED, NOT_OWNED)
        logprob = torch.where(own == NOT_OWNED, logprob, own + log_share[rank])
    entropy = torch.zeros_like(mass)
    if entropies:
        entropy = _add_up((log_share.exp() * (entropies[0] - log_share)).where(~empty, 0)).clamp(min=0)
        entropy = entropy.where(~mass.isnan(), math.nan)
    return torch.stack((logprob.clamp(max=0), (peak + mass) * LN2, entropy, peak, mass), 1)


def _add_up(parts: Tensor) -> Tensor:
    """Sum over the ranks, one after the other, so that a row's bits do not depend on the number of rows."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
