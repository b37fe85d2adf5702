"""The first half of an update: play the groups, make rows of them, score what is needed, assign credit."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stepopsd.credit.grpo import group_normalize
from stepopsd.credit.plan import Planned
from stepopsd.envs.base import Task
from stepopsd.rollout.records import Batch, Row, Trajectory
from stepopsd.rollout.rows import build_rows, collate, empty_batch, with_copies
from stepopsd.train.branches import Branches
from stepopsd.train.config import RunConfig
from stepopsd.train.credit import Credit
from stepopsd.train.distributed import Ranks
from stepopsd.train.episodes import Episodes
from stepopsd.train.extras import Played
from stepopsd.train.mismatch import mismatch, truncated_importance
from stepopsd.train.plan import Conductor
from stepopsd.train.policy import Policy
from stepopsd.train.prepared import Prepared, rollout_metrics
from stepopsd.train.tasks import episode_seed, tasks_of_update


class Preparation:
    """Everything of an update before the optimiser's step; parameters and logs stay as they are.

    Args:
        config: The run.
        policy: The one that plays and is trained.
        episodes: Plays.
        credit: The methods.
        ranks: Whose groups are played here.
        tasks: Training tasks.
        previous: The policy before the last update, where a method compares with it.
    """

    def __init__(
        self, config: RunConfig, policy: Policy, episodes: Episodes, credit: Credit, ranks: Ranks,
        tasks: Sequence[Task], previous: Policy | None,
    ) -> None:  # fmt: skip
        self.config, self.policy, self.episodes, self.credit = config, policy, episodes, credit
        self.ranks, self.tasks, self.previous = ranks, tasks, previous

    def run(self, update: int, *, ahead: bool) -> Prepared:
        """Prepare one update.

        Args:
            update: Counted from 1; with the seed it fixes tasks and sampling.
            ahead: Let the environments load the next update's games meanwhile; nobody plays others before.

        Raises:
            RuntimeError: No episode can be trained on.
        """
        started = time.perf_counter()
        with self.ranks.together():
            conductor, planned = self._play(update)
            trajectories = conductor.trained(planned)
        if not self.ranks.total(len(trajectories)):
            raise RuntimeError(
                f"no episode of update {update} can be trained on; the first ended with "
                f"{conductor.trajectories[0].status}: {conductor.trajectories[0].error}"
            )
        if ahead:
            self.episodes.prepare(*self._drawn(update + 1), self.config.rollout.group_size)
        played = time.perf_counter()
        rows, batch = self._rows(trajectories, update)
        plain = self._scalar_advantages(batch, update)
        with self.ranks.together():
            return self._assigned(update, conductor, planned, trajectories, rows, batch, plain, (started, played))

    def _rows(self, trajectories: list[Trajectory], update: int) -> tuple[list[Row], Batch]:
        """The rows of this rank and their tensors; none where no episode of its groups can be trained on."""
        rows = build_rows(trajectories, span=self.config.credit.span)
        place = self.ranks.places([trajectories[row.trajectory].group_id for row in rows])
        rows = with_copies(rows, self.config.optim.duplicate_rows_to, f"copies/{self.config.seed}/{update}", place)
        if not rows:
            return rows, empty_batch().to(self.policy.device)
        batch = collate(
            rows, trajectories, pad_id=self.policy.pad_id,
            reward_scale=self.config.loss.reward_scale, invalid_action_penalty=self.config.loss.invalid_action_penalty,
        )  # fmt: skip
        return rows, batch.to(self.policy.device)

    def _assigned(
        self, update: int, conductor: Conductor, planned: Planned, trajectories: list[Trajectory], rows: list[Row],
        batch: Batch, plain: Tensor, times: tuple[float, float],
    ) -> Prepared:  # fmt: skip
        """Scores and credit, by each rank alone."""
        started, played = times
        branches = self._branches(conductor, batch, rows)
        everything = torch.arange(len(batch), device=batch.group_ids.device)
        lent = branches.play(everything, first=True).rewards if branches and not branches.in_minibatches else None
        view = Played(self.config, self.policy, batch, rows, trajectories, lent=lent)
        base = self.credit.base(plain, view, update)
        seen = rollout_metrics(conductor, batch, plain) | dict(planned.metrics)
        groups = max(1, torch.unique(batch.group_ids).numel())
        if self.config.credit.dynamic_sampling == "drop":
            keep = _rows_of_live_groups(base.advantages, batch.group_ids)
            batch, base, plain, rows = batch.select(keep), base.select(keep), plain[keep], [rows[i] for i in keep]
        compared, importance = self._refresh_old_logprobs(batch, base.advantages)
        scored = time.perf_counter()
        result = self.credit.assign(base, Played(self.config, self.policy, batch, rows, trajectories), update)
        if branches and branches.in_minibatches:
            branches.batch, result.branch = batch, branches.play
        batch = replace(batch, advantages=result.advantages)
        ended = time.perf_counter()
        metrics = {
            "seconds": ended - started,
            "rollout_seconds": played - started,
            "teacher_seconds": ended - scored,
            "train_seconds": scored - played,
            **compared,
            "env_failures": conductor.failures,
            **seen,
            **self.episodes.usage.since(),
            "kept_groups": torch.unique(batch.group_ids).numel() / groups,
            "shaped/std": _spread(batch.advantages[batch.response_mask]),
            **result.metrics,
            "tokens/student": int(batch.attention_mask.sum()),
            **result.teacher_metrics(),
        }
        return Prepared(trajectories, rows, plain, batch, result, conductor, branches, metrics, importance)

    def _drawn(self, update: int) -> tuple[list[Task], list[int]]:
        """Tasks and seeds of this rank's groups in an update."""
        groups = self.config.rollout.groups
        tasks = tasks_of_update(self.tasks, update, groups, self.config.seed)
        seeds = [episode_seed(self.config.seed, update, g) for g in range(groups)]
        return self.ranks.own(tasks), self.ranks.own(seeds)

    def _play(self, update: int) -> tuple[Conductor, Planned]:
        tasks, seeds = self._drawn(update)
        conductor = Conductor(
            self.episodes, tasks, seeds,
            temperature=self.config.rollout.temperature, delimiter=self.credit.step_delimiter,
            share=(self.ranks.rank, self.ranks.world),
        )  # fmt: skip
        rng = random.Random(f"{self.config.seed}/{update}/plan" + (f"/{self.ranks.rank}" if self.ranks.rank else ""))
        return conductor, conductor.carry_out(self.credit.plan(len(tasks), self.config.rollout.group_size, rng))

    def _branches(self, conductor: Conductor, batch: Batch, rows: list[Row]) -> Branches | None:
        method = self.credit.brancher
        if method is None or not rows:
            return None
        return Branches(method, conductor, self.policy, self.previous, self.config, batch, rows)

    def _scalar_advantages(self, batch: Batch, update: int) -> Tensor:
        credit = self.config.credit
        plain = group_normalize(
            batch.rewards, batch.group_ids, batch.trajectory_ids,
            statistics=credit.statistics, divide_by_std=credit.divide_by_std,
        )
        if credit.control == "shuffled_advantages":
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + update)
            places, count = self.ranks.places(batch.group_ids.tolist())
            dealt = torch.empty(count)
            for own, values in self.ranks.gathered((places, plain.cpu())):
                dealt[own] = values
            plain = dealt[torch.randperm(count, generator=generator)][places].to(plain.device)
        return plain

    def _refresh_old_logprobs(self, batch: Batch, base: Tensor) -> tuple[dict[str, float], Tensor | None]:
        """Recompute old log-probs where they are needed; how far the sampler's were off, and weights against that."""
        needed = self._matters(base)[:, None] & batch.response_mask
        in_step = bool(needed.any()) and self.config.optim.old_logprobs == "sampled"
        if in_step or (self.credit.has_auxiliary and not bool(needed.any())):
            return {}, None  # the step compares them
        if not bool(needed.any()):
            needed[:1] = batch.response_mask[:1]  # one row, so that sampler and trainer are compared in every update
        fresh = self.policy.score(
            batch.input_ids, batch.attention_mask, needed,
            temperature=self.config.rollout.temperature, max_tokens=self.config.optim.microbatch_tokens,
        )
        seen, importance = mismatch(batch.old_logprobs, fresh, needed), None
        if cap := self.config.optim.tis_cap:
            importance, weighed = truncated_importance(batch.old_logprobs, fresh, needed, cap)
            seen |= weighed
        if self.config.optim.old_logprobs == "recompute":
            batch.old_logprobs[needed] = fresh[needed]
        return seen, importance

    def _matters(self, base: Tensor) -> Tensor:
        """(N,) bool, rows whose old log-probs enter the loss."""
        every_row = self.config.loss.kl_coef > 0 or self.config.loss.entropy_coef > 0
        method = self.credit.brancher
        # Branches that are yet to come may give any row an advantage.
        every_row |= method is not None and method.branching == "minibatch"
        return (base != 0).any(1) | every_row


def _rows_of_live_groups(advantages: Tensor, group_ids: Tensor) -> Tensor:
    """Rows of the groups in which some token has an advantage, in order."""
    live = torch.unique(group_ids[(advantages != 0).any(1)])
    return torch.isin(group_ids, live).nonzero().squeeze(1)


def _spread(values: Tensor) -> float:
    return float(values.std(unbiased=False)) if values.numel() else 0.0
