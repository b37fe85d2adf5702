"""Derivatives of the row statistics for autograd: as functions in eager calls, through custom ops elsewhere.

In place means into the memory of the logits; their version counter says so, and what else needs them then raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stepopsd.ops import gradient_ops as ops
from stepopsd.ops import registry
from stepopsd.ops.losses import LossOptions, Targets
from stepopsd.ops.registry import SCORE_CHANNELS, traced

Rows = tuple[Tensor, Tensor, Tensor]


def differentiable_scores(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    temperature: float | Tensor,
    entropy: bool,
    inplace: bool,
    backend: str,
) -> Rows:
    """Log-prob, log-sum-exp and entropy (...) of logits (..., V), each of which carries the gradient."""
    if traced(logits, ids, active):
        number, per_row = _split(temperature)
        scored = ops.scores_op(logits, ids, active, number, per_row, entropy, backend)
        return scored[0], scored[1], scored[2]
    if inplace:
        check_overwritable("inplace_backward", logits)
    rows: Rows = _apply(_Scores, logits, ids, active, temperature, entropy, inplace, backend)
    return rows


def normalised_scores(
    logits: Tensor, ids: Tensor, active: Tensor, temperature: float | Tensor, entropy: bool, backend: str
) -> Tensor:
    """(5, ...) log-prob, log-sum-exp, entropy, peak and log-mass of logits (..., V), detached."""
    with torch.no_grad():
        if not traced(logits, ids, active):
            return registry.compute_scores([logits], ids, active, temperature, entropy, backend, normaliser=True)[0]
        scored: Tensor = ops.scores_op(logits, ids, active, *_split(temperature), entropy, backend)
    return scored


def gradient_rows(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float | Tensor,
    backend: str,
    *,
    inplace: bool,
) -> Tensor:
    """(..., V) gradient of logits (..., V), detached, from a, b and c (3, ...); see ``dispatch.Backend``."""
    with torch.no_grad():
        if not traced(logits, ids, active, coefficients):
            return ops.compute_gradient(logits, ids, active, normaliser, coefficients, temperature, backend, inplace)
        number, per_row = _split(temperature)
        rows: Tensor = ops.gradient_op(logits, ids, active, normaliser, coefficients, number, per_row, backend)
    return rows


def loss_rows(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    targets: Targets,
    options: LossOptions,
    temperature: float | Tensor,
    backend: str,
    *,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """(5, ...) scores and (..., V) gradient of a token-level loss, detached; see ``dispatch.Backend``."""
    with torch.no_grad():
        if not traced(logits, ids, active, targets.advantages, targets.weights):
            return ops.compute_loss(logits, ids, active, targets, options, temperature, backend, inplace)
        numbers = [options.clip_low, options.clip_high, options.dual_clip, options.kl_coef, options.entropy_coef]
        how = (options.loss, numbers, *_split(temperature), backend)
        found: tuple[Tensor, Tensor] = ops.loss_op(logits, ids, active, *targets, *how)
    return found


def with_gradient(logits: Tensor, compute: Callable[[], tuple[Tensor, Tensor]], backend: str) -> Tensor:
    """The 0-d value that ``compute`` returns, its derivative by ``logits`` being the tensor that it returns.

    That may lie in the memory of the logits: ``compute`` is called where they may be overwritten.

    The backward scales that in place and hands it out; with ``retain_graph`` it does so with a copy.
    """
    if traced(logits):
        result: Tensor = ops.value_op(logits, *compute(), backend)
    else:
        result = _apply(_Value, logits, compute, backend)
    return result


def check_overwritable(option: str, logits: Tensor) -> None:
    """Raise unless the memory of ``logits`` may take their gradient."""
    owner = logits if logits._base is None else logits._base
    if owner.is_leaf and owner.requires_grad:
        raise ValueError(
            f"{option} must be False for logits that are a leaf, or a view of one: their values would be lost"
        )
    reach = 1
    for stride, size in sorted((s, n) for n, s in zip(logits.shape, logits.stride(), strict=True) if n > 1):
        if stride < reach:
            raise ValueError(f"{option} must be False for logits that overlap in memory, got strides {logits.stride()}")
        reach = stride * size


def refuse_transforms(op: str, logits: Tensor) -> None:
    """Raise inside torch.func transforms and forward-mode differentiation, for which the ops have no rules."""
    if torch.compiler.is_compiling():
        return
    dual = forward_ad.unpack_dual(logits)  # type: ignore[no-untyped-call]
    if registry.functorch_level() is not None or dual.tangent is not None:
        raise RuntimeError(f"{op} has no rule for torch.func transforms and forward-mode derivatives")


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        active: Tensor,
        temperature: float | Tensor,
        entropy: bool,
        inplace: bool,
        backend: str,
    ) -> Rows:
        scored = registry.compute_scores([logits], ids, active, temperature, entropy, backend, normaliser=True)[0]
        number, per_row = _split(temperature)
        ctx.save_for_backward(logits, ids, active, scored, per_row)
        ctx.options = number, backend, inplace
        ctx.set_materialize_grads(False)
        logprobs, lse, spread = (x.clone() for x in scored[:SCORE_CHANNELS])
        if not entropy:
            ctx.mark_non_differentiable(spread)
        return logprobs, lse, spread

    @staticmethod
    def backward(
        ctx: Any, logprob: Tensor | None, lse: Tensor | None, spread: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, ids, active, scored, per_row = _saved(
            ctx, "token_logprobs: the logits were changed in place after the forward, or a backward with "
            "inplace_backward=True has overwritten them with their gradient"
        )  # fmt: skip
        number, backend, inplace = ctx.options
        with torch.no_grad():
            gradient = ops.compute_gradient(
                logits, ids, active, scored[SCORE_CHANNELS:], ops.coefficients(logprob, lse, spread, scored[2]),
                number if per_row is None else per_row, backend, inplace,
            )  # fmt: skip
        return only_once(gradient, logits, logprob, lse, spread), *[None] * 6


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, compute: Callable[[], tuple[Tensor, Tensor]], backend: str) -> Tensor:
        # Made here, where the edge to the logits exists: PyTorch may refuse one to a view whose memory has changed.
        value, gradient = compute()
        result = value.clone()
        ctx.save_for_backward(gradient, result)
        ctx.backend = backend
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, result = _saved(
            ctx, "the gradient of this loss is gone: the logits that held it (inplace=True) were changed in place, or "
            "a backward through the loss has handed it out already"
        )  # fmt: skip
        with torch.no_grad():
            if _graph_is_kept():
                gradient = gradient.clone()
            ops.scale_in_place(gradient, upstream, ctx.backend)
        return only_once(gradient, result, upstream), None, None


# Whether this backward runs with retain_graph; where PyTorch does not say, a second backward raises.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: False)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(ops.SECOND)


def only_once(gradient: Tensor, *sources: Tensor | None) -> Tensor:
    """``gradient``; when a graph of it is asked for, differentiating it raises instead of giving a wrong 0."""
    if not torch.is_grad_enabled():
        return gradient
    once: Tensor = _apply(_Once, gradient, *sources)
    return once


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _saved(ctx: Any, message: str) -> tuple[Any, ...]:
    try:
        tensors: tuple[Any, ...] = ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(message) from error
    return tensors


def _split(temperature: float | Tensor) -> tuple[float, Tensor | None]:
    return (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
