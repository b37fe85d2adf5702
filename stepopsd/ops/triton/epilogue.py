"""Launcher of the epilogue kernel: ready log-probs in, shaped advantages out."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024


def epilogue_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
) -> Tensor:
    """Shape token advantages from the two log-probs of each token.

    Inactive rows read no log-probs: advantage unchanged, weight 1, delta 0. NaN gives NaN in its own row.

    Args:
        student_logprobs: (M,) fp32, contiguous.
        teacher_logprobs: (M,) fp32, contiguous.
        advantages: (M,) fp32, contiguous.
        active: (M,) bool, contiguous; the rows to shape.
        alpha_clip: half-width of the weight's clip range around 1.
        lambda_mix: share of the weight in the blend, in [0, 1].
        weight_fn: ``"sigmoid"`` or ``"exp"``.

    Returns:
        (3, M) fp32: shaped, weight, delta.

    Example:
        >>> shaped, weight, delta = epilogue_rows(student, teacher, advantages, active, alpha_clip=0.2,
        ...                                       lambda_mix=0.2, weight_fn="sigmoid")
    """
    from stepopsd.ops.triton.kernels import epilogue_kernel

    rows = advantages.numel()
    out = torch.empty((3, rows), dtype=torch.float32, device=advantages.device)
    if rows == 0:
        return out
    with torch.cuda.device_of(advantages):
        epilogue_kernel[((rows + BLOCK - 1) // BLOCK,)](
            student_logprobs, teacher_logprobs, advantages, active.view(torch.uint8), out, rows,
            1.0 - alpha_clip, 1.0 + alpha_clip, float(lambda_mix), EXPONENTIAL=weight_fn == "exp", BLOCK=BLOCK,
        )  # fmt: skip
    return out
