"""Weighted next-token training of a causal LM on dialogue rows, fast enough for two CPU cores."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from stepopsd.experiments.fit_state import FitState


@dataclass(frozen=True, slots=True)
class WeightedRow:
    """One training sequence: ``weights[t]`` multiplies the loss of predicting ``ids[t]`` from what precedes it."""

    ids: Sequence[int]
    weights: Sequence[float]


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How the rows are learned.

    Attributes:
        epochs: Passes over the rows; 1.3 stops three tenths into the second.
        lr: Peak AdamW learning rate, reached after ``warmup_steps`` and then lowered along a cosine to 5 %.
        batch_tokens: Padded tokens per optimiser step.
    """

    epochs: float = 1.3
    lr: float = 2e-3
    warmup_steps: int = 50
    batch_tokens: int = 2048
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0


def bucket(rows: Sequence[WeightedRow], batch_tokens: int, rng: random.Random) -> list[list[WeightedRow]]:
    """Batches of rows of like length with at most ``batch_tokens`` padded tokens each, in random order."""
    by_length = sorted(rows, key=lambda row: (len(row.ids), rng.random()))
    batches: list[list[WeightedRow]] = []
    for row in by_length:
        # Rows come in ascending length, so the newest row sets the padded width.
        if batches and (len(batches[-1]) + 1) * len(row.ids) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    rng.shuffle(batches)
    return batches


def weighted_loss(
    model: PreTrainedModel, batch: Sequence[WeightedRow], *, pad_id: int
) -> tuple[torch.Tensor, float]:
    """Sum of weighted token losses, and the sum of the weights.

    Right padding needs no attention mask under causal attention: no real token sees what follows it.
    """
    width = max(len(row.ids) for row in batch)
    device = model.device
    ids = torch.tensor([[*row.ids, *[pad_id] * (width - len(row.ids))] for row in batch], device=device)  # (B, T)
    weights = torch.tensor([[*row.weights, *[0.0] * (width - len(row.ids))] for row in batch], device=device)
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (B, T-1, H)
    keep = weights[:, 1:] > 0  # rows of the LM head that count
    logits = model.get_output_embeddings()(hidden[keep]).float()  # (K, V)
    losses = F.cross_entropy(logits, ids[:, 1:][keep], reduction="none")
    kept = weights[:, 1:][keep]
    return (losses * kept).sum(), float(kept.sum())


def fit(
    model: PreTrainedModel,
    rows: Sequence[WeightedRow],
    config: FitConfig,
    *,
    pad_id: int,
    say: Callable[[str], None] = print,
    state: FitState | None = None,
) -> list[float]:
    """Train in place; the same rows and config give the same parameters on the same machine, cut short or not.

    Args:
        rows: At least one; rows whose weights are all zero are allowed and teach nothing.
        say: Receives a progress line about every ten seconds.
        state: Where to go on from, if there is something, and to write to.

    Returns:
        The weighted mean loss of every optimiser step.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one training row, got none")
    rng = random.Random(config.seed)
    passes = [bucket(rows, config.batch_tokens, rng) for _ in range(math.ceil(config.epochs))]
    schedule = [batch for batches in passes for batch in batches][: round(config.epochs * len(passes[0]))]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    losses = state.load(model, optimizer) if state is not None else []
    model.train()
    start = spoken = time.monotonic()
    for step, batch in enumerate(schedule[len(losses) :], start=len(losses)):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config.warmup_steps, len(schedule))
        loss, weight = weighted_loss(model, batch, pad_id=pad_id)
        (loss / max(weight, 1.0)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()) / max(weight, 1.0))
        if state is not None:
            state.step(model, optimizer, losses)
        if time.monotonic() - spoken > 10 or step + 1 == len(schedule):
            spoken = time.monotonic()
            say(f"step {step + 1}/{len(schedule)}  loss {_mean(losses[-20:]):.3f}  {spoken - start:.0f} s")
    model.eval()
    return losses


def _schedule(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
