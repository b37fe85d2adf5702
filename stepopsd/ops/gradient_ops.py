"""Custom ops of the derivatives: the gradient of rows of logits, a value with a ready gradient, and their autograd.

``gradients.py`` has the eager functions of the same meaning. The ops have no visible side effects, so under
``torch.compile`` a gradient gets memory of its own even where it was asked for in place.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from stepopsd.ops import dispatch, layout, registry, torch_backend
from stepopsd.ops.losses import LossOptions, Targets
from stepopsd.ops.registry import NORMALISED_CHANNELS, SCORE_CHANNELS

SECOND = "token_logprobs and the policy losses have no second derivative: their gradient cannot be differentiated"


def coefficients(logprob: Tensor | None, lse: Tensor | None, spread: Tensor | None, entropy: Tensor) -> Tensor:
    """(3, ...) a, b, c from the derivatives by log-prob, log-sum-exp and entropy, and the entropy itself."""
    a = torch.zeros_like(entropy) if logprob is None else logprob
    b = -a if lse is None else lse - a
    if spread is None:
        return torch.stack((a, b, torch.zeros_like(entropy)))
    return torch.stack((a, b - spread * entropy, -spread))


def compute_gradient(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float | Tensor,
    backend: str,
    inplace: bool,
) -> Tensor:
    """(..., V) gradient of logits (..., V) from a, b and c (3, ...), in memory of its own or in that of the logits."""
    module = dispatch.load(dispatch.resolve_gradients(backend, logits.device.type, logits.dtype))
    x = logits.detach()
    out = x if inplace else torch.empty_like(x, memory_format=torch.contiguous_format)
    for index, (source, target) in layout.row_blocks(x, out):
        shape = source.shape
        per_row = registry.as_block(temperature, index, shape) if isinstance(temperature, Tensor) else temperature
        module.gradient_rows(
            source,
            registry.as_block(ids, index, shape).long(),
            registry.as_block(active, index, shape),
            _planes(normaliser, index, shape),
            _planes(coefficients, index, shape),
            temperature=per_row,
            out=target,
        )
    if inplace:
        torch.autograd.graph.increment_version(logits)  # kernels write behind autograd's back
    return out


def compute_loss(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    targets: Targets,
    options: LossOptions,
    temperature: float | Tensor,
    backend: str,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """(5, ...) scores and (..., V) gradient of a token-level loss, by a backend that has ``loss_rows``."""
    name = dispatch.resolve_gradients(backend, logits.device.type, logits.dtype)
    module, x = dispatch.load(name), logits.detach()
    out = x if inplace else torch.empty_like(x, memory_format=torch.contiguous_format)
    scored = x.new_empty((NORMALISED_CHANNELS, *ids.shape), dtype=torch.float32)
    blocks = list(layout.row_blocks(x, out))
    if x.device.type == "cpu" and (name != "cpu" or len(blocks) > 1):  # before any block is overwritten
        layout.check_ids(ids, active, x.shape[-1])
    for index, (source, target) in blocks:
        cut = functools.partial(registry.as_block, index=index, shape=source.shape)
        per_row = cut(temperature) if isinstance(temperature, Tensor) else temperature
        try:
            block = module.loss_rows(
                source, cut(ids).long(), cut(active), *targets.map(cut), options, temperature=per_row, out=target
            )
        except IndexError:
            layout.check_ids(ids, active, x.shape[-1])  # names the place in the caller's shape
            raise
        place = scored.movedim(0, -1)[index].movedim(-1, 0)
        place.copy_(block.view(place.shape))
    if inplace:
        torch.autograd.graph.increment_version(logits)
    return scored, out


def _planes(values: Tensor, index: layout.Index, shape: torch.Size) -> Tensor:
    if index:
        values = values.movedim(0, -1)[index].movedim(-1, 0)
    return values.reshape(len(values), shape[0], shape[1]).contiguous()


def scale_in_place(gradient: Tensor, factor: Tensor, backend: str) -> None:
    """Multiply (..., V) by the 0-d ``factor`` without waiting for the device."""
    module = dispatch.load(dispatch.resolve_gradients(backend, gradient.device.type, gradient.dtype))
    scale = getattr(module, "scale_rows", torch_backend.scale_rows)
    for _, (rows,) in layout.row_blocks(gradient.detach()):
        scale(rows, factor.detach())
    torch.autograd.graph.increment_version(gradient)


@torch.library.custom_op("stepopsd::normalised_scores", mutates_args=())
def scores_op(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    entropy: bool,
    backend: str,
) -> Tensor:
    how = temperature if temperatures is None else temperatures
    return registry.compute_scores([logits], ids, active, how, entropy, backend, normaliser=True)[0]


@scores_op.register_fake
def _(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    entropy: bool,
    backend: str,
) -> Tensor:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty((NORMALISED_CHANNELS, *ids.shape), dtype=wide)


def _keep_scores(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, ids, active, temperature, temperatures, entropy, backend = inputs
    ctx.save_for_backward(logits, ids, active, output, temperatures)
    ctx.options = temperature, entropy, backend


def _scores_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, ids, active, scored, per_row = ctx.saved_tensors
    number, entropy, backend = ctx.options
    abc = coefficients(grad[0], grad[1], grad[2] if entropy else None, scored[2])
    return gradient_op(logits, ids, active, scored[SCORE_CHANNELS:], abc, number, per_row, backend), *[None] * 6


scores_op.register_autograd(_scores_backward, setup_context=_keep_scores)


@torch.library.custom_op("stepopsd::gradient_rows", mutates_args=())
def gradient_op(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    backend: str,
) -> Tensor:
    how = temperature if temperatures is None else temperatures
    return compute_gradient(logits, ids, active, normaliser, coefficients, how, backend, inplace=False)


@gradient_op.register_fake
def _(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    backend: str,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op("stepopsd::loss_rows", mutates_args=())
def loss_op(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    loss: str,
    numbers: list[float],
    temperature: float,
    temperatures: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    how, options = temperature if temperatures is None else temperatures, LossOptions(loss, *numbers)
    targets = Targets(old, ref, advantages, weights)
    return compute_loss(logits, ids, active, targets, options, how, backend, inplace=False)


@loss_op.register_fake
def _(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    loss: str,
    numbers: list[float],
    temperature: float,
    temperatures: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    scored = logits.new_empty((NORMALISED_CHANNELS, *ids.shape), dtype=torch.float32)
    return scored, torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op("stepopsd::with_gradient", mutates_args=())
def value_op(logits: Tensor, value: Tensor, gradient: Tensor, backend: str) -> Tensor:
    return value.clone()


@value_op.register_fake
def _(logits: Tensor, value: Tensor, gradient: Tensor, backend: str) -> Tensor:
    return torch.empty_like(value)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.backend = inputs[3]


def _value_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return scale_op(ctx.saved_tensors[0], upstream, ctx.backend), None, None, None


value_op.register_autograd(_value_backward, setup_context=_keep_gradient)


@torch.library.custom_op("stepopsd::scale_rows", mutates_args=())
def scale_op(gradient: Tensor, factor: Tensor, backend: str) -> Tensor:
    scaled = gradient.clone()
    scale_in_place(scaled, factor, backend)
    return scaled


@scale_op.register_fake
def _(gradient: Tensor, factor: Tensor, backend: str) -> Tensor:
    return torch.empty_like(gradient)


def _refuse_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(SECOND)


gradient_op.register_autograd(_refuse_second)
scale_op.register_autograd(_refuse_second)
