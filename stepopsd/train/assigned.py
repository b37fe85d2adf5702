"""What the methods of a run made of one batch, and what changes of it with the policy while it is being updated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit import AuxiliaryInputs, CreditInputs, CreditMethod, CreditResult, compose
from stepopsd.credit.base import BRANCH_REWARDS
from stepopsd.train.branches import Branched
from stepopsd.train.hindsight_metrics import hindsight_metrics
from stepopsd.train.readout import Readout
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
        self.metrics: dict[str, Any] = {}
        self.tokens: dict[str, Tensor] = {}
        for opinion in opinions:
            self.metrics |= self._named(opinion, opinion.result.metrics)
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
                out |= self._named(opinion, told)
        return out

    def _named(self, opinion: Opinion, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics, with the method's name where there are several."""
        prefix = f"{opinion.part.name}/" if len(self.opinions) > 1 else ""
        return {prefix + name: value for name, value in metrics.items()}

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
                for name, value in self._named(opinion, result.metrics).items():
                    self._later.setdefault(name, []).append((float(value), len(rows)))
            base = result.advantages if method.role == "base" else base
            results.append(result)
        return compose(base, results)

    def later_metrics(self) -> dict[str, float]:
        """``later/<name>`` -> mean over the rows that ``again`` was asked about."""
        means = {}
        for name, seen in self._later.items():
            means[f"later/{name}"] = sum(value * rows for value, rows in seen) / sum(rows for _, rows in seen)
        return means

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
