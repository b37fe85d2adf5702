"""APPO: branches where the policy is unsure and moving, two reward groups, future-aware scaling (arXiv 2606.12384).

The scaling by itself is the method ``appo_future``; ``credit/appo_method.py`` is all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stepopsd.credit.base import CreditInputs, CreditMethod, CreditResult, broadcast_advantages, register
from stepopsd.credit.groups import moments, votes
from stepopsd.ops.branching import topk_branch
from stepopsd.ops.future_value import HALF_LIFE_32, future_branching, future_value

MODES = ("eq6", "own")
ROUNDS = ("minibatch", "lagged", "rollout")


def dual_group_advantage(
    rewards: Tensor,
    is_branch: Tensor,
    prompt_ids: Tensor,
    trajectory_ids: Tensor | None = None,
    *,
    mode: str = "eq6",
    eps: float = 1e-8,
) -> Tensor:
    """Scalar advantages of initial rollouts whose branches lend their rewards.

    Args:
        rewards: (N,) float, of initial rollouts and branches.
        is_branch: (N,) bool.
        prompt_ids: (N,) int64.
        trajectory_ids: (N,) int64, one vote for each; None gives every row a vote.
        mode: ``eq6``: the row's reward standardised once by the prompt's initial rollouts and once by its branches,
            averaged over those of the two groups that vary; 0 where neither does. ``own``: by the initial ones only.
        eps: Standard deviations (the population's) below it do not count as varying.

    Returns:
        (N,) float32, 0 for branches.

    Raises:
        ValueError: An unknown mode, shapes that differ.

    Example:
        >>> r = torch.tensor([1.0, 0.0, 0.0, 1.0] + [1.0] * 11 + [0.0])
        >>> dual_group_advantage(r, torch.arange(16) >= 4, torch.zeros(16, dtype=torch.int64))[:4]
        tensor([ 0.6508, -2.1583, -2.1583,  0.6508])

    Source: arXiv 2606.12384, Eq. 6 read literally.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not rewards.shape == is_branch.shape == prompt_ids.shape:
        raise ValueError(
            "rewards, is_branch and prompt_ids must have one shape (N,), got "
            f"{tuple(rewards.shape)}, {tuple(is_branch.shape)}, {tuple(prompt_ids.shape)}"
        )
    out = torch.zeros(rewards.shape, dtype=torch.float64, device=rewards.device)
    for prompt in torch.unique(prompt_ids).tolist():
        initial = (prompt_ids == prompt) & ~is_branch
        groups = [initial] if mode == "own" else [initial, (prompt_ids == prompt) & is_branch]
        values = rewards[initial].double()
        cast = (votes(rewards[rows], None if trajectory_ids is None else trajectory_ids[rows]) for rows in groups)
        varying = [(m, s) for m, s in map(moments, cast) if s >= eps]
        if varying:
            out[initial] = torch.stack([(values - mean) / std for mean, std in varying]).mean(0)
    return out.float()


def scale_adv(advantages: Tensor, future: Tensor, b: float, *, center: bool = False) -> Tensor:
    """A·(1 + b·F).

    Args:
        advantages: (N,) or (N, T) float.
        future: (N, T) float, see ``future_value``.
        b: At least 0.
        center: Divide by 1 + b: the control that matches GRPO's scale, since F is about 1 everywhere.

    Returns:
        (N, T) float32, detached.

    Raises:
        ValueError: b below 0.

    Source: arXiv 2606.12384, Eq. 7; the control is ours.
    """
    if not b >= 0:
        raise ValueError(f"b must be at least 0, got {b}")
    per_token = advantages if advantages.ndim == 2 else advantages[:, None]
    factors = 1 + b * future.detach()
    return per_token.detach() * (factors / (1 + b) if center else factors)


@dataclass(frozen=True, slots=True)
class BranchRound:
    """Where to branch.

    Attributes:
        rows, positions: (K,) int64; the token at the position is drawn again.
        scores: (K,) branching scores, -inf for a position that was filled up by entropy.
        future: (N, T) clipped future ratios of the round.
        candidates: (N,) int64, positions that have a score at all.
    """

    rows: Tensor
    positions: Tensor
    scores: Tensor
    future: Tensor
    candidates: Tensor


def branch_round(
    entropies: Tensor,
    mask: Tensor,
    k: int,
    *,
    when: str = "minibatch",
    logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    gamma: float = HALF_LIFE_32,
    low: float = 0.8,
    high: float = 1.2,
    gate: bool = True,
    per: str = "row",
    group_ids: Tensor | None = None,
    min_gap: int = 0,
) -> BranchRound:
    """Choose branching positions of initial rollouts.

    Args:
        entropies: (N, T) float, of the current policy.
        mask: (N, T) bool, sampled tokens; nothing else is ever chosen.
        k: Positions per row, or per prompt with ``per="prompt"``.
        when: What the drift is measured between. ``minibatch``: the current policy and the one that sampled, before
            each mini-batch (the paper; in the first one of a step both are the same and the entropy decides).
            ``lagged``: once per step, the current weights and the previous step's. ``rollout``: no drift at all, the
            entropy decides.
        logprobs: (N, T) of the current policy; for ``minibatch`` and ``lagged``.
        reference_logprobs: (N, T) of the sampling policy, or of the previous step's; for the same two. Not the
            engine's own log-probs beside the trainer's: their mismatch is no drift.
        gamma, low, high, gate: See ``future_branching`` (branch_low, branch_high).
        per, group_ids, min_gap: See ``topk_branch``.

    Returns:
        ``BranchRound``. Where candidates run out, positions are filled up by entropy.

    Raises:
        ValueError: An unknown ``when``, log-probs missing or without use, and what the ops raise.

    Source: arXiv 2606.12384, Algorithm 1.
    """
    if when not in ROUNDS:
        raise ValueError(f"when must be one of {', '.join(ROUNDS)}, got {when!r}")
    given = logprobs is not None, reference_logprobs is not None
    if given != (when != "rollout",) * 2:
        allowed = "must not be given" if when == "rollout" else "must be given"
        raise ValueError(f"logprobs and reference_logprobs {allowed} for when={when!r}")
    new, old = (torch.zeros_like(entropies) if x is None else x for x in (logprobs, reference_logprobs))
    x = future_branching(
        new, old, entropies, mask, gamma=gamma, low=low, high=high, branch_low=low, branch_high=high, gate=gate
    )
    ranked = entropies.masked_fill(~mask, -torch.inf)
    chosen = topk_branch(x.scores, k, per=per, group_ids=group_ids, min_gap=min_gap, fallback=ranked)
    return BranchRound(*chosen, x.future, x.scores.isfinite().sum(1))


@dataclass(frozen=True)
class AppoFuture(CreditMethod):
    """The future-aware scaling by itself, made again before every mini-batch with the policy as it is then.

    Attributes:
        b, center: See ``scale_adv``.
        half_life: Tokens in which the weight of a log-ratio halves.
        low, high, max_log_ratio, decay: See ``future_value``.
    """

    per_minibatch: ClassVar[bool] = True

    b: float = 0.5
    center: bool = False
    half_life: float = 32.0
    low: float = 1.0
    high: float = 1.2
    max_log_ratio: float | None = None
    decay: Literal["position", "valid"] = "position"

    def assign(self, inputs: CreditInputs) -> CreditResult:
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        factors, metrics, future = self.scaling(inputs)
        return CreditResult(plain * factors, metrics, {"future": future}, factors)

    def scaling(self, inputs: CreditInputs) -> tuple[Tensor, dict[str, Any], Tensor]:
        """(N, T) factors, metrics, and (N, T) clipped future ratios."""
        current = inputs.old_logprobs if inputs.current_logprobs is None else inputs.current_logprobs
        future = future_value(
            current, inputs.old_logprobs, inputs.response_mask, gamma=2 ** (-1 / self.half_life), low=self.low,
            high=self.high, max_log_ratio=self.max_log_ratio, decay=self.decay,
        )  # fmt: skip
        factors = scale_adv(torch.ones_like(future), future, self.b, center=self.center)
        metrics = future_metrics(future, inputs.response_mask, self.low, self.high)
        if metrics["appo/tokens"]:
            free = future_value(
                current, inputs.old_logprobs, inputs.response_mask, gamma=2 ** (-1 / self.half_life), low=1e-30,
                high=1e30, max_log_ratio=self.max_log_ratio, decay=self.decay,
            )[inputs.response_mask]  # fmt: skip
            metrics["appo/log_ratio_std"] = free.log().std(unbiased=False)
            metrics["appo/multiplier_mean"] = factors[inputs.response_mask].mean()
        return factors, metrics, future


def future_metrics(future: Tensor, mask: Tensor, low: float, high: float) -> dict[str, Any]:
    """``appo/future_mean`` over the mask, and the shares at either bound."""
    values = future[mask]
    if values.numel() == 0:
        return {"appo/tokens": 0}
    return {
        "appo/tokens": values.numel(),
        "appo/future_mean": values.mean(),
        "appo/at_low": (values <= low).float().mean(),
        "appo/at_high": (values >= high).float().mean(),
    }


def scaling_of(options: Mapping[str, Any]) -> AppoFuture:
    """The scaling that the ``credit`` section describes."""
    own = options["appo"]
    names = ("b", "center", "half_life", "low", "high", "decay")
    return AppoFuture(**{name: own[name] for name in names}, max_log_ratio=own["max_log_ratio"] or None)


@register("appo_future")
def build(options: Mapping[str, Any]) -> AppoFuture:
    """The scaling of APPO from the ``credit`` section."""
    return scaling_of(options)
