"""token_logprobs(): log-prob, log-sum-exp and entropy of one model at the sampled tokens, with their gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepopsd.ops import checks, gradients, registry


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Result of ``token_logprobs``; (...) float32 (float64 for float64 logits), 0 where masked.

    All three carry the gradient where the logits require one.

    Attributes:
        logprobs: Log-prob of each id, never positive.
        lse: ln Σ exp(logits / temperature).
        entropy: In nats; None unless asked for.
    """

    logprobs: Tensor
    lse: Tensor
    entropy: Tensor | None


def token_logprobs(
    logits: Tensor,
    token_ids: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> TokenLogprobs:
    """Score sampled tokens under one model, reading each row of logits once; the backward reads it once more.

    The same row loop as ``shape_advantages``, bit for bit: a trainer may score the teacher, free its logits, run and
    score the student, and hand both log-probs to ``shape_advantages``.

    Args:
        logits: (..., V) bf16, fp16, fp32 or fp64; any leading shape and row stride, V contiguous. Logits at position t
            must be those that predict ``token_ids`` at t.
        token_ids: (...) int64 or int32 in [0, V).
        mask: (...) bool, the tokens to score; None scores all. Nothing is read of the others.
        temperature: Logits are divided by it first; a number > 0, or (...) float32 with one value per token.
        entropy: Also compute the entropy, in the same read.
        inplace_backward: The backward writes the gradient over the logits instead of into memory of the same size.
            The logits must not be a leaf, and nothing else may need their values after that. ``torch.compile``
            manages memory itself and ignores it.
        backend: As for ``shape_advantages``.

    Returns:
        ``TokenLogprobs``. Sums are fp32 or better whatever autocast says; the gradient has the dtype of the logits.

    Raises:
        ValueError: A shape, device, stride or option out of what is allowed; a named backend that is not available;
            ``inplace_backward`` on a leaf, a view of one, or logits that overlap in memory.
        TypeError: A dtype that is not allowed.
        IndexError: An id outside [0, V) where not masked, on CPU.
        RuntimeError: In the backward, where the logits were changed in place before it; a second derivative; a
            call inside ``torch.func`` transforms.

    A row with a NaN or +inf logit, or with -inf only, gives NaN in that row alone; so does an id outside [0, V) on a
    GPU, for its log-prob. Masked tokens get a gradient of exactly 0, whatever their logits hold.

    Example:
        >>> token_logprobs(torch.zeros(1, 4), torch.tensor([2])).logprobs.exp()
        tensor([0.2500])
    """
    checks.logits("logits", logits)
    lead, device = logits.shape[:-1], logits.device
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    if mask is None:
        mask = torch.ones(lead, dtype=torch.bool, device=device)
    checks.mask(mask, lead, device)
    gradients.refuse_transforms("token_logprobs", logits)
    if logits.requires_grad and torch.is_grad_enabled():
        checks.constant("temperature", temperature)
        logprobs, lse, spread = gradients.differentiable_scores(
            logits, token_ids, mask, temperature, entropy, inplace_backward, backend
        )
    else:
        logprobs, lse, spread = registry.score_rows([logits], token_ids, mask, temperature, entropy, backend)[0]
    return TokenLogprobs(logprobs, lse, spread if entropy else None)
