"""The credit side of a run: methods and their teachers, wired once; per update, advantages and auxiliary terms."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit import CreditInputs, CreditMethod, create
from stepopsd.credit.base import broadcast_advantages
from stepopsd.credit.controls import shuffled_gaps
from stepopsd.credit.plan import Plan, plain_plan
from stepopsd.train import outcome as outcome  # registers what it provides
from stepopsd.train import turns as turns  # likewise
from stepopsd.train.assigned import Assigned, Base, Opinion, Part
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import to_tree
from stepopsd.train.extras import Played, gather, require
from stepopsd.train.policy import Policy
from stepopsd.train.teacher import Teacher, TeacherScores


class Credit:
    """The methods of a run.

    Args:
        config: The run; ``credit.name`` may join several methods with ``+``.
        policy: Live teachers follow it, stale ones start as its copies.
    """

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        self.config, self.policy = config, policy
        options = to_tree(config.credit)
        self.parts = [Part(n, create(n, options), self._teacher(n)) for n in config.credit.names]
        for part in self.parts:
            require(part.name, part.method.needs(1), policy)

    @property
    def snapshot(self) -> Policy | None:
        """The stale teacher that a checkpoint has to hold."""
        found = [p.teacher.scorer for p in self.parts if p.teacher is not None and p.teacher.is_stale]
        return found[0] if found else None

    def refresh(self, update: int) -> None:
        """Let a stale teacher catch up after an update."""
        for part in self.parts:
            if part.teacher is not None:
                part.teacher.refresh(self.policy, update)

    def plan(self, prompts: int, group_size: int, rng: random.Random) -> Plan:
        """What the update's rollouts are."""
        makers = [part.method for part in self.parts if part.method.role == "base"]
        return makers[0].plan(prompts, group_size, rng) if makers else plain_plan(prompts, group_size)

    @property
    def has_auxiliary(self) -> bool:
        """Whether a method comes as a loss term, which forwards rows without an advantage as well."""
        return any(part.method.role == "auxiliary" for part in self.parts)

    @property
    def brancher(self) -> CreditMethod | None:
        """The method that branches attempts, if one does."""
        return next((part.method for part in self.parts if part.method.branching), None)

    @property
    def step_delimiter(self) -> str:
        """See ``CreditMethod.step_delimiter``."""
        return next((part.method.step_delimiter for part in self.parts if part.method.role == "base"), "")

    def base(self, plain: Tensor, played: Played, update: int) -> Base:
        """What a ``base`` method makes of the rewards, else the scalar advantages, or 0 where no method is about them.

        Args:
            plain: (N,) scalar advantages.
            played: The batch; its log-probs and advantages are not read.
            update: Counted from 1.
        """
        for part in self.parts:
            if part.method.role == "base" and len(plain):
                opinion = self._opinion(part, plain, None, played, update)
                return Base(opinion.result.advantages, opinion)
        rewarded = any(part.method.rewarded for part in self.parts)
        return Base(broadcast_advantages(plain if rewarded else torch.zeros_like(plain), played.batch.response_mask))

    def assign(self, base: Base, played: Played, update: int) -> Assigned:
        """Ask the teachers, then every method.

        Args:
            base: From ``base``, rows as in ``played``.
            played: Old log-probs must be those of the policy that is about to be updated.
            update: Counted from 1.
        """
        advantages = base.advantages
        opinions = [] if base.opinion is None else [base.opinion]
        for part in self.parts:
            if part.method.role == "base" or not len(advantages):
                continue  # without rows there is nobody to ask
            played = replace(played, wanted=(advantages != 0).any(1))
            scores = self._ask(part, advantages, played, update)
            opinions.append(self._opinion(part, advantages, scores, played, update))
        return Assigned(advantages, opinions)

    def _ask(self, part: Part, advantages: Tensor, played: Played, update: int) -> TeacherScores | None:
        if part.teacher is None or not part.method.wants_teacher(update):
            return None
        # sign(0) = 0: the teacher cannot change a row without advantage, so it is not asked, unless for a loss term.
        wanted = (advantages != 0).any(1) | (part.method.role == "auxiliary")
        width = played.batch.input_ids.shape[1]
        scores = part.teacher.score(
            played.rows, played.trajectories, wanted.cpu(), width, tokens=part.method.teacher_tokens,
            keep=part.method.reads_teacher_states,
        )  # fmt: skip
        if self.config.credit.control != "shuffled_teacher":
            return scores
        seed = self.config.seed * 1_000_003 + update
        return replace(scores, logprobs=shuffled_gaps(scores.logprobs, played.batch.old_logprobs.cpu(), seed=seed))

    def _opinion(
        self, part: Part, advantages: Tensor, scores: TeacherScores | None, played: Played, update: int
    ) -> Opinion:
        batch, seen = played.batch, dict[str, Any]()
        inputs = CreditInputs(
            advantages=advantages,
            response_mask=batch.response_mask,
            step_ids=batch.step_ids,
            trajectory_ids=batch.trajectory_ids,
            old_logprobs=batch.old_logprobs,
            teacher_logprobs=None if scores is None else scores.logprobs.to(advantages.device),
            update=update,
            group_ids=batch.group_ids,
            extras=gather(part.method.needs(update), played, seen.__setitem__),
        )
        result = part.method.assign(inputs)
        return Opinion(part, inputs, scores, replace(result, metrics={**result.metrics, **seen}))

    def _teacher(self, name: str) -> Teacher | None:
        options = self.config.credit.teacher_options(name)
        if options is None:
            return None
        return Teacher(
            self.policy, options,
            temperature=self.config.rollout.temperature, max_tokens=self.config.optim.microbatch_tokens,
        )  # fmt: skip
