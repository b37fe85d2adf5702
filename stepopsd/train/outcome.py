"""Outcome scores of a batch for OAR: which tokens reason, which answer, and the model's passes over them."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.credit.oar import SCORES
from stepopsd.credit.oar_scores import oar_g, oar_p
from stepopsd.train.extras import Played, provide
from stepopsd.train.policy import microbatches


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


@provide(SCORES)
def outcome_scores(played: Played) -> Tensor:
    """(N, T) float32 scores under the policy that is about to be updated, NaN where there are none."""
    options, batch, model = played.config.credit.oar, played.batch, played.policy.model
    reasoning, answer = reasoning_and_answer(batch.response_mask, batch.step_ids)
    out = torch.full(batch.input_ids.shape, torch.nan, device=batch.input_ids.device)
    scored = reasoning.any(1)
    lengths = torch.where(scored, batch.attention_mask.sum(1), 0)
    if options.scorer == "perturbation":
        for row in scored.nonzero()[:, 0].tolist():
            end = int(lengths[row])
            chunk = max(1, played.config.optim.microbatch_tokens // end)
            out[row, :end] = oar_p(
                model, batch.input_ids[row, :end], reasoning[row, :end], answer[row, :end], pad_id=played.policy.pad_id,
                probe=options.probe, chunk=chunk, stride=options.stride,
            )  # fmt: skip
        return out
    for rows, width in microbatches(lengths, played.config.optim.microbatch_tokens):
        out[rows, :width] = oar_g(
            model, batch.input_ids[rows, :width], batch.attention_mask[rows, :width], reasoning[rows, :width],
            answer[rows, :width], probe=options.probe, sigma=options.sigma, draws=options.draws, seed=options.seed,
            row_numbers=rows.tolist(), reduce=options.reduce,
        )  # fmt: skip
    return out
