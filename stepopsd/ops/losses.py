"""Policy-gradient losses on ready log-probs, with their derivatives written out: what grpo_loss computes per token.

``reference_loss.py`` says the same through autograd, one formula per loss; docs/losses.md has the sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "dr_grpo")
# What a loss leaves open is filled in from its source: aggregation, clip_low, clip_high.
_DEFAULTS = {
    "grpo": ("sequence_mean", 0.2, 0.2),
    "dr_grpo": ("dr_grpo", 0.2, 0.2),
    "dapo": ("token_mean", 0.2, 0.28),
    "bnpo": ("token_mean", 0.2, 0.2),
    "gspo": ("sequence_mean", 3e-4, 4e-4),
    "cispo": ("token_mean", 1.0, 4.0),
    "reinforce": ("token_mean", 0.0, 0.0),
}
LOSSES = tuple(_DEFAULTS)
RATIO_LIMIT = 20.0  # exp of a larger log-ratio is noise that would own the gradient

# The order in which they are packed.
LOSS_METRICS = (
    "tokens", "nonfinite", "ratio_mean", "clip_low", "clip_high", "clip_dual", "kl_ref", "kl_old", "entropy_mean",
    "ratio_min", "ratio_max", "old_gap_max",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LossOptions:
    """A loss with everything that it leaves open filled in; made by ``loss_options``."""

    loss: str
    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coef: float
    entropy_coef: float


class Targets(NamedTuple):
    """What a loss is told of each token (...): log-probs of two other policies, which may be missing, and its share."""

    old: Tensor | None
    ref: Tensor | None
    advantages: Tensor
    weights: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """The same with each tensor changed."""
        old, ref = (None if x is None else change(x) for x in (self.old, self.ref))
        return Targets(old, ref, change(self.advantages), change(self.weights))


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What one call of ``policy_terms`` finds.

    Attributes:
        loss: 0-d, Σ weights · (value - entropy_coef · entropy).
        logprob_slope: (...) derivative of the loss by each log-prob, 0 outside the mask.
        entropy_slope: (...) derivative by each entropy; None without an entropy term.
        metrics: (12,) float64 in the order of ``LOSS_METRICS``.
    """

    loss: Tensor
    logprob_slope: Tensor
    entropy_slope: Tensor | None
    metrics: Tensor


def loss_options(
    loss: str,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float,
    kl_coef: float,
    entropy_coef: float,
) -> LossOptions:
    """The options with defaults filled in.

    Raises:
        ValueError: An unknown loss, a number out of range, or a clip that the loss does not have.
    """
    if loss not in _DEFAULTS:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    _, low, high = _DEFAULTS[loss]
    for name, bound in (("clip_low", clip_low), ("clip_high", clip_high)):
        if bound is not None and loss == "reinforce":
            raise ValueError(f"{name} must be None with loss 'reinforce' (it has no ratio), got {bound}")
        if bound is not None and not bound >= 0:
            raise ValueError(f"{name} must be at least 0, got {bound}")
    if dual_clip != 0 and not 1 < dual_clip < math.inf:
        raise ValueError(f"dual_clip must be 0 (off) or greater than 1, got {dual_clip}")
    if dual_clip != 0 and loss in ("cispo", "reinforce"):
        raise ValueError(f"dual_clip must be 0 with loss {loss!r} (it clips no surrogate), got {dual_clip}")
    if not 0 <= kl_coef < math.inf:
        raise ValueError(f"kl_coef must be finite and at least 0, got {kl_coef}")
    if not -math.inf < entropy_coef < math.inf:
        raise ValueError(f"entropy_coef must be finite, got {entropy_coef}")
    low, high = low if clip_low is None else clip_low, high if clip_high is None else clip_high
    return LossOptions(loss, float(low), float(high), float(dual_clip), float(kl_coef), float(entropy_coef))


def loss_weights(
    loss: str, mask: Tensor, aggregation: str | None, budget: int, token_weights: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(...) weights of the tokens in the loss: ``token_weights`` as they are, or those of the aggregation.

    Raises:
        ValueError: Both are given; the aggregation does not fit the mask; a sequence-level loss without sequences.
    """
    if loss == "gspo" and mask.ndim != 2:
        raise ValueError(f"logits must have shape (N, T, V) with loss 'gspo', got {(*mask.shape, 'V')}")
    if token_weights is None:
        return aggregation_weights(mask, aggregation or _DEFAULTS[loss][0], budget=budget, dtype=dtype)
    if loss == "bnpo":
        raise ValueError("token_weights must be None with loss 'bnpo' (it averages over the tokens of the call)")
    if aggregation is not None or budget:
        raise ValueError("token_weights stand for an aggregation: give them, or aggregation and budget, not both")
    return token_weights.detach().to(dtype).where(mask, 0)


def aggregation_weights(
    mask: Tensor, aggregation: str, *, budget: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights that turn per-token terms of a mini-batch into its loss, Σ weights·terms.

    Args:
        mask: (N, T) bool, all rows of the mini-batch; (...) for ``token_mean``.
        aggregation: ``token_mean``, ``sequence_mean``, ``sequence_sum`` or ``dr_grpo``.
        budget: Response budget in tokens, the fixed divisor of ``dr_grpo``.
        dtype: Of the weights.

    Returns:
        (N, T) weights. Because they are computed over the mini-batch, splitting it into micro-batches does
        not change the gradient. Every row counts in N, also one without a token.

    Raises:
        ValueError: An unknown aggregation, a mask that is not (N, T), or a budget missing or without use.

    Example:
        >>> aggregation_weights(torch.tensor([[True, True], [True, False]]), "sequence_mean")
        tensor([[0.2500, 0.2500],
                [0.5000, 0.0000]])
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    if aggregation == "dr_grpo" and budget <= 0:
        raise ValueError(f"budget must be greater than 0 for aggregation 'dr_grpo', got {budget}")
    if aggregation != "token_mean" and mask.ndim != 2:
        raise ValueError(f"mask must have shape (N, T) for aggregation {aggregation!r}, got {tuple(mask.shape)}")
    weights = mask.to(dtype)
    if aggregation == "token_mean":
        return weights / mask.sum().clamp(min=1)
    rows = float(max(1, mask.shape[0]))
    if aggregation == "sequence_mean":
        return weights / mask.sum(1, keepdim=True).clamp(min=1) / rows
    return weights / (rows * budget if aggregation == "dr_grpo" else rows)


@torch.no_grad()
def policy_terms(
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    mask: Tensor,
    options: LossOptions,
) -> PolicyTerms:
    """Loss, derivatives and metrics of tokens (...), in the precision of ``logprobs``.

    Log-probs and entropy are 0 outside the mask; the other tensors may hold anything there. Without
    ``old_logprobs`` the ratio is 1: the policy that is trained took the samples.
    """
    delta = (logprobs - (logprobs if old_logprobs is None else old_logprobs)).where(mask, 0)
    log_ratio = _sequence_mean(delta, mask) if options.loss == "gspo" else delta
    ratio = log_ratio.clamp(-RATIO_LIMIT, RATIO_LIMIT).exp()
    gain = advantages.where(mask, 0)
    if options.loss in ("cispo", "reinforce"):
        value, slope, clipped = _weighted_logprobs(logprobs, ratio, gain, options)
    else:
        value, slope, clipped = _clipped_surrogate(log_ratio, ratio, gain, options)
    kl_ref = torch.zeros_like(delta)
    if ref_logprobs is not None:
        kl_ref, kl_slope = _k3((ref_logprobs - logprobs).where(mask, 0))
        value, slope = value + options.kl_coef * kl_ref, slope + options.kl_coef * kl_slope
    entropy_slope = None
    if options.entropy_coef:
        value, entropy_slope = value - options.entropy_coef * entropy, -options.entropy_coef * weights
    loss = (weights * value).sum(dtype=torch.float64).to(value.dtype)
    return PolicyTerms(loss, weights * slope, entropy_slope, _metrics(mask, delta, ratio, clipped, kl_ref, entropy))


def _clipped_surrogate(
    log_ratio: Tensor, ratio: Tensor, gain: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Value, derivative by the log-prob, and where it was clipped (low, high, dual), of max(-A·r, -A·clip(r))."""
    plain, bounded = -gain * ratio, -gain * ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    value, cut = torch.maximum(plain, bounded), bounded > plain
    over = torch.zeros_like(cut)
    if options.dual_clip:
        ceiling = -gain * options.dual_clip
        over = (gain < 0) & (value > ceiling)
        value = ceiling.where(over, value)
    slope = plain * (~cut & ~over & (log_ratio.abs() <= RATIO_LIMIT))  # a product, so that NaN stays NaN
    return value, slope, (cut & (gain < 0), cut & (gain > 0), over)


def _weighted_logprobs(
    logprobs: Tensor, ratio: Tensor, gain: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """As ``_clipped_surrogate``, of -A·log-prob, or for CISPO of -clip(r)·A·log-prob with a constant clip(r)."""
    none = torch.zeros_like(gain, dtype=torch.bool)
    if options.loss == "reinforce":
        return -gain * logprobs, -gain, (none, none, none)
    floor, cap = 1 - options.clip_low, 1 + options.clip_high
    slope = -gain * ratio.clamp(floor, cap)
    return slope * logprobs, slope, (ratio < floor, ratio > cap, none)


def _sequence_mean(delta: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's tokens of (N, T), at every token of the row."""
    mean = delta.sum(1, keepdim=True, dtype=torch.float64) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.to(delta.dtype).expand_as(delta)


def _k3(gap: Tensor) -> tuple[Tensor, Tensor]:
    """exp(d) - d - 1 with d the gap in bounds, and its derivative by what the gap subtracts."""
    d = gap.clamp(-RATIO_LIMIT, RATIO_LIMIT)
    rise = d.expm1()
    return rise - d, -rise * (gap.abs() <= RATIO_LIMIT)


def _metrics(
    mask: Tensor, delta: Tensor, ratio: Tensor, clipped: tuple[Tensor, ...], kl_ref: Tensor, entropy: Tensor
) -> Tensor:
    """(12,) float64 in the order of ``LOSS_METRICS``; moments over tokens whose terms are all finite."""
    counted = mask & (delta + ratio + kl_ref + entropy).isfinite()
    count = counted.sum()
    terms = torch.stack((ratio, *(x.to(ratio.dtype) for x in clipped), kl_ref, _k3(delta)[0], entropy))
    means = terms.where(counted, 0).reshape(len(terms), mask.numel()).sum(1, dtype=torch.float64) / count.clamp(min=1)
    if mask.numel():
        low, high = ratio.where(counted, math.inf).amin(), ratio.where(counted, -math.inf).amax()
        extremes = torch.stack((low, high, delta.abs().where(counted, 0).amax())).double()
    else:
        extremes = means.new_zeros(3)
    return torch.cat((torch.stack((count, mask.sum() - count)).double(), means, extremes.where(count > 0, 0)))
