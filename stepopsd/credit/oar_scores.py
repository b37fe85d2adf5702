"""How much each reasoning token moves the model's own answer: OAR-P by replacing it, OAR-G by a gradient.

The model is a transformers causal LM (``logits_to_keep`` and, for OAR-G, ``inputs_embeds``). It is used in evaluation
mode; neither its parameters nor their gradients are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit.oar_probe import check_row, evaluation, outcome, probe_kl, probed

REDUCTIONS = ("abs_dot", "l2")


def grad_x_input(gradient: Tensor, embeddings: Tensor, mask: Tensor, reduce: str = "abs_dot") -> Tensor:
    """(B, T) saliency of (B, T, H) gradients: |Σ_h g·e| (``abs_dot``) or the norm of g (``l2``); 0 outside the mask.

    Raises:
        ValueError: An unknown ``reduce``.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    g = gradient.float()
    s = (g * embeddings.float()).sum(-1).abs() if reduce == "abs_dot" else g.norm(dim=-1)
    return s.where(mask, 0)


def oar_p(
    model: Any,
    input_ids: Tensor,
    reasoning: Tensor,
    answer: Tensor,
    *,
    pad_id: int,
    probe: str = "last",
    chunk: int = 16,
    stride: int = 1,
    reuse_prefix: bool = True,
) -> Tensor:
    """Outcome scores by counterfactual: each reasoning token in turn becomes the padding token.

    I_t = KL(P || P with token t replaced) of the outcome distribution, or the fall of the answer's mean log-prob for
    ``answer_joint``. The attention mask stays as it is. The LM head runs at the probed positions only.

    Args:
        model: Causal LM; see the top of this file.
        input_ids: (T,) int64, one row without padding.
        reasoning: (T,) bool, tokens to score; all before the answer, and not the first token.
        answer: (T,) bool, tokens of the final answer, at least one and not the first token.
        pad_id: Id that takes a token's place.
        probe: ``last``: the distribution of the first answer token; ``answer_mean``: of the mean logits at all
            positions that predict the answer; ``answer_joint``: the answer's mean log-prob.
        chunk: Replacements per forward pass.
        stride: An approximation where above 1: only every stride-th token is replaced, and its score also given to
            the reasoning tokens after it, up to the next one that is.
        reuse_prefix: Recompute only what follows the first replacement of a chunk, from the keys and values of one
            clean pass: half the work. Needs a model whose cache is plain keys and values.

    Returns:
        (T,) float32, NaN outside ``reasoning``; may be negative for ``answer_joint``.

    Raises:
        ValueError: An unknown probe, masks that do not fit, chunk or stride below 1.

    Source: arXiv 2601.07408 (OAR-P).
    """
    check_row(input_ids, reasoning, answer, probe)
    for name, value in (("chunk", chunk), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    read, targets = probed(answer, input_ids, probe)
    end = int(read[-1]) + 1
    places = reasoning.nonzero()[:, 0]
    scores = torch.full(input_ids.shape, torch.nan, device=input_ids.device)
    with torch.no_grad(), evaluation(model):
        clean = model(
            input_ids=input_ids[None, :end], logits_to_keep=read, use_cache=reuse_prefix, **_cache(reuse_prefix)
        )
        reference = outcome(clean.logits[0].float(), targets, probe)
        for chosen in torch.split(places[::stride], chunk):
            variants = input_ids[:end].repeat(len(chosen), 1)
            variants[torch.arange(len(chosen)), chosen] = pad_id
            start = int(chosen[0]) if reuse_prefix else 0
            past = _prefix(clean.past_key_values, start, len(chosen)) if start else None
            logits = model(
                input_ids=variants[:, start:],
                position_ids=torch.arange(start, end, device=variants.device)[None],
                past_key_values=past,
                use_cache=past is not None,
                logits_to_keep=read - start,
            ).logits
            scores[chosen] = _influence(logits, reference, targets, probe)
    if stride > 1:
        scores[places] = scores[places[::stride]].repeat_interleave(stride)[: len(places)]
    return scores


def oar_g(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    reasoning: Tensor,
    answer: Tensor,
    *,
    probe: str = "answer_mean",
    sigma: float = 1e-3,
    draws: int = 1,
    seed: int = 0,
    row_numbers: Sequence[int] | None = None,
    reduce: str = "abs_dot",
    each: bool = False,
) -> Tensor:
    """Outcome scores by one gradient: how the outcome depends on each reasoning token's embedding.

    A forward pass with Gaussian noise on the reasoning tokens' embeddings, then the gradient of KL(P || P noisy) by
    these embeddings (of the fall of the answer's mean log-prob for ``answer_joint``); the score is gradient times
    clean embedding. Only activations get gradients. Without noise the KL is at its minimum and its gradient 0:
    ``sigma=0`` makes sense for ``answer_joint`` only, which then is deterministic.

    Args:
        model: Causal LM; see the top of this file.
        input_ids: (B, T) int64, right-padded.
        attention_mask: (B, T) bool.
        reasoning, answer: (B, T) bool, as in ``oar_p``. Rows that lack either are not scored.
        probe: As in ``oar_p``.
        sigma: Standard deviation of the noise.
        draws: Scores are averaged over so many draws.
        seed: Of the noise, which depends on the seed, the draw, the row's number and its reasoning tokens alone.
        row_numbers: Numbers of the B rows; None: 0 to B - 1.
        reduce: See ``grad_x_input``.
        each: Every draw by itself, not their mean.

    Returns:
        (B, T) float32, (draws, B, T) with ``each``; at least 0, NaN outside ``reasoning`` and in rows without an
        answer.

    Raises:
        ValueError: An unknown probe or reduction, masks that do not fit, sigma below 0 or pointless, draws below 1.

    Source: arXiv 2601.07408 (OAR-G).
    """
    if not sigma >= 0 or (sigma == 0 and probe != "answer_joint"):
        raise ValueError(f"sigma must be above 0 (or 0 with probe='answer_joint'), got {sigma} with probe={probe!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    rows = (reasoning.any(1) & answer.any(1)).nonzero()[:, 0].tolist()
    out = torch.full((draws, *input_ids.shape), torch.nan, device=input_ids.device)
    for row in rows:
        check_row(input_ids[row], reasoning[row], answer[row], probe)
    if not rows:
        return out if each else out[0]
    inside, marked = reasoning[rows], answer[rows]
    numbers = rows if row_numbers is None else [row_numbers[row] for row in rows]
    embeddings = model.get_input_embeddings()(input_ids[rows]).detach()
    probes = [probed(marked[i], input_ids[row], probe) for i, row in enumerate(rows)]
    with evaluation(model):
        with torch.no_grad():
            clean = _read(model, embeddings, attention_mask[rows], [read for read, _ in probes])
        for draw in range(draws):
            noise = _noise(numbers, inside, draw, seed, embeddings) * sigma
            noisy = (embeddings + noise).requires_grad_()
            with torch.enable_grad():
                logits = _read(model, noisy, attention_mask[rows], [read for read, _ in probes])
            seeds = [
                _slope(new.detach(), old, targets, probe)
                for new, old, (_, targets) in zip(logits, clean, probes, strict=True)
            ]
            # Rows are brought to one size: derivatives of 1e-9 would be lost in half precision.
            sizes = torch.stack([x.abs().max() for x in seeds]).clamp(min=torch.finfo(torch.float32).tiny)
            seeds = [(x / size).to(new.dtype) for x, size, new in zip(seeds, sizes, logits, strict=True)]
            (gradient,) = torch.autograd.grad(logits, noisy, grad_outputs=seeds)
            scores = grad_x_input(gradient, embeddings, inside, reduce) * sizes[:, None]
            out[draw, rows] = scores.where(inside, torch.nan)
    return out if each else out.mean(0)


def _influence(logits: Tensor, reference: Tensor, targets: Tensor, probe: str) -> Tensor:
    """(K,) from logits (K, A, V) after a replacement."""
    if probe == "answer_joint":
        return reference - outcome(logits.float(), targets, probe)
    return probe_kl(logits.float().mean(-2), reference)


def _slope(noisy: Tensor, clean: Tensor, targets: Tensor, probe: str) -> Tensor:
    """Derivative of the outcome's change by the noisy logits (A, V), in closed form."""
    count = len(targets)
    if probe == "answer_joint":
        slope = noisy.float().softmax(-1)
        slope[torch.arange(count), targets] -= 1
    else:
        reference = outcome(clean.float(), targets, probe)
        gap = outcome(noisy.float(), targets, probe) - reference
        slope = (reference.exp() * torch.expm1(gap)).expand(count, -1)  # q - p0
    return slope / count


def _read(model: Any, embeddings: Tensor, attention_mask: Tensor, reads: Sequence[Tensor]) -> list[Tensor]:
    """Logits (A_i, V) of each row at its own positions; the LM head runs at the union of these."""
    union = torch.unique(torch.cat(list(reads)))
    # The rows' own ends would do; a mask over the padding keeps every architecture's position rules.
    logits = model(
        inputs_embeds=embeddings, attention_mask=attention_mask.long(), use_cache=False, logits_to_keep=union
    ).logits
    return [logits[i, torch.searchsorted(union, read)] for i, read in enumerate(reads)]


def _noise(numbers: Sequence[int], inside: Tensor, draw: int, seed: int, like: Tensor) -> Tensor:
    """(B, T, H) standard normal inside, else 0; made on the CPU and row by row, so that nothing else changes it."""
    out = torch.zeros(like.shape)
    for i, number in enumerate(numbers):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) * 1_009 + draw)
        places = inside[i].cpu()
        out[i, places] = torch.randn(int(places.sum()), like.shape[-1], generator=generator)
    return out.to(like)


def _cache(wanted: bool) -> dict[str, Any]:
    if not wanted:
        return {}
    from transformers import DynamicCache

    return {"past_key_values": DynamicCache()}  # without a configuration: sliding layers keep all of their keys


def _prefix(cache: Any, length: int, rows: int) -> Any:
    """The first ``length`` columns of a one-row cache, as a new cache of ``rows`` rows."""
    from transformers import DynamicCache

    out = DynamicCache()
    for index, layer in enumerate(cache.layers):
        out.update(
            layer.keys[:, :, :length].expand(rows, -1, -1, -1), layer.values[:, :, :length].expand(rows, -1, -1, -1),
            index,
        )  # fmt: skip
    return out
