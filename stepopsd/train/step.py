"""One policy update: clipped surrogate, KL and entropy terms over micro-batches, then one optimiser step each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stepopsd.ops.policy_loss import aggregation_weights
from stepopsd.rollout.records import Batch
from stepopsd.train.config import RunConfig
from stepopsd.train.policy import Policy, microbatches


class PolicyStep:
    """Turns a batch with advantages into optimiser steps.

    Rows whose advantages are all 0 carry no policy gradient; without KL and entropy terms they are not forwarded,
    but they keep their share in the aggregation's denominator.
    """

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Any, config: RunConfig) -> None:
        self.policy, self.optimizer, self.accelerator, self.config = policy, optimizer, accelerator, config

    def run(self, batch: Batch, ref_logprobs: Tensor | None, update: int) -> dict[str, float]:
        """All epochs and mini-batches of one update; returns metrics averaged over tokens."""
        self.policy.model.train()
        sums: dict[str, float] = defaultdict(float)
        self._set_lr(update)
        steps = 0
        for _ in range(self.config.optim.epochs):
            for rows in self._minibatches(batch):
                refs = None if ref_logprobs is None else ref_logprobs[rows]
                sums["grad_norm"] += self._optimise(batch.select(rows), refs, sums, first=steps == 0)
                steps += 1
        self.policy.model.eval()
        return _averages(sums, steps)

    def _set_lr(self, update: int) -> None:
        optim = self.config.optim
        warm = min(1.0, update / optim.warmup_updates) if optim.warmup_updates else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * warm

    def _minibatches(self, batch: Batch) -> Iterator[Tensor]:
        groups = torch.unique(batch.group_ids)
        size = self.config.optim.minibatch_groups or groups.numel()
        for start in range(0, groups.numel(), size):
            yield torch.isin(batch.group_ids, groups[start : start + size]).nonzero().squeeze(1)

    def _optimise(self, batch: Batch, refs: Tensor | None, sums: dict[str, float], *, first: bool) -> float:
        loss = self.config.loss
        weights = aggregation_weights(
            batch.response_mask, loss.aggregation, budget=self.config.rollout.max_response_tokens
        )
        every_row = loss.kl_coef > 0 or loss.entropy_coef > 0
        matters = batch.response_mask.any(1) & (every_row | (batch.advantages != 0).any(1))
        lengths = torch.where(matters, batch.attention_mask.sum(1), 0)
        for rows, width in microbatches(lengths, self.config.optim.microbatch_tokens):
            part = batch.select(rows).trim(width)
            ref = None if refs is None else refs[rows, :width]
            self.accelerator.backward(self._loss(part, weights[rows, :width], ref, sums, first))
        norm = self.accelerator.clip_grad_norm_(self.policy.model.parameters(), self.config.optim.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if norm is not None else 0.0

    def _loss(self, part: Batch, weights: Tensor, ref: Tensor | None, sums: dict[str, float], first: bool) -> Tensor:
        options, mask = self.config.loss, part.response_mask
        states = self.policy.read_targets(part.input_ids, part.attention_mask, mask)
        result = states.loss(
            part.input_ids[mask], part.advantages[mask], part.old_logprobs[mask], token_weights=weights[mask],
            ref_logprobs=None if ref is None else ref[mask], kl_coef=0.0 if ref is None else options.kl_coef,
            entropy_coef=options.entropy_coef, clip_low=options.clip_low, clip_high=options.clip_high,
            dual_clip=options.dual_clip, temperature=self.config.rollout.temperature,
        )  # fmt: skip
        seen = result.metrics.as_dict()
        tokens = seen["tokens"] + seen["nonfinite"]
        sums["loss"] += float(result.loss.detach())
        sums["tokens"] += tokens
        sums["ratio_mean"] += tokens * seen["ratio_mean"]
        sums["clip_share"] += tokens * (seen["clip_low"] + seen["clip_high"] + seen["clip_dual"])
        sums["entropy"] += tokens * seen["entropy_mean"]
        if ref is not None:
            sums["kl"] += tokens * seen["kl_ref"]
        if first:
            # Before the first step current and old policy are the same weights: any gap is the sampler's.
            sums["old_gap_max"] = max(sums["old_gap_max"], seen["old_gap_max"])
        return result.loss


def _averages(sums: dict[str, float], steps: int) -> dict[str, float]:
    tokens = max(1.0, sums.pop("tokens", 0.0))
    per_token = {name: sums.pop(name, 0.0) / tokens for name in ("ratio_mean", "clip_share", "entropy", "kl")}
    gap = sums.pop("old_gap_max", 0.0)
    steps = max(1, steps)
    return {**{name: value / steps for name, value in sums.items()}, **per_token, "old_gap_max": gap}
