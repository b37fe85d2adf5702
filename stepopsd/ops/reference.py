"""The specification in plain PyTorch: one token at a time, one step at a time, in any precision up to float64.

Slow on purpose and independent of the backends, the step reductions and the input checks; tests compare everything
with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepopsd.ops.results import STATISTICS, ShapedAdvantages, ShapingStats


@torch.no_grad()
def shape_reference(
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    token_ids: Tensor | None,
    advantages: Tensor,
    step_ids: Tensor | None = None,
    *,
    trajectory_ids: Tensor | None = None,
    student_logprobs: Tensor | None = None,
    teacher_logprobs: Tensor | None = None,
    alpha_clip: float = 0.2,
    lambda_mix: float = 0.2,
    weight_fn: str = "sigmoid",
    step_norm: str = "equal_step_mean_abs",
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> ShapedAdvantages:
    """What ``shape_advantages`` means, formula by formula.

    Args:
        dtype: Precision of every computation and result.
        trajectory_ids: (...) int, already broadcast to the tokens.

    Other arguments, the result and the treatment of masked and invalid rows are those of
    ``stepopsd.shape_advantages``; entropies are always returned for logits. Inputs are not checked.
    """
    lead = advantages.shape
    a = advantages.to(dtype).reshape(-1)
    tokens = a.numel()
    steps = [0] * tokens if step_ids is None else step_ids.reshape(-1).tolist()
    active = [step >= 0 for step in steps]

    s_logp, t_logp, s_entropy, t_entropy = (torch.zeros(tokens, dtype=dtype) for _ in range(4))
    delta, w, shaped = torch.zeros(tokens, dtype=dtype), torch.ones(tokens, dtype=dtype), a.clone()
    if student_logprobs is not None and teacher_logprobs is not None:
        s_logp, t_logp = (x.to(dtype).reshape(-1) for x in (student_logprobs, teacher_logprobs))
    for i in range(tokens):
        if not active[i]:
            continue
        if student_logits is not None and teacher_logits is not None and token_ids is not None:
            token = int(token_ids.reshape(-1)[i])
            s_logp[i], s_entropy[i] = row_distribution(_row(student_logits, i).to(dtype) / temperature, token)
            t_logp[i], t_entropy[i] = row_distribution(_row(teacher_logits, i).to(dtype) / temperature, token)
        delta[i] = t_logp[i] - s_logp[i]
        w[i] = weight(float(a[i]), float(delta[i]), alpha_clip, weight_fn)
        if lambda_mix > 0:
            shaped[i] = a[i] * (1 + lambda_mix * (w[i] - 1))

    c = torch.ones(tokens, dtype=dtype)
    factors: list[float] = []
    if step_ids is not None and trajectory_ids is not None and step_norm != "none" and lambda_mix > 0:
        magnitude = shaped.abs() if step_norm == "equal_step_mean_abs" else 1 + lambda_mix * (w - 1)
        factors = _budget(magnitude, steps, trajectory_ids.reshape(-1).tolist(), c)
        shaped = torch.where(torch.tensor(active, dtype=torch.bool), shaped * c, shaped)

    stats = _statistics(delta, w, active, alpha_clip, factors)
    return ShapedAdvantages(
        planes=torch.stack((shaped, w, delta, c)).view(4, *lead),
        student_logprobs=s_logp.reshape(lead),
        teacher_logprobs=t_logp.reshape(lead),
        entropies=None if student_logits is None else (s_entropy.reshape(lead), t_entropy.reshape(lead)),
        stats=stats,
    )


def row_distribution(z: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """log p(token) <= 0 and the entropy of one row (V,) of scaled logits; NaN for an unknown token."""
    shifted = z - z.max()
    normalizer = shifted.exp().sum().log()
    log_p = shifted - normalizer
    if not 0 <= token < z.numel():
        return torch.full((), math.nan, dtype=z.dtype), _entropy(log_p)
    return log_p[token].clamp(max=0), _entropy(log_p)


def weight(a: float, delta: float, alpha_clip: float, weight_fn: str) -> float:
    """w = clip(f(sign(A)·Δ), 1 - α, 1 + α) with f = 2σ or exp; sign(0) = 0 gives 1, whatever finite or not Δ is."""
    if math.isnan(delta) or math.isnan(a):
        return math.nan
    x = 0.0 if a == 0 else math.copysign(1.0, a) * delta
    if weight_fn == "exp":
        raw = math.exp(min(x, 700.0))
    elif x >= 0:
        raw = 2 / (1 + math.exp(-x))
    else:
        raw = 2 * math.exp(x) / (1 + math.exp(x))
    return min(max(raw, 1 - alpha_clip), 1 + alpha_clip)


def _row(logits: Tensor, i: int) -> Tensor:
    return logits[torch.unravel_index(torch.tensor(i), logits.shape[:-1])] if logits.ndim > 1 else logits


def _entropy(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    return -torch.where(p == 0, torch.zeros_like(p), p * log_p).sum()


def _budget(magnitude: Tensor, steps: list[int], trajectories: list[int], c: Tensor) -> list[float]:
    """Write c_k = clamp(mean_k m_k / (m_k + 1e-6), 1/2, 2) to the tokens of each step; return every live step's c_k."""
    factors = []
    for trajectory in sorted(set(trajectories)):
        members: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            if step >= 0 and trajectories[i] == trajectory:
                members.setdefault(step, []).append(i)
        finite = {k: [float(magnitude[i]) for i in where if magnitude[i].isfinite()] for k, where in members.items()}
        m = {k: sum(values) / len(values) for k, values in sorted(finite.items()) if values}
        for k, m_k in m.items():
            mean = sum(m.values()) / len(m)
            idle = len(m) < 2 or mean == 0
            c_k = 1.0 if idle else min(max(mean / (m_k + 1e-6), 0.5), 2.0)
            factors.append(c_k)
            c[members[k]] = c_k
    return factors


def _statistics(
    delta: Tensor, w: Tensor, active: list[bool], alpha_clip: float, factors: list[float]
) -> ShapingStats:
    counted = torch.tensor(active, dtype=torch.bool) & delta.isfinite() & w.isfinite()
    d, v, c = delta[counted], w[counted], torch.tensor(factors, dtype=delta.dtype)
    zero, one = delta.new_zeros(()), delta.new_ones(())
    there, n = bool(counted.any()), max(1, int(counted.sum()))
    edges = ((c <= 0.5 + 1e-6) | (c >= 2.0 - 1e-6)).sum()
    values = {
        "count": counted.sum(),
        "nonfinite": torch.tensor(sum(active)) - counted.sum(),
        "delta_mean": d.mean() if there else zero,
        "delta_std": d.std(unbiased=False) if there else zero,
        "delta_min": d.min() if there else zero,
        "delta_max": d.max() if there else zero,
        "delta_abs_mean": d.abs().mean() if there else zero,
        "weight_mean": v.mean() if there else zero,
        "weight_std": v.std(unbiased=False) if there else zero,
        "weight_min": v.min() if there else zero,
        "weight_max": v.max() if there else zero,
        "at_low": (v <= 1 - alpha_clip + 1e-6).sum() / n,
        "at_high": (v >= 1 + alpha_clip - 1e-6).sum() / n,
        "steps": torch.tensor(len(factors)),
        "scale_min": c.min() if factors else one,
        "scale_max": c.max() if factors else one,
        "scale_clamped": edges / max(1, len(factors)),
    }
    return ShapingStats(torch.stack([values[name].double() for name in STATISTICS]))
