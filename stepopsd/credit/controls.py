"""Controls: what a method reads, dealt out at random, so that its size stays and its information goes."""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled_gaps(teacher_logprobs: Tensor, student_logprobs: Tensor, *, seed: int) -> Tensor:
    """Teacher log-probs whose gaps to the student's lie at random other scored tokens.

    Args:
        teacher_logprobs: (N, T) float, NaN where the teacher was not asked.
        student_logprobs: (N, T) float.
        seed: Fixes the deal; the same on every device.

    Returns:
        (N, T) float, NaN where the teacher was not asked. The gaps are a permutation of the given ones up to rounding;
        a log-prob may end up above 0.

    Example:
        >>> shuffled_gaps(torch.tensor([[-1.0, torch.nan]]), torch.tensor([[-3.0, -3.0]]), seed=0)
        tensor([[-1., nan]])
    """
    scored = teacher_logprobs.isfinite()
    gaps = (teacher_logprobs - student_logprobs)[scored]
    order = torch.randperm(len(gaps), generator=torch.Generator().manual_seed(seed)).to(gaps.device)
    out = teacher_logprobs.clone()
    out[scored] = student_logprobs[scored] + gaps[order]
    return out
