"""Launcher of the reshape kernel: outcome scores of tokens in, weights of mean 1 out; one program per row."""

from __future__ import annotations

import torch
from torch import Tensor

THREADS = 256
BLOCK = 2048  # tokens that a program takes at a time; the same for all widths, so that a row's bits do not know its own
LONGEST_ROW = 1 << 20  # counts of tokens are kept in 21 bits


def oar_rows(
    scores: Tensor,
    mask: Tensor,
    *,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
) -> Tensor:
    """Two-tier weights of each row's masked tokens, in one launch; see ``oar_reshape``.

    The quantile is exact: its two order statistics are found two bits at a time. Scores outside the mask are not read.
    The bits of a row follow from its own values, not from its batch or from the width that it is padded to.

    Args:
        scores: (N, T) fp32, contiguous; T at most ``LONGEST_ROW``.
        mask: (N, T) bool, contiguous.
        level: of the quantile, or the cut itself where ``absolute``.
        beta, floor, preserve, min_tokens: as in ``oar_reshape``.

    Returns:
        (N, T) fp32.

    Raises:
        ValueError: Rows longer than ``LONGEST_ROW``.

    Example:
        >>> weights = oar_rows(scores, mask, level=0.25, beta=1.0, floor=0.1, absolute=False, preserve=True,
        ...                    min_tokens=4)
    """
    from stepopsd.ops.triton.oar_kernels import oar_kernel

    rows, width = scores.shape
    if width > LONGEST_ROW:
        raise ValueError(f"the Triton kernel takes rows of at most {LONGEST_ROW} tokens, got {width}")
    weights = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    if scores.numel() == 0:
        return weights
    warp = 32 if torch.version.hip is None else 64
    with torch.cuda.device_of(scores):
        oar_kernel[(rows,)](
            scores, mask.view(torch.uint8), weights, width, float(level), float(beta), float(floor), min_tokens,
            ABSOLUTE=absolute, PRESERVE=preserve, BLOCK=BLOCK, num_warps=THREADS // warp,
        )  # fmt: skip
    return weights
