"""Ways to play many ALFWorld games side by side, behind one face for ``benchmarks.environments``."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.base import EnvError, Observation, Task
from stepopsd.envs.pool import ProcessPool

LIMITS = ("step_timeout_s", "reset_timeout_s", "episode_timeout_s", "start_timeout_s")


@dataclass(frozen=True, slots=True)
class Seen:
    """What an agent sees of one environment, and whether the game is won."""

    text: str
    commands: tuple[str, ...]
    won: bool


class Contender(Protocol):
    """So many environments, started and stepped together."""

    def reset(self, tasks: Sequence[Task]) -> list[Seen]:
        """Start one game per environment."""
        ...

    def step(self, actions: dict[int, str]) -> dict[int, Seen]:
        """One action in each given environment."""
        ...


class Pool:
    """``ProcessPool``; with as many workers as environments it is one process per environment, with the same engine."""

    def __init__(self, size: int, workers: int | None = None) -> None:
        endless = dict.fromkeys(LIMITS, float("inf"))  # what else runs on the machine must not end a measurement
        self._pool = ProcessPool(AlfworldEnv, size, workers=workers, recycle_episodes=0, **endless)

    def reset(self, tasks: Sequence[Task]) -> list[Seen]:
        opened = self._pool.reset({slot: (task, 0) for slot, task in enumerate(tasks)})
        return [_seen(_good(answer)[1], False) for answer in opened.values()]

    def step(self, actions: dict[int, str]) -> dict[int, Seen]:
        results = {slot: _good(result) for slot, result in self._pool.step(actions).items()}
        return {slot: _seen(result.observation, result.success) for slot, result in results.items()}


def _good(answer: Any) -> Any:
    if isinstance(answer, EnvError):
        raise answer
    return answer


def _seen(observation: Observation, won: bool) -> Seen:
    return Seen(observation.text, observation.admissible, won)


class Alfworld:
    """ALFWorld's own ``AlfredTWEnv`` with its batch environment: one process per environment, the engine as installed.

    Args:
        size: Number of environments.
        tasks: All games that will be played. AlfredTWEnv wants a ``traj_data.json`` beside every game, which text games
            alone lack: it looks into a temporary folder of links, where there is one.
    """

    def __init__(self, size: int, tasks: Sequence[Task]) -> None:
        from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

        self._folder = tempfile.TemporaryDirectory(prefix="alfworld-")
        self._links = {task.task_id: self._link(task, index) for index, task in enumerate(tasks)}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self._env = AlfredTWEnv(_config(self._folder.name)).init_env(batch_size=size)
        self._size, self._last = size, [""] * size

    def _link(self, task: Task, index: int) -> str:
        folder = Path(self._folder.name) / str(index)
        folder.mkdir()
        (folder / "traj_data.json").write_text(json.dumps({"task_type": task.kind}))
        (folder / "game.tw-pddl").symlink_to(Path(task.source).resolve())
        return str(folder / "game.tw-pddl")

    def reset(self, tasks: Sequence[Task]) -> list[Seen]:
        self._env._gamefiles_iterator = iter([self._links[task.task_id] for task in tasks])  # not in its random order
        texts, infos = self._env.reset()
        return [self._seen(texts, infos, slot) for slot in range(self._size)]

    def step(self, actions: dict[int, str]) -> dict[int, Seen]:
        texts, _, _, infos = self._env.step([actions.get(slot, "look") for slot in range(self._size)])
        return {slot: self._seen(texts, infos, slot) for slot in actions}

    def _seen(self, texts: Sequence[str], infos: dict[str, Sequence[Any]], slot: int) -> Seen:
        commands = tuple(command for command in infos["admissible_commands"][slot] if command != "help")
        return Seen(texts[slot], commands, bool(infos["won"][slot]))


def _config(data_path: str) -> dict[str, Any]:
    return {
        "dataset": {"data_path": data_path, "num_train_games": -1},
        "env": {
            "goal_desc_human_anns_prob": 0,
            "task_types": [1, 2, 3, 4, 5, 6],
            "domain_randomization": False,
            "expert_type": "handcoded",
        },
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }


#: Name in tables -> (size, games) -> contender. The last one is what others are compared with.
CONTENDERS: dict[str, Callable[[int, Sequence[Task]], Contender]] = {
    "stepopsd pool": lambda size, tasks: Pool(size),
    "process per environment": lambda size, tasks: Pool(size, workers=size),
    "alfworld": Alfworld,
}
