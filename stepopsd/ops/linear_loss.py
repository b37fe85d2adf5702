"""linear_grpo_loss(): policy loss from hidden states and an LM head; no logits of the batch exist, nor their gradient.

Where a token's share of the loss follows from that token alone, the chunk of logits that was scored becomes its own
gradient at once: three matrix products in all. Else the backward computes the logits a second time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stepopsd.ops import checks, gradient_ops, gradients, linear_ops, losses
from stepopsd.ops.linear_inputs import check_head, choose_tokens, head_options
from stepopsd.ops.linear_ops import HeadOptions, fake_gradients, open_chunks, row_dtype
from stepopsd.ops.linear_rows import Chunks, Gradients, Tokens
from stepopsd.ops.losses import LossOptions, PolicyTerms, Targets
from stepopsd.ops.policy_loss import LossMetrics, PolicyLoss, check_targets, loss_mask
from stepopsd.ops.registry import NORMALISED_CHANNELS, SCORE_CHANNELS


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
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
    fp32_logits: bool = False,
    chunk_rows: int | None = None,
    max_active: int | None = None,
    backend: str = "auto",
) -> PolicyLoss:
    """``grpo_loss(hidden @ weight.T + bias, ...)`` without the logits; masked tokens cost nothing.

    The gradients of hidden states, weight and bias are made in the forward, chunk by chunk, and held until the
    backward multiplies them by the upstream gradient on the device. ``gspo``, whose ratio is known only after the last
    token of a sequence, and fp16, whose gradients a loss scale must reach before they are rounded, compute the logits
    again in the backward instead.

    Args:
        hidden, weight, token_ids, bias, fp32_logits, chunk_rows, max_active: As in ``linear_token_logprobs``.
        advantages, old_logprobs, mask, ref_logprobs, kl_coef, entropy_coef, loss, clip_low, clip_high, dual_clip,
            aggregation, budget, token_weights, temperature, backend: As in ``grpo_loss``.

    Returns:
        ``PolicyLoss``. The gradient flows to hidden states, weight and bias, as far as they require one.

    Raises:
        ValueError, TypeError, IndexError: As ``grpo_loss`` and ``linear_token_logprobs``.
        RuntimeError: A second derivative; a call inside ``torch.func`` transforms.

    Invalid and masked tokens are as in ``grpo_loss``; an invalid one makes the gradient of the weight NaN as well.

    Example:
        >>> hidden = torch.zeros(1, 1, 3, requires_grad=True)
        >>> linear_grpo_loss(hidden, torch.eye(2, 3), torch.tensor([[0]]), torch.ones(1, 1)).loss.backward()
        >>> hidden.grad
        tensor([[[-0.5000,  0.5000,  0.0000]]])

    Source: docs/losses.md names the paper and the equation of each loss.
    """
    options = losses.loss_options(loss, clip_low, clip_high, dual_clip, kl_coef, entropy_coef)
    lead, device = check_head("", hidden, weight, bias, fp32_logits), hidden.device
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    everywhere = loss_mask(mask, lead, device)
    check_targets(advantages, old_logprobs, ref_logprobs, token_weights, kl_coef, lead, device, dtype)
    weights = losses.loss_weights(loss, everywhere, aggregation, budget, token_weights, dtype)
    old, ref = (None if x is None else x.detach().to(dtype) for x in (old_logprobs, ref_logprobs))
    targets = (old, ref, advantages.detach().to(dtype), weights)
    head = head_options(hidden, weight, fp32_logits, chunk_rows, backend)
    tokens = choose_tokens(token_ids, mask, max_active)

    parts = (hidden, weight, bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in parts]
    if any(wanted):
        gradients.refuse_transforms("a policy loss", hidden)
        checks.constant("temperature", temperature)
    if any(wanted) and loss != "gspo" and torch.float16 not in (hidden.dtype, weight.dtype, head.operand):
        with torch.no_grad():
            rows, *found = _differentiate(parts, tokens, targets, options, temperature, wanted, head)
        terms = losses.policy_terms(rows[0], rows[2], *targets, everywhere, options)
        value = terms.loss
        for part, gradient, want in zip(parts, found, wanted, strict=True):
            if part is not None and want:
                value = value + gradients.with_gradient(part, _ready(torch.zeros_like(value), gradient), backend)
    else:
        rows = linear_ops.score(hidden, weight, bias, tokens, temperature, True, head)
        terms = losses.policy_terms(rows[0].detach(), rows[2].detach(), *targets, everywhere, options)
        value = _through_rows(rows, terms, backend) if any(wanted) else terms.loss
    return PolicyLoss(value, rows[0].detach(), rows[2].detach(), LossMetrics(terms.metrics))


def _ready(value: Tensor, gradient: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (value, gradient)


def _through_rows(rows: Tensor, terms: PolicyTerms, backend: str) -> Tensor:
    """The loss as a function of the rows (5, ...), whose own derivative computes the logits again."""
    if rows.numel() == 0:
        return terms.loss + rows.sum()
    slopes = torch.zeros_like(rows)
    slopes[0] = terms.logprob_slope
    if terms.entropy_slope is not None:
        slopes[2] = terms.entropy_slope
    flat = rows.view(len(rows), -1)
    return gradients.with_gradient(flat, _ready(terms.loss, slopes.view(flat.shape)), backend)


def _differentiate(
    parts: tuple[Tensor, Tensor, Tensor | None],
    tokens: Tokens,
    targets: tuple[Tensor | None, Tensor | None, Tensor, Tensor],
    options: LossOptions,
    temperature: float | Tensor,
    wanted: list[bool],
    head: HeadOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(5, ...) rows, and the gradients of the loss that are wanted."""
    number, per_row = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    numbers = [options.clip_low, options.clip_high, options.dual_clip, options.kl_coef, options.entropy_coef]
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _loss_op(
        *parts, tokens.ids, tokens.active, tokens.index, tokens.live, *targets, options.loss, numbers, number, per_row,
        wanted, head.operand, head.fp32_logits, head.chunk_rows, head.backend,
    )  # fmt: skip
    return found


@torch.library.custom_op("stepopsd::linear_loss", mutates_args=())
def _loss_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    active: Tensor | None,
    index: Tensor | None,
    live: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    loss: str,
    numbers: list[float],
    temperature: float,
    temperatures: Tensor | None,
    wanted: list[bool],
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chunks = open_chunks(
        hidden, weight, bias, Tokens(ids, active, index, live), temperature, temperatures, operand, fp32_logits,
        chunk_rows, backend, differentiable=True,
    )  # fmt: skip
    targets = Targets(old_logprobs, ref_logprobs, advantages, weights).map(chunks.compact)
    rows = hidden.new_empty((NORMALISED_CHANNELS, chunks.count), dtype=row_dtype(hidden))
    gradients = Gradients(chunks, hidden, wanted)
    options = LossOptions(loss, *numbers)
    for chunk in chunks:
        states, logits = chunks.logits(chunk)
        rows[:, chunk] = _overwrite(chunks, logits, chunk, targets, options)
        gradients.add(logits, states, chunk)
    return chunks.spread(rows), *gradients.finish(weight.dtype, weight.dtype if bias is None else bias.dtype)


def _overwrite(chunks: Chunks, logits: Tensor, chunk: slice, targets: Targets, options: LossOptions) -> Tensor:
    """(5, m) rows of the logits (m, V) of a chunk, which become their gradient."""
    targets = targets.map(lambda x: x[chunk])
    if chunks.fuses_losses:
        return chunks.learn(logits, chunk, targets, options)
    row = chunks.score(logits, chunk, entropy=True, normaliser=True)
    terms = losses.policy_terms(row[0], row[2], *targets, chunks.live[chunk], options)
    abc = gradient_ops.coefficients(terms.logprob_slope, None, terms.entropy_slope, row[2])
    chunks.differentiate(logits, chunk, row[SCORE_CHANNELS:], abc)
    return row


@_loss_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    active: Tensor | None,
    index: Tensor | None,
    live: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    loss: str,
    numbers: list[float],
    temperature: float,
    temperatures: Tensor | None,
    wanted: list[bool],
    operand: torch.dtype | None,
    fp32_logits: bool,
    chunk_rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.new_empty((NORMALISED_CHANNELS, *ids.shape), dtype=row_dtype(hidden))
    return rows, *fake_gradients(hidden, weight, bias, wanted)
