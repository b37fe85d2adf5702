"""Monte-Carlo advantages on a game whose values are known."""

from __future__ import annotations

import numpy as np

from stepopsd.envs.base import Task
from stepopsd.experiments.credit_probe.values import monte_carlo_advantages
from stepopsd.rollout.records import Trajectory, Turn


def episode(responses, success, game=0):
    turns = [Turn([0], list(ids), [0.0] * len(ids), {}, "", "", "", True) for ids in responses]
    task = Task(f"game-{game}", "toy", "", "train", "")
    status = "success" if success else "failure"
    return Trajectory(task, "", game, 0, 0, "dialogue", turns, float(success), success, status)


def coin(jobs):
    """Token 1 as the third one wins three times in four from anywhere before it, for sure after it; token 2 loses."""
    played = []
    for number, job in enumerate(jobs):
        kept = []
        if job.prefix is not None:
            kept = [i for turn in job.prefix.turns[:-1] for i in turn.response_ids]
            kept += job.prefix.turns[-1].response_ids[: job.prefix.tokens]
        won = kept[2] == 1 if len(kept) > 2 else number % 4 != 0
        played.append(episode([[9]], won))
    return played


def test_the_token_that_decides_gets_the_whole_advantage():
    won, lost = episode([[5, 6], [1, 7]], True), episode([[5, 6], [2, 7]], False)
    a, b = monte_carlo_advantages([won, lost], coin, rolls=8)
    np.testing.assert_allclose(a, [0, 0, 0.25, 0])
    np.testing.assert_allclose(b, [0, 0, -0.75, 0])


def test_advantages_add_up_to_outcome_minus_value_of_the_start():
    rng = np.random.default_rng(0)
    (a,) = monte_carlo_advantages(
        [episode([[1, 2, 3], [4]], True)], lambda jobs: [episode([[9]], bool(rng.integers(2))) for _ in jobs], rolls=5
    )
    assert len(a) == 4
    assert 0 <= 1 - a.sum() <= 1


def test_episodes_that_broke_are_not_counted():
    def broken(jobs):
        played = coin(jobs)
        for trajectory in played[::2]:
            trajectory.status, trajectory.success = "env_error", False
        return played

    (a,) = monte_carlo_advantages([episode([[5, 6], [1, 7]], True)], broken, rolls=8)
    np.testing.assert_allclose(a, [0, 0, 0, 0])

    def all_broken(jobs):
        return [episode([[9]], False) for _ in jobs] if not jobs else _end_all(coin(jobs))

    (a,) = monte_carlo_advantages([episode([[5]], True)], all_broken, rolls=2)
    assert np.isnan(a).all()


def _end_all(played):
    for trajectory in played:
        trajectory.status = "env_error"
    return played


def test_rolls_of_a_state_differ_and_all_states_have_the_same_ones():
    seen = []

    def play(jobs):
        seen.extend((job.task.task_id, job.seed, job.group_id, job.member) for job in jobs)
        return coin(jobs)

    monte_carlo_advantages([episode([[5, 6], [1, 7]], True), episode([[5, 6], [2, 7]], False)], play, rolls=3)
    assert len(seen) == 24
    assert sorted({member for *_, member in seen}) == [10_000, 10_001, 10_002]
    assert len(set(seen)) == 3
