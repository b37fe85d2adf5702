"""The life of worker processes: killed, leaking, growing, replaced, preparing ahead; no episode notices."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from stepopsd.envs.base import EnvError, EnvTimeLimit, Observation, StepResult, Task
from stepopsd.envs.pool import InlinePool, ProcessPool
from stepopsd.envs.worker import WorkerError, resident_bytes, usable_cores
from tests.envs.fake_envs import FakeEnv, fake_task, refuses_to_start

#: At most, a tenth of a second each: a busy machine takes long to start a process.
ROUNDS = 600


def start(pool: ProcessPool | InlinePool, names: str = "game", source: str = "") -> dict[int, object]:
    return pool.reset({slot: (fake_task(f"{names}_{slot}", source), slot) for slot in range(pool.size)})


def text(result: StepResult | EnvError) -> str:
    assert isinstance(result, StepResult), result
    return result.observation.text


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_and_wait(pid: int) -> None:
    kill(pid)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


# crashes


def test_worker_killed_between_calls_costs_nothing() -> None:
    pool = ProcessPool(FakeEnv, 4, workers=2, crash_retries=0)
    start(pool)
    pool.step(dict.fromkeys(range(4), "one"))
    for pid in pool.pids():
        kill_and_wait(pid)
    results = pool.step(dict.fromkeys(range(4), "two"))
    pool.close()
    assert [text(result) for result in results.values()] == [f"train/game_{s} / {s} / one / two" for s in range(4)]


def test_worker_killed_during_a_call_costs_nothing() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1)
    start(pool)
    pool.step({0: "one", 1: "one"})
    (before,) = pool.pids()
    threading.Timer(0.3, kill, [before]).start()
    results = pool.step({0: "sleep 0.6", 1: "two"})
    assert pool.pids() != [before]
    pool.close()
    assert text(results[0]) == "train/game_0 / 0 / one / sleep 0.6"
    assert text(results[1]) == "train/game_1 / 1 / one / two"


def test_worker_killed_during_a_reset_costs_nothing() -> None:
    pool = ProcessPool(FakeEnv, 1, workers=1)
    threading.Timer(0.2, kill, pool.pids()).start()
    opened = pool.reset({0: (fake_task("slow", "slow"), 3)})
    pool.close()
    assert opened[0] == ("goal of train/slow", Observation("train/slow / 3", ("go on", "win")))


@pytest.mark.parametrize("retries", [0, 2])
def test_episode_that_kills_its_workers_fails_in_the_end(retries: int, tmp_path: Path) -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1, crash_retries=retries)
    start(pool)
    launched = []
    pool._lanes[0].launch = lambda real=pool._lanes[0].launch: launched.append(1) or real()  # type: ignore[misc]
    results = pool.step({0: "die", 1: "on"})
    pool.close()
    assert "exit status 3" in str(results[0])
    assert text(results[1]) == "train/game_1 / 1 / on"
    assert len(launched) == retries + 1


def test_steps_that_work_pay_for_earlier_crashes() -> None:
    pool = ProcessPool(FakeEnv, 1, workers=1, crash_retries=1)
    start(pool)
    for _ in range(4):
        threading.Timer(0.1, kill, pool.pids()).start()
        assert isinstance(pool.step({0: "sleep 0.3"})[0], StepResult)
    pool.close()


def test_workers_that_no_longer_start_end_the_pool(tmp_path: Path) -> None:
    mark = tmp_path / "broken"
    pool = ProcessPool(partial(refuses_to_start, mark), 2, workers=2)
    start(pool)
    mark.touch()
    kill(pool.pids()[0])
    with pytest.raises(WorkerError, match="exit status 4"):
        pool.step({0: "on", 1: "on"})
    with pytest.raises(RuntimeError, match="closed"):
        pool.step({0: "on"})


def test_random_kills_change_no_word() -> None:
    """Sixty episodes in six slots, workers killed about every other call; against one process."""

    def drive(pool: ProcessPool | InlinePool, kills: bool) -> tuple[dict[int, list[str]], int]:
        rng, murderer = random.Random(0), random.Random(1)
        told: dict[int, list[str]] = {}
        playing: dict[int, int] = {}
        waiting, killed = list(range(60)), 0
        while waiting or playing:
            if kills and murderer.random() < 0.5:
                kill(murderer.choice(pool.pids()))  # type: ignore[union-attr]
                killed += 1
            free = [slot for slot in range(pool.size) if slot not in playing][: len(waiting)]
            playing.update({slot: waiting.pop(0) for slot in free})
            opened = pool.reset({slot: (fake_task(f"job_{playing[slot]}"), playing[slot]) for slot in free})
            told.update({playing[slot]: [repr(opened[slot])] for slot in free})
            words = {slot: "win" if rng.random() < 0.25 else f"say {rng.random()}" for slot in sorted(playing)}
            for slot, result in pool.step(words).items():
                told[playing[slot]].append(text(result))
                assert isinstance(result, StepResult)
                if result.done:
                    del playing[slot]
                    pool.release([slot])
        pool.close()
        return told, killed

    quiet, _ = drive(InlinePool(FakeEnv, 6), kills=False)
    noisy, killed = drive(ProcessPool(FakeEnv, 6, workers=2), kills=True)
    assert killed > 5
    assert sorted(noisy) == list(range(60))
    assert noisy == quiet


def test_killed_worker_leaves_no_temporary_files() -> None:
    pool = ProcessPool(FakeEnv, 1, workers=1)
    folder = Path(pool._lanes[0].worker._folder.name)
    assert folder.is_dir()
    start(pool)
    kill(pool.pids()[0])
    pool.step({0: "on"})
    assert not folder.exists()
    folder = Path(pool._lanes[0].worker._folder.name)
    pool.close()
    assert not folder.exists()


# recycling


def test_worker_is_recycled_between_episodes() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1, recycle_episodes=4)
    seen: set[int] = set()
    for round_ in range(ROUNDS):
        start(pool, f"round{round_}")
        seen.add(pool.pids()[0])
        if len(seen) > 1:
            break
        results = pool.step({0: "process", 1: "process"})
        assert [text(results[s]).split(" / ")[0] for s in range(2)] == [f"train/round{round_}_{s}" for s in range(2)]
        pool.release([0, 1])
        time.sleep(0.1)  # for the successor to stand
    assert len(seen) > 1
    assert round_ >= 2, "four episodes first"
    assert pool._lanes[0].episodes == 2
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen)


def test_overdue_worker_is_recycled_under_a_running_episode() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1, recycle_episodes=2)
    start(pool)
    (first,) = pool.pids()
    told = "train/game_0 / 0"
    for round_ in range(ROUNDS):
        pool.reset({1: (fake_task(f"other_{round_}"), 0)})
        told += f" / {round_}"
        assert text(pool.step({0: str(round_)})[0]) == told
        if pool.pids() != [first]:
            break
        time.sleep(0.1)
    assert pool.pids() != [first]
    pool.close()


def test_leaking_worker_stays_bounded() -> None:
    """Every reset leaks 20 MB: 40 episodes would hold 800 MB."""
    pool = ProcessPool(FakeEnv, 2, workers=1, worker_memory_mb=200, recycle_episodes=0)
    largest, seen = 0, set()
    for round_ in range(20):
        start(pool, f"round{round_}", "leak")
        assert all(isinstance(result, StepResult) for result in pool.step({0: "on", 1: "on"}).values())
        largest = max(largest, resident_bytes(pool.pids()[0]))
        seen.add(pool.pids()[0])
    pool.close()
    assert largest < 300 << 20
    assert len(seen) > 2


def test_step_that_wants_too_much_memory_fails_alone() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1, worker_memory_mb=200)
    start(pool)
    results = pool.step({0: "hoard 1000", 1: "hoard 50"})
    pool.close()
    assert "MemoryError" in str(results[0])
    assert text(results[1]) == "train/game_1 / 1 / hoard 50"


# preparing ahead


def test_prefetched_episode_starts_at_once_with_the_same_words() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1)
    start(pool)
    task = fake_task("next", "slow")
    pool.prefetch([(task, 7), (task, 7), (task, 8)])
    time.sleep(1.8)
    began = time.monotonic()
    opened = pool.reset({0: (task, 7)})
    assert time.monotonic() - began < 0.4
    assert opened[0] == ("goal of train/next", FakeEnv().reset(fake_task("next"), 7))
    results = pool.step({0: "on", 1: "on"})
    assert text(results[0]) == "train/next / 7 / on"
    assert text(results[1]) == "train/game_1 / 1 / on"
    began = time.monotonic()
    assert isinstance(pool.reset({1: (task, 7)})[1], tuple)
    assert time.monotonic() - began < 0.4
    began = time.monotonic()
    assert isinstance(pool.reset({0: (task, 9)})[0], tuple)  # was not announced
    assert time.monotonic() - began >= 0.5
    pool.close()


def test_prepared_episodes_are_never_shared() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1)
    task = fake_task("twin")
    pool.prefetch([(task, 0)])
    time.sleep(0.2)
    pool.reset({0: (task, 0), 1: (task, 0)})
    results = pool.step({0: "left", 1: "right"})
    pool.close()
    assert [text(results[slot]) for slot in range(2)] == ["train/twin / 0 / left", "train/twin / 0 / right"]


def test_broken_or_hanging_prefetch_harms_nobody() -> None:
    pool = ProcessPool(FakeEnv, 2, workers=1, reset_timeout_s=0.7, crash_retries=0)
    start(pool)
    pool.step({0: "one", 1: "one"})
    (first,) = pool.pids()
    missing, hanging = fake_task("missing", "missing"), fake_task("hang", "hang")
    pool.prefetch([(missing, 0), (hanging, 0)])
    time.sleep(0.2)
    results = pool.step({0: "two", 1: "two"})
    assert [text(results[slot]) for slot in range(2)] == [f"train/game_{s} / {s} / one / two" for s in (0, 1)]
    assert pool.pids() != [first]
    pool.prefetch([(hanging, 0)])
    began = time.monotonic()
    assert isinstance(pool.step({0: "three"})[0], StepResult)
    assert time.monotonic() - began < 0.5  # nobody waits for it twice
    assert "no such game" in str(pool.reset({0: (missing, 0)})[0])
    assert isinstance(pool.reset({0: (hanging, 0)})[0], EnvTimeLimit)
    assert text(pool.step({1: "three"})[1]) == "train/game_1 / 1 / one / two / three"
    pool.close()


# which worker


def test_group_shares_a_worker_and_load_is_even() -> None:
    def workers_of(pool: ProcessPool, tasks: list[Task]) -> list[str]:
        pool.reset({slot: (task, 0) for slot, task in enumerate(tasks)})
        results = pool.step(dict.fromkeys(range(len(tasks)), "process"))
        return [text(result).split(" / ")[-1] for result in results.values()]

    pool = ProcessPool(FakeEnv, 8, workers=2)
    games = [fake_task(f"game_{i}") for i in range(4)]
    groups = workers_of(pool, [task for task in games for _ in range(2)])
    assert groups[::2] == groups[1::2]
    assert sorted(groups.count(pid) for pid in set(groups)) == [4, 4]
    one_group = workers_of(pool, [games[0]] * 8)
    assert sorted(one_group.count(pid) for pid in set(one_group)) == [4, 4]
    pool.close()


def test_as_many_workers_as_usable_cores() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    pool = ProcessPool(FakeEnv, 64)
    assert len(pool.pids()) == min(usable_cores(), 64)
    pool.close()


def test_workers_that_do_not_leave_hold_up_the_end_together_not_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepopsd.envs.pool.LEAVING_S", 1.0)
    pool = ProcessPool(FakeEnv, 4, workers=4)
    graces = []
    for lane in pool._lanes:
        lane.worker.finish = lambda grace_s, real=lane.worker.finish: graces.append(grace_s) or real(grace_s)  # type: ignore[method-assign]
        os.kill(lane.worker.pid, signal.SIGSTOP)
    pool.close()
    assert graces[0] > 0.5
    assert sum(graces) <= 1.0


def test_released_slot_has_no_episode() -> None:
    for pool in (InlinePool(FakeEnv, 2), ProcessPool(FakeEnv, 2, workers=1)):
        start(pool)
        pool.release([1])
        with pytest.raises(ValueError, match="slot 1 has no running episode"):
            pool.step({1: "on"})
        assert text(pool.step({0: "on"})[0]) == "train/game_0 / 0 / on"
        pool.close()


def test_settings_out_of_range_are_named() -> None:
    for name in ("crash_retries", "prefetch", "recycle_episodes", "worker_memory_mb"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
            ProcessPool(FakeEnv, 1, workers=1, **{name: -1})  # type: ignore[arg-type]
