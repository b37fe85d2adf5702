"""The row kernels in plain PyTorch: runs anywhere, takes float64, bounded extra memory; waits once for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments
from stepopsd.ops.steps import EPS, SCALE_LIMIT, segment_sum, step_of_place
from stepopsd.ops.torch_tokens import future_rows, oar_rows

__all__ = [
    "availability", "future_rows", "gradient_rows", "oar_rows", "scale_rows", "score_rows", "shape_rows",
]  # fmt: skip

# fp32 elements of one chunk of logits; a handful of such buffers are alive at a time.
_CHUNK_ELEMENTS = 1 << 22
_EDGE = 1e-6  # distance below which a value counts as clipped; backends differ in the last bits


def availability(device_type: str) -> str | None:
    """None: PyTorch computes on every device it knows."""
    return None


@torch.no_grad()
def score_rows(
    logits: Sequence[Tensor],
    ids: Tensor,
    active: Tensor,
    *,
    temperature: float | Tensor,
    entropy: bool,
    normaliser: bool = False,
) -> Tensor:
    """(K, 3, ...) log-prob, log-sum-exp and entropy from K logits tensors (B, R, V); see ``dispatch.Backend``.

    With ``normaliser`` (K, 5, ...), the last two channels being its peak and log-mass. float64 for float64 logits,
    else float32. Ids outside [0, V) give a NaN log-prob. Only active rows are read.
    """
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    channels, lead, block = 5 if normaliser else 3, active.shape, logits[0].shape[:2]
    ids, active = ids.view(block), active.view(block)
    temperature = temperature if isinstance(temperature, float) else temperature.view(block)
    out = torch.zeros((len(logits), channels, *block), dtype=dtype, device=active.device)
    for b, r in _chunks(active, logits[0].shape[-1]):
        divisor = temperature if isinstance(temperature, float) else temperature[b, r].to(dtype)[:, None]
        for model, x in enumerate(logits):
            values = _row_statistics(x[b, r].to(dtype), ids[b, r], divisor, entropy)
            for channel, value in enumerate(values[:channels]):
                out[model, channel, b, r] = value
    return out.view(len(logits), channels, *lead)


def _chunks(rows: Tensor, vocab: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places of the rows (B, R) that are True, as many at a time as fit into a chunk."""
    places = rows.nonzero()
    size = max(1, _CHUNK_ELEMENTS // vocab)
    for start in range(0, len(places), size):
        b, r = places[start : start + size].unbind(1)
        yield b, r


def _row_statistics(logits: Tensor, ids: Tensor, temperature: float | Tensor, entropy: bool) -> tuple[Tensor, ...]:
    """Log-prob of each id, log-sum-exp, entropy, peak, log-mass, each (n,), of (n, V) logits, which are overwritten."""
    vocab = logits.shape[-1]
    top = logits.amax(-1, keepdim=True)
    logits.sub_(top)
    logits.div_(temperature)  # after the subtraction: a large common offset then costs no precision
    known = (ids >= 0) & (ids < vocab)
    target = logits.gather(-1, ids.where(known, 0)[:, None])[:, 0]
    target = target.where(known, float("nan"))
    weights = logits.exp()
    total = weights.sum(-1)
    logp = (target - total.log()).clamp(max=0)
    lse = (top / temperature)[:, 0] + total.log()
    highest = (top.double() / temperature)[:, 0] / math.log(2)
    peak = highest.to(logits.dtype)
    mass = total.log2() + (highest - peak).to(logits.dtype)
    nothing = top[:, 0] == -math.inf
    peak, mass = peak.where(~nothing, 0), mass.where(~nothing, -math.inf)
    if not entropy:
        return logp, lse, torch.zeros_like(logp), peak, mass
    # exp(-inf) is 0, and 0 * -inf would be NaN; the floor keeps NaN rows NaN.
    energy = (weights * logits.clamp(min=-1e30)).sum(-1)
    return logp, lse, (total.log() - energy / total).clamp(min=0), peak, mass


@torch.no_grad()
def gradient_rows(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    *,
    temperature: float | Tensor,
    out: Tensor,
) -> None:
    """Write (a·[j = id] + p_j·(b + c·ln p_j)) / T into ``out`` (B, R, V); see ``dispatch.Backend``."""
    live = active & (coefficients != 0).any(0)
    out[~live] = 0
    entropy = bool((coefficients[2] != 0).any())
    for b, r in _chunks(live, logits.shape[-1]):
        divisor = temperature if isinstance(temperature, float) else temperature[b, r].to(normaliser.dtype)[:, None]
        x = logits[b, r].to(normaliser.dtype)
        out[b, r] = _row_gradient(x, ids[b, r], normaliser[:, b, r], coefficients[:, b, r], divisor, entropy).to(
            out.dtype
        )


def _row_gradient(
    x: Tensor, ids: Tensor, normaliser: Tensor, coefficients: Tensor, temperature: float | Tensor, entropy: bool
) -> Tensor:
    """(n, V) gradient of (n, V) logits, which are overwritten; ``normaliser`` (2, n), ``coefficients`` (3, n)."""
    peak, mass = normaliser.double().unsqueeze(-1) * math.log(2)
    # A float32 number about the row's maximum is taken off first, and its exact distance to the normaliser after that.
    centre = (peak * temperature).to(x.dtype)
    log_p = x.sub_(centre).div_(temperature).sub_((peak + mass - centre.double() / temperature).to(x.dtype))
    p = log_p.exp()
    known = ((ids >= 0) & (ids < x.shape[-1]))[:, None]
    a, b, c = coefficients.unsqueeze(-1)
    b = b.where(known, float("nan"))
    p.mul_(log_p.clamp_(min=-1e30).mul_(c).add_(b) if entropy else b)
    place = ids[:, None].where(known, 0)
    p.scatter_(1, place, p.gather(1, place) + a)
    return p.div_(temperature)


@torch.no_grad()
def scale_rows(rows: Tensor, factor: Tensor) -> None:
    """Multiply (B, R, V) by the 0-d ``factor`` in place, in the precision of the factor; see ``dispatch.Backend``."""
    if factor.device.type == "cpu" and float(factor) == 1.0:
        return
    if rows.dtype == factor.dtype:
        rows.mul_(factor)
        return
    size = max(1, _CHUNK_ELEMENTS // rows.shape[-1])
    for part in rows.unbind(0):
        for chunk in torch.split(part, size):
            chunk.copy_(chunk.to(factor.dtype) * factor)


@torch.no_grad()
def shape_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: StepSegments | None,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
) -> tuple[Tensor, Tensor]:
    """(4, ...) shaped, weight, delta, scale and (17,) statistics from (...) log-probs; see ``dispatch.Backend``."""
    lead = active.shape
    student_logprobs, teacher_logprobs, advantages, active = (
        x.reshape(-1) for x in (student_logprobs, teacher_logprobs, advantages, active)
    )
    delta = (teacher_logprobs - student_logprobs).where(active, 0)
    # sign(0) * inf would be NaN, but a token without advantage keeps w = 1 however large the gap is.
    sign = advantages.sign().where(~advantages.isnan(), advantages)  # torch's sign of NaN is 0
    signed = (sign * delta).where((advantages != 0) | delta.isnan(), 0)
    raw = 2 * signed.sigmoid() if weight_fn == "sigmoid" else signed.exp()
    weight = raw.clamp(1 - alpha_clip, 1 + alpha_clip).where(active, 1)
    shaped = advantages
    if lambda_mix > 0:
        shaped = (advantages * (1 + lambda_mix * (weight - 1))).where(active, advantages)
    scale, factors = torch.ones_like(shaped), shaped.new_zeros(0, dtype=torch.float64)
    if segments is not None:
        values = shaped.abs() if step_norm == "equal_step_mean_abs" else 1 + lambda_mix * (weight - 1)
        scale, factors = _budget(values, segments)
        shaped = (shaped * scale).where(active, shaped)
    statistics = _statistics(delta, weight, active, alpha_clip, factors)
    planes = torch.stack((shaped.to(delta.dtype), weight, delta, scale.to(delta.dtype)))
    return planes.view(4, *lead), statistics


def _budget(values: Tensor, segments: StepSegments) -> tuple[Tensor, Tensor]:
    """Factor c_k per token (M,), 1 outside steps, and per live step (M,) float64, 0 in the other slots."""
    x = values.gather(0, segments.order).double()
    length, finite = segments.step_starts.diff(), x.isfinite()
    count = segment_sum(finite.double(), length)
    live = count > 0
    m = segment_sum(x.where(finite, 0), length) / count.clamp(min=1)

    steps = segments.trajectory_starts.diff()
    live_steps = segment_sum(live.double(), steps)
    mean = segment_sum(m, steps) / live_steps.clamp(min=1)
    slots = torch.arange(live.numel(), device=live.device)
    trajectory = torch.searchsorted(segments.trajectory_starts[1:].contiguous(), slots, right=True)
    trajectory.clamp_(max=max(0, live.numel() - 1))
    mean, live_steps = mean.gather(0, trajectory), live_steps.gather(0, trajectory)
    c = (mean / (m + EPS)).clamp(1 / SCALE_LIMIT, SCALE_LIMIT).where(live & (live_steps >= 2) & (mean > 0), 1)

    inside = slots < segments.step_starts[-1]
    scale = torch.ones_like(values)
    scale.scatter_(0, segments.order, c.gather(0, step_of_place(segments)).where(inside, 1).to(values.dtype))
    return scale, c.where(live, 0)


def _statistics(delta: Tensor, weight: Tensor, active: Tensor, alpha_clip: float, factors: Tensor) -> Tensor:
    """(17,) float64 in the order of ``STATISTICS``."""
    counted = active & delta.isfinite() & weight.isfinite()
    count = counted.sum()
    live = factors > 0
    steps = live.sum()
    at_edge = (factors <= 1 / SCALE_LIMIT + _EDGE) | (factors >= SCALE_LIMIT - _EDGE)
    d, w = _moments(delta.double(), counted, count), _moments(weight.double(), counted, count)
    scales = _extremes(factors, live, steps, otherwise=1.0)
    values = {
        "count": count,
        "nonfinite": active.sum() - count,
        **{f"delta_{name}": value for name, value in d.items()},
        **{f"weight_{name}": value for name, value in w.items()},
        "at_low": _share((weight <= 1 - alpha_clip + _EDGE) & counted, count),
        "at_high": _share((weight >= 1 + alpha_clip - _EDGE) & counted, count),
        "steps": steps,
        "scale_min": scales[0],
        "scale_max": scales[1],
        "scale_clamped": _share(at_edge & live, steps),
    }
    return torch.stack([values[name].double() for name in STATISTICS])


def _moments(x: Tensor, counted: Tensor, count: Tensor) -> dict[str, Tensor]:
    divisor = count.clamp(min=1)
    mean = x.where(counted, 0).sum() / divisor
    low, high = _extremes(x, counted, count, otherwise=0.0)
    return {
        "mean": mean,
        "std": ((x - mean).where(counted, 0).square().sum() / divisor).sqrt(),
        "min": low,
        "max": high,
        "abs_mean": x.abs().where(counted, 0).sum() / divisor,
    }


def _extremes(x: Tensor, counted: Tensor, count: Tensor, *, otherwise: float) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return x.new_full((), otherwise), x.new_full((), otherwise)
    low, high = x.where(counted, float("inf")).amin(), x.where(counted, float("-inf")).amax()
    return low.where(count > 0, otherwise), high.where(count > 0, otherwise)


def _share(mask: Tensor, count: Tensor) -> Tensor:
    return mask.sum().double() / count.clamp(min=1)
