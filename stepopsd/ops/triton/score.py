"""Launcher of the score kernels: rows of logits in, log-prob, log-sum-exp and entropy out."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from stepopsd.ops.triton.table import Launch, launch_for

VECTOR_BYTES = 16
BLOCK = 128  # rows that one program merges
# Only the products that the kernels fuse with a sum are fused: one choice for all variants of a kernel, so that rows
# have the same bits with and without entropies, and at every alignment.
OPTIONS = {"enable_fp_fusion": False}


def score_rows(
    logits: Sequence[Tensor],
    ids: Tensor,
    active: Tensor,
    *,
    temperature: float | Tensor,
    entropy: bool,
    normaliser: bool = False,
    launch: Launch | None = None,
) -> Tensor:
    """Score the selected tokens under one or two logits tensors, each logit read once.

    One launch for vocabularies below 16,384 logits and two for larger ones; twice as many for tensors of two dtypes.
    Inactive rows read no logits, id or temperature: all zeros. A NaN, a +inf, or only -inf in an active row gives NaN
    in that row of that tensor alone; an id outside [0, V) gives a log-prob of NaN. Logits below -1e30 count as -inf.
    The bits of a row follow from its values and its temperature alone, not from its place in the batch or in memory,
    or from a second tensor.

    Args:
        logits: one or two tensors (B, R, V) bf16, fp16 or fp32; any stride over B and R, stride 1 over V.
        ids: (...) int64 selected tokens, B·R of them, contiguous.
        active: (...) bool, the rows to score, contiguous.
        temperature: divides the logits, > 0; a number, or one for each row, (...) fp32, contiguous.
        entropy: also compute entropies.
        normaliser: also return what ``gradient_rows`` needs.
        launch: launch shape, by default the device's row of the table.

    Returns:
        (K, 3, ...) fp32: log-prob of the id, log-sum-exp of logits / temperature, entropy in nats (0 unless asked
        for). With ``normaliser`` (K, 5, ...): also peak and log-mass in base 2, with
        sum_j 2^(x_j * log2(e) / temperature - peak) = 2^log_mass.

    Example:
        >>> scored = score_rows([student, teacher], ids, ids >= 0, temperature=1.0, entropy=False)
        >>> delta = scored[1, 0] - scored[0, 0]
    """
    first = logits[0]
    out = torch.empty((len(logits), 5 if normaliser else 3, *ids.shape), dtype=torch.float32, device=first.device)
    if ids.numel() == 0:
        return out
    launch = launch_for(first.device) if launch is None else launch
    with torch.cuda.device_of(first):
        if len({x.dtype for x in logits}) == 1:
            _score(logits, ids, active, temperature, entropy, launch, out)
        else:
            for x, result in zip(logits, out.split(1), strict=True):
                _score([x], ids, active, temperature, entropy, launch, result)
    return out


def _score(logits: Sequence[Tensor], ids: Tensor, active: Tensor, temperature: float | Tensor, entropy: bool,
           launch: Launch, out: Tensor) -> None:  # fmt: skip
    """Score tensors of one dtype into ``out``."""
    from stepopsd.ops.triton.score_kernels import merge_kernel, score_kernel

    first, second = logits[0], logits[-1]
    count, rows, inner, vocab = len(logits), ids.numel(), *first.shape[1:]
    sizes, width = (count, out.shape[1], rows), VECTOR_BYTES // first.element_size()
    splits, chunk = launch.split(vocab)
    partial = out if splits == 1 else out.new_empty((4, splits, count * rows))
    live, starts = active.view(torch.uint8), [row_starts(x) for x in logits]
    shared = (live, *_temperature(temperature), out, partial)
    score_kernel[(count * rows * splits,)](
        first, second, ids, *shared, *sizes, inner, vocab, splits, chunk,
        starts[0][0], *first.stride()[:2], starts[-1][0], *second.stride()[:2],
        WIDTH=width, SHIFTED=any(map(any, starts)), THREADS=launch.threads, GROUPS=launch.groups,
        POLYNOMIAL=launch.polynomial if width == 8 else 0, ENTROPY=entropy, num_warps=launch.num_warps, **OPTIONS,
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(-(-count * rows // BLOCK),)](*shared, *sizes, splits, BLOCK=BLOCK, ENTROPY=entropy, **OPTIONS)


def _temperature(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    """What the kernels take: the rows' temperatures, or log2(e) / temperature rounded as the kernels round it."""
    if isinstance(temperature, Tensor):
        return temperature, 0.0
    return None, _single(math.log2(math.e)) / _single(temperature)


def _single(x: float) -> float:
    """Round to fp32; the quotient of two such, taken in double and rounded, is the fp32 quotient."""
    return float(struct.unpack("f", struct.pack("f", x))[0])


def row_starts(x: Tensor) -> tuple[int, int, int]:
    """What base and strides add to the place of a row's start behind a 16-byte boundary, in elements."""
    size = x.element_size()
    strides = (stride if length > 1 else 0 for stride, length in zip(x.stride()[:2], x.shape[:2], strict=True))
    base, outer, inner = (offset % (VECTOR_BYTES // size) for offset in (x.data_ptr() // size, *strides))
    return base, outer, inner
