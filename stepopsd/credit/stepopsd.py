"""StepOPSD: the stale teacher's hindsight gap reweights each step's tokens (arXiv 2605.27140)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit.base import CreditInputs, CreditResult, broadcast_advantages, register
from stepopsd.credit.mixing import MixingMethod
from stepopsd.ops.shaping import ShapedAdvantages, shape_advantages

UNCHANGED = 1e-4  # |Δ| below which a token counts as unchanged


@dataclass(frozen=True)
class StepOpsd(MixingMethod):
    """Sign-aware, clipped, step-budgeted advantage shaping with a linearly decaying mix.

    Attributes:
        weight_fn, alpha_clip, step_norm: See ``stepopsd.shape_advantages``.
    """

    lambda_mix: float = 0.2
    lambda_decay_updates: int = 50
    weight_fn: str = "sigmoid"
    alpha_clip: float = 0.2
    step_norm: str = "equal_step_mean_abs"

    def assign(self, inputs: CreditInputs) -> CreditResult:
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        mixing = self.mixing(inputs.update)
        if inputs.teacher_logprobs is None:
            return CreditResult(plain, {"lambda": mixing})
        scored = inputs.teacher_logprobs.isfinite() & inputs.response_mask & (inputs.step_ids >= 0)
        shaped = shape_advantages(
            None,
            None,
            None,
            plain,
            torch.where(scored, inputs.step_ids, -1),
            trajectory_ids=inputs.trajectory_ids,
            student_logprobs=inputs.old_logprobs,
            teacher_logprobs=torch.where(scored, inputs.teacher_logprobs, inputs.old_logprobs),
            alpha_clip=self.alpha_clip,
            lambda_mix=mixing,
            weight_fn=self.weight_fn,
            step_norm=self.step_norm,
        )
        metrics = {"lambda": mixing, "alpha_clip": self.alpha_clip, **gap_metrics(shaped, scored, plain)}
        metrics |= step_gap_metrics(shaped.delta, torch.where(scored, inputs.step_ids, -1), inputs.trajectory_ids)
        tokens = {"delta": shaped.delta, "weights": shaped.weights}
        return CreditResult(shaped.advantages, metrics, tokens, (1 + mixing * (shaped.weights - 1)) * shaped.step_scale)


def gap_metrics(shaped: ShapedAdvantages, scored: Tensor, plain: Tensor) -> dict[str, Any]:
    """Statistics of Δ, of the weights, of the step budget and of the change they made.

    Args:
        shaped: Result of ``shape_advantages`` on (N, T) tokens.
        scored: (N, T) bool, tokens that the teacher scored.
        plain: (N, T) advantages before shaping.

    Returns:
        Flat metrics: ``delta/*`` (count, mean, std, root mean square, extremes, percentiles, shares by sign and of
        changed tokens), ``weight/*``, ``step_scale/*``, and what became of the advantages: ``advantage/cosine`` between
        shaped and plain ones, mean and largest relative change at scored tokens, and the share of all |A| that lies on
        scored tokens before and after. Relative changes leave tokens with A = 0 out.
    """
    delta, weights, scale = shaped.delta[scored], shaped.weights[scored], shaped.step_scale[scored]
    if delta.numel() == 0:
        return {"delta/count": 0}
    stats = shaped.stats
    percentiles = torch.quantile(delta[: 1 << 24], delta.new_tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    names = ("p05", "p25", "median", "p75", "p95")
    unchanged = (delta.abs() <= UNCHANGED).float().mean()
    live = scored & (plain != 0)
    change = (shaped.advantages[live] / plain[live] - 1).abs() if bool(live.any()) else delta.new_zeros(1)
    return {
        "delta/count": delta.numel(),
        "delta/mean": delta.mean(),
        "delta/std": delta.std(unbiased=False),
        "delta/rms": delta.square().mean().sqrt(),
        "delta/min": delta.min(),
        "delta/max": delta.max(),
        "delta/abs_mean": delta.abs().mean(),
        **{f"delta/{name}": value for name, value in zip(names, percentiles, strict=True)},
        "delta/positive": (delta > UNCHANGED).float().mean(),
        "delta/negative": (delta < -UNCHANGED).float().mean(),
        "delta/unchanged": unchanged,
        "delta/changed": 1 - unchanged,
        "weight/mean": weights.mean(),
        "weight/std": weights.std(unbiased=False),
        "weight/abs_change": (weights - 1).abs().mean(),
        "weight/at_low": stats.at_low,
        "weight/at_high": stats.at_high,
        "step_scale/min": scale.min(),
        "step_scale/max": scale.max(),
        "step_scale/clamped": stats.scale_clamped,
        "advantage/cosine": torch.nn.functional.cosine_similarity(
            shaped.advantages.flatten(), plain.flatten(), dim=0
        ),
        "advantage/relative_change": change.mean(),
        "advantage/relative_change_max": change.max(),
        "advantage/scored_share": _share(shaped.advantages, scored),
        "advantage/scored_share_plain": _share(plain, scored),
    }


def step_gap_metrics(delta: Tensor, step_ids: Tensor, trajectory_ids: Tensor) -> dict[str, Any]:
    """Δ step by step: how many steps were scored, and the means over steps of a step's mean, largest |Δ| and sum.

    Args:
        delta: (N, T).
        step_ids: (N, T) int, -1 at tokens that were not scored.
        trajectory_ids: (N,) int64.
    """
    inside = step_ids >= 0
    if not bool(inside.any()):
        return {"delta/steps": 0}
    owners = trajectory_ids[:, None].expand_as(step_ids)[inside]
    steps = owners * (int(step_ids.max()) + 1) + step_ids[inside].long()
    _, index, counts = torch.unique(steps, return_inverse=True, return_counts=True)
    gaps = delta[inside].double()
    sums = gaps.new_zeros(counts.numel()).index_add_(0, index, gaps)
    largest = gaps.new_zeros(counts.numel()).scatter_reduce_(0, index, gaps.abs(), "amax")
    return {
        "delta/steps": counts.numel(),
        "delta/step_mean": (sums / counts).mean(),
        "delta/step_mean_std": (sums / counts).std(unbiased=False),
        "delta/step_abs_max": largest.mean(),
        "delta/step_sum": sums.mean(),
    }


def _share(advantages: Tensor, scored: Tensor) -> Tensor:
    sizes = advantages.abs().double()
    return sizes[scored].sum() / sizes.sum().clamp_min(torch.finfo(torch.float64).tiny)


@register("stepopsd")
def build(options: Mapping[str, Any]) -> StepOpsd:
    """StepOPSD from the ``credit`` section."""
    names = ("weight_fn", "alpha_clip", "step_norm", "lambda_mix", "lambda_decay_updates", "diagnose_every")
    return StepOpsd(**{name: options[name] for name in names})
