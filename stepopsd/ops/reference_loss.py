"""The policy losses as their sources write them, through autograd, in any precision up to float64: the specification.

``losses.py`` has the derivatives by hand; tests compare it with this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LIMIT = 20.0  # exp of a larger log-ratio is noise that would own the gradient


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Per-token terms, all (N, T) float32 (float64 for float64 log-probs), 0 outside the mask.

    Attributes:
        loss: Clipped surrogate (to be minimised); carries the gradient.
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
    gain = _wide(advantages.detach(), logprobs).where(mask, 0)
    difference = (_wide(logprobs) - _wide(old_logprobs.detach(), logprobs)).where(mask, 0)
    return _surrogate(difference.clamp(-_LIMIT, _LIMIT).exp(), gain, mask, clip_low, clip_high, dual_clip)


def _surrogate(
    ratio: Tensor, gain: Tensor, mask: Tensor, clip_low: float, clip_high: float, dual_clip: float
) -> TokenLoss:
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


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """GSPO-token's ratio s_{i,t} = sg[s_i]·π_t / sg[π_t], s_i the geometric mean of a row's token ratios.

    Args:
        logprobs, old_logprobs: (N, T) float; the gradient flows through the first, each token by itself.
        mask: (N, T) bool.

    Source: arXiv 2507.18071, equations 7, 13 and 14.
    """
    current = _wide(logprobs).where(mask, 0)
    difference = current - _wide(old_logprobs.detach(), logprobs).where(mask, 0)
    mean = difference.detach().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    own = (current - current.detach()).where(current.detach() != -torch.inf, 0)  # 0, but for its derivative
    return (mean + own).clamp(-_LIMIT, _LIMIT).exp()


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Low-variance KL estimate per token, exp(d) - d - 1 with d = ref - current; 0 outside the mask.

    Args:
        logprobs: (N, T) float, carries the gradient.
        ref_logprobs: (N, T) float, fixed reference.
        mask: (N, T) bool.
    """
    d = (_wide(ref_logprobs.detach(), logprobs) - _wide(logprobs)).where(mask, 0).clamp(-_LIMIT, _LIMIT)
    return d.exp() - d - 1.0


def policy_loss_reference(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    entropy: Tensor,
    loss: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    aggregation: str = "token_mean",
    budget: int = 0,
    token_weights: Tensor | None = None,
) -> Tensor:
    """What the loss of ``grpo_loss`` means, on ready log-probs and entropies.

    Args:
        logprobs, entropy: (N, T) float; carry the gradient.
        clip_low, clip_high: As the loss uses them; no defaults are filled in.

    Other arguments are those of ``stepopsd.grpo_loss``. Inputs are not checked.

    Returns:
        0-d loss, differentiable by PyTorch.
    """
    current = _wide(logprobs).where(mask, 0)
    gain = _wide(advantages.detach(), logprobs).where(mask, 0)
    if loss == "reinforce":
        terms = -gain * current
    elif loss == "cispo":
        ratio = (current - _wide(old_logprobs, logprobs).where(mask, 0)).clamp(-_LIMIT, _LIMIT).exp()
        terms = -ratio.clamp(1 - clip_low, 1 + clip_high).detach() * gain * current
    elif loss == "gspo":
        ratio = sequence_ratio(logprobs, old_logprobs, mask)
        terms = _surrogate(ratio, gain, mask, clip_low, clip_high, dual_clip).loss
    else:
        terms = clipped_surrogate(
            logprobs, old_logprobs, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
        ).loss
    if ref_logprobs is not None:
        terms = terms + kl_coef * k3_divergence(logprobs, ref_logprobs, mask)
    terms = terms - entropy_coef * _wide(entropy)
    return _aggregate(terms, mask, aggregation, budget, token_weights)


def _aggregate(terms: Tensor, mask: Tensor, aggregation: str, budget: int, token_weights: Tensor | None) -> Tensor:
    terms = terms.where(mask, 0)
    if token_weights is not None:
        return (token_weights.where(mask, 0) * terms).sum()
    if aggregation == "token_mean":
        return terms.sum() / max(1, int(mask.sum()))
    if aggregation == "sequence_mean":
        rows = [row[live].sum() / max(1, int(live.sum())) for row, live in zip(terms, mask, strict=True)]
        return torch.stack(rows).mean()
    return terms.sum() / (len(mask) * (budget if aggregation == "dr_grpo" else 1))


def _wide(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` in float64 where it, or ``like`` in its place, is in float64; else in float32."""
    return x.to(torch.float64 if (x if like is None else like).dtype == torch.float64 else torch.float32)
