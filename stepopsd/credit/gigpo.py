"""GiGPO: the episode's advantage plus that of the step among steps from the same state (arXiv 2505.10978)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepopsd.credit.base import CreditInputs, CreditMethod, CreditResult, broadcast_advantages, register
from stepopsd.credit.grpo import STD_EPS, group_normalize

#: Extras, of K turns per row: rewards, penalties and numbers in the trajectory (N, K), anchors (N, K) with -1 where a
#: row has fewer turns, and the turn of every sampled token (N, T), -1 elsewhere.
TURNS = ("turn_rewards", "turn_penalties", "turn_numbers", "turn_anchors", "turn_of_token")
NORMS = ("mean_std_norm", "mean_norm")


def gigpo_advantages(
    rewards: Tensor,
    trajectory_ids: Tensor,
    turn_ids: Tensor,
    group_ids: Tensor,
    anchor_ids: Tensor,
    *,
    gamma: float = 0.95,
    step_advantage_w: float = 1.0,
    norm: str = "mean_std_norm",
    statistics: str = "trajectory",
) -> Tensor:
    """A = A_E + ω·A_S: the trajectory's return in its group plus the step's discounted return at its anchor.

    Args:
        rewards: (S,) float, what the environment paid for each of S steps (an environment step is one model call).
        trajectory_ids: (S,) int64.
        turn_ids: (S,) int64, the step's place in its trajectory; unique there.
        group_ids: (S,) int64, equal for trajectories of the same task; a trajectory has one.
        anchor_ids: (S,) int64, equal for steps of a group that were taken in the same state.
        gamma: Discount of the step returns, in [0, 1].
        step_advantage_w: ω, at least 0; 0 is GRPO.
        norm: ``mean_std_norm`` divides both parts by standard deviations, ``mean_norm`` neither.
        statistics: Unit of the episode part, see ``group_normalize``.

    Returns:
        (S,) float32, detached. The step part of a step that is alone at its anchor is 0.

    Raises:
        ValueError: Shapes that differ, an unknown ``norm`` or ``statistics``, or numbers out of range.

    Example:
        >>> pay, one = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64)  # two steps from one state
        >>> gigpo_advantages(pay, torch.tensor([0, 1]), one, one, one)
        tensor([ 1.4142, -1.4142])

    Source: GiGPO, arXiv 2505.10978.
    """
    if step_advantage_w < 0:
        raise ValueError(f"step_advantage_w must be at least 0, got {step_advantage_w}")
    returns = discounted_returns(rewards, trajectory_ids, turn_ids, gamma=gamma)
    steps = step_advantages(returns, group_ids, anchor_ids, norm=norm)
    _, owner = torch.unique(trajectory_ids, return_inverse=True)
    total = rewards.new_zeros(rewards.shape, dtype=torch.float64).index_add_(0, owner, rewards.detach().double())
    episodes = group_normalize(
        total[owner], group_ids, trajectory_ids, statistics=statistics, divide_by_std=norm == "mean_std_norm"
    )
    return episodes + step_advantage_w * steps


def discounted_returns(rewards: Tensor, trajectory_ids: Tensor, turn_ids: Tensor, *, gamma: float = 0.95) -> Tensor:
    """R_t = Σ_{k ≥ t} γ^(k - t)·r_k over the rest of each step's trajectory.

    Args:
        rewards, trajectory_ids, turn_ids: (S,), see ``gigpo_advantages``; the steps may come in any order. Numbers that
            are missing in ``turn_ids`` are no time: only their order counts.
        gamma: In [0, 1].

    Returns:
        (S,) float32, detached.

    Raises:
        ValueError: Shapes that differ, ``gamma`` out of range, or two steps of a trajectory with one number.

    Example:
        >>> discounted_returns(torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), torch.tensor([0, 1]), gamma=0.5)
        tensor([0.5000, 1.0000])
    """
    _require_one_shape(rewards=rewards, trajectory_ids=trajectory_ids, turn_ids=turn_ids)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if not rewards.numel():
        return rewards.detach().float()
    _, owner, lengths = torch.unique(trajectory_ids, return_inverse=True, return_counts=True)
    by_time = turn_ids.argsort(stable=True)
    order = by_time[owner[by_time].argsort(stable=True)]  # trajectory by trajectory, each in the order of time
    sorted_owner = owner[order]
    place = torch.arange(len(order), device=order.device) - (lengths.cumsum(0) - lengths)[sorted_owner]
    same = (sorted_owner[1:] == sorted_owner[:-1]) & (turn_ids[order][1:] == turn_ids[order][:-1])
    if bool(same.any()):
        at = order[1:][same][0]
        raise ValueError(f"turn_ids must differ within a trajectory, {int(turn_ids[at])} is there twice")
    returns = rewards.new_zeros((len(lengths), int(lengths.max())), dtype=torch.float64)  # (trajectories, longest)
    returns[sorted_owner, place] = rewards.detach().double()[order]
    for k in range(returns.shape[1] - 2, -1, -1):
        returns[:, k] += gamma * returns[:, k + 1]
    out = torch.empty_like(rewards, dtype=torch.float32, requires_grad=False)
    out[order] = returns[sorted_owner, place].float()
    return out


def step_advantages(returns: Tensor, group_ids: Tensor, anchor_ids: Tensor, *, norm: str = "mean_std_norm") -> Tensor:
    """(R - mean) / (std + 1e-6) among the steps of one group at one anchor.

    Args:
        returns: (S,) float, see ``discounted_returns``.
        group_ids, anchor_ids: (S,) int64; anchors of different groups are different, whatever their numbers.
        norm: ``mean_std_norm``, or ``mean_norm`` for R - mean.

    Returns:
        (S,) float32, detached: exactly 0 for steps alone at their anchor and where all returns are equal. The standard
        deviation is the unbiased one.

    Raises:
        ValueError: Shapes that differ, or an unknown ``norm``.

    Example:
        >>> step_advantages(torch.tensor([3.0, 1.0, 9.0]), torch.zeros(3), torch.tensor([0, 0, 1]), norm="mean_norm")
        tensor([ 1., -1.,  0.])
    """
    _require_one_shape(returns=returns, group_ids=group_ids, anchor_ids=anchor_ids)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if not returns.numel():
        return returns.detach().float()
    state, sizes = anchor_groups(group_ids, anchor_ids)
    values = returns.detach().double()
    zeros = values.new_zeros(sizes.shape)
    centred = values - (zeros.index_add(0, state, values) / sizes)[state]
    if norm == "mean_std_norm":
        spread = zeros.index_add(0, state, centred.square()) / (sizes - 1).clamp(min=1)
        centred = centred / (spread.sqrt() + STD_EPS)[state]
    lowest = zeros.scatter_reduce(0, state, values, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, state, values, "amax", include_self=False)
    # Equal returns: rounding of the mean must not become an advantage of its own.
    return centred.where((highest > lowest)[state], 0).float()


def anchor_groups(group_ids: Tensor, anchor_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each step's (group, anchor), (S,) int64, and the steps at each, int64."""
    pairs = torch.stack([group_ids, anchor_ids], 1)
    _, state, sizes = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
    return state, sizes


def _require_one_shape(**tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        found = ", ".join(str(tuple(t.shape)) for t in tensors.values())
        raise ValueError(f"{', '.join(tensors)} must have one shape (S,), got {found}")


@dataclass(frozen=True)
class Gigpo(CreditMethod):
    """The scalar group advantage plus ω times the step advantage of each token's turn.

    Attributes:
        gamma, step_advantage_w, norm: See ``gigpo_advantages``; ``norm`` is that of the step part.
        shuffle_steps: Control: the step advantages are dealt out to random turns.
    """

    gamma: float = 0.95
    step_advantage_w: float = 1.0
    norm: str = "mean_std_norm"
    shuffle_steps: bool = False

    role: ClassVar[Any] = "base"

    def needs(self, update: int) -> frozenset[str]:
        return frozenset(TURNS)

    def assign(self, inputs: CreditInputs) -> CreditResult:
        assert inputs.group_ids is not None
        rewards, penalties, numbers, anchors, place = (inputs.extras[name] for name in TURNS)
        real = anchors >= 0  # (N, K)
        rows = real.nonzero()[:, 0]
        # Rows may be there several times; a step happened once.
        once, copy_of = _first_of_each(inputs.trajectory_ids[rows], numbers[real])
        rows, places = rows[once], anchors[real][once]
        groups = inputs.group_ids[rows]
        returns = discounted_returns(
            rewards[real][once], inputs.trajectory_ids[rows], numbers[real][once], gamma=self.gamma
        )
        # A penalty is the step's own: it is taken off the return, so that no earlier step pays for it.
        steps = step_advantages(returns - penalties[real][once], groups, places, norm=self.norm)
        if self.shuffle_steps:
            generator = torch.Generator().manual_seed(inputs.update)
            steps = steps[torch.randperm(len(steps), generator=generator).to(steps.device)]
        per_turn = torch.zeros_like(rewards)
        per_turn[real] = steps[copy_of]
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        own = per_turn.gather(1, place.clamp(min=0)).where((place >= 0) & inputs.response_mask, 0)  # (N, T)
        advantages = plain + self.step_advantage_w * own
        metrics = _metrics(steps, *anchor_groups(groups, places))
        metrics["step_advantage/flips"] = _share_of_flips(plain, advantages)
        return CreditResult(advantages, metrics, {"step_advantages": own})


def _first_of_each(trajectory_ids: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (U,) of the first of each step among its copies, and (S,) which of those each step is a copy of."""
    steps, copy_of = torch.unique(torch.stack([trajectory_ids, numbers], 1), dim=0, return_inverse=True)
    places = torch.arange(len(copy_of), device=copy_of.device)
    first = places.new_zeros(len(steps)).scatter_reduce(0, copy_of, places, "amin", include_self=False)
    return first, copy_of


def _metrics(steps: Tensor, state: Tensor, sizes: Tensor) -> dict[str, Any]:
    return {
        "anchor/groups": sizes.numel(),
        "anchor/size_mean": sizes.double().mean(),
        "anchor/alone": (sizes[state] == 1).double().mean(),
        "step_advantage/live": (steps != 0).double().mean(),
        "step_advantage/std": steps.std(unbiased=False),
    }


def _share_of_flips(plain: Tensor, advantages: Tensor) -> Tensor:
    """Share of tokens with an advantage whose sign the step part turned."""
    live = plain != 0
    return (live & (plain * advantages < 0)).sum() / live.sum().clamp(min=1)


@register("gigpo")
def build(options: Mapping[str, Any]) -> Gigpo:
    """GiGPO from ``credit.gigpo``; without a norm of its own it follows ``credit.divide_by_std``."""
    own = options["gigpo"]
    norm = own["norm"] or ("mean_std_norm" if options["divide_by_std"] else "mean_norm")
    return Gigpo(
        own["gamma"], own["step_advantage_w"], norm, shuffle_steps=options["control"] == "shuffled_advantages"
    )
