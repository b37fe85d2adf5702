"""The task order is a function of seed and update."""

from __future__ import annotations

import pytest

from stepopsd.envs.base import Task
from stepopsd.train.tasks import episode_seed, tasks_of_update

TASKS = [Task(str(i), "alfworld", "k", "train", "") for i in range(7)]


def test_every_pass_meets_every_task_once():
    walk = [t.task_id for u in range(1, 8) for t in tasks_of_update(TASKS, u, 3, seed=0)]
    for epoch in range(3):
        assert sorted(walk[7 * epoch : 7 * epoch + 7]) == sorted(t.task_id for t in TASKS)
    assert walk[:7] != walk[7:14]


def test_order_depends_on_the_seed_only():
    assert tasks_of_update(TASKS, 5, 3, seed=1) == tasks_of_update(TASKS, 5, 3, seed=1)
    walks = [[tasks_of_update(TASKS, u, 7, seed=seed) for u in (1, 2)] for seed in (1, 2)]
    assert walks[0] != walks[1]
    assert episode_seed(0, 1, 2) != episode_seed(0, 2, 1)


def test_empty_split_is_an_error():
    with pytest.raises(ValueError, match="tasks must not be empty"):
        tasks_of_update([], 1, 1, seed=0)
