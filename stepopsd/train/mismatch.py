"""Sampler against trainer: how far apart their log-probs are, and weights that make up for it."""

from __future__ import annotations

import torch
from torch import Tensor


def mismatch(sampled: Tensor, trainer: Tensor, tokens: Tensor) -> dict[str, float]:
    """What to log about two sets of log-probs of the same tokens under the same weights.

    Args:
        sampled: (N, T) float32, as the sampler gave them.
        trainer: (N, T) float32, as the trainer's model gives them.
        tokens: (N, T) bool, tokens that both know.

    Returns:
        ``sampler_gap_max``: max |trainer - sampled|. ``sampler_kl``: mean of exp(d) - d - 1 with d = trainer - sampled,
        an estimate >= 0 of KL(sampler | trainer) per token. Both 0 without tokens.
    """
    if not bool(tokens.any()):
        return {"sampler_gap_max": 0.0, "sampler_kl": 0.0}
    gap = (trainer - sampled)[tokens].double()
    return {"sampler_gap_max": float(gap.abs().max()), "sampler_kl": float((gap.expm1() - gap).mean())}


def truncated_importance(
    sampled: Tensor, trainer: Tensor, tokens: Tensor, cap: float
) -> tuple[Tensor, dict[str, float]]:
    """min(π_trainer / π_sampler, cap) per token, the weight of what a sampler of other numerics drew.

    Every policy term here is homogeneous in its advantage, so that a weight on the advantage is a weight on the term;
    terms without an advantage (KL, entropy, auxiliary) keep their weight.

    Args:
        sampled, trainer, tokens: As of ``mismatch``.
        cap: Largest weight, > 0.

    Returns:
        (N, T) float32, 1 outside ``tokens``; and ``tis/mean``, ``tis/capped`` (share of tokens at the cap).

    Source: truncated importance sampling, Ionides 2008; for engines that differ from the trainer, TRL and verl.
    """
    if cap <= 0:
        raise ValueError(f"cap must be greater than 0, got {cap}")
    ratio = torch.where(tokens, trainer - sampled, 0.0).exp()
    weights = ratio.clamp(max=cap).where(tokens, 1.0)
    count = max(1, int(tokens.sum()))
    capped = float(((ratio > cap) & tokens).sum()) / count
    mean = float(weights[tokens].mean()) if bool(tokens.any()) else 1.0
    return weights, {"tis/mean": mean, "tis/capped": capped}
