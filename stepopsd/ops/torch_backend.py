"""The row kernels in plain PyTorch: runs anywhere, takes float64, bounded extra memory; waits once for the device."""

from __future__ import annotations

import torch

# fp32 elements of one chunk of logits; a handful of such buffers are alive at a time.
_CHUNK_ELEMENTS = 1 << 22


def availability(device_type: str) -> str | None:
    """None: PyTorch computes on every device it knows."""
    return None


def pair_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor,
    advantages: torch.Tensor,
    active: torch.Tensor,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    temperature: float,
    entropy: bool,
) -> torch.Tensor:
    """Packed (7, B, R) rows from (B, R, V) logits; see ``dispatch.Backend``.

    float64 for float64 logits, else float32. Ids outside [0, V) give NaN rows. Only active rows are read.
    """
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    packed = torch.zeros((7, *active.shape), dtype=dtype, device=student.device)
    places = active.nonzero()
    size = max(1, _CHUNK_ELEMENTS // student.shape[-1])
    for start in range(0, len(places), size):
        b, r = places[start : start + size].unbind(1)
        for model, logits in enumerate((student, teacher)):
            logp, ent = _row_statistics(logits[b, r].to(dtype), ids[b, r], temperature, entropy)
            packed[3 + model, b, r] = logp
            if ent is not None:
                packed[5 + model, b, r] = ent
    packed[:3] = epilogue_rows(
        packed[3],
        packed[4],
        advantages,
        active,
        alpha_clip=alpha_clip,
        lambda_mix=lambda_mix,
        weight_fn=weight_fn,
    )
    return packed


def _row_statistics(
    logits: torch.Tensor, ids: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob of each id (n,) and entropy (n,) of (n, V) logits, which are overwritten."""
    vocab = logits.shape[-1]
    logits.sub_(logits.amax(-1, keepdim=True))
    if temperature != 1.0:
        logits.div_(temperature)  # after the subtraction: a large common offset then costs no precision
    known = (ids >= 0) & (ids < vocab)
    target = logits.gather(-1, ids.where(known, 0)[:, None])[:, 0]
    target = target.where(known, float("nan"))
    weights = logits.exp()
    total = weights.sum(-1)
    logp = (target - total.log()).clamp(max=0)
    if not entropy:
        return logp, None
    # exp(-inf) is 0, and 0 * -inf would be NaN; the floor keeps NaN rows NaN.
    energy = (weights * logits.clamp(min=-1e30)).sum(-1)
    return logp, total.log() - energy / total


def epilogue_rows(
    student_logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    active: torch.Tensor,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
) -> torch.Tensor:
    """Packed (3, M) [shaped, weight, delta] from (M,) log-probs; see ``dispatch.Backend``."""
    delta = (teacher_logprobs - student_logprobs).where(active, 0)
    # sign(0) * inf would be NaN, but a token without advantage keeps w = 1 however large the gap is.
    signed = (advantages.sign() * delta).where((advantages != 0) | delta.isnan(), 0)
    raw = 2 * signed.sigmoid() if weight_fn == "sigmoid" else signed.exp()
    weight = raw.clamp(1 - alpha_clip, 1 + alpha_clip).where(active, 1)
    shaped = (advantages * (1 + lambda_mix * (weight - 1))).where(active, advantages)
    return torch.stack((shaped.to(delta.dtype), weight, delta))
