"""Where the hindsight block goes: token sequences whose logits score a row's spans under the teacher's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """One packed sequence.

    Attributes:
        ids: Packed token ids.
        positions: Position of each token in its own context.
        visible: Number of leading tokens of the packed sequence that the token may attend to, beside its own segment.
        segments: 0 for the shared beginning, k for the k-th branch.
        reads: (packed index, row position, token), ascending: the logits at the packed index predict the row's token.
    """

    ids: list[int]
    positions: list[int]
    visible: list[int]
    segments: list[int]
    reads: list[tuple[int, int, int]]

    @property
    def is_causal(self) -> bool:
        """A plain causal mask with positions 0..T-1 says the same."""
        return self.positions == list(range(len(self.ids)))

    @property
    def apart(self) -> int:
        """Tokens that a context of its own for every branch would take."""
        branches: dict[int, int] = {}
        for segment, visible in zip(self.segments, self.visible, strict=True):
            if segment > 0:
                branches[segment] = branches.get(segment, visible) + 1
        return sum(branches.values()) if branches else len(self.ids)


def spans_of(step_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open runs of equal step ids >= 0, in order."""
    spans, start = [], 0
    for step, run in groupby(step_ids):
        end = start + len(list(run))
        if step >= 0:
            spans.append((start, end))
        start = end
    return spans


def prefix_context(row: Sequence[int], step_ids: Sequence[int], block: Sequence[int], at: int) -> TeacherContext:
    """The block is inserted once at position ``at`` (in the opening prompt), before everything else."""
    spans = spans_of(step_ids)
    end = max(b for _, b in spans) - 1  # the last scored token predicts nothing
    ids = [*row[:at], *block, *row[at:end]]
    reads = [(t - 1 + len(block), t, row[t]) for a, b in spans for t in range(a, b)]
    return TeacherContext(ids, list(range(len(ids))), list(range(1, len(ids) + 1)), [0] * len(ids), reads)


def suffix_context(row: Sequence[int], step_ids: Sequence[int], block: Sequence[int]) -> TeacherContext:
    """The block is inserted right before every span: c_T = c_S ⊕ h (arXiv 2605.27140).

    All spans share one sequence: the row once, then one branch (block + span) per span that sees the row only up to
    its own start. A dialogue of K steps costs L + K·(|h| + |span|) tokens instead of K whole contexts.
    """
    if not block:
        return prefix_context(row, step_ids, (), 0)
    spans = spans_of(step_ids)
    shared = max(a for a, _ in spans)
    ids, positions = list(row[:shared]), list(range(shared))
    visible, segments = list(range(1, shared + 1)), [0] * shared
    reads: list[tuple[int, int, int]] = []
    for k, (a, b) in enumerate(spans, start=1):
        branch = [*block, *row[a : b - 1]]
        first = len(ids) + len(block) - 1  # the block's last token predicts the span's first
        reads += [(first + t - a, t, row[t]) for t in range(a, b)]
        ids += branch
        positions += range(a, a + len(branch))
        visible += [a] * len(branch)
        segments += [k] * len(branch)
    return TeacherContext(ids, positions, visible, segments, reads)


def collate_contexts(
    contexts: Sequence[TeacherContext], pad_id: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids (B, T), position ids (B, T) and the attention mask.

    The mask is (B, T) where every context is plainly causal, else additive (B, 1, T, T) in ``dtype``.
    """
    width = max(len(c.ids) for c in contexts)

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([v + [fill] * (width - len(v)) for v in values])

    ids = padded([c.ids for c in contexts], pad_id)
    positions = padded([c.positions for c in contexts], 0)
    if all(c.is_causal for c in contexts):
        return ids, positions, padded([[1] * len(c.ids) for c in contexts], 0)
    visible = padded([c.visible for c in contexts], 0)[:, :, None]  # (B, T, 1)
    segments = padded([c.segments for c in contexts], -1)
    index = torch.arange(width)
    shared = (segments == 0)[:, None, :] & (index[None, None, :] < visible)
    own = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None] & (index[:, None] >= index)
    allowed = shared | own | torch.eye(width, dtype=torch.bool)  # padding attends to itself: no empty softmax
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return ids, positions, mask[:, None]
