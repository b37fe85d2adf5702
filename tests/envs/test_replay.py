"""Replay: the same words again or a named difference, in one environment, in pools, and on the real engine."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stepopsd.envs.base import EnvError, EnvTimeLimit, Observation, StepResult, Task
from stepopsd.envs.pool import InlinePool, ProcessPool
from stepopsd.envs.replay import Recording, ReplayMismatch, replay
from tests.envs.fake_envs import FakeEnv, ForgetfulEnv, fake_task
from tests.extras import missing

TASK = fake_task("game")
EPISODES = 100
STEPS = 10

Pool = InlinePool | ProcessPool


@pytest.fixture(params=["inline", "processes"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool: Pool = InlinePool(FakeEnv, 3)
    if request.param == "processes":
        pool = ProcessPool(FakeEnv, 3, workers=2, step_timeout_s=2.0)
    yield pool
    pool.close()


def record(actions: list[str], seed: int = 5) -> Recording:
    env = FakeEnv()
    seen = [env.reset(TASK, seed), *(env.step(action).observation for action in actions)]
    return Recording(TASK, seed, tuple(actions), tuple(seen))


def test_replay_stands_where_the_episode_stood() -> None:
    env = FakeEnv()
    known = record(["a", "b"])
    results = replay(env, TASK, 5, ["a", "b"], expected=known.expected)
    assert [result.observation for result in results] == list(known.expected or ())[1:]
    assert env.step("c").observation.text == "train/game / 5 / a / b / c"


def test_texts_alone_may_be_expected() -> None:
    texts = ["train/game / 5", "train/game / 5 / a"]
    assert len(replay(FakeEnv(), TASK, 5, ["a"], expected=texts)) == 1
    with pytest.raises(ReplayMismatch, match="at step 1: recorded 'elsewhere', got 'train/game / 5 / a'"):
        replay(FakeEnv(), TASK, 5, ["a"], expected=[texts[0], "elsewhere"])


@pytest.mark.parametrize("step", [0, 1, 2])
def test_first_difference_is_named_with_both_texts(step: int) -> None:
    expected = list(record(["a", "b"]).expected or ())
    expected[step] = Observation("another world")
    with pytest.raises(ReplayMismatch) as caught:
        replay(FakeEnv(), TASK, 5, ["a", "b"], expected=expected)
    error = caught.value
    assert (error.task_id, error.step, error.expected) == ("train/game", step, "another world")
    assert error.got == " / ".join(["train/game", "5", "a", "b"][: step + 2])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.step) == (str(error), step)


def test_other_commands_under_the_same_text_are_a_difference() -> None:
    with pytest.raises(ReplayMismatch, match="at step 0: recorded 'fly', got 'go on, win'"):
        replay(FakeEnv(), TASK, 5, [], expected=[Observation("train/game / 5", ("fly",))])


def test_episode_that_ends_before_its_last_action_is_a_difference() -> None:
    with pytest.raises(ReplayMismatch, match="at step 1: recorded 'more', got 'the end of the episode'"):
        replay(FakeEnv(), TASK, 5, ["win", "more"])
    assert replay(FakeEnv(), TASK, 5, ["more", "win"])[-1].success


def test_record_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected must hold 2 observations, got 3"):
        Recording(TASK, 0, ("a",), ("x", "y", "z"))
    with pytest.raises(ValueError, match="expected must hold 3 observations, got 1"):
        replay(FakeEnv(), TASK, 0, ["a", "b"], expected=["x"])


def test_pool_replays_and_goes_on(pool: Pool) -> None:
    opened = pool.replay({0: record(["a", "b"]), 2: record([]), 1: Recording(TASK, 6, ("z",))})
    assert list(opened) == [0, 1, 2]
    texts = [f"train/game / {end}" for end in ("5 / a / b", "6 / z", "5")]
    assert [opened[slot] for slot in range(3)] == [
        ("goal of train/game", Observation(text, ("go on", "win"))) for text in texts
    ]
    results = pool.step(dict.fromkeys(range(3), "on"))
    assert [result.observation.text for result in results.values()] == [f"{text} / on" for text in texts]  # type: ignore[union-attr]


def test_pool_answers_a_difference_in_its_slot(pool: Pool) -> None:
    wrong = Recording(TASK, 5, ("a",), ("train/game / 5", "elsewhere"))
    opened = pool.replay({0: wrong, 1: record(["a"])})
    assert isinstance(opened[0], ReplayMismatch)
    assert opened[0].step == 1
    assert isinstance(opened[1], tuple)
    assert pool.step({0: "on", 1: "on"})[0] is opened[0]


def test_pool_replay_to_the_end_leaves_no_running_episode(pool: Pool) -> None:
    assert isinstance(pool.replay({0: record(["a", "win"])})[0], tuple)
    with pytest.raises(ValueError, match="slot 0 has no running episode"):
        pool.step({0: "more"})


def test_every_message_of_a_replay_has_its_own_limit(pool: Pool) -> None:
    hangs = Recording(TASK, 5, ("a", "sleep 60", "b"))
    if isinstance(pool, InlinePool):
        pool.close()
        pool, hangs = InlinePool(FakeEnv, 3, step_timeout_s=0.05), Recording(TASK, 5, ("a", "sleep 0.1", "b"))
    opened = pool.replay({0: hangs, 1: record(["a"])})
    assert isinstance(opened[0], EnvTimeLimit)
    assert "for one step" in str(opened[0])
    assert isinstance(opened[1], tuple)


def test_replayed_episode_survives_the_loss_of_its_worker() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1)
    pool.replay({0: Recording(TASK, 0), 1: record(["a", "b"])})
    pool.step({1: "c"})
    assert isinstance(pool.step({0: "die"})[0], EnvError)
    result = pool.step({1: "d"})[1]
    pool.close()
    assert isinstance(result, StepResult)
    assert result.observation.text == "train/game / 5 / a / b / c / d"


def test_restored_episode_is_compared_from_the_first_observation_on() -> None:
    pool = ProcessPool(ForgetfulEnv, 2, workers=1)
    pool.reset({0: (TASK, 0), 1: (TASK, 1)})
    pool.step({1: "one"})
    result = pool.step({0: "die", 1: "two"})[1]
    pool.close()
    assert isinstance(result, ReplayMismatch)
    assert result.step == 0


def _random_recording(task: Task, rng: random.Random) -> Recording:
    from stepopsd.envs.alfworld import AlfworldEnv

    env = AlfworldEnv()
    seen, actions = [env.reset(task, 0)], []
    for _ in range(rng.randint(1, STEPS)):
        actions.append(rng.choice([*seen[-1].admissible, "open sesame"]))
        result = env.step(actions[-1])
        seen.append(result.observation)
        if result.done:
            break
    env.close()
    return Recording(task, 0, tuple(actions), tuple(seen))


def _compare_random_episodes(tasks: Callable[[int], Task], episodes: int) -> None:
    """Recorded one by one in this process; replayed side by side in workers, in another order, twice."""
    from stepopsd.envs.alfworld import AlfworldEnv

    rng = random.Random(0)
    records = [_random_recording(tasks(index), rng) for index in range(episodes)]
    pool = ProcessPool(AlfworldEnv, 10, workers=2)
    played = 0
    for _ in range(2):
        rng.shuffle(records)
        for first in range(0, episodes, pool.size):
            group = dict(enumerate(records[first : first + pool.size]))
            for slot, opened in pool.replay(group).items():
                assert not isinstance(opened, EnvError), opened
                assert opened[1] == (group[slot].expected or ())[-1]
                played += 1
    pool.close()
    assert played == 2 * episodes


@pytest.mark.skipif(find_spec("alfworld") is None, reason=missing("alfworld"))
def test_hundred_random_episodes_replay_word_for_word(tiny_tasks: list[Task]) -> None:
    _compare_random_episodes(lambda index: tiny_tasks[index % len(tiny_tasks)], EPISODES)


@pytest.mark.skipif(
    find_spec("alfworld") is None or not (Path(os.environ.get("ALFWORLD_DATA", "")) / "json_2.1.1").is_dir(),
    reason="ALFWORLD_DATA does not point at the official games",
)
def test_random_episodes_of_official_games_replay_word_for_word() -> None:
    from stepopsd.envs.alfworld import list_tasks

    tasks = list_tasks(os.environ["ALFWORLD_DATA"], "seen")
    _compare_random_episodes(lambda index: tasks[index % 4 * 35], 20)
