"""Episodes of an expert on real games, in words; no torch here, so that worker processes start at once."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.base import Observation, Task
from stepopsd.envs.games.expert import HandExpert
from stepopsd.envs.worker import usable_cores

Expert = Literal["hand", "planner"]


@dataclass(frozen=True, slots=True)
class Play:
    """A won episode in words.

    Attributes:
        observations: What was seen before each action.
        actions: What was played.
        imitated: Whether the action is the expert's, and not a random one.
    """

    task: Task
    goal: str
    observations: list[Observation]
    actions: list[str]
    imitated: list[bool]


def iter_plays(
    tasks: Sequence[Task], *, expert: Expert, noise: float, max_steps: int, seed: int, workers: int = 0
) -> Iterator[Play | None]:
    """One episode per task, None where it was not won in time; the same for any number of ``workers``.

    Args:
        tasks: ALFWorld games.
        expert: ``hand``, the hand-coded expert that sees what the agent sees, or ``planner``, which sees everything.
        noise: Share of random admissible actions, which the expert then has to live with.
        max_steps: Actions per episode.
        seed: Seeds the random actions.
        workers: Processes that play, -1 for one per usable core; with 0 or 1 this one does.

    Raises:
        BrokenProcessPool: A worker was killed.
    """
    play = partial(_play_in_process, expert=expert, noise=noise, max_steps=max_steps, seed=seed)
    workers = usable_cores() if workers < 0 else workers
    if workers < 2:
        yield from map(play, tasks)
        return
    # An executor, because a Pool waits for ever for a worker that was killed.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(play, tasks, chunksize=4)


_engine: AlfworldEnv | None = None


def _play_in_process(task: Task, *, expert: Expert, noise: float, max_steps: int, seed: int) -> Play | None:
    global _engine
    _engine = _engine or AlfworldEnv()
    rng = random.Random(f"expert/{seed}/{task.task_id}")
    return play_expert(_engine, task, rng, expert=expert, noise=noise, max_steps=max_steps)


def play_expert(
    env: AlfworldEnv, task: Task, rng: random.Random, *, expert: Expert, noise: float, max_steps: int
) -> Play | None:
    """An episode of the expert with random actions in between; None when it is not won in time."""
    observation = env.reset(task, 0)
    play = Play(task, env.goal, [], [], [])
    hand = HandExpert(env.goal)
    plan: list[str] = []
    won = False
    while not won and len(play.actions) < max_steps:
        if expert == "planner" and not plan:
            plan = env.plan()
        choice = hand.act(observation) if expert == "hand" else (plan or ["look"])[0]
        stray = rng.random() < noise
        action = rng.choice(observation.admissible) if stray else choice
        # A stray step leaves the plan behind, unless it happens to be the plan's own.
        plan = plan[1:] if action == choice else []
        play.observations.append(observation)
        play.actions.append(action)
        play.imitated.append(not stray)
        result = env.step(action)
        observation, won = result.observation, result.success
    return play if won else None
