"""The environment protocol: plain data in, plain data out, so that environments can live in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from stepopsd.envs.replay import Recording


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance: everything that is needed to recreate the same episode anywhere.

    Attributes:
        task_id: Stable name, unique within an environment, e.g.
            ``train/pick_and_place_simple-Mug-None-Shelf-3/trial_0``.
        env: Name of the environment that plays it, e.g. ``alfworld``.
        kind: Task type, the unit of per-type results, e.g. ``pick_heat_then_place_in_recep``.
        split: Split that it was listed under, e.g. ``train``, ``seen``, ``unseen``.
        source: Where the instance is stored (for ALFWorld the path of ``game.tw-pddl``).
    """

    task_id: str
    env: str
    kind: str
    split: str
    source: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent may see before it acts.

    Attributes:
        text: The environment's words, unchanged.
        admissible: Actions that the environment accepts now, in its order; empty where actions are free text.
    """

    text: str
    admissible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one action led to. ``done`` covers success only; step limits belong to the rollout loop.

    ``info`` holds facts about the step that nobody is shown; its numbers become metrics of the episode.
    """

    observation: Observation
    reward: float
    done: bool
    success: bool
    info: dict[str, Any] = field(default_factory=dict)


class Env(Protocol):
    """One episode at a time: ``reset`` then ``step`` until ``done`` or the caller's limit.

    The same ``(task, seed)`` and the same actions give the same observations, text for text. An environment that cannot
    promise that has an attribute ``replays = False``: episodes are then not restored from their actions by a method
    that branches them.
    """

    goal: str  #: the instruction of the current episode; set by reset

    def reset(self, task: Task, seed: int) -> Observation:
        """Start an episode. Raises FileNotFoundError or ValueError for a missing or broken instance."""
        ...

    def step(self, action: str) -> StepResult:
        """Play one action; unknown actions are legal and answered by the environment's own words."""
        ...

    def close(self) -> None:
        """Free the engine; the environment may not be used afterwards."""
        ...


class EnvError(RuntimeError):
    """The engine failed, timed out or died in this episode; the message names the task and the cause."""


class EnvInfraError(EnvError):
    """Something that the environment leans on failed, such as a search server; the policy had no part in it."""


class EnvTimeLimit(EnvError):
    """A step or the episode's environment time ran past its wall-clock limit."""


class EnvPool(Protocol):
    """A fixed number of environments stepped together. Slots are independent; results come in slot order.

    A failure of one slot is returned as an ``EnvError`` in its place and leaves the other slots untouched.
    """

    size: int

    def reset(self, starts: dict[int, tuple[Task, int]]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start episodes: slot -> (task, seed). Returns slot -> (goal, first observation)."""
        ...

    def replay(self, recordings: dict[int, Recording]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start episodes at the end of recordings: slot -> (goal, last observation), as ``reset`` answers.

        Every observation on the way is compared; one that differs is a ``ReplayMismatch`` in the slot's place.
        """
        ...

    def step(self, actions: dict[int, str]) -> dict[int, StepResult | EnvError]:
        """Play one action in each given slot."""
        ...

    def release(self, slots: Iterable[int]) -> None:
        """Give up the episodes in these slots, whether running or not."""
        ...

    def prefetch(self, upcoming: Sequence[tuple[Task, int]]) -> None:
        """A hint: the (task, seed) of the episodes that will be started next, in order; changes no result."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...
