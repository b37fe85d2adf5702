"""One policy update: clipped surrogate, KL and entropy terms over micro-batches, then one optimiser step each."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stepopsd.ops.policy_loss import aggregation_weights
from stepopsd.rollout.records import Batch
from stepopsd.train.assigned import Assigned
from stepopsd.train.config import RunConfig
from stepopsd.train.distributed import Ranks
from stepopsd.train.memory import PeakMemory, halving
from stepopsd.train.policy import Policy
from stepopsd.train.precision import Masters
from stepopsd.train.sharding import Sharded


class PolicyStep:
    """Turns a batch with advantages into optimiser steps.

    Rows whose advantages are all 0 carry no policy gradient; without KL, entropy and auxiliary terms they are not
    forwarded, but they keep their share in the aggregation's denominator.

    Args:
        policy: Trained; whole on every rank.
        optimizer: Of its parameters, or of the shards'.
        accelerator: Runs the backward.
        config: The run.
        ranks: Whose rows one step is made of; each passes its own to ``run``.
        sharded: The same weights in pieces, which are trained then.
        masters: The exact weights of a half-precision policy, which the optimiser moves then.
    """

    def __init__(
        self, policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Any, config: RunConfig,
        ranks: Ranks | None = None, sharded: Sharded | None = None, masters: Masters | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.optimizer, self.accelerator, self.config = policy, optimizer, accelerator, config
        self.ranks, self.sharded, self.masters = ranks or Ranks(), sharded, masters
        self.trained: Policy = policy if sharded is None else sharded
        self.microbatch_tokens = config.optim.microbatch_tokens  # halved, for good, where memory runs out
        self._skipped_in_a_row = 0
        self._credit: Assigned | None = None
        self._means: dict[str, _Mean] = {}
        self._forwarded = 0  # tokens of this update, without padding

    def run(
        self, batch: Batch, ref_logprobs: Tensor | None, update: int, credit: Assigned | None = None, *,
        importance: Tensor | None = None,
    ) -> dict[str, float]:
        """All epochs and mini-batches of one update; returns metrics averaged over tokens.

        Args:
            batch: With advantages; of this rank, perhaps without rows.
            ref_logprobs: (N, T) or None.
            update: Counted from 1.
            credit: Where the advantages came from, for methods with a loss term or that follow the policy.
            importance: (N, T) weights of the policy term, see ``mismatch.truncated_importance``; None for 1.
        """
        self.trained.model.train()
        sums: dict[str, float] = defaultdict(float, loss=0.0, grad_norm=0.0)
        sums["skipped_steps"] = 0.0
        forwarded, real = self.trained.forwarded, self.trained.real
        watch = PeakMemory(self.policy.device)
        self._credit, self._means, self._forwarded = credit, defaultdict(_Mean), 0
        self._set_lr(update)
        steps = 0
        for _ in range(self.config.optim.epochs):
            for rows in self._minibatches(batch):
                refs = None if ref_logprobs is None else ref_logprobs[rows]
                part = batch.select(rows)
                if credit is not None and credit.branch is not None:
                    part = replace(part, advantages=self._branch(rows, credit, first=steps == 0))
                elif credit is not None and credit.moves and steps > 0:
                    part = replace(part, advantages=self._follow(part, rows, credit))
                if importance is not None:
                    part = replace(part, advantages=part.advantages * importance[rows])
                sums["grad_norm"] += self._optimise(part, refs, sums, rows, first=steps == 0)
                steps += 1
        self.trained.model.eval()
        skipped = sums.pop("skipped_steps")
        sums["forwarded"], sums["real"] = self.trained.forwarded - forwarded, self.trained.real - real
        sums, means = self._of_all_ranks(sums)
        padding = 1.0 - sums.pop("real") / max(1.0, sums.pop("forwarded"))
        return {
            **_averages(sums, steps), **means, "skipped_steps": skipped, "microbatch_tokens": self.microbatch_tokens,
            "padding_share": padding, "peak_memory_mib": watch.mib(),
            "tokens/forward_loss": self._forwarded,
        }  # fmt: skip

    def _follow(self, part: Batch, rows: Tensor, credit: Assigned) -> Tensor:
        """Advantages under the policy as it is now, after some steps of this update."""
        needed = part.response_mask & (credit.base[rows] != 0).any(1, keepdim=True)
        with self.ranks.together():
            current = self.policy.score(
                part.input_ids, part.attention_mask, needed,
                temperature=self.config.rollout.temperature, max_tokens=self.microbatch_tokens,
            )  # fmt: skip
        self.trained.model.train()
        return credit.again(rows, torch.where(needed, current, part.old_logprobs))

    def _branch(self, rows: Tensor, credit: Assigned, *, first: bool) -> Tensor:
        """Advantages with what branches of these rows came to, played by the policy as it is now."""
        assert credit.branch is not None
        with self.ranks.together():
            branched = credit.branch(rows, first=first) if len(rows) else None
        self.trained.model.train()
        if branched is None:
            return credit.advantages[rows]
        return credit.again(rows, branched.logprobs, branched.rewards)

    def _set_lr(self, update: int) -> None:
        optim = self.config.optim
        warm = min(1.0, update / optim.warmup_updates) if optim.warmup_updates else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * warm

    def _minibatches(self, batch: Batch) -> Iterator[Tensor]:
        by_rows = self.config.optim.minibatch_rows
        if by_rows:
            places, count = self.ranks.places(batch.group_ids.tolist())
            steps = max(1, round(count / by_rows))
            place = torch.tensor(places, dtype=torch.int64, device=batch.group_ids.device)
            yield from ((place % steps == first).nonzero().squeeze(1) for first in range(steps))
            return
        everyone = self.ranks.union(batch.group_ids.tolist())
        groups = torch.tensor(everyone, dtype=torch.int64, device=batch.group_ids.device)
        size = self.config.optim.minibatch_groups or max(1, groups.numel())
        for start in range(0, groups.numel(), size):
            yield torch.isin(batch.group_ids, groups[start : start + size]).nonzero().squeeze(1)

    def _optimise(
        self, batch: Batch, refs: Tensor | None, sums: dict[str, float], origin: Tensor, *, first: bool
    ) -> float:
        loss = self.config.loss
        weights = aggregation_weights(
            batch.response_mask, loss.reduction, budget=self.config.rollout.max_response_tokens
        )
        if self.ranks.world > 1:
            weights = weights * self._share(batch.response_mask)
        every_row = loss.kl_coef > 0 or loss.entropy_coef > 0
        matters = batch.response_mask.any(1) & (every_row | (batch.advantages != 0).any(1))
        if self._credit is not None:
            matters |= self._credit.has_auxiliary[origin]
        lengths = torch.where(matters, batch.attention_mask.sum(1), 0)

        self._forwarded += int(lengths.sum())

        def accumulate(tokens: int) -> None:
            with self._undone_without_memory(sums):
                parts = list(self.trained.microbatches(lengths, tokens))
                missing = 0 if self.sharded is None else int(self.ranks.most(len(parts))) - len(parts)
                for rows, width in parts:
                    part = batch.select(rows).trim(width)
                    ref = None if refs is None else refs[rows, :width]
                    self._backward(self._loss(part, weights[rows, :width], ref, sums, origin[rows], first))
                for _ in range(missing):
                    assert self.sharded is not None
                    self._backward(self.sharded.anchor())

        if self.sharded is not None:
            # Ranks talk to each other in every forward: what fails here ends the process, and with it the launch.
            reads = self._credit is not None and bool(self._credit.auxiliaries)  # perhaps a live teacher, in the step
            with self.sharded.stepping(keep=reads):
                accumulate(self.microbatch_tokens)
                return self._step(sums)
        least = int(lengths.max()) if lengths.numel() else 1
        with self.ranks.together():
            _, self.microbatch_tokens = halving(accumulate, self.microbatch_tokens, least=least, what="policy step")
        self.ranks.sum_gradients(self._weights())
        return self._step(sums)

    def _backward(self, loss: Tensor) -> None:
        if self.sharded is None:
            self.accelerator.backward(loss)
            if self.masters is not None:
                self.masters.collect()
        else:
            (loss * self.ranks.world).backward()  # shards average the ranks' gradients; theirs are parts of one sum

    def _share(self, mask: Tensor) -> float:
        """This rank's denominator of the aggregation over that of all ranks."""
        own = int(mask.sum()) if self.config.loss.reduction == "token_mean" else len(mask)
        return max(1, own) / max(1, int(self.ranks.total(own)))

    def _of_all_ranks(self, sums: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """What was summed over micro-batches and the means over tokens, of all ranks together."""
        parts = self.ranks.gathered((dict(sums), {name: (m.total, m.count) for name, m in self._means.items()}))
        whole: dict[str, float] = defaultdict(float)
        means: dict[str, _Mean] = defaultdict(_Mean)
        for own, _ in parts:
            for name, value in own.items():
                whole[name] = max(whole[name], value) if name == "old_gap_max" else whole[name] + value
        whole["grad_norm"] = sums["grad_norm"]  # is that of all ranks already
        for _, own_means in parts:
            for name, (total, count) in own_means.items():
                means[name].total, means[name].count = means[name].total + total, means[name].count + count
        return whole, {name: mean.value for name, mean in means.items()}

    def _step(self, sums: dict[str, float]) -> float:
        """Clip and step; gradients that are not finite are dropped with their mini-batch. Returns their norm."""
        size = self._clipped()
        if math.isfinite(size):
            self._skipped_in_a_row = 0
            self.optimizer.step()
            if self.masters is not None:
                self.masters.round()
            self.optimizer.zero_grad(set_to_none=True)
            return size
        self.optimizer.zero_grad(set_to_none=True)
        self._skipped_in_a_row += 1
        sums["skipped_steps"] += 1
        allowed = self.config.optim.max_skipped_steps
        if self._skipped_in_a_row > allowed:
            raise FloatingPointError(
                f"{self._skipped_in_a_row} steps in a row had a gradient that is not finite (optim.max_skipped_steps "
                f"is {allowed}); the last checkpoint is from before this update. Usual causes: a learning rate that is "
                "too high, or log-probs of -inf from a temperature or mask that differs between sampler and trainer"
            )
        warnings.warn("a step was skipped: its gradient is not finite", stacklevel=2)
        return 0.0

    def _weights(self) -> list[nn.Parameter]:
        """What the optimiser moves, where it is whole."""
        return self.masters.weights if self.masters is not None else list(self.policy.model.parameters())

    def _clipped(self) -> float:
        most = self.config.optim.max_grad_norm
        if self.sharded is not None:
            return self.sharded.clip_gradients(most)
        norm = self.accelerator.clip_grad_norm_(self._weights(), most)
        return float(norm) if norm is not None else 0.0

    @contextmanager
    def _undone_without_memory(self, sums: dict[str, float]) -> Iterator[None]:
        """Take gradients and metrics back where memory runs out half-way."""
        before, means = dict(sums), copy.deepcopy(self._means)
        try:
            yield
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            if self.masters is not None:
                self.masters.forget()
            sums.clear()
            sums.update(before)
            self._means = means
            raise

    def _loss(
        self, part: Batch, weights: Tensor, ref: Tensor | None, sums: dict[str, float], origin: Tensor, first: bool
    ) -> Tensor:
        options, mask = self.config.loss, part.response_mask
        credit = self._credit if self._credit is not None and self._credit.auxiliaries else None
        states = self.trained.read_targets(part.input_ids, part.attention_mask, mask)
        # A ratio of whole rows needs them whole; everything else takes the tokens that count.
        whole = options.name == "gspo"
        at = torch.ones_like(mask) if whole else mask
        shape = mask.shape if whole else (-1,)
        result = (states.spread(mask) if whole else states).loss(
            part.input_ids[at].view(shape), part.advantages[at].view(shape), part.old_logprobs[at].view(shape),
            mask=mask if whole else None, token_weights=weights[at].view(shape), loss=options.name,
            ref_logprobs=None if ref is None else ref[at].view(shape), kl_coef=0.0 if ref is None else options.kl_coef,
            entropy_coef=options.entropy_coef, clip_low=options.clip_low, clip_high=options.clip_high,
            dual_clip=options.bound, temperature=self.config.rollout.temperature, keep=credit is not None,
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
            sums["old_kl"] += seen["tokens"] * seen["kl_old"]
            sums["first_tokens"] += seen["tokens"]
        if credit is None:
            return result.loss
        logprobs = result.logprobs[mask] if whole else result.logprobs
        extra = credit.auxiliary(
            origin, mask, part.input_ids[mask], states, logprobs, weights[mask],
            self.config.rollout.temperature, lambda name, value, count: self._means[name].add(value, count),
        )  # fmt: skip
        if extra is None:
            return result.loss
        sums["auxiliary_loss"] += float(extra.detach())
        return result.loss + extra


class _Mean:
    """A mean over tokens that come in parts."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float, count: int) -> None:
        self.total, self.count = self.total + value * count, self.count + count

    @property
    def value(self) -> float:
        return self.total / max(1, self.count)


def _averages(sums: dict[str, float], steps: int) -> dict[str, float]:
    tokens = max(1.0, sums.pop("tokens", 0.0))
    per_token = {name: sums.pop(name, 0.0) / tokens for name in ("ratio_mean", "clip_share", "entropy", "kl")}
    old = {"old_gap_max": sums.pop("old_gap_max", 0.0)}
    old["old_kl"] = sums.pop("old_kl", 0.0) / max(1.0, sums.pop("first_tokens", 0.0))
    steps = max(1, steps)
    return {**{name: value / steps for name, value in sums.items()}, **per_token, **old}
