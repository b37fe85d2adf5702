"""The ops where each rank of a process group holds a slice of the vocabulary, as a column-parallel head makes it.

Same names and results as in ``stepopsd``, with ``group`` and ``vocab_start``. A call scores the local slice once,
gathers a few numbers per row in one collective, and returns the same bits on every rank; the backward is local. All
ranks must make the same calls with the same ids, masks and other tensors per token; only the logits differ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from stepopsd.ops import checks, gradient_ops, gradients, losses, registry, shaping
from stepopsd.ops.logprobs import TokenLogprobs
from stepopsd.ops.policy_loss import LossMetrics, PolicyLoss, check_targets, gradient_wanted, loss_mask
from stepopsd.ops.results import ShapedAdvantages
from stepopsd.ops.segments import StepSegments
from stepopsd.ops.vocab_exchange import Slice, merge

__all__ = ["grpo_loss", "shape_advantages", "token_logprobs"]

P = ParamSpec("P")
R = TypeVar("R")


def _outside_graphs(op: Callable[P, R]) -> Callable[P, R]:
    """``op``, at which ``torch.compile`` breaks its graph: a process group does not fit into a custom op."""

    @functools.wraps(op)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # at the call, since compiler.disable takes seconds to import
            return cast(R, torch.compiler.disable(op)(*args, **kwargs))  # type: ignore[no-untyped-call]
        return op(*args, **kwargs)

    return call


@_outside_graphs
def token_logprobs(
    logits: Tensor,
    token_ids: Tensor,
    *,
    group: dist.ProcessGroup | None,
    vocab_start: int,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> TokenLogprobs:
    """``stepopsd.token_logprobs`` of logits whose vocabulary is cut among the ranks of ``group``.

    Args:
        logits: (..., V_local), this rank's columns, as in ``stepopsd.token_logprobs``; the sizes may differ by rank.
        token_ids: (...) int64 or int32 in the whole vocabulary.
        group: The ranks; they hold consecutive slices in rank order. None is the default group.
        vocab_start: Id of the first local column.
        mask, temperature, entropy, inplace_backward, backend: As there.

    Returns:
        ``TokenLogprobs`` over the whole vocabulary, the same on every rank. In the backward each rank gives its own
        columns their gradient, as if the loss that it differentiates were the only one: let every rank compute the
        same loss and call backward, and sum nothing over the ranks but the gradient of the hidden states.

    Raises:
        ValueError, TypeError: As there; no process group; on CPU slices that are not consecutive (NaN on a GPU).
        IndexError: An id outside the whole vocabulary where not masked, on CPU (NaN on a GPU).
        RuntimeError: As there, for the backward.

    A NaN or +inf logit on one rank makes the row NaN on all of them. A rank may hold nothing but -inf of a row.
    ``torch.compile`` breaks its graph at the call.

    Example:
        >>> rows = token_logprobs(local_logits, ids, group=tensor_parallel, vocab_start=rank * local_logits.shape[-1])
    """
    checks.logits("logits", logits)
    lead, device = logits.shape[:-1], logits.device
    part = _slice(group, vocab_start, logits)
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    mask = loss_mask(mask, lead, device)
    gradients.refuse_transforms("token_logprobs", logits)
    if logits.requires_grad and torch.is_grad_enabled():
        checks.constant("temperature", temperature)
        if inplace_backward:
            gradients.check_overwritable("inplace_backward", logits)
        logprobs, lse, spread = _Scores.apply(  # type: ignore[no-untyped-call]
            logits, token_ids, mask, temperature, entropy, part, inplace_backward, backend
        )
    else:
        logprobs, lse, spread, *_ = _rows([logits], token_ids, mask, temperature, entropy, part, backend)[0]
    return TokenLogprobs(logprobs, lse, spread if entropy else None)


@_outside_graphs
@torch.no_grad()
def shape_advantages(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    step_ids: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None,
    vocab_start: int,
    trajectory_ids: Tensor | None = None,
    segments: StepSegments | None = None,
    alpha_clip: float = 0.2,
    lambda_mix: float = 0.2,
    weight_fn: str = "sigmoid",
    step_norm: str = "equal_step_mean_abs",
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    backend: str = "auto",
) -> ShapedAdvantages:
    """``stepopsd.shape_advantages`` of logits whose vocabulary is cut among the ranks of ``group``.

    Args:
        student_logits, teacher_logits: (..., V_local), the columns that this rank holds of both.
        token_ids, group, vocab_start: As in ``token_logprobs``.
        advantages, step_ids, trajectory_ids, segments, alpha_clip, lambda_mix, weight_fn, step_norm, temperature,
            entropy, backend: As in ``stepopsd.shape_advantages``.

    Returns:
        ``ShapedAdvantages``, detached, the same on every rank. Both models go through one exchange.

    Raises:
        ValueError, TypeError, IndexError: As ``stepopsd.shape_advantages`` and ``token_logprobs`` here.
    """
    checks.options(alpha_clip, lambda_mix, weight_fn, step_norm)
    dtype = checks.logits_pair(student_logits, teacher_logits)
    lead, device = student_logits.shape[:-1], student_logits.device
    part = _slice(group, vocab_start, student_logits)
    checks.token_ids(token_ids, lead, device)
    checks.advantages(advantages, lead, device, dtype)
    temperature = checks.temperature(temperature, lead, device)
    mask = shaping.step_mask(step_ids, lead, device)
    models = [student_logits, teacher_logits]
    student, teacher = _rows(models, token_ids, mask, temperature, entropy, part, backend)
    shaped = shaping.shape_advantages(
        None, None, None, advantages, step_ids, trajectory_ids=trajectory_ids, segments=segments,
        student_logprobs=student[0], teacher_logprobs=teacher[0], alpha_clip=alpha_clip, lambda_mix=lambda_mix,
        weight_fn=weight_fn, step_norm=step_norm, backend=backend,
    )  # fmt: skip
    return replace(shaped, entropies=(student[2], teacher[2])) if entropy else shaped


@_outside_graphs
def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None,
    vocab_start: int,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    loss: str = "grpo",
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float = 0.0,
    aggregation: str | None = None,
    budget: int = 0,
    token_weights: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    inplace: bool = False,
    backend: str = "auto",
) -> PolicyLoss:
    """``stepopsd.grpo_loss`` of logits whose vocabulary is cut among the ranks of ``group``.

    The gradient of the local columns is made in the forward, after the exchange.

    Args:
        logits: (..., V_local), this rank's columns.
        token_ids, group, vocab_start: As in ``token_logprobs``.
        advantages, old_logprobs, mask, ref_logprobs, kl_coef, entropy_coef, loss, clip_low, clip_high, dual_clip,
            aggregation, budget, token_weights, temperature, inplace, backend: As in ``stepopsd.grpo_loss``.

    Returns:
        ``PolicyLoss``, the same on every rank; about its backward, see ``token_logprobs``.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: As ``stepopsd.grpo_loss`` and ``token_logprobs`` here.
    """
    options = losses.loss_options(loss, clip_low, clip_high, dual_clip, kl_coef, entropy_coef)
    dtype = checks.logits("logits", logits)
    lead, device = logits.shape[:-1], logits.device
    part = _slice(group, vocab_start, logits)
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    mask = loss_mask(mask, lead, device)
    check_targets(advantages, old_logprobs, ref_logprobs, token_weights, kl_coef, lead, device, dtype)
    weights = losses.loss_weights(loss, mask, aggregation, budget, token_weights, dtype)
    wanted = gradient_wanted(logits, temperature, inplace)
    rows = _rows([logits], token_ids, mask, temperature, True, part, backend)[0]
    logprobs, entropy = rows[0], rows[2]
    old, ref = (None if x is None else x.detach().to(dtype) for x in (old_logprobs, ref_logprobs))
    terms = losses.policy_terms(logprobs, entropy, old, ref, advantages.detach().to(dtype), weights, mask, options)
    value = terms.loss
    if wanted:
        abc = gradient_ops.coefficients(terms.logprob_slope, None, terms.entropy_slope, entropy)
        gradient = functools.partial(_gradient, logits, token_ids, mask, rows, abc, temperature, part, inplace, backend)
        value = gradients.with_gradient(logits, lambda: (terms.loss, gradient()), backend)
    return PolicyLoss(value, logprobs, entropy, LossMetrics(terms.metrics))


def _slice(group: dist.ProcessGroup | None, vocab_start: int, logits: Tensor) -> Slice:
    """The local slice; raise unless there is a group and this rank belongs to it."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"group must be a process group, but torch.distributed is not initialised, got {group}; call "
            "torch.distributed.init_process_group first"
        )
    group = dist.group.WORLD if group is None else group
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group must be a process group that this rank belongs to, got {group!r}")
    if vocab_start < 0:
        raise ValueError(f"vocab_start must be 0 or more, got {vocab_start}")
    return Slice(group, vocab_start, logits.shape[-1])


def _rows(
    logits: list[Tensor],
    ids: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    entropy: bool,
    part: Slice,
    backend: str,
) -> Tensor:
    """(K, 5, ...) rows over the whole vocabulary, detached; the last two channels are its normaliser."""
    with torch.no_grad():
        column, here = part.local(ids)
        scored = registry.compute_scores(logits, column, mask, temperature, entropy, backend, normaliser=True)
        return merge(scored, here, ids, mask, part, entropy=entropy)


def _gradient(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor,
    rows: Tensor,
    coefficients: Tensor,
    temperature: float | Tensor,
    part: Slice,
    inplace: bool,
    backend: str,
) -> Tensor:
    """(..., V_local) gradient of the local logits from a, b and c (3, ...) of the whole row."""
    with torch.no_grad():
        column, here = part.local(ids)
        a, b, c = coefficients
        abc = torch.stack((a.where(here, 0), b.where(~rows[0].isnan(), math.nan), c))
        normaliser = rows[registry.SCORE_CHANNELS :]
        return gradient_ops.compute_gradient(logits, column, mask, normaliser, abc, temperature, backend, inplace)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        mask: Tensor,
        temperature: float | Tensor,
        entropy: bool,
        part: Slice,
        inplace: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        rows = _rows([logits], ids, mask, temperature, entropy, part, backend)[0]
        number, per_row = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
        ctx.save_for_backward(logits, ids, mask, rows, per_row)
        ctx.options = number, part, inplace, backend
        ctx.set_materialize_grads(False)
        logprobs, lse, spread = (x.clone() for x in rows[: registry.SCORE_CHANNELS])
        if not entropy:
            ctx.mark_non_differentiable(spread)
        return logprobs, lse, spread

    @staticmethod
    def backward(ctx: Any, logprob: Tensor | None, lse: Tensor | None, spread: Tensor | None) -> tuple[Any, ...]:
        logits, ids, mask, rows, per_row = ctx.saved_tensors
        number, part, inplace, backend = ctx.options
        abc = gradient_ops.coefficients(logprob, lse, spread, rows[2])
        temperature = number if per_row is None else per_row
        gradient = _gradient(logits, ids, mask, rows, abc, temperature, part, inplace, backend)
        return gradients.only_once(gradient, logits, logprob, lse, spread), *[None] * 7
