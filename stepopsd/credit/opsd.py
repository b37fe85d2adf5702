"""OPSD: distil the privileged teacher's whole distribution on the policy's own rollouts (arXiv 2601.18734)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepopsd.credit.base import (
    AuxiliaryInputs,
    AuxiliaryLoss,
    CreditInputs,
    CreditMethod,
    CreditResult,
    broadcast_advantages,
    register,
)
from stepopsd.ops.linear_head import Head, default_chunk_rows


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which divergence of teacher and student is minimised.

    Attributes:
        beta: β of the generalised Jensen-Shannon divergence β·KL(p_T | m) + (1-β)·KL(p_S | m) with
            m = β·p_T + (1-β)·p_S. 0 is KL(p_T | p_S) and 1 is KL(p_S | p_T), its limits up to a factor.
        top_k: Compare the teacher's k likeliest tokens only, both distributions renormalised on them; 0 takes all.
        entry_clip: Upper bound of one vocabulary entry's term; 0 takes none.
        temperature: Logits of both are divided by it.
    """

    beta: float = 0.5
    top_k: int = 0
    entry_clip: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")
        if self.top_k < 0 or self.entry_clip < 0:
            raise ValueError(f"top_k and entry_clip must be at least 0, got {self.top_k} and {self.entry_clip}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}")


def opsd_loss(
    hidden: Tensor,
    weight: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor | None,
    token_weights: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    divergence: Divergence | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ weights·D(teacher, student) over M tokens, a chunk of both models' logits at a time.

    The gradient is made in the forward, from the same chunk, and held until the backward multiplies it by the upstream
    gradient: logits are computed once, and those of the batch never exist.

    Args:
        hidden: (M, H) student's states, or (M, V) its logits where ``weight`` is None; carries the gradient.
        weight: (V, H) student's LM head, carries the gradient.
        teacher_hidden, teacher_weight: The same of the teacher, constants; H may differ, V may not.
        token_weights: (M,) float, e.g. 1 / tokens for the mean.
        bias, teacher_bias: (V,) or None.
        divergence: See ``Divergence``; None takes its defaults.
        chunk_rows: Tokens of one chunk; None takes as many as fit into 512 MiB of logits on a GPU, 32 MiB elsewhere
            (up to 128 MiB for 128 rows).

    Returns:
        The loss, 0-d, and the divergences (M,), detached; in float32, or float64 where the student is.

    Raises:
        ValueError: Shapes that do not fit, ``top_k`` beyond the vocabulary, or no row in a chunk.

    Entries that are impossible for both models count 0. An entry that only one can produce makes KL(p_S | p_T) or
    KL(p_T | p_S) infinite, never the divergences between; ``entry_clip`` bounds it.

    Example:
        >>> logits = torch.randn(3, 11)
        >>> opsd_loss(logits, None, logits, None, torch.ones(3))[0]
        tensor(0.)

    Source: OPSD, arXiv 2601.18734; the generalised divergence is that of arXiv 2306.13649, eq. 1.
    """
    divergence = divergence or Divergence()
    vocab = _check(hidden, weight, teacher_hidden, teacher_weight, token_weights, divergence)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    rows = default_chunk_rows(vocab, wide, hidden.device.type) if chunk_rows is None else chunk_rows
    if rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    teacher = _Side(teacher_hidden.detach(), teacher_weight, teacher_bias, wide)
    found: tuple[Tensor, Tensor] = _Distil.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, teacher, token_weights, divergence, rows, wide
    )
    return found


def _check(
    hidden: Tensor, weight: Tensor | None, teacher_hidden: Tensor, teacher_weight: Tensor | None,
    token_weights: Tensor, divergence: Divergence,
) -> int:
    """The size of the vocabulary; raise unless the shapes fit."""
    sizes = []
    for name, states, head in (("", hidden, weight), ("teacher_", teacher_hidden, teacher_weight)):
        if states.ndim != 2 or (head is not None and (head.ndim != 2 or head.shape[1] != states.shape[1])):
            shapes = tuple(states.shape), None if head is None else tuple(head.shape)
            raise ValueError(f"{name}hidden must be (M, H) with {name}weight (V, H), got {shapes[0]}, {shapes[1]}")
        sizes.append(states.shape[1] if head is None else head.shape[0])
    if hidden.shape[0] != teacher_hidden.shape[0] or token_weights.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden, teacher_hidden and token_weights must agree in M, got {hidden.shape[0]}, "
            f"{teacher_hidden.shape[0]}, {tuple(token_weights.shape)}"
        )
    if sizes[0] != sizes[1]:
        raise ValueError(f"student and teacher must share one vocabulary, got {sizes[0]} and {sizes[1]} entries")
    if divergence.top_k > sizes[0]:
        raise ValueError(f"top_k must be at most the vocabulary's {sizes[0]} entries, got {divergence.top_k}")
    return sizes[0]


class _Side:
    """One model's rows of logits, a chunk at a time, in float32 or better."""

    def __init__(self, states: Tensor, weight: Tensor | None, bias: Tensor | None, wide: torch.dtype) -> None:
        self.states, self.wide = states, wide
        self.head = None if weight is None else Head.build(
            weight.detach(), None if bias is None else bias.detach(), states.dtype, fp32_logits=True
        )

    def logits(self, chunk: slice) -> Tensor:
        """(m, V), fresh memory."""
        part = self.states[chunk]
        if self.head is None:
            return part.to(self.wide, copy=True)
        out = part.new_empty((part.shape[0], self.head.weight.shape[0]), dtype=self.head.logits)
        self.head.write_logits(part, out)
        return out.to(self.wide)


class _Distil(torch.autograd.Function):
    """The loss with the gradients of the student's states, head and bias, made in the forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: _Side, token_weights: Tensor,
        divergence: Divergence, rows: int, wide: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        student = _Side(hidden.detach(), weight, bias, wide)
        count, needs = hidden.shape[0], ctx.needs_input_grad
        values = hidden.new_zeros(count, dtype=wide)
        grads = _Gradients(student, needs, -(-count // rows))
        shares = token_weights.detach().to(wide)
        for start in range(0, count, rows):
            chunk = slice(start, min(count, start + rows))
            values[chunk], slope = divergence_rows(student.logits(chunk), teacher.logits(chunk), divergence)
            grads.add(slope.mul_(shares[chunk, None]), chunk)
        ctx.save_for_backward(*grads.finish(bias))
        ctx.mark_non_differentiable(values)
        return (shares * values).sum(), values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        return (*grads, None, None, None, None, None)


class _Gradients:
    """Gradients added up chunk by chunk; those that nobody asks for cost nothing."""

    def __init__(self, student: _Side, needs: tuple[bool, ...], chunks: int) -> None:
        self.student, head = student, student.head
        self.hidden = torch.zeros_like(student.states) if needs[0] else None
        self.weight = head.new_weight_gradient(chunks, student.states.dtype) if head is not None and needs[1] else None
        self.bias = head.new_bias_gradient() if head is not None and needs[2] else None

    def add(self, slope: Tensor, chunk: slice) -> None:
        """What the gradient (m, V) of a chunk's logits gives to each."""
        head, states = self.student.head, self.student.states
        if self.hidden is not None:
            self.hidden[chunk] = (slope if head is None else head.hidden_gradient(slope)).to(self.hidden.dtype)
        if head is not None and self.weight is not None:
            head.add_weight_gradient(slope, states[chunk], self.weight, first=chunk.start == 0)
        if head is not None and self.bias is not None:
            head.add_bias_gradient(slope, self.bias)

    def finish(self, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All three, in the dtypes of their tensors."""
        head = self.student.head
        if self.weight is not None and not len(self.student.states):
            self.weight.zero_()  # no chunk has written it
        weight = None if self.weight is None or head is None else self.weight.to(head.weight.dtype)
        return self.hidden, weight, None if self.bias is None or bias is None else self.bias.to(bias.dtype)


def divergence_rows(student: Tensor, teacher: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Divergences (m,) of logits (m, V), and their gradient (m, V) by the student's logits."""
    chosen = teacher.topk(divergence.top_k, dim=-1).indices if divergence.top_k else None
    if chosen is None:
        return _row_terms(student, teacher, divergence)
    values, slope = _row_terms(student.gather(-1, chosen), teacher.gather(-1, chosen), divergence)
    return values, torch.zeros_like(student).scatter_(-1, chosen, slope)


def _row_terms(student: Tensor, teacher: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Entry by entry: the term d of the divergence, and p_S·∂d/∂p_S, whose centred rows are the logits' gradient."""
    beta = divergence.beta
    log_s = torch.log_softmax(student / divergence.temperature, -1)
    log_t = torch.log_softmax(teacher / divergence.temperature, -1)
    p_s, p_t = log_s.exp(), log_t.exp()
    if beta == 0:
        entries, pull = _times(p_t, log_t - log_s), -p_t
    elif beta == 1:
        entries = _times(p_s, log_s - log_t)
        pull = entries + p_s
    else:
        log_m = torch.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
        pull = (1 - beta) * _times(p_s, log_s - log_m)
        entries = beta * _times(p_t, log_t - log_m) + pull
    if divergence.entry_clip:
        pull = pull.where(entries <= divergence.entry_clip, 0)
        entries = entries.clamp(max=divergence.entry_clip)
    slope = (pull - p_s * pull.sum(-1, keepdim=True)) / divergence.temperature
    return entries.sum(-1), slope


def _times(p: Tensor, log_ratio: Tensor) -> Tensor:
    """p·log_ratio with 0·∞ = 0."""
    return torch.where(p > 0, p * log_ratio, 0)


@dataclass(frozen=True)
class Opsd(CreditMethod):
    """No rewards: the divergence alone, on every token that the teacher reads. Joined with a rewarded method, both.

    Attributes:
        coefficient: Weight of the term in the loss.
        beta, top_k, entry_clip: See ``Divergence``.
    """

    coefficient: float = 1.0
    beta: float = 0.5
    top_k: int = 0
    entry_clip: float = 0.0

    role: ClassVar[Any] = "auxiliary"
    rewarded: ClassVar[bool] = False
    teacher_tokens: ClassVar[Any] = "response"
    reads_teacher_states: ClassVar[bool] = True

    def wants_teacher(self, update: int) -> bool:
        return True

    def assign(self, inputs: CreditInputs) -> CreditResult:
        return CreditResult(broadcast_advantages(inputs.advantages, inputs.response_mask))

    def auxiliary(self, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
        assert inputs.teacher_hidden is not None
        loss, values = opsd_loss(
            inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight,
            self.coefficient * inputs.token_weights, bias=inputs.bias, teacher_bias=inputs.teacher_bias,
            divergence=Divergence(self.beta, self.top_k, self.entry_clip, inputs.temperature),
        )  # fmt: skip
        return AuxiliaryLoss(loss, {"divergence": values.mean(), "divergence_max": values.max()})


@register("opsd")
def build(options: Mapping[str, Any]) -> Opsd:
    """OPSD from ``credit.opsd``."""
    return Opsd(**{name: options["opsd"][name] for name in ("coefficient", "beta", "top_k", "entry_clip")})
