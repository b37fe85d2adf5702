"""Small environments with scripted faults, importable by worker processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from stepopsd.envs.base import Observation, StepResult, Task

_LEAKED: list[bytes] = []


def fake_task(name: str, source: str = "") -> Task:
    return Task(f"train/{name}", "fake", "fake_kind", "train", source)


class FakeEnv:
    """Tells the whole episode so far in every observation, so that a lost or mixed-up step shows."""

    def __init__(self) -> None:
        self.goal = ""
        self._told: list[str] = []

    def reset(self, task: Task, seed: int) -> Observation:
        if task.source == "missing":
            raise FileNotFoundError("no such game")
        if task.source == "hang":
            time.sleep(60)
        if task.source == "slow":
            time.sleep(0.5)
        if task.source == "leak":
            _LEAKED.append(b"x" * (20 << 20))
        self.goal = f"goal of {task.task_id}"
        self._told = [task.task_id, str(seed)]
        return self._observation()

    def step(self, action: str) -> StepResult:
        word, _, argument = action.partition(" ")
        if word == "sleep":
            time.sleep(float(argument))
        elif word == "die":
            os._exit(3)
        elif word == "hoard":
            self._hoard = b"x" * (int(argument) << 20)
        elif word == "process":
            action = str(os.getpid())
        elif word == "raise":
            raise RuntimeError(argument)
        elif word == "modules":
            action = " ".join(name for name in ("stepopsd.envs.base", "torch") if name in sys.modules)
        self._told.append(action)
        won = word == "win"
        return StepResult(self._observation(), float(won), won, won)

    def close(self) -> None:
        pass

    def _observation(self) -> Observation:
        return Observation(" / ".join(self._told), ("go on", "win"))


class ForgetfulEnv(FakeEnv):
    """Breaks the protocol: every process tells the same episode differently."""

    def _observation(self) -> Observation:
        return Observation(f"process {os.getpid()}", ())


def cannot_be_made() -> NoReturn:
    raise ImportError("needs the 'fake' extra")


def refuses_to_start(mark: Path) -> FakeEnv:
    """Once ``mark`` exists, the process ends instead."""
    if mark.exists():
        os._exit(4)
    return FakeEnv()
