"""A corridor in which exactly one known turn decides: the yardstick of credit assignment, not a task to solve."""

from __future__ import annotations

import random

from stepopsd.envs.base import Observation, StepResult, Task

SIDES = "ab"


def chain_tasks(length: int, split: str, count: int = 60) -> list[Task]:
    """Corridors of ``length`` rooms, the crossing in each of them equally often.

    Args:
        length: Rooms, one turn each, at least 2.
        split: Name that the tasks carry; different splits are different corridors.
        count: Number of tasks.

    Raises:
        ValueError: A length below 2.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 rooms, got {length}")
    return [
        Task(f"{split}/chain-{length}-{i % length + 1}/{i}", "chain", f"crossing-{i % length + 1}", split, "")
        for i in range(count)
    ]


def doors_of(room: int) -> tuple[str, ...]:
    """The actions of a room, counted from 1."""
    return tuple(f"take {room}{side}" for side in SIDES)


def rooms_of(task: Task) -> int:
    """The turns of an episode.

    Raises:
        ValueError: Not a task of ``chain_tasks``.
    """
    return _shape(task)[0]


def crossing_of(task: Task) -> int:
    """The turn that decides, counted from 0.

    Raises:
        ValueError: Not a task of ``chain_tasks``.
    """
    return _shape(task)[1] - 1


def right_door(task: Task, seed: int) -> str:
    """The action that wins at the crossing; every other one loses there.

    Raises:
        ValueError: Not a task of ``chain_tasks``.
    """
    side = random.Random(f"{task.task_id}/{seed}").randrange(len(SIDES))
    return doors_of(_shape(task)[1])[side]


class ChainEnv:
    """Rooms in a row, each left by either of its two doors, ``3a`` and ``3b`` in the third; one room is a crossing.

    Which door of the crossing is right is fixed by task and seed and told by nothing that the agent sees; all other
    doors lead on. Success shows after the last room alone. An action that names no door is a step without effect on
    the outcome, at the crossing it is the wrong door.

    Example:
        >>> env = ChainEnv()
        >>> env.reset(chain_tasks(3, "train")[1], seed=0).text
        'room 1 , a corridor .'
        >>> env.step("take 1a").observation.text
        'room 2 , a crossing .'
    """

    goal = "leave by the right door of the crossing ."

    def reset(self, task: Task, seed: int) -> Observation:
        self._length, self._crossing = _shape(task)
        self._right = right_door(task, seed)
        self._room, self._won = 1, False
        return self._look()

    def step(self, action: str) -> StepResult:
        if self._room == self._crossing:
            self._won = action == self._right
        self._room += 1
        done = self._room > self._length
        won = done and self._won
        return StepResult(Observation("the end .") if done else self._look(), float(won), done, won)

    def close(self) -> None:
        """Nothing is held."""

    def _look(self) -> Observation:
        what = "crossing" if self._room == self._crossing else "corridor"
        return Observation(f"room {self._room} , a {what} .", doors_of(self._room))


def _shape(task: Task) -> tuple[int, int]:
    """(rooms, number of the crossing's room)."""
    try:
        name, length, crossing = task.task_id.split("/")[1].split("-")
        shape = int(length), int(crossing)
    except (IndexError, ValueError):
        raise ValueError(f"not a chain task: {task.task_id!r}") from None
    if name != "chain":
        raise ValueError(f"not a chain task: {task.task_id!r}")
    return shape
