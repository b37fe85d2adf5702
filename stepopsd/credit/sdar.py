"""SDAR: GRPO plus a gated pull towards the privileged teacher on the sampled tokens (arXiv 2605.15155)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepopsd.credit.base import (
    AuxiliaryInputs,
    AuxiliaryLoss,
    CreditInputs,
    CreditMethod,
    CreditResult,
    broadcast_advantages,
    register,
)
from stepopsd.ops.linear import linear_token_logprobs
from stepopsd.ops.logprobs import token_logprobs

ACTIVE = 0.5  # a gate above it: the teacher likes the token more than the policy does


def sdar_loss(
    logprobs: Tensor,
    teacher_logprobs: Tensor,
    token_weights: Tensor,
    *,
    coefficient: float = 0.01,
    beta: float = 5.0,
) -> AuxiliaryLoss:
    """coefficient·Σ weights·g·(log p_T - log p), with the constant gate g = σ(β·(log p_T - log p)).

    Args:
        logprobs: (...) float, of the sampled tokens under the policy; carries the gradient.
        teacher_logprobs: (...) float, of the same tokens with privileged context; a constant.
        token_weights: (...) float, e.g. 1 / tokens for the mean; tokens of weight 0 may hold anything.
        coefficient: Weight of the term beside the policy loss.
        beta: Sharpness of the gate; 0 makes it ½ everywhere, which is GRPO + OPSD.

    Returns:
        The loss, 0-d, and ``gate_mean``, ``gate_active`` (share of gates above ½), ``gap_mean`` over tokens of weight
        other than 0.

    The gradient by log p is -coefficient·weight·g: the teacher's value enters through the gate alone.

    Example:
        >>> policy = torch.tensor([-1.0], requires_grad=True)
        >>> sdar_loss(policy, torch.tensor([-1.0]), torch.ones(1), coefficient=1.0).loss.backward()
        >>> policy.grad
        tensor([-0.5000])

    Source: SDAR, arXiv 2605.15155.
    """
    counted = token_weights != 0
    gap = torch.where(counted, teacher_logprobs.detach() - logprobs, 0)
    gate = torch.sigmoid(beta * gap.detach())
    loss = coefficient * (token_weights * gate * gap).sum()
    count = counted.sum().clamp(min=1)
    metrics = {
        "gate_mean": gate.where(counted, 0).sum() / count,
        "gate_active": ((gate > ACTIVE) & counted).sum() / count,
        "gap_mean": gap.detach().sum() / count,
    }
    return AuxiliaryLoss(loss, metrics)


@dataclass(frozen=True)
class Sdar(CreditMethod):
    """The incoming advantages unchanged, and the gated term on every token that the teacher scored.

    Attributes:
        coefficient, beta: See ``sdar_loss``.
    """

    coefficient: float = 0.01
    beta: float = 5.0

    role: ClassVar[Any] = "auxiliary"
    teacher_tokens: ClassVar[Any] = "response"

    def wants_teacher(self, update: int) -> bool:
        return True

    def assign(self, inputs: CreditInputs) -> CreditResult:
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        if inputs.teacher_logprobs is None:
            return CreditResult(plain)
        scored = inputs.teacher_logprobs.isfinite() & inputs.response_mask
        gap = torch.where(scored, inputs.teacher_logprobs - inputs.old_logprobs, 0)
        return CreditResult(plain, {"scored_tokens": scored.sum()}, {"delta": gap})

    def auxiliary(self, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
        if inputs.weight is None:
            scores = token_logprobs(inputs.hidden, inputs.token_ids, temperature=inputs.temperature)
        else:
            scores = linear_token_logprobs(
                inputs.hidden, inputs.weight, inputs.token_ids, bias=inputs.bias, temperature=inputs.temperature
            )
        return sdar_loss(
            scores.logprobs, inputs.teacher_logprobs, inputs.token_weights, coefficient=self.coefficient, beta=self.beta
        )


@register("sdar")
def build(options: Mapping[str, Any]) -> Sdar:
    """SDAR from ``credit.sdar``."""
    return Sdar(options["sdar"]["coefficient"], options["sdar"]["beta"])
