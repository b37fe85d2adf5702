"""Outcome scores of a batch for OAR: which tokens reason, which answer, and the model's passes over them."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from stepopsd.credit.oar import BY_GRADIENT, BY_REPLACEMENT, draw_agreement
from stepopsd.credit.oar_probe import evaluation
from stepopsd.credit.oar_scores import oar_g, oar_p
from stepopsd.train.extras import Played, Provided, provide
from stepopsd.train.policy import Policy, microbatches


def reasoning_and_answer(response_mask: Tensor, step_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The last step span of each row is its answer, the sampled tokens before it are what reasons for it.

    Args:
        response_mask: (N, T) bool.
        step_ids: (N, T) int, -1 outside spans.

    Returns:
        (N, T) bool each; both empty in a row without a span.
    """
    last = step_ids.amax(1, keepdim=True)
    answer = (step_ids == last) & (last >= 0) & response_mask
    width = step_ids.shape[1]
    places = torch.arange(width, device=step_ids.device)
    first = torch.where(answer, places, width).amin(1, keepdim=True)
    return response_mask & (places < first) & answer.any(1, keepdim=True), answer


def lacks_cache(policy: Policy) -> str:
    """Whether the model keeps the keys and values of every token, found out on two of them."""
    from transformers import DynamicCache

    model = policy.model
    ids = torch.full((1, 2), policy.pad_id, device=policy.device)
    try:
        with torch.no_grad(), evaluation(model):
            kept = model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
        whole = [layer.keys.shape[2] == 2 and layer.values.shape[2] == 2 for layer in kept.layers]
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        whole = []
    if whole and all(whole):
        return ""
    return (
        "a model with a KV cache, to compute what a row's variants share once: "
        f"{type(model).__name__} keeps no keys and values of every token; oar_g needs none"
    )


@provide(BY_REPLACEMENT, lacks=lacks_cache)
def replacement_scores(played: Played) -> Provided:
    """(N, T) float32 scores under the policy that is about to be updated, NaN where there are none."""
    started = time.perf_counter()
    options, batch = played.config.credit.oar, played.batch
    reasoning, answer, out = _parts(played)
    for row in reasoning.any(1).nonzero()[:, 0].tolist():
        end = int(batch.attention_mask[row].sum())
        chunk = max(1, played.config.optim.microbatch_tokens // end)
        out[row, :end] = oar_p(
            played.policy.model, batch.input_ids[row, :end], reasoning[row, :end], answer[row, :end],
            pad_id=played.policy.pad_id, probe=options.probe_or("last"), chunk=chunk, stride=options.stride,
        )  # fmt: skip
    return Provided(out, {"oar/seconds": _since(started, out)})


@provide(BY_GRADIENT)
def gradient_scores(played: Played) -> Provided:
    """(N, T) float32 scores under the policy that is about to be updated, NaN where there are none."""
    started = time.perf_counter()
    options, batch = played.config.credit.oar, played.batch
    reasoning, answer, out = _parts(played)
    each = out.repeat(options.draws, 1, 1)
    lengths = torch.where(reasoning.any(1), batch.attention_mask.sum(1), 0)
    for rows, width in microbatches(lengths, played.config.optim.microbatch_tokens):
        each[:, rows, :width] = oar_g(
            played.policy.model, batch.input_ids[rows, :width], batch.attention_mask[rows, :width],
            reasoning[rows, :width], answer[rows, :width], probe=options.probe_or("answer_mean"), sigma=options.sigma,
            draws=options.draws, seed=options.seed, row_numbers=rows.tolist(), reduce=options.reduce,
            each=True,
        )  # fmt: skip
    seen = {"oar/seconds": _since(started, each)}
    agreement = draw_agreement(each)
    return Provided(each.mean(0), seen if agreement is None else {**seen, "oar/draw_agreement": agreement})


def _since(started: float, result: Tensor) -> float:
    """Seconds until the result was there."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - started


def _parts(played: Played) -> tuple[Tensor, Tensor, Tensor]:
    """Reasoning and answer of the rows whose advantage the scores can move, none of others; room for the scores."""
    batch = played.batch
    reasoning, answer = reasoning_and_answer(batch.response_mask, batch.step_ids)
    if played.wanted is not None:
        reasoning = reasoning & played.wanted[:, None]
    return reasoning, answer, torch.full(batch.input_ids.shape, torch.nan, device=batch.input_ids.device)
