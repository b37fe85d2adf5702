"""Pools of environments stepped together: in this process, or in worker processes with enforced time limits."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from stepopsd.envs.base import Env, EnvError, EnvTimeLimit, Observation, StepResult, Task
from stepopsd.envs.worker import Worker, WorkerError, describe, play


@dataclass(frozen=True, slots=True)
class _Limits:
    step_timeout_s: float
    reset_timeout_s: float
    episode_timeout_s: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0 (inf for none), got {getattr(self, name)}")

    def allowance(self, kind: str, used_s: float) -> tuple[float, str]:
        """Seconds that a call may take in an episode that has used some, and the limit in words."""
        limit = self.reset_timeout_s if kind == "reset" else self.step_timeout_s
        if self.episode_timeout_s - used_s < limit:
            remaining = max(self.episode_timeout_s - used_s, 0.0)
            return remaining, f"the limit of {self.episode_timeout_s:g} s for the episode's environment time"
        return limit, f"the limit of {limit:g} s for one {kind}"


@dataclass(slots=True)
class _Episode:
    task: Task
    seed: int
    actions: list[str] = field(default_factory=list)
    seen: Observation | None = None
    used_s: float = 0.0
    over: bool = False
    failure: EnvError | None = None
    #: Played in a worker that is gone; replayed before its next step.
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    cause: str
    timed_out: bool = False


class _Pool(ABC):
    """Slot bookkeeping; how calls are played is the subclass's business."""

    def __init__(self, size: int, limits: _Limits) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self._limits = limits
        self._episodes: dict[int, _Episode] = {}
        self._closed = False

    def reset(self, starts: dict[int, tuple[Task, int]]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start episodes: slot -> (task, seed). Returns slot -> (goal, first observation) or what went wrong."""
        self._check(starts)
        for slot, (task, seed) in starts.items():
            self._episodes[slot] = _Episode(task, seed)
        outcomes = self._play({slot: ("reset", *starts[slot]) for slot in sorted(starts)})
        results: dict[int, tuple[str, Observation] | EnvError] = {}
        for slot in sorted(starts):
            outcome = outcomes[slot]
            if isinstance(outcome, _Failure):
                results[slot] = self._fail(slot, outcome)
            else:
                self._episodes[slot].seen = outcome[1]
                results[slot] = outcome
        return results

    def step(self, actions: dict[int, str]) -> dict[int, StepResult | EnvError]:
        """Play one action in each given slot. A failed episode keeps answering with its error until it is reset.

        Raises:
            ValueError: A slot has no running episode, or is not a slot of this pool.
        """
        self._check(actions)
        for slot in actions:
            if slot not in self._episodes or self._episodes[slot].over:
                raise ValueError(f"slot {slot} has no running episode: reset it first")
        alive = [slot for slot in sorted(actions) if self._episodes[slot].failure is None]
        outcomes = self._play({slot: ("step", actions[slot]) for slot in alive})
        return {slot: self._settle(slot, actions[slot], outcomes.get(slot)) for slot in sorted(actions)}

    def _settle(self, slot: int, action: str, outcome: Any) -> StepResult | EnvError:
        episode = self._episodes[slot]
        if episode.failure is not None:
            return episode.failure
        if isinstance(outcome, _Failure):
            return self._fail(slot, outcome)
        result: StepResult = outcome
        episode.actions.append(action)
        episode.seen = result.observation
        episode.over = result.done
        return result

    def _fail(self, slot: int, failure: _Failure) -> EnvError:
        episode = self._episodes[slot]
        kind = EnvTimeLimit if failure.timed_out else EnvError
        episode.failure = kind(f"{episode.task.task_id}: {failure.cause}")
        return episode.failure

    def _check(self, slots: Iterable[int]) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")
        for slot in slots:
            if not 0 <= slot < self.size:
                raise ValueError(f"slot must lie in [0, {self.size}), got {slot}")

    @abstractmethod
    def _play(self, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Play one call per slot; a value or a ``_Failure`` for each."""

    @abstractmethod
    def close(self) -> None:
        """Free the environments; the pool may not be used afterwards. Safe to call again."""


class InlinePool(_Pool):
    """All environments in this process, played one after the other.

    A call that came back too late fails its episode as in a ``ProcessPool``, but a call that hangs cannot be ended
    from within: use worker processes where that must not stop a run.

    Args:
        factory: Makes one environment; called when a slot is first used, once right away.
        size: Number of slots.
        step_timeout_s, reset_timeout_s, episode_timeout_s: Wall-clock limits of one step, one reset (which may have
            to load a game) and all calls of an episode together; ``inf`` for none.
    """

    def __init__(
        self,
        factory: Callable[[], Env],
        size: int,
        *,
        step_timeout_s: float = 30.0,
        reset_timeout_s: float = 120.0,
        episode_timeout_s: float = 600.0,
    ) -> None:
        super().__init__(size, _Limits(step_timeout_s, reset_timeout_s, episode_timeout_s))
        self._factory = factory
        self._spare = [factory()]
        self._envs: dict[int, Env] = {}

    def _play(self, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        return {slot: self._play_one(slot, call) for slot, call in calls.items()}

    def _play_one(self, slot: int, call: tuple[Any, ...]) -> Any:
        episode = self._episodes[slot]
        allowed, limit = self._limits.allowance(call[0], episode.used_s)
        started = time.monotonic()
        try:
            if slot not in self._envs:
                self._envs[slot] = self._spare.pop() if self._spare else self._factory()
            outcome = play(self._envs[slot], *call)
        except Exception as error:
            return _Failure(describe(error))
        elapsed = time.monotonic() - started
        episode.used_s += elapsed
        if elapsed > allowed:
            return _Failure(f"a {call[0]} took {elapsed:.1f} s and passed {limit}", timed_out=True)
        return outcome

    def close(self) -> None:
        """Close every environment."""
        self._closed = True
        for env in [*self._envs.values(), *self._spare]:
            env.close()
        self._envs, self._spare = {}, []


@dataclass(slots=True)
class _Lane:
    """One worker with the calls that wait for it and the one in flight."""

    worker: Worker
    waiting: deque[int] = field(default_factory=deque)
    slot: int = -1
    messages: deque[tuple[Any, ...]] = field(default_factory=deque)
    deadline: float = float("inf")
    limit: str = ""

    @property
    def busy(self) -> bool:
        return self.slot >= 0


class ProcessPool(_Pool):
    """Environments in worker processes; a worker that hangs or dies is replaced and costs only one episode.

    Neighbouring slots share a worker, so that a group's members, which play the same game, load it once. The other
    episodes of a lost worker are replayed from their actions, which the environments' determinism makes exact.
    Workers do not import torch.

    Args:
        factory: Makes one environment; must be picklable (a class or ``functools.partial`` at module level).
        size: Number of slots.
        workers: Number of processes; more than ``size`` are not started.
        step_timeout_s, reset_timeout_s, episode_timeout_s: As for ``InlinePool``; the worker of a call that takes
            longer is killed.
        start_timeout_s: Wall-clock limit for a worker process until its first environment stands.

    Raises:
        WorkerError: A worker cannot start or cannot make its environment.

    Example:
        >>> pool = ProcessPool(AlfworldEnv, size=16, workers=2)
        >>> started = pool.reset({slot: (task, 0) for slot in range(16)})
    """

    def __init__(
        self,
        factory: Callable[[], Env],
        size: int,
        *,
        workers: int,
        step_timeout_s: float = 30.0,
        reset_timeout_s: float = 120.0,
        episode_timeout_s: float = 600.0,
        start_timeout_s: float = 120.0,
    ) -> None:
        super().__init__(size, _Limits(step_timeout_s, reset_timeout_s, episode_timeout_s))
        self._start_timeout_s = start_timeout_s
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._lanes = [_Lane(Worker(factory)) for _ in range(min(workers, size))]
        self._finalizer = weakref.finalize(self, _stop, [lane.worker for lane in self._lanes])
        try:
            for lane in self._lanes:
                lane.worker.await_ready(self._start_timeout_s)
        except WorkerError:
            self.close()
            raise

    def _play(self, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        outcomes: dict[int, Any] = {}
        for slot in calls:
            self._lane(slot).waiting.append(slot)
        for lane in self._lanes:
            self._next_slot(lane, calls)
        while busy := [lane for lane in self._lanes if lane.busy]:
            patience = max(0.0, min(lane.deadline for lane in busy) - time.monotonic())
            ready = wait([lane.worker.connection for lane in busy], None if patience == float("inf") else patience)
            for lane in busy:
                if lane.worker.connection in ready:
                    self._take_answer(lane, calls, outcomes)
                elif time.monotonic() >= lane.deadline and not lane.worker.connection.poll():
                    cause = f"a {lane.messages[0][0]} passed {lane.limit}"
                    self._give_up(lane, calls, outcomes, _Failure(cause, timed_out=True))
        return outcomes

    def _lane(self, slot: int) -> _Lane:
        return self._lanes[slot * len(self._lanes) // self.size]

    def _next_slot(self, lane: _Lane, calls: dict[int, tuple[Any, ...]]) -> None:
        lane.slot = lane.waiting.popleft() if lane.waiting else -1
        if not lane.busy:
            return
        episode = self._episodes[lane.slot]
        call = calls[lane.slot]
        replay: list[tuple[Any, ...]] = []
        if episode.lost and call[0] == "step":
            replay = [("reset", episode.task, episode.seed), *(("step", action) for action in episode.actions)]
        lane.messages = deque([*replay, call])
        self._send(lane)

    def _send(self, lane: _Lane) -> None:
        kind, *arguments = lane.messages[0]
        allowed, lane.limit = self._limits.allowance(kind, self._episodes[lane.slot].used_s)
        lane.deadline = time.monotonic() + allowed
        lane.worker.send((kind, lane.slot, *arguments))

    def _take_answer(self, lane: _Lane, calls: dict[int, tuple[Any, ...]], outcomes: dict[int, Any]) -> None:
        episode = self._episodes[lane.slot]
        try:
            ok, answer, seconds = lane.worker.receive()
        except WorkerError as error:
            self._give_up(lane, calls, outcomes, _Failure(str(error)))
            return
        lane.messages.popleft()
        if not ok:
            outcomes[lane.slot] = _Failure(answer)
        elif not lane.messages:
            episode.used_s += seconds
            episode.lost = False
            outcomes[lane.slot] = answer
        elif len(lane.messages) == 1 and _observation(answer) != episode.seen:
            outcomes[lane.slot] = _Failure("the episode could not be restored: its replay gave another observation")
        else:
            self._send(lane)
            return
        self._next_slot(lane, calls)

    def _give_up(
        self, lane: _Lane, calls: dict[int, tuple[Any, ...]], outcomes: dict[int, Any], failure: _Failure
    ) -> None:
        """Fail the slot in flight, replace its worker and mark the worker's other episodes for replay."""
        outcomes[lane.slot] = failure
        lane.worker.replace(self._start_timeout_s)
        for slot, episode in self._episodes.items():
            if self._lane(slot) is lane:
                episode.lost = True
        self._next_slot(lane, calls)

    def close(self) -> None:
        """Stop the workers; none is left when this returns."""
        self._closed = True
        self._finalizer()


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.finish()


def _observation(answer: Any) -> Observation:
    observation: Observation = answer.observation if isinstance(answer, StepResult) else answer[1]
    return observation
