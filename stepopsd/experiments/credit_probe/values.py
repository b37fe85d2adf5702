"""Monte-Carlo advantage of every token: play on from before and from behind it, many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stepopsd.rollout.loop import Job
from stepopsd.rollout.records import UNUSABLE, Prefix, Trajectory

Play = Callable[[list[Job]], list[Trajectory]]


def monte_carlo_advantages(trajectories: Sequence[Trajectory], play: Play, *, rolls: int) -> list[np.ndarray]:
    """Â_t = V(everything up to and with token t) - V(everything before it), V = mean success of ``rolls`` episodes.

    The rolls of one state serve both tokens beside it, so that the advantages of an episode add up to its success minus
    V of its start exactly.

    Args:
        trajectories: Episodes of any groups.
        play: Plays jobs with the policy that sampled them, at its temperature.
        rolls: Episodes per state.

    Returns:
        Per trajectory, one float64 per response token of all its turns, those that were taken over included.
        NaN beside a state of which no roll could be played.
    """
    states = [(i, cut) for i, t in enumerate(trajectories) for cut in range(_tokens(t))]
    # No roll shares its noise with an episode of the batch; the n-th rolls of all states share theirs, so that what a
    # token does not change cancels in the difference.
    jobs = [
        Job(t.task, t.seed, t.group_id, 10_000 + roll, Prefix.upto(t.turns, cut))
        for i, cut in states
        for t in [trajectories[i]]
        for roll in range(rolls)
    ]
    played = play(jobs)
    values: list[list[float]] = [[] for _ in trajectories]
    for state, (i, _) in enumerate(states):
        ends = [t.success for t in played[rolls * state : rolls * (state + 1)] if t.status not in UNUSABLE]
        values[i].append(float(np.mean(ends)) if ends else np.nan)
    return [np.diff([*own, float(t.success)]) for own, t in zip(values, trajectories, strict=True)]


def _tokens(trajectory: Trajectory) -> int:
    return sum(len(turn.response_ids) for turn in trajectory.turns)
