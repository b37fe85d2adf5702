"""Custom ops of the hidden-state variants: schema, implementation, fake and derivative.

The chunks are opaque to ``torch.compile``: a call is one node of the graph, and so is its backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.ops.gradient_ops import coefficients
from stepopsd.ops.linear_head import Head
from stepopsd.ops.linear_rows import Chunks, Gradients, Tokens
from stepopsd.ops.registry import NORMALISED_CHANNELS, SCORE_CHANNELS

SECOND = "the hidden-state ops have no second derivative: their gradient cannot be differentiated"


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How the head's products are computed; plain values, so that they fit into a schema.

    Attributes:
        operand: Dtype to which autocast converts hidden states, weight and bias; None leaves them as they are.
        fp32_logits: Logits in float32 whatever the operands are.
        chunk_rows: Rows of one chunk; 0 lets the size of the buffer decide.
        backend: Name of the backend of the row kernels, or "auto".
    """

    operand: torch.dtype | None
    fp32_logits: bool
    chunk_rows: int
    backend: str


def score(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tokens,
    temperature: float | Tensor,
    entropy: bool,
    options: HeadOptions,
) -> Tensor:
    """(3, ...) log-prob, log-sum-exp and entropy, with two more channels where a gradient will be asked for."""
    parts = [x for x in (hidden, weight, bias) if x is not None]
    normaliser = torch.is_grad_enabled() and any(x.requires_grad for x in parts)
    number, per_row = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    rows: Tensor = _score_op(
        hidden, weight, bias, tokens.ids, tokens.active, tokens.index, tokens.live, number, per_row, entropy,
        normaliser, options.operand, options.fp32_logits, options.chunk_rows, options.backend,
    )  # fmt: skip
    return rows


def open_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tokens,
    temperature: float,
    temperatures: Tensor | None,
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
    *,
    differentiable: bool,
) -> Chunks:
    """The chunks of a call, from the plain values of an op's schema."""
    compute = hidden.dtype if operand is None else operand
    if operand is not None:
        weight, bias = weight.to(operand), None if bias is None else bias.to(operand)
    head = Head.build(weight, bias, compute, fp32_logits)
    how = temperature if temperatures is None else temperatures
    return Chunks(hidden, head, tokens, how, compute, chunk_rows, backend, differentiable=differentiable)


def _channels(normaliser: bool) -> int:
    return NORMALISED_CHANNELS if normaliser else SCORE_CHANNELS


def row_dtype(hidden: Tensor) -> torch.dtype:
    """Dtype of the numbers per token."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@torch.library.custom_op("stepopsd::linear_score", mutates_args=())
def _score_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    active: Tensor | None,
    index: Tensor | None,
    live: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    entropy: bool,
    normaliser: bool,
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
) -> Tensor:
    tokens = Tokens(ids, active, index, live)
    chunks = open_chunks(
        hidden, weight, bias, tokens, temperature, temperatures, operand, fp32_logits, chunk_rows, backend,
        differentiable=normaliser,
    )  # fmt: skip
    rows = hidden.new_empty((_channels(normaliser), chunks.count), dtype=row_dtype(hidden))
    for chunk in chunks:
        _, logits = chunks.logits(chunk)
        rows[:, chunk] = chunks.score(logits, chunk, entropy=entropy, normaliser=normaliser)
    return chunks.spread(rows)


@_score_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    active: Tensor | None,
    index: Tensor | None,
    live: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    entropy: bool,
    normaliser: bool,
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
) -> Tensor:
    return hidden.new_empty((_channels(normaliser), *ids.shape), dtype=row_dtype(hidden))


@torch.library.custom_op("stepopsd::linear_score_backward", mutates_args=())
def _score_backward_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    active: Tensor | None,
    index: Tensor | None,
    live: Tensor | None,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    wanted: list[bool],
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = Tokens(ids, active, index, live)
    chunks = open_chunks(
        hidden, weight, bias, tokens, temperature, temperatures, operand, fp32_logits, chunk_rows, backend,
        differentiable=True,
    )  # fmt: skip
    normaliser, coefficients = (torch.stack([chunks.compact(x) for x in y]) for y in (normaliser, coefficients))
    gradients = Gradients(chunks, hidden, wanted)
    for chunk in chunks:
        states, logits = chunks.logits(chunk)
        chunks.differentiate(logits, chunk, normaliser[:, chunk], coefficients[:, chunk])
        gradients.add(logits, states, chunk)
    return gradients.finish(weight.dtype, weight.dtype if bias is None else bias.dtype)


@_score_backward_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    active: Tensor | None,
    index: Tensor | None,
    live: Tensor | None,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    wanted: list[bool],
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(hidden, weight, bias, wanted)


def fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory like that of ``Gradients.finish``."""
    kind = weight if bias is None else bias
    shapes = hidden.shape, weight.shape, weight.shape[:1]
    a, b, c = (
        x.new_empty(shape if want else (0,))
        for x, shape, want in zip((hidden, weight, kind), shapes, wanted, strict=True)
    )
    return a, b, c


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, bias, ids, active, index, live, temperature, temperatures, entropy, normaliser, *options = inputs
    if not normaliser:
        raise RuntimeError("the rows must be scored with their normaliser where a gradient is asked for")
    ctx.save_for_backward(hidden, weight, bias, ids, active, index, live, temperatures, output)
    ctx.temperature, ctx.entropy, ctx.options = temperature, entropy, options


def _score_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *head, ids, active, index, live, temperatures, rows = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    abc = coefficients(grad[0], grad[1], grad[2] if ctx.entropy else None, rows[2])
    found = _score_backward_op(
        *head, ids, active, index, live, rows[SCORE_CHANNELS:], abc, ctx.temperature, temperatures, wanted,
        *ctx.options,
    )  # fmt: skip
    return *(x if want else None for x, want in zip(found, wanted, strict=True)), *[None] * 12


def refuse_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(SECOND)


torch.library.register_autograd("stepopsd::linear_score", _score_backward, setup_context=_keep)
torch.library.register_autograd("stepopsd::linear_score_backward", refuse_second)
