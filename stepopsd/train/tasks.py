"""Which games an update plays: a shuffled walk over the split that depends on nothing but seed and update."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stepopsd.envs.base import Task


def tasks_of_update(tasks: Sequence[Task], update: int, groups: int, seed: int) -> list[Task]:
    """The tasks of one update, counted from 1: consecutive slices of one fresh shuffle per pass over the split.

    Being a pure function of its arguments, a resumed run needs no stored data position.

    Raises:
        ValueError: no tasks.
    """
    if not tasks:
        raise ValueError("tasks must not be empty: the training split holds no games")
    chosen = []
    for index in range((update - 1) * groups, update * groups):
        epoch, position = divmod(index, len(tasks))
        order = list(range(len(tasks)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        chosen.append(tasks[order[position]])
    return chosen


def episode_seed(seed: int, update: int, group: int) -> int:
    """Seed of a group's environment and sampler; members add their own index to the sampler's."""
    return random.Random(f"{seed}/{update}/{group}").getrandbits(31)
