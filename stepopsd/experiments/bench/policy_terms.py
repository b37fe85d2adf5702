"""The policy losses that the benchmarks time, in PyTorch operations, as one writes them down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepopsd.experiments.bench.contenders import shaped
from stepopsd.experiments.bench.problems import CLIP, KL, Problem, required

# Log-probs (1, N) of logits (1, N, V) and ids, and the entropies: "none", "watched" (without gradient) or "wanted".
Scorer = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor | None]]


def grpo(logprobs: Tensor, advantages: Tensor, old: Tensor, ref: Tensor, active: Tensor) -> Tensor:
    """Clipped surrogate with the k3 term, averaged over the active tokens."""
    ratio = (logprobs - old).exp()
    surrogate = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP[0], 1 + CLIP[1]) * advantages)
    distance = ref - logprobs
    terms = surrogate + KL * (distance.exp() - distance - 1)
    return terms.where(active, 0).sum() / active.sum()


def shape_then_grpo(logprobs: Tensor, teacher: Tensor, advantages: Tensor, ref: Tensor, active: Tensor) -> Tensor:
    """The same with shaped advantages, of the policy's own samples."""
    own = logprobs.detach()
    return grpo(logprobs, shaped(advantages, teacher - own, active), own, ref, active)


def score_log_softmax(logits: Tensor, ids: Tensor, entropy: str) -> tuple[Tensor, Tensor | None]:
    """What most training code does: all log-probs in fp32."""
    every = logits.float().log_softmax(-1)
    logprobs = every.gather(-1, ids[..., None])[..., 0]
    if entropy == "none":
        return logprobs, None
    with torch.set_grad_enabled(entropy == "wanted"):
        return logprobs, -(every.exp() * every).sum(-1)


def score_logsumexp(logits: Tensor, ids: Tensor, entropy: str) -> tuple[Tensor, Tensor | None]:
    """The leaner form: the selected logit minus the logsumexp."""
    wide = logits.float()
    lse = wide.logsumexp(-1)
    logprobs = logits.gather(-1, ids[..., None])[..., 0].float() - lse
    if entropy == "none":
        return logprobs, None
    with torch.set_grad_enabled(entropy == "wanted"):
        return logprobs, lse - (wide.softmax(-1) * wide).sum(-1)


def through_logits(
    op: str, score: Scorer, logits: Tensor, tensors: Sequence[Tensor], watch: bool = True
) -> tuple[Tensor, ...]:
    """What ``op`` ends in, from the student's logits and the tensors of ``constants``.

    Args:
        op: One of ``ROW_OPS``, or a linear op without its prefix.
        score: Log-probs and entropies.
        logits: (1, N, V).
        tensors: ids, active, advantages, old, ref, and the teacher's logits where there are any.
        watch: Whether a loss comes with the entropies, which carry no gradient.
    """
    ids, active, advantages, old, ref, *teacher = tensors
    if op in ("logprobs", "backward"):
        return (score(logits, ids, "none")[0].where(active, 0),)
    if op == "entropies":
        return tuple(required(values).where(active, 0) for values in score(logits, ids, "wanted"))
    if op == "pair":
        with torch.no_grad():
            return (shaped(advantages, score(teacher[0], ids, "none")[0] - score(logits, ids, "none")[0], active),)
    logprobs, entropy = score(logits, ids, "watched" if watch else "none")
    if teacher:
        with torch.no_grad():
            hinted, _ = score(teacher[0], ids, "none")
        value = shape_then_grpo(logprobs, hinted, advantages, ref, active)
    else:
        value = grpo(logprobs, advantages, old, ref, active)
    return (value,) if entropy is None else (value, entropy.where(active, 0))


def constants(x: Problem) -> list[Tensor]:
    """What ``through_logits`` takes besides the student's logits."""
    return [x.ids, x.active, x.advantages, x.old, x.ref, *([] if x.teacher is None else [x.teacher])]
