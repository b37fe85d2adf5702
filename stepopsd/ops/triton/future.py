"""Launcher of the future kernel: log-probs in, clipped future ratios and branching scores out; one program per row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepopsd.ops.future_options import FutureOptions

THREADS = 128
BLOCK = 1024  # tokens that a program scans at a time; the same for all widths, so that a row's bits do not know its own


def future_rows(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, entropies: Tensor | None, options: FutureOptions
) -> Tensor:
    """Future values, and branching scores where there are entropies, in one launch; see ``future_branching``.

    What lies outside the mask is not read. The bits of a row follow from its own values, not from its batch or from the
    width that it is padded to.

    Args:
        logprobs, old_logprobs, entropies: (N, T) fp32, contiguous.
        mask: (N, T) bool, contiguous.
        options: of the two.

    Returns:
        (1, N, T) fp32 future values, or (2, N, T) with the scores.

    Example:
        >>> future, scores = future_rows(new, old, mask, entropies, FutureOptions())
    """
    from stepopsd.ops.triton.future_kernels import future_kernel

    rows, width = mask.shape
    scored = entropies is not None
    out = torch.empty((1 + scored, rows, width), dtype=torch.float32, device=mask.device)
    if mask.numel() == 0:
        return out
    clips = (options.low, options.high, options.branch_low, options.branch_high)
    warp = 32 if torch.version.hip is None else 64
    with torch.cuda.device_of(mask):
        future_kernel[(rows,)](
            logprobs, old_logprobs, mask.view(torch.uint8), entropies, out[0], out[1] if scored else None, width,
            float(options.gamma), float(options.log_clamp), float(options.drop_above),
            *(bound for x in clips for bound in (float(x), math.log(x))), float(options.std_eps),
            VALID_DECAY=options.decay == "valid", SCORED=scored, GATE=options.gate, BLOCK=BLOCK,
            num_warps=THREADS // warp,
        )  # fmt: skip
    return out
