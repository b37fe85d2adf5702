"""The credit side of a run: methods and their teachers, wired once; per update, advantages and auxiliary terms."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit import AuxiliaryInputs, CreditInputs, CreditMethod, CreditResult, compose, create
from stepopsd.credit.base import BRANCH_REWARDS, broadcast_advantages
from stepopsd.credit.controls import shuffled_gaps
from stepopsd.credit.plan import Plan, plain_plan
from stepopsd.train import outcome as outcome  # registers what it provides
from stepopsd.train import turns as turns  # likewise
from stepopsd.train.branches import Branched
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import to_tree
from stepopsd.train.extras import Played, gather, require
from stepopsd.train.hindsight_metrics import hindsight_metrics
from stepopsd.train.policy import Policy, Readout
from stepopsd.train.teacher import Teacher, TeacherScores


@dataclass(frozen=True, slots=True)
class Part:
    """One method of ``credit.name`` with the teacher that it consults."""

    name: str
    method: CreditMethod
    teacher: Teacher | None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one method was given and said."""

    part: Part
    inputs: CreditInputs
    scores: TeacherScores | None
    result: CreditResult


@dataclass(frozen=True, slots=True)
class Base:
    """Advantages before any factor.

    Attributes:
        advantages: (N, T) float32, 0 outside responses.
        opinion: Of the method that made them, None where they are the scalar ones.
    """

    advantages: Tensor
    opinion: Opinion | None = None

    def select(self, rows: Tensor) -> Base:
        """The same of the chosen rows."""
        opinion = self.opinion
        if opinion is not None:
            opinion = replace(opinion, inputs=opinion.inputs.select(rows), result=opinion.result.select(rows))
        return Base(self.advantages[rows], opinion)


class Assigned:
    """The advantages of a batch, and what changes with the policy while it is being updated.

    Attributes:
        advantages: (N, T) float32.
        has_auxiliary: (N,) bool, rows that carry an auxiliary loss.
        metrics, tokens: As in ``CreditResult``; with several methods, metrics carry their method's name.
    """

    def __init__(self, base: Tensor, opinions: Sequence[Opinion]) -> None:
        self.base, self.opinions = base, opinions
        #: Plays a branching round before every optimiser step: (rows, whether it is the first step) -> ``Branched``.
        self.branch: Callable[..., Branched] | None = None
        several = len(opinions) > 1
        self.metrics: dict[str, Any] = {}
        self.tokens: dict[str, Tensor] = {}
        for opinion in opinions:
            prefix = f"{opinion.part.name}/" if several else ""
            self.metrics |= {prefix + key: value for key, value in opinion.result.metrics.items()}
            self.tokens = opinion.result.tokens | self.tokens
        self.advantages = compose(base, [o.result for o in opinions])
        self._later: dict[str, list[tuple[float, int]]] = {}  # metrics of later steps, with the rows they are of
        self.has_auxiliary = torch.zeros(len(base), dtype=torch.bool, device=base.device)
        for opinion in self.auxiliaries:
            assert opinion.scores is not None
            self.has_auxiliary |= opinion.scores.asked.any(1).to(base.device)

    def teacher_metrics(self) -> dict[str, Any]:
        """What the teachers cost, all methods together, and what each was told."""
        asked = [o.scores for o in self.opinions if o.scores is not None]
        out: dict[str, Any] = {
            "tokens/teacher": sum(s.tokens for s in asked),
            "tokens/teacher_saved": sum(s.saved for s in asked),
            "teacher/with_peer": sum(s.with_peer for s in asked),
            "teacher/cut_blocks": sum(s.cut_blocks for s in asked),
        }
        for opinion in self.opinions:
            if opinion.scores is not None and "delta" in opinion.result.tokens:
                told = hindsight_metrics(opinion.scores, opinion.result.tokens["delta"], self.base)
                prefix = f"{opinion.part.name}/" if len(self.opinions) > 1 else ""
                out |= {prefix + key: value for key, value in told.items()}
        return out

    @property
    def auxiliaries(self) -> list[Opinion]:
        """The opinions that come as a loss term this update."""
        return [o for o in self.opinions if o.part.method.role == "auxiliary" and o.scores is not None]

    @property
    def moves(self) -> bool:
        """Whether advantages have to be made again once the policy has moved."""
        return any(o.part.method.per_minibatch for o in self.opinions)

    def again(self, rows: Tensor, current_logprobs: Tensor, lent: Tensor | None = None) -> Tensor:
        """(n, T) advantages of the chosen rows under a policy that has moved, whose log-probs are given.

        Args:
            rows: (n,) int64.
            current_logprobs: (n, T).
            lent: (n, K) rewards of branches that were played since; None where there are no new ones.
        """
        base, results = self.base[rows], []
        for opinion in self.opinions:
            chosen, method = opinion.inputs.select(rows), opinion.part.method
            extras = chosen.extras if lent is None else {**chosen.extras, BRANCH_REWARDS: lent}
            chosen = replace(chosen, current_logprobs=current_logprobs, extras=extras)
            result = method.assign(chosen) if method.per_minibatch else opinion.result.select(rows)
            if method.per_minibatch:
                self._note(opinion.part.name, result.metrics, len(rows))
            base = result.advantages if method.role == "base" else base
            results.append(result)
        return compose(base, results)

    def later_metrics(self) -> dict[str, float]:
        """``later/<name>`` -> mean over the rows that ``again`` was asked about."""
        means = {}
        for name, seen in self._later.items():
            means[f"later/{name}"] = sum(value * rows for value, rows in seen) / sum(rows for _, rows in seen)
        return means

    def _note(self, method: str, metrics: Mapping[str, Any], rows: int) -> None:
        prefix = f"{method}/" if len(self.opinions) > 1 else ""
        for name, value in metrics.items():
            self._later.setdefault(prefix + name, []).append((float(value), rows))

    def auxiliary(
        self, rows: Tensor, mask: Tensor, ids: Tensor, states: Readout, logprobs: Tensor, weights: Tensor,
        temperature: float, log: Callable[[str, float, int], None],
    ) -> Tensor | None:
        """The auxiliary losses of one micro-batch, or None where there is none.

        Args:
            rows: (B,) rows of this batch, int64.
            mask: (B, W) bool, their response tokens, M in all.
            ids, states, logprobs, weights: Of those tokens: ids, what predicts them, detached log-probs, weights.
            temperature: Of sampling.
            log: Called with name, mean and number of tokens.
        """
        total = None
        for opinion in self.auxiliaries:
            assert opinion.scores is not None
            part = rows.cpu(), slice(mask.shape[1])
            scored = opinion.scores.asked[part].to(mask.device)[mask]  # (M,)
            teacher = opinion.scores.logprobs[part].to(mask.device)[mask]
            if not bool(scored.any()):
                continue
            method, extra = opinion.part.method, {}
            if method.reads_teacher_states:
                assert opinion.part.teacher is not None
                seen = opinion.part.teacher.read(opinion.scores, rows)
                weight, bias = seen.parameters
                extra = {"teacher_hidden": seen.states, "teacher_weight": weight, "teacher_bias": bias}
            weight, bias = states.parameters
            term = method.auxiliary(
                AuxiliaryInputs(
                    states.states[scored], weight, bias, ids[scored], logprobs[scored], teacher[scored],
                    weights[scored], temperature, **extra,
                )
            )
            for name, value in term.metrics.items():
                log(f"{opinion.part.name}/{name}", float(value.detach()), int(scored.sum()))
            total = term.loss if total is None else total + term.loss
        return total


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
