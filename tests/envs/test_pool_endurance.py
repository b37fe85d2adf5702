"""Many environments on the real engine under random kills: every episode is played once, word for word."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec

import pytest

from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.base import EnvError, Observation, StepResult, Task
from stepopsd.envs.pool import ProcessPool
from stepopsd.envs.worker import resident_bytes
from tests.extras import missing

pytestmark = pytest.mark.skipif(find_spec("alfworld") is None, reason=missing("alfworld"))

GROUP = 8
STEPS = 15
MINUTES = 60.0  # in seconds


class Player:
    """Plays an episode at random, the same way every time, and takes down every word that it is shown."""

    def __init__(self, number: int, tasks: list[Task]) -> None:
        self.number = number
        self.task = tasks[number // GROUP % len(tasks)]
        self.script = (self.task.task_id, number % GROUP)
        self.steps = 0
        self._rng = random.Random(repr(self.script))
        self._words = hashlib.sha256()
        self._commands: tuple[str, ...] = ()

    def look(self, observation: Observation) -> None:
        self._words.update(repr(observation).encode())
        self._commands = observation.admissible

    def act(self) -> str:
        self.steps += 1
        return self._rng.choice([*self._commands, "open sesame"])

    def take(self, result: StepResult) -> bool:
        """Whether the episode ends here."""
        self.look(result.observation)
        self._words.update(repr((result.reward, result.done)).encode())
        return result.done or self.steps >= STEPS

    def transcript(self) -> str:
        return self._words.hexdigest()


@dataclass
class Books:
    """What was started and what came of it, by the episodes' numbers."""

    started: Counter[int] = field(default_factory=Counter)
    finished: Counter[int] = field(default_factory=Counter)
    failed: dict[int, EnvError] = field(default_factory=dict)
    differing: list[int] = field(default_factory=list)
    steps: int = 0
    rounds: int = 0
    kills: int = 0
    largest_bytes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills: {len(self.started)} episodes started, {len(self.finished)} finished, "
            f"{self.lost} lost, {self.duplicated} duplicated, {len(self.failed)} failed, "
            f"{len(self.differing)} with other words; {self.steps} steps, largest worker {self.largest_bytes >> 20} MB"
        )

    @property
    def lost(self) -> int:
        return len(self.started.keys() - self.finished.keys() - self.failed.keys())

    @property
    def duplicated(self) -> int:
        return sum(count - 1 for count in [*self.started.values(), *self.finished.values()])


def undisturbed(tasks: list[Task]) -> dict[tuple[str, int], str]:
    """Transcripts of all scripts from one environment in this process."""
    env, transcripts = AlfworldEnv(), {}
    for number in range(GROUP * len(tasks)):
        player = Player(number, tasks)
        player.look(env.reset(player.task, 0))
        while not player.take(env.step(player.act())):
            pass
        transcripts[player.script] = player.transcript()
    env.close()
    return transcripts


def drive(pool: ProcessPool, tasks: list[Task], known: dict[tuple[str, int], str], until: float, books: Books) -> None:
    """Keep every slot busy until the time has come, then play to the end what has begun."""
    numbers = itertools.count()
    playing: dict[int, Player] = {}
    while True:
        free = [slot for slot in range(pool.size) if slot not in playing]
        if time.monotonic() < until and free:
            starting = {slot: Player(next(numbers), tasks) for slot in free}
            books.started.update(player.number for player in starting.values())
            for slot, opened in pool.reset({slot: (player.task, 0) for slot, player in starting.items()}).items():
                if isinstance(opened, EnvError):
                    books.failed[starting[slot].number] = opened
                    continue
                starting[slot].look(opened[1])
                playing[slot] = starting[slot]
            upcoming = [Player(starting[free[-1]].number + 1 + ahead, tasks).task for ahead in range(GROUP)]
            pool.prefetch([(task, 0) for task in upcoming])
        if not playing:
            return
        for slot, result in pool.step({slot: player.act() for slot, player in playing.items()}).items():
            player = playing[slot]
            if isinstance(result, EnvError):
                books.failed[player.number] = result
            elif player.take(result):
                books.finished[player.number] += 1
                books.differing += [player.number] * (player.transcript() != known[player.script])
            else:
                continue
            books.steps += player.steps
            del playing[slot]
            pool.release([slot])
        books.rounds += 1
        books.largest_bytes = max(books.largest_bytes, *map(resident_bytes, pool.pids()))


def kill_at_random(pool: ProcessPool, mean_s: float, stop: threading.Event, books: Books) -> None:
    """Playing, starting and leaving workers alike; through their handles, so that no other process is ever hit.

    After each, one call has to come back, or a slow machine would do nothing but restore. A lane whose starts have
    failed twice in a row is spared: five end the pool, as they should.
    """
    rng, before = random.Random(0), -1
    while not stop.wait(rng.expovariate(1 / mean_s)):
        if books.rounds == before:
            continue
        before = books.rounds
        workers = [worker for lane in pool._lanes if lane.failed_starts < 2 for worker in lane.workers()]
        if workers:
            rng.choice(workers)._process.kill()
            books.kills += 1


@pytest.mark.parametrize(
    ("size", "games", "seconds", "mean_s"),
    [
        pytest.param(16, 3, 6.0, 2.0, id="seconds"),
        pytest.param(
            128, 30, 20 * MINUTES, 10.0, id="20-minutes", marks=[pytest.mark.slow, pytest.mark.timeout(40 * MINUTES)]
        ),
    ],
)
def test_no_episode_is_lost_or_duplicated(size: int, games: int, seconds: float, mean_s: float) -> None:
    from stepopsd.envs.games.bundle import bundled_tasks

    every = bundled_tasks("train")
    tasks = every[:: len(every) // games][:games]
    known, books, stop = undisturbed(tasks), Books(), threading.Event()
    # No limits of time: a machine that is busy elsewhere must not count as a worker that hangs.
    endless = dict.fromkeys(("step_timeout_s", "reset_timeout_s", "episode_timeout_s", "start_timeout_s"), float("inf"))
    pool = ProcessPool(AlfworldEnv, size, workers=2, recycle_episodes=500, **endless)
    killer = threading.Thread(target=kill_at_random, args=(pool, mean_s, stop, books))
    killer.start()
    try:
        drive(pool, tasks, known, time.monotonic() + seconds, books)
    finally:
        stop.set()
        killer.join()
        pool.close()
    print(f"{size} environments, {seconds:.0f} s, {books}")
    assert len(set(known.values())) > len(known) // 2  # the words tell one script from another
    assert books.kills > 0
    assert sorted(books.started) == list(range(len(books.started)))
    assert not books.failed
    assert (books.lost, books.duplicated, books.differing) == (0, 0, [])
    assert books.started == books.finished
    assert books.largest_bytes < 600 << 20
