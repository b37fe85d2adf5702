"""What each turn of a batch was: its reward, its penalty, and the state that it was taken in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import count

import torch
from torch import Tensor

from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.train.extras import Played, provide


@provide("turn_rewards")
def turn_rewards(played: Played) -> Tensor:
    """(N, K) float32, what the environment paid for each turn of a row, in the units of the loss; 0 beyond the last."""
    scale = played.config.loss.reward_scale
    return _per_turn(played, lambda turn: scale * turn.reward)


@provide("turn_penalties")
def turn_penalties(played: Played) -> Tensor:
    """(N, K) float32, what an invalid turn costs."""
    penalty = played.config.loss.invalid_action_penalty
    return _per_turn(played, lambda turn: 0.0 if turn.is_valid else penalty)


def _per_turn(played: Played, value: Callable[[Turn], float]) -> Tensor:
    lists = [[value(played.trajectories[row.trajectory].turns[k]) for k in row.turn_ids] for row in played.rows]
    return _padded(lists, 0.0)


@provide("turn_numbers")
def turn_numbers(played: Played) -> Tensor:
    """(N, K) int64, each turn's place in its trajectory; -1 beyond the last."""
    return _padded([row.turn_ids for row in played.rows], -1)


@provide("turn_anchors")
def turn_anchors(played: Played) -> Tensor:
    """(N, K) int64, equal for turns of a group that saw the same observation, else different; -1 beyond the last."""
    anchors = anchors_of(played.trajectories, similarity=played.config.credit.gigpo.similarity)
    return _padded([[anchors[row.trajectory][k] for k in row.turn_ids] for row in played.rows], -1)


@provide("turn_of_token")
def turn_of_token(played: Played) -> Tensor:
    """(N, T) int64, place in the row of the turn that a sampled token belongs to, -1 elsewhere."""
    out = torch.full(played.batch.input_ids.shape, -1)
    for at, row in zip(out, played.rows, strict=True):
        for k, (start, end) in enumerate(zip(row.turn_starts, [*row.turn_starts[1:], len(row.input_ids)], strict=True)):
            at[start:end] = k
    return out.where(played.batch.response_mask.cpu(), -1)


def anchors_of(trajectories: Sequence[Trajectory], *, similarity: float = 1.0) -> list[list[int]]:
    """A number for the state of every turn: what the environment showed before it, within the turn's group.

    Args:
        trajectories: Of any number of groups.
        similarity: 1 takes identical texts. Below, a text joins the first state whose first text it resembles by at
            least so much (``difflib``'s ratio), in the order of trajectories and turns.

    Returns:
        One list per trajectory, one number per turn.
    """
    numbers, states = count(), dict[tuple[int, str], int]()
    firsts: dict[int, dict[str, int]] = defaultdict(dict)  # group -> first text of each of its states -> its number

    def state(group: int, text: str) -> int:
        if similarity < 1:
            for first, number in firsts[group].items():
                if _resemble(first, text, similarity):
                    return number
        return firsts[group].setdefault(text, next(numbers))

    for trajectory in trajectories:
        for turn in trajectory.turns:
            key = trajectory.group_id, turn.observation
            if key not in states:
                states[key] = state(*key)
    return [[states[own.group_id, turn.observation] for turn in own.turns] for own in trajectories]


def _resemble(a: str, b: str, least: float) -> bool:
    match = SequenceMatcher(None, a, b)
    # Upper bounds first: they cost a fraction of the ratio.
    return match.real_quick_ratio() >= least and match.quick_ratio() >= least and match.ratio() >= least


def _padded(lists: Sequence[Sequence[float]], fill: float) -> Tensor:
    width = max(map(len, lists))
    return torch.tensor([[*own, *[fill] * (width - len(own))] for own in lists])
