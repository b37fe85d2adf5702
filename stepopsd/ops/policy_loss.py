"""The clipped policy-gradient surrogate on ready log-probs, with the aggregations that trainers use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "dr_grpo")
_KL_LIMIT = 20.0  # exp of a larger log-ratio is noise that would own the gradient


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Per-token terms, all (N, T) float32 and 0 outside the mask; ``loss`` carries the gradient.

    Attributes:
        loss: Clipped surrogate (to be minimised).
        ratio: exp(logprobs - old_logprobs), detached.
        clipped: bool, the clip or the dual clip was active, detached.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
) -> TokenLoss:
    """PPO's pessimistic bound per token, with an optional dual clip for negative advantages.

    Args:
        logprobs: (N, T) float, current policy; the gradient flows through this tensor only.
        old_logprobs: (N, T) float, policy before the update.
        advantages: (N, T) float.
        mask: (N, T) bool; other positions may hold anything, NaN included.
        clip_low, clip_high: Ratio range [1 - clip_low, 1 + clip_high].
        dual_clip: c > 1 bounds the loss of a negative advantage by -c·A; 0 turns it off.

    Raises:
        ValueError: shapes differ.

    Source: arXiv 1707.06347 (clip), 1912.09729 (dual clip), 2503.14476 (separate bounds).
    """
    shapes = {tuple(t.shape) for t in (logprobs, old_logprobs, advantages, mask)}
    if len(shapes) != 1:
        raise ValueError(f"logprobs, old_logprobs, advantages and mask must have one shape, got {sorted(shapes)}")
    zero = torch.zeros((), dtype=torch.float32, device=logprobs.device)
    gain = torch.where(mask, advantages.detach().float(), zero)
    difference = torch.where(mask, logprobs.float() - old_logprobs.detach().float(), zero)
    ratio = difference.clamp(-_KL_LIMIT, _KL_LIMIT).exp()
    plain = -gain * ratio
    bounded = -gain * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(plain, bounded)
    clipped = (bounded > plain) & mask
    if dual_clip:
        ceiling = -gain * dual_clip
        over = (gain < 0) & (loss > ceiling)
        loss = torch.where(over, ceiling, loss)
        clipped = clipped | (over & mask)
    return TokenLoss(loss, ratio.detach(), clipped.detach())


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Low-variance KL estimate per token, exp(d) - d - 1 with d = ref - current; 0 outside the mask.

    Args:
        logprobs: (N, T) float, carries the gradient.
        ref_logprobs: (N, T) float, fixed reference.
        mask: (N, T) bool.
    """
    zero = torch.zeros((), dtype=torch.float32, device=logprobs.device)
    d = torch.where(mask, ref_logprobs.detach().float() - logprobs.float(), zero).clamp(-_KL_LIMIT, _KL_LIMIT)
    return d.exp() - d - 1.0


def aggregation_weights(mask: Tensor, aggregation: str, *, budget: int = 0) -> Tensor:
    """Weights that turn per-token terms of a mini-batch into its loss, Σ weights·terms.

    Args:
        mask: (N, T) bool, all rows of the mini-batch.
        aggregation: ``token_mean``, ``sequence_mean``, ``sequence_sum`` or ``dr_grpo``.
        budget: Response budget in tokens, the fixed divisor of ``dr_grpo``.

    Returns:
        (N, T) float32. Because the weights are computed over the mini-batch, splitting it into micro-batches does
        not change the gradient.

    Raises:
        ValueError: an unknown aggregation, or ``dr_grpo`` without a budget.
    """
    weights = mask.float()
    rows = float(max(1, mask.shape[0]))
    if aggregation == "token_mean":
        return weights / weights.sum().clamp_min(1.0)
    if aggregation == "sequence_mean":
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0) / rows
    if aggregation == "sequence_sum":
        return weights / rows
    if aggregation == "dr_grpo":
        if budget <= 0:
            raise ValueError(f"budget must be greater than 0 for aggregation 'dr_grpo', got {budget}")
        return weights / (rows * budget)
    raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
