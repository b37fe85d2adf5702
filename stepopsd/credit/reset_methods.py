"""RRPO and SRPO as rollout plans with advantages of their own (arXiv 2605.25507)."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from stepopsd.credit.base import (
    REWARDS,
    CreditInputs,
    CreditMethod,
    CreditResult,
    broadcast_advantages,
    register,
)
from stepopsd.credit.localise import Localisation, localiser_prompt, parse_location
from stepopsd.credit.plan import Attempt, Fresh, Plan, Planned, Question, Request, Step
from stepopsd.credit.resets import Intake, ResetOptions, ResetPlan, plan_resets, reset_advantages, uniform_step

_CUT = 160  # characters of a step in the shortest wording of a question


@dataclass(frozen=True)
class Resets(CreditMethod):
    """Fresh attempts and continuations of failed ones, normalised apart; see ``credit/resets.py``.

    Attributes:
        options: Sizes and rules.
        fresh: ``n_fresh``; None takes the run's group size.
        localise: Let the model name the step (SRPO) instead of drawing it (RRPO).
        delimiter: Ends a step inside a turn; the end of a turn always ends one.
        tokens, temperature: Of the localiser's reply.
    """

    role: ClassVar[Any] = "base"

    options: ResetOptions
    fresh: int | None = None
    localise: bool = False
    delimiter: str = ""
    tokens: int = 512
    temperature: float = 0.3

    @property
    def step_delimiter(self) -> str:
        return self.delimiter

    def needs(self, update: int) -> frozenset[str]:
        return frozenset((REWARDS,))

    def assign(self, inputs: CreditInputs) -> CreditResult:
        if inputs.group_ids is None:
            raise ValueError("group_ids must be given: fresh and reset groups are normalised apart")
        scalar = reset_advantages(inputs.extras[REWARDS], inputs.group_ids, inputs.trajectory_ids)
        groups = torch.unique(inputs.group_ids)
        varying = torch.unique(inputs.group_ids[scalar != 0])
        metrics = {"reset/flat_groups": 1 - varying.numel() / max(1, groups.numel())}
        return CreditResult(broadcast_advantages(scalar, inputs.response_mask), metrics)

    def plan(self, prompts: int, group_size: int, rng: random.Random) -> Plan:
        options = replace(self.options, n_fresh=group_size if self.fresh is None else self.fresh)
        intakes = [Intake(options) for _ in range(prompts)]
        played: list[list[Attempt]] = [[] for _ in range(prompts)]
        while wanted := {p: intake.missing for p, intake in enumerate(intakes) if intake.wants_more}:
            answers = yield [Fresh(prompt, count) for prompt, count in wanted.items()]
            for prompt, attempts in zip(wanted, answers, strict=True):
                for a in attempts:
                    intakes[prompt].add(failed=not a.success, steps=len(a.steps), usable=a.usable)
                played[prompt] += attempts
        parents = [intake.parents(rng) for intake in intakes]
        chosen, metrics = yield from self._locate(played, parents, rng)
        plans = [
            plan_resets(
                intake, parents[p], [[step.end for step in a.steps] for a in played[p]],
                lambda attempt, count, p=p: chosen[p, attempt], first_group=p * (1 + options.n_parents) + 1,  # type: ignore[misc]
            )
            for p, intake in enumerate(intakes)
        ]  # fmt: skip
        requests = [request for p, made in enumerate(plans) for request in _requests(p, made, played[p])]
        answers = yield requests
        groups = {
            played[p][i].index: p * (1 + options.n_parents) for p, intake in enumerate(intakes) for i in intake.fresh
        }
        resets: list[Attempt] = []
        for request, attempts in zip(requests, answers, strict=True):
            usable = [a for a in attempts if a.usable]
            fresh = isinstance(request, Fresh)
            groups |= {a.index: a.prompt * (1 + options.n_parents) if fresh else request.group for a in usable}
            resets += [] if fresh else usable
        first = [played[p][i] for p, intake in enumerate(intakes) for i in intake.fresh]
        steps = [s / len(played[p][i].steps) for p, m in enumerate(plans)
                 for s, i in zip(m.steps, parents[p], strict=False)]  # fmt: skip
        metrics |= {
            "reset/rate": len({a.prompt for a in resets}) / prompts,
            "reset/step": _mean(steps),
            "reset/fresh_success": _mean([a.success for a in first]),
            "reset/success": _mean([a.success for a in resets]),
            "reset/suffix_tokens": _mean([a.tokens for a in resets]),
        }
        return Planned(groups, metrics)

    def _locate(
        self, played: Sequence[Sequence[Attempt]], parents: Sequence[Sequence[int]], rng: random.Random
    ) -> Generator[Sequence[Request], list[Any], tuple[dict[tuple[int, int], int], dict[str, Any]]]:
        """(prompt, attempt) -> step to go back to, and metrics."""
        wanted = [(p, i, played[p][i]) for p, own in enumerate(parents) for i in own]
        if not self.localise:
            draw = uniform_step(rng)
            return {(p, i): draw(i, len(a.steps)) for p, i, a in wanted}, {}
        replies = yield [
            Question(a.prompt, wordings(a.problem, a.steps), self.tokens, self.temperature) for _, _, a in wanted
        ]
        found = [
            Localisation(1, "default") if reply is None else parse_location(reply, len(a.steps))
            for (_, _, a), reply in zip(wanted, replies, strict=True)
        ]
        metrics = {
            f"localiser/{how}": _mean([x.how == how for x in found]) for how in ("boxed", "clamped", "prose", "default")
        }
        metrics["localiser/too_long"] = _mean([reply is None for reply in replies])
        return {(p, i): x.step for (p, i, _), x in zip(wanted, found, strict=True)}, metrics


def wordings(problem: str, steps: Sequence[Step]) -> tuple[str, ...]:
    """Questions about a failed attempt, from whole steps with their results down to the beginnings of steps."""
    forms: tuple[Callable[[Step], str], ...] = (
        lambda step: f"{step.text}\nResult: {step.result}" if step.result else step.text,
        lambda step: step.text,
        lambda step: step.text[-_CUT:],  # the action stands at the end
    )
    return tuple(localiser_prompt(problem, [form(step) for step in steps]) for form in forms)


def _requests(prompt: int, made: ResetPlan, played: Sequence[Attempt]) -> list[Any]:
    top_up: list[Any] = [Fresh(prompt, made.top_up)] if made.top_up > 0 else []
    return top_up + [replace(c, row=played[c.row].index) for c in made.continuations]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _build(options: Mapping[str, Any], *, localise: bool) -> Resets:
    own = dict(options["resets"])
    sizes = ResetOptions(
        n_fresh=0, n_reset=own["n_reset"], n_parents=own["n_parents"], parents=own["parents"], n_probes=own["n_probes"]
    )
    return Resets(
        sizes, own["n_fresh"], localise, own["delimiter"], own["localiser_tokens"], own["localiser_temperature"]
    )


@register("rrpo")
def build_rrpo(options: Mapping[str, Any]) -> Resets:
    """Reset to a step drawn uniformly; the ``resets`` options of the ``credit`` section."""
    return _build(options, localise=False)


@register("srpo")
def build_srpo(options: Mapping[str, Any]) -> Resets:
    """Reset to the step that the model names; the ``resets`` options of the ``credit`` section."""
    return _build(options, localise=True)
