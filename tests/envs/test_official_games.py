"""The official games through our environment; skipped where ALFWORLD_DATA does not point at them."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from stepopsd.envs.alfworld import TASK_TYPES, AlfworldEnv, list_tasks, walkthrough
from stepopsd.envs.base import Observation, Task
from stepopsd.envs.replay import replay

ROOT = os.environ.get("ALFWORLD_DATA", "")
PER_TYPE = 10

# Existence is checked too: importing alfworld anywhere sets the variable to an empty cache folder.
if find_spec("alfworld") is None or not (Path(ROOT) / "json_2.1.1").is_dir():
    pytest.skip("ALFWORLD_DATA does not point at the official games", allow_module_level=True)


@pytest.fixture(scope="module")
def panel() -> list[Task]:
    """Equally many games of each type, spread over the training split and the seen split."""
    chosen: list[Task] = []
    for split in ("train", "seen"):
        tasks = list_tasks(ROOT, split)
        for kind in TASK_TYPES:
            of_kind = [task for task in tasks if task.kind == kind]
            count = PER_TYPE // 2
            chosen += [of_kind[i * len(of_kind) // count] for i in range(count)]
    return chosen


def test_official_splits_are_complete() -> None:
    assert len(list_tasks(ROOT, "train")) == 3553
    assert len(list_tasks(ROOT, "seen")) == 140


def test_sixty_games_of_all_types_are_won_by_their_walkthrough(panel: list[Task]) -> None:
    assert Counter(task.kind for task in panel) == dict.fromkeys(TASK_TYPES, PER_TYPE)
    env = AlfworldEnv()
    for task in panel:
        results = replay(env, task, 0, walkthrough(task.source))
        assert results[-1].success, task.task_id
        assert not any(result.done for result in results[:-1]), task.task_id
    env.close()


def test_memoised_engine_says_what_the_installed_engine_says(panel: list[Task]) -> None:
    def digest(env: AlfworldEnv, task: Task) -> str:
        rng = random.Random(task.task_id)
        seen: Observation = env.reset(task, 0)
        words = [repr(seen)]
        for _ in range(10):
            result = env.step(rng.choice(seen.admissible))
            words.append(repr(result))
            seen = result.observation
            if result.done:
                break
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    memoised, installed = AlfworldEnv(), AlfworldEnv(memoise=False)
    for task in panel[::20]:
        assert digest(memoised, task) == digest(installed, task), task.task_id
    memoised.close()
    installed.close()
