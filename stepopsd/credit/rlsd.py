"""RLSD: a privileged teacher redistributes a trajectory's advantage over its tokens (arXiv 2604.03128)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepopsd.credit.base import CreditInputs, CreditResult, broadcast_advantages, register
from stepopsd.credit.mixing import MixingMethod
from stepopsd.credit.stepopsd import gap_metrics
from stepopsd.ops.shaping import ShapedAdvantages, shape_advantages


def rlsd_advantages(
    advantages: Tensor,
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    lambda_mix: float = 0.5,
) -> ShapedAdvantages:
    """Ã = A·((1 - λ) + λ·w) with w = clamp(exp(sign(A)·Δ), 1 - ε, 1 + ε) and Δ = log p_T - log p_S.

    ``shape_advantages`` with ``weight_fn="exp"`` and no step budget.

    Args:
        advantages: (N, T) float32; constant along a trajectory in the paper.
        student_logprobs, teacher_logprobs: (N, T) float, of the sampled tokens without and with privileged context.
        mask: (N, T) bool, tokens that the teacher scored; nothing is read of the others, and they keep A.
        clip: ε in (0, 1].
        lambda_mix: λ in [0, 1]; 0 returns the advantages bit for bit.

    Returns:
        ``ShapedAdvantages``, detached; the sign of A never changes and 0 stays 0.

    Raises:
        ValueError, TypeError: As ``shape_advantages``.

    Example:
        >>> one = torch.ones(1, 1)
        >>> rlsd_advantages(-one, -one, -2 * one, one.bool(), lambda_mix=1.0).advantages
        tensor([[-1.2000]])

    Source: RLSD, arXiv 2604.03128.
    """
    return shape_advantages(
        None, None, None, advantages, torch.where(mask, 0, -1), student_logprobs=student_logprobs,
        teacher_logprobs=torch.where(mask, teacher_logprobs, student_logprobs), alpha_clip=clip,
        lambda_mix=lambda_mix, weight_fn="exp", step_norm="none",
    )  # fmt: skip


@dataclass(frozen=True)
class Rlsd(MixingMethod):
    """RLSD with a linearly decaying mix; every sampled token is weighed.

    Attributes:
        clip: See ``rlsd_advantages``.
    """

    lambda_mix: float = 0.5
    lambda_decay_updates: int = 100
    clip: float = 0.2

    teacher_tokens: ClassVar[Any] = "response"

    def assign(self, inputs: CreditInputs) -> CreditResult:
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        mixing = self.mixing(inputs.update)
        if inputs.teacher_logprobs is None:
            return CreditResult(plain, {"lambda": mixing})
        scored = inputs.teacher_logprobs.isfinite() & inputs.response_mask
        shaped = rlsd_advantages(
            plain, inputs.old_logprobs, inputs.teacher_logprobs, scored, clip=self.clip, lambda_mix=mixing
        )
        metrics = {"lambda": mixing, **gap_metrics(shaped, scored, plain)}
        tokens = {"delta": shaped.delta, "weights": shaped.weights}
        return CreditResult(shaped.advantages, metrics, tokens, 1 + mixing * (shaped.weights - 1))


@register("rlsd")
def build(options: Mapping[str, Any]) -> Rlsd:
    """RLSD from ``credit.rlsd``."""
    names = ("clip", "lambda_mix", "lambda_decay_updates", "diagnose_every")
    return Rlsd(**{name: options["rlsd"][name] for name in names})
