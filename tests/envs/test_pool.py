"""Pools: equal results in one process and in many, and one slot's failure stays its own."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepopsd.envs.base import EnvError, EnvTimeLimit, StepResult
from stepopsd.envs.pool import InlinePool, ProcessPool
from stepopsd.envs.worker import WorkerError
from tests.envs.fake_envs import FakeEnv, ForgetfulEnv, cannot_be_made, fake_task

SIZE = 4


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    """Slots 0 and 1 live in one worker, 2 and 3 in another."""
    pool = ProcessPool(FakeEnv, SIZE, workers=2, step_timeout_s=2.0)
    yield pool
    pool.close()


def start(pool: InlinePool | ProcessPool) -> dict[int, object]:
    return pool.reset({slot: (fake_task(f"game_{slot}"), 10 + slot) for slot in range(pool.size)})


def text(result: StepResult | EnvError) -> str:
    assert isinstance(result, StepResult), result
    return result.observation.text


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_processes_and_one_process_give_the_same_episodes(pool: ProcessPool) -> None:
    def play(played: InlinePool | ProcessPool) -> list[object]:
        log: list[object] = [start(played)]
        rng = random.Random(0)
        for _ in range(12):
            slots = rng.sample(range(SIZE), rng.randint(1, SIZE))
            log.append(played.step({slot: f"word {rng.random()}" for slot in slots}))
        return log

    assert play(pool) == play(InlinePool(FakeEnv, SIZE))


def test_results_come_in_slot_order(pool: ProcessPool) -> None:
    start(pool)
    results = pool.step({3: "a", 0: "sleep 0.1", 2: "b", 1: "c"})
    assert list(results) == [0, 1, 2, 3]
    assert text(results[3]) == "train/game_3 / 13 / a"


def test_hung_worker_is_replaced_and_costs_one_episode(pool: ProcessPool) -> None:
    start(pool)
    pool.step(dict.fromkeys(range(SIZE), "first"))
    hung_pid = pool.pids()[0]
    results = pool.step({0: "sleep 60", 1: "second", 2: "second", 3: "second"})
    error = results[0]
    assert isinstance(error, EnvTimeLimit)
    assert "train/game_0" in str(error)
    assert "2 s for one step" in str(error)
    assert [text(results[slot]) for slot in (1, 2, 3)] == [
        f"train/game_{slot} / {10 + slot} / first / second" for slot in (1, 2, 3)
    ]
    assert not alive(hung_pid)
    assert pool.step({0: "third"})[0] is error
    again = fake_task("again")
    assert pool.reset({0: (again, 7)})[0] == ("goal of train/again", FakeEnv().reset(again, 7))
    assert text(pool.step({1: "third"})[1]) == "train/game_1 / 11 / first / second / third"


def test_dead_worker_is_replaced_and_costs_one_episode(pool: ProcessPool) -> None:
    start(pool)
    results = pool.step({0: "before", 1: "die", 2: "before", 3: "before"})
    assert isinstance(results[1], EnvError)
    assert not isinstance(results[1], EnvTimeLimit)
    assert "exit status 3" in str(results[1])
    after = pool.step({0: "after", 2: "after"})
    assert text(after[0]) == "train/game_0 / 10 / before / after"
    assert text(after[2]) == "train/game_2 / 12 / before / after"


def test_every_slot_of_a_worker_may_fail_in_one_call(pool: ProcessPool) -> None:
    start(pool)
    results = pool.step({0: "die", 1: "sleep 60", 2: "raise oops", 3: "fine"})
    assert isinstance(results[0], EnvError)
    assert isinstance(results[1], EnvTimeLimit)
    assert "RuntimeError: oops" in str(results[2])
    assert text(results[3]) == "train/game_3 / 13 / fine"
    assert all(isinstance(result, tuple) for result in start(pool).values())


def test_idle_episode_of_a_replaced_worker_continues_later(pool: ProcessPool) -> None:
    start(pool)
    pool.step({1: "one"})
    pool.step({0: "die"})
    pool.reset({0: (fake_task("next"), 0)})
    assert text(pool.step({1: "two"})[1]) == "train/game_1 / 11 / one / two"


def test_episode_that_replays_differently_is_an_error_not_a_silent_change() -> None:
    pool = ProcessPool(ForgetfulEnv, 2, workers=1)
    start(pool)
    results = pool.step({0: "die", 1: "on"})
    pool.close()
    assert "replay differs at step 0" in str(results[1])


def test_episode_time_adds_up_over_steps() -> None:
    pool = ProcessPool(FakeEnv, 1, workers=1, step_timeout_s=10, episode_timeout_s=0.5)
    start(pool)
    assert isinstance(pool.step({0: "sleep 0.3"})[0], StepResult)
    started = time.monotonic()
    error = pool.step({0: "sleep 9"})[0]
    pool.close()
    assert isinstance(error, EnvTimeLimit)
    assert "0.5 s for the episode" in str(error)
    assert time.monotonic() - started < 5


def test_hanging_reset_is_ended() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1, reset_timeout_s=0.5)
    results = pool.reset({0: (fake_task("stuck", "hang"), 0), 1: (fake_task("good"), 0)})
    pool.close()
    assert isinstance(results[0], EnvTimeLimit)
    assert isinstance(results[1], tuple)


def test_late_call_fails_its_episode_without_processes() -> None:
    pool = InlinePool(FakeEnv, 2, step_timeout_s=0.05)
    start(pool)
    results = pool.step({0: "sleep 0.1", 1: "quick"})
    assert isinstance(results[0], EnvTimeLimit)
    assert isinstance(results[1], StepResult)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_instance_fails_its_own_slot(workers: int) -> None:
    pool = ProcessPool(FakeEnv, 2, workers=workers) if workers else InlinePool(FakeEnv, 2)
    results = pool.reset({0: (fake_task("lost", "missing"), 0), 1: (fake_task("good"), 0)})
    assert isinstance(results[0], EnvError)
    assert str(results[0]) == "train/lost: FileNotFoundError: no such game"
    assert isinstance(results[1], tuple)
    assert pool.step({0: "anything"})[0] is results[0]
    pool.close()


def test_workers_do_not_import_torch(pool: ProcessPool) -> None:
    start(pool)
    assert text(pool.step({0: "modules"})[0]) == "train/game_0 / 10 / stepopsd.envs.base"


def test_close_leaves_no_process(pool: ProcessPool) -> None:
    started = pool.pids()
    assert all(alive(pid) for pid in started)
    pool.close()
    pool.close()
    assert not any(alive(pid) for pid in started)
    with pytest.raises(RuntimeError, match="closed"):
        start(pool)


def test_forgotten_pool_leaves_no_process() -> None:
    pool = ProcessPool(FakeEnv, 1, workers=1)
    (pid,) = pool.pids()
    del pool
    gc.collect()
    assert not alive(pid)


def test_environment_that_cannot_be_made_is_reported_at_once() -> None:
    with pytest.raises(WorkerError, match="needs the 'fake' extra"):
        ProcessPool(cannot_be_made, 2, workers=2)
    with pytest.raises(ImportError, match="needs the 'fake' extra"):
        InlinePool(cannot_be_made, 2)


def test_misuse_is_named() -> None:
    pool = InlinePool(FakeEnv, 2)
    with pytest.raises(ValueError, match="slot 0 has no running episode"):
        pool.step({0: "look"})
    with pytest.raises(ValueError, match=r"slot must lie in \[0, 2\), got 2"):
        pool.reset({2: (fake_task("x"), 0)})
    start(pool)
    assert pool.step({0: "win"})[0].success  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="slot 0 has no running episode"):
        pool.step({0: "more"})
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        InlinePool(FakeEnv, 0)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        ProcessPool(FakeEnv, 1, workers=0)
    with pytest.raises(ValueError, match="step_timeout_s must be greater than 0"):
        InlinePool(FakeEnv, 1, step_timeout_s=0.0)
