"""The kernels on (N, T) token values in plain PyTorch: any device, float64 too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepopsd.ops.future_options import FutureOptions

_TINY = 1e-8
_CHUNK = 64  # tokens that one decay matrix covers


@torch.no_grad()
def oar_rows(
    scores: Tensor,
    mask: Tensor,
    *,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
) -> Tensor:
    """(N, T) weights from (N, T) scores and mask; see ``dispatch.Backend``."""
    if scores.numel() == 0:
        return torch.ones_like(scores)
    count = mask.sum(-1, keepdim=True)
    z = scores.where(mask, 0).clamp(min=0).log1p()
    broken = (mask & ~scores.isfinite()).any(-1, keepdim=True)
    low = z.where(mask, math.inf).amin(-1, keepdim=True)
    span = z.where(mask, -math.inf).amax(-1, keepdim=True) - low
    n = (z - low) / span.where(span > 0, 1)
    threshold = torch.full_like(low, level) if absolute else _quantile(n, mask, count, level)
    damped = (n / (threshold + _TINY)).clamp(min=floor)
    w = damped.where(n < threshold, 1 + beta * (n - threshold) / (1 - threshold + _TINY))
    if preserve:
        w = w * (count / w.where(mask, 0).double().sum(-1, keepdim=True)).to(w.dtype)
    w = w.where(~broken, math.nan)
    return w.where(mask & (count >= max(1, min_tokens)), 1)


def _quantile(n: Tensor, mask: Tensor, count: Tensor, level: float) -> Tensor:
    """(N, 1) quantile over the mask of each row, linear between neighbours."""
    ordered = n.where(mask, math.inf).sort(-1).values
    position = level * (count - 1).clamp(min=0).double()
    below = position.floor().long()
    above = torch.minimum(below + 1, (count - 1).clamp(min=0))
    first, second = ordered.gather(-1, below), ordered.gather(-1, above)
    return first + (position - below).to(n.dtype) * (second - first)


@torch.no_grad()
def future_rows(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, entropies: Tensor | None, options: FutureOptions
) -> Tensor:
    """(1, N, T) future values, (2, N, T) with branching scores; see ``dispatch.Backend``."""
    gap = (logprobs - old_logprobs).where(mask, 0)
    x = gap.clamp(-options.log_clamp, options.log_clamp).where(~(gap > options.drop_above), 0)
    sums = decayed_sums(x, options.gamma) if options.decay == "position" else _packed_sums(x, mask, options.gamma)
    future = _clipped_exp(sums, options.low, options.high).where(mask, 1)
    if entropies is None:
        return future[None]
    ratios = _clipped_exp(sums, options.branch_low, options.branch_high)
    return torch.stack((future, branching(ratios, entropies, mask, options.gate, options.std_eps)))


def decayed_sums(x: Tensor, gamma: float) -> Tensor:
    """(N, T) Σ_{j >= t} γ^(j - t) x_j: a product with a small matrix per chunk, a carry from chunk to chunk."""
    broken = x.isnan()
    x = x.where(~broken, 0)  # 0 * NaN would reach later tokens
    rows, width = x.shape
    chunks = -(-width // _CHUNK)
    padded = torch.nn.functional.pad(x, (0, chunks * _CHUNK - width)).view(rows, chunks, _CHUNK)
    distance = torch.arange(_CHUNK, device=x.device)
    lag = (distance[:, None] - distance).double()  # (from j, to t)
    matrix = torch.where(lag >= 0, gamma**lag, 0).to(x.dtype)
    inside = padded @ matrix
    carry = x.new_zeros(rows)
    out: list[Tensor] = []
    to_next = (gamma ** (_CHUNK - distance).double()).to(x.dtype)
    for chunk in range(chunks - 1, -1, -1):
        sums = inside[:, chunk] + carry[:, None] * to_next
        out.append(sums)
        carry = sums[:, 0]
    total = torch.cat(out[::-1], 1)[:, :width] if out else torch.zeros_like(x)
    return total.where(broken.flip(-1).cumsum(-1).flip(-1) == 0, math.nan)


def _packed_sums(x: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """As ``decayed_sums`` where only tokens in the mask count as distance."""
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    packed = decayed_sums(x.gather(-1, order), gamma)
    return torch.zeros_like(x).scatter(-1, order, packed)


def _clipped_exp(x: Tensor, low: float, high: float) -> Tensor:
    # Compared by the logarithm: no overflow, and the very bounds where the clip holds.
    bounded = torch.where(x >= math.log(high), high, x.clamp(max=math.log(high)).exp())
    return torch.where(x <= math.log(low), low, bounded)


@torch.no_grad()
def branching(ratios: Tensor, entropies: Tensor, mask: Tensor, gate: bool, std_eps: float) -> Tensor:
    """(N, T) branching scores from clipped future ratios and entropies; see ``branching.branching_score``."""
    of_ratio, degenerate = _z_scores(ratios, mask, std_eps)
    of_entropy, _ = _z_scores(entropies, mask, std_eps)
    scores = torch.where(degenerate, of_entropy, of_ratio * of_entropy)
    if gate:
        out = ((of_ratio <= 0) | (of_entropy <= 0)) & ~degenerate & ~scores.isnan()
        scores = scores.masked_fill(out, -math.inf)
    return scores.where(mask, -math.inf)


def _z_scores(values: Tensor, mask: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Distances from the row's mean in population standard deviations, 0 where these are at most eps, and where so."""
    x = values.where(mask, 0).double()
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    centred = (x - x.sum(-1, keepdim=True) / count).where(mask, 0)
    std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    flat = std <= eps
    return (centred / std.where(~flat, 1)).where(~flat, 0).to(values.dtype), flat
