"""APPO as a whole: branches lend their rewards to a second group, and the advantages look ahead (arXiv 2606.12384)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stepopsd.credit.appo import AppoFuture, branch_round, dual_group_advantage, scaling_of
from stepopsd.credit.base import (
    BRANCH_REWARDS,
    REWARDS,
    Branching,
    BranchTokens,
    CreditInputs,
    CreditMethod,
    CreditResult,
    broadcast_advantages,
    register,
)
from stepopsd.credit.plan import Continuation


@dataclass(frozen=True)
class Appo(CreditMethod):
    """Â_base of two groups times 1 + b·F; see ``credit/appo.py``.

    Attributes:
        future: The scaling.
        when: When to branch, and what the drift is measured between; see ``branch_round``.
        branches: B, branches per attempt.
        per: Whether the best positions are chosen per ``row`` (attempt) or pooled per ``prompt``.
        mode: See ``dual_group_advantage``.
        resample: Draw the token at the position again; False keeps it.
        gate, min_gap: See ``branching_score`` and ``topk_branch``.
    """

    role: ClassVar[Any] = "base"
    per_minibatch: ClassVar[bool] = True

    future: AppoFuture
    when: Literal["minibatch", "lagged", "rollout"] = "minibatch"
    branches: int = 3
    per: Literal["row", "prompt"] = "row"
    mode: Literal["eq6", "own"] = "eq6"
    resample: bool = True
    gate: bool = True
    min_gap: int = 0

    @property
    def branching(self) -> str:
        return self.when

    def needs(self, update: int) -> frozenset[str]:
        return frozenset((REWARDS, BRANCH_REWARDS))

    def branch(self, tokens: BranchTokens) -> Branching:
        pooled = self.per == "prompt"
        groups = torch.unique(tokens.group_ids).numel()
        k = self.branches * (len(tokens.attempts) // max(1, groups) if pooled else 1)
        chosen = branch_round(
            tokens.entropies, tokens.mask, k, when=self.when, logprobs=tokens.logprobs,
            reference_logprobs=tokens.reference_logprobs, gamma=2 ** (-1 / self.future.half_life), gate=self.gate,
            per=self.per, group_ids=tokens.group_ids if pooled else None, min_gap=self.min_gap,
        )  # fmt: skip
        # Tokens that were not sampled lie between: a cut counts sampled ones.
        before = tokens.mask.cumsum(1) - tokens.mask.long()
        total = tokens.mask.sum(1)
        out = []
        for row, place in zip(chosen.rows.tolist(), chosen.positions.tolist(), strict=True):
            cut = int(before[row, place]) + (not self.resample)
            if cut < int(total[row]):
                out.append(Continuation(tokens.attempts[row], cut, 1, "branch", int(tokens.group_ids[row])))
        filled = chosen.scores.isneginf()
        if not len(tokens.attempts):
            return Branching(out)
        return Branching(out, {
            "branches/candidates": float(chosen.candidates.double().mean()),
            "branches/filled_up": float(filled.double().mean()) if filled.numel() else 0.0,
        })  # fmt: skip

    def assign(self, inputs: CreditInputs) -> CreditResult:
        if inputs.group_ids is None:
            raise ValueError("group_ids must be given: a row's rewards are compared with those of its prompt")
        rewards, lent = inputs.extras[REWARDS], inputs.extras[BRANCH_REWARDS]
        scalar = self._base(rewards, lent, inputs.group_ids, inputs.trajectory_ids)
        plain = broadcast_advantages(scalar, inputs.response_mask)
        factors, metrics, future = self.future.scaling(inputs)
        return CreditResult(plain * factors, metrics, {"future": future})

    def _base(self, rewards: Tensor, lent: Tensor, groups: Tensor, trajectories: Tensor) -> Tensor:
        names, first = torch.unique(groups), []
        for group in names.tolist():
            first.append(int((groups == group).nonzero()[0, 0]))
        table = lent[first]  # (G, K): all rows of a group hold the same
        there = ~table.isnan()
        extra_groups = names[:, None].expand_as(table)[there]
        is_branch = torch.arange(len(rewards) + len(extra_groups), device=rewards.device) >= len(rewards)
        numbers = trajectories.max() + 1 + torch.arange(len(extra_groups), device=rewards.device)
        every = dual_group_advantage(
            torch.cat((rewards, table[there].to(rewards))), is_branch, torch.cat((groups, extra_groups)),
            torch.cat((trajectories, numbers)), mode=self.mode,
        )  # fmt: skip
        return every[: len(rewards)]


@register("appo")
def build_appo(options: Mapping[str, Any]) -> Appo:
    """The whole of APPO from the ``credit`` section."""
    own = options["appo"]
    names = ("when", "branches", "per", "mode", "resample", "gate", "min_gap")
    return Appo(scaling_of(options), **{name: own[name] for name in names})
