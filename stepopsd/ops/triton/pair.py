"""Launcher of the pair kernel: teacher and student logits in, shaped advantages out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepopsd.ops.triton.availability import availability
from stepopsd.ops.triton.epilogue import epilogue_rows
from stepopsd.ops.triton.table import Launch, launch_for

# What dispatch asks of a backend module.
__all__ = ["availability", "epilogue_rows", "pair_rows"]

VECTOR_BYTES = 16


def pair_rows(
    student: Tensor,
    teacher: Tensor,
    ids: Tensor,
    advantages: Tensor,
    active: Tensor,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    temperature: float,
    entropy: bool,
    launch: Launch | None = None,
) -> Tensor:
    """Shape token advantages from two logits tensors in one pass over both.

    Inactive rows read no logits: advantage unchanged, weight 1, everything else 0. A NaN, a +inf, or only -inf in an
    active row gives NaN for what depends on it, in that row alone; so does an id outside [0, V). Logits below -1e30
    count as -inf. The bits of a row follow from its values alone, not from its place in the batch or in memory.

    Args:
        student: (B, R, V) bf16, fp16 or fp32; any stride over B and R, stride 1 over V.
        teacher: like ``student``; its dtype may differ.
        ids: (B, R) int64 selected tokens.
        advantages: (B, R) fp32.
        active: (B, R) bool, the rows to shape.
        alpha_clip: half-width of the weight's clip range around 1.
        lambda_mix: share of the weight in the blend, in [0, 1].
        weight_fn: ``"sigmoid"`` or ``"exp"``.
        temperature: divides both logits, > 0.
        entropy: also compute both entropies.
        launch: launch shape, by default the device's row of the table.

    Returns:
        (7, B, R) fp32: shaped, weight, delta, student and teacher log-prob, student and teacher entropy (0 unless
        asked for).

    Example:
        >>> packed = pair_rows(student, teacher, ids, advantages, ids >= 0, alpha_clip=0.2, lambda_mix=0.2,
        ...                    weight_fn="sigmoid", temperature=1.0, entropy=False)
        >>> shaped, weight, delta = packed[:3]
    """
    from stepopsd.ops.triton.kernels import pair_kernel

    batch, inner, vocab = student.shape
    out = torch.empty((7, batch, inner), dtype=torch.float32, device=student.device)
    if batch * inner == 0:
        return out
    launch = launch_for(student.device) if launch is None else launch
    sizes = student.element_size(), teacher.element_size()
    with torch.cuda.device_of(student):
        pair_kernel[(batch * inner,)](
            student, teacher, ids.contiguous(), advantages.contiguous(), active.contiguous().view(torch.uint8), out,
            batch * inner, inner, vocab, _base(student), _base(teacher), *student.stride()[:2], *teacher.stride()[:2],
            math.log2(math.e) / temperature, 1.0 - alpha_clip, 1.0 + alpha_clip, float(lambda_mix),
            THREADS=launch.threads, STUDENT_VEC=VECTOR_BYTES // sizes[0], TEACHER_VEC=VECTOR_BYTES // sizes[1],
            STUDENT_SHIFTED=_shifted(student), TEACHER_SHIFTED=_shifted(teacher),
            EXPONENTIAL=weight_fn == "exp", ENTROPY=entropy, UNROLL=launch.unroll(max(sizes)),
            num_warps=launch.num_warps,
        )  # fmt: skip
    return out


def _base(logits: Tensor) -> int:
    """Elements between the last 16-byte boundary and the first logit."""
    return logits.data_ptr() % VECTOR_BYTES // logits.element_size()


def _shifted(logits: Tensor) -> bool:
    """Whether any row can start off a 16-byte boundary."""
    steps = [stride for stride, size in zip(logits.stride()[:2], logits.shape[:2], strict=True) if size > 1]
    vec = VECTOR_BYTES // logits.element_size()
    return any(offset % vec for offset in (_base(logits), *steps))
