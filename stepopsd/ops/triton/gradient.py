"""Launchers of the gradient kernels: the gradient of rows of logits, and its product with a number on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops.triton.score import OPTIONS, VECTOR_BYTES, row_starts

THREADS = 128
GROUPS = 4  # 16-byte blocks that a thread has in flight
MOST_TRIPS = 8  # of a program's loop
PROGRAMS = 4096  # above this many programs each makes more trips; more than fit on any chip at once


def gradient_rows(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    *,
    temperature: float | Tensor,
    out: Tensor,
) -> None:
    """Write (a [j = id] + p_j (b + c ln p_j)) / temperature for the rows of logits, in one launch.

    Each logit is read once and each element of ``out`` written once, 16 bytes at a time where the rows of both lie
    alike against the 16-byte boundaries, as they always do in place; else logits are read two (fp32: four) bytes at a
    time. Rows that are not active, or whose a, b and c are all 0, are set to 0 and nothing else of them is read. A
    row's bits follow from its values alone.

    Args:
        logits: (B, R, V) bf16, fp16 or fp32; any stride over B and R, stride 1 over V.
        ids: (B, R) int64 selected tokens, contiguous. One outside [0, V) makes its row NaN.
        active: (B, R) bool, contiguous.
        normaliser: (2, B, R) fp32 contiguous, peak and log-mass from ``score_rows``. NaN makes the row NaN.
        coefficients: (3, B, R) fp32 contiguous: a, b, c.
        temperature: as for ``score_rows``.
        out: (B, R, V) of the logits' dtype, V contiguous, rows that do not overlap; may be the memory of the logits.

    Example:
        >>> scored = score_rows([logits], ids, active, temperature=1.0, entropy=False, normaliser=True)[0]
        >>> slope = torch.stack((g, -g, torch.zeros_like(g)))  # of sum(g * logprob)
        >>> gradient_rows(logits, ids, active, scored[3:], slope, temperature=1.0, out=logits)
    """
    if out.numel() == 0:
        return
    from stepopsd.ops.triton.gradient_kernels import gradient_kernel

    width, rows, (inner, vocab) = VECTOR_BYTES // out.element_size(), ids.numel(), out.shape[1:]
    starts = row_starts(out)
    splits, chunk = _divide(rows, vocab, width, any(starts))
    temperatures, number = (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)
    with torch.cuda.device_of(out):
        gradient_kernel[(rows * splits,)](
            logits, ids, active.view(torch.uint8), temperatures, number, normaliser, coefficients, out,
            rows, inner, vocab, splits, chunk, *logits.stride()[:2], starts[0], *out.stride()[:2],
            WIDTH=width, MATCHED=starts == row_starts(logits), BLOCKS=THREADS * GROUPS, num_warps=_warps(),
            **OPTIONS,
        )  # fmt: skip


def scale_rows(rows: Tensor, factor: Tensor) -> None:
    """Multiply in place by a number on the device, in fp32, in one launch that does nothing where it is 1.

    Args:
        rows: (B, R, V) bf16, fp16 or fp32; any stride over B and R, stride 1 over V, rows that do not overlap.
        factor: () fp32 on the device of the rows.

    Example:
        >>> scale_rows(gradient, upstream)
    """
    if rows.numel() == 0:
        return
    from stepopsd.ops.triton.gradient_kernels import scale_kernel

    if rows.is_contiguous() and rows.numel() < 1 << 30:
        rows = rows.view(1, 1, -1)
    count, (inner, vocab), width = rows.shape[0] * rows.shape[1], rows.shape[1:], VECTOR_BYTES // rows.element_size()
    starts = row_starts(rows)
    splits, chunk = _divide(count, vocab, width, any(starts))
    with torch.cuda.device_of(rows):
        scale_kernel[(min(count * splits, PROGRAMS),)](
            rows, factor, count, inner, vocab, splits, chunk, starts[0], *rows.stride()[:2],
            WIDTH=width, BLOCKS=THREADS * GROUPS, num_warps=_warps(), **OPTIONS,
        )  # fmt: skip


def _divide(rows: int, vocab: int, width: int, shifted: bool) -> tuple[int, int]:
    """Programs per row, and blocks that each writes: few where there are few rows, so that all of the chip works."""
    blocks = -(-(vocab + (width - 1 if shifted else 0)) // width)
    trip = THREADS * GROUPS
    trips = max(1, min(MOST_TRIPS, rows * -(-blocks // trip) // PROGRAMS))
    return -(-blocks // (trips * trip)), trips * trip


def _warps() -> int:
    return THREADS // (32 if torch.version.hip is None else 64)
