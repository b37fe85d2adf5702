"""Launcher of the shape kernel: ready log-probs in, shaped advantages, step budget and statistics out."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments

THREADS = 256
BLOCK = 512  # tokens that a program reads at a time
STEPS, TOKENS = 32, 32  # tile of the step means
PROGRAMS = 128  # at most: one per multiprocessor on most chips, and no more than THREADS
TOKENS_PER_PROGRAM = 64


def shape_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: StepSegments | None,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
) -> tuple[Tensor, Tensor]:
    """Shape token advantages from the two log-probs of each token, in one launch that nothing waits for.

    Inactive tokens read no log-probs: advantage unchanged, weight 1, delta 0, scale 1. NaN in a log-prob or an
    advantage gives NaN for its own token alone; step means and statistics leave it out. The bits of a trajectory
    follow from its own tokens alone, and two runs give the same bits.

    Args:
        student_logprobs: (...) fp32, contiguous.
        teacher_logprobs: (...) fp32, contiguous.
        advantages: (...) fp32, contiguous.
        active: (...) bool, contiguous; the tokens to shape. With segments these must be the tokens in steps.
        segments: steps of the budget, or None for no budget.
        alpha_clip: half-width of the weight's clip range around 1.
        lambda_mix: share of the weight in the blend, in [0, 1]; 0 returns the advantages bit for bit.
        weight_fn: ``"sigmoid"`` or ``"exp"``.
        step_norm: ``"equal_step_mean_abs"`` or ``"equal_step_ratio"``; only read with segments.

    Returns:
        (4, ...) fp32: shaped, weight, delta, scale; and (17,) float64, the statistics in the order of
        ``results.STATISTICS``.

    Example:
        >>> planes, statistics = shape_rows(student, teacher, advantages, active, segments, alpha_clip=0.2,
        ...                                 lambda_mix=0.2, weight_fn="sigmoid", step_norm="equal_step_mean_abs")
        >>> shaped, weight, delta, scale = planes
    """
    from stepopsd.ops.triton.shape_kernels import shape_kernel

    tokens, device = advantages.numel(), advantages.device
    programs = max(1, min(PROGRAMS, -(-tokens // TOKENS_PER_PROGRAM)))
    planes = torch.empty((4, *advantages.shape), dtype=torch.float32, device=device)
    statistics = torch.empty(len(STATISTICS), dtype=torch.float64, device=device)
    records = torch.empty((len(STATISTICS), programs), dtype=torch.float64, device=device)
    ratio = step_norm == "equal_step_ratio" and segments is not None
    values = None if segments is None else torch.empty((1 + ratio, tokens), dtype=torch.float32, device=device)
    # Zeroed for every call: a counter that outlived its call would tie captured graphs and streams to each other.
    arrived = torch.zeros(1, dtype=torch.int32, device=device)
    warp = 32 if torch.version.hip is None else 64
    tables = (None,) * 4 if segments is None else segments.tensors
    with torch.cuda.device_of(advantages):
        shape_kernel[(programs,)](
            student_logprobs, teacher_logprobs, advantages, active.view(torch.uint8), *tables, planes, statistics,
            values, records, arrived, tokens, 1.0 - alpha_clip, 1.0 + alpha_clip, float(lambda_mix),
            EXPONENTIAL=weight_fn == "exp", BUDGET=segments is not None, RATIO=ratio,
            STEPS=STEPS, TOKENS=TOKENS, BLOCK=BLOCK, LANES=THREADS, num_warps=THREADS // warp,
        )  # fmt: skip
    return planes, statistics
