"""Pools of environments stepped together: in this process, or in worker processes with enforced time limits."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from stepopsd.envs.base import Env
from stepopsd.envs.replay import ReplayMismatch
from stepopsd.envs.slots import Failure, Move, SlotPool, TimeLimits, moves
from stepopsd.envs.worker import Worker, WorkerError, describe, play


class InlinePool(SlotPool):
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
        super().__init__(size, TimeLimits(step_timeout_s, reset_timeout_s, episode_timeout_s))
        self._factory = factory
        self._spare = [factory()]
        self._envs: dict[int, Env] = {}

    def _play(self, scripts: dict[int, list[Move]]) -> dict[int, Any]:
        return {slot: self._play_all(slot, script) for slot, script in scripts.items()}

    def _play_all(self, slot: int, script: list[Move]) -> Any:
        outcome = None
        for move in script:
            outcome = self._play_one(slot, move)
            if isinstance(outcome, Failure):
                return outcome
            self._episodes[slot].take(move.message, outcome)
        return outcome

    def _play_one(self, slot: int, move: Move) -> Any:
        episode, kind = self._episodes[slot], move.message[0]
        allowed, limit = self._limits.allowance(kind, episode.used_s)
        started = time.monotonic()
        try:
            if slot not in self._envs:
                self._envs[slot] = self._spare.pop() if self._spare else self._factory()
            outcome = play(self._envs[slot], *move.message)
            move.check(outcome)
        except ReplayMismatch as mismatch:
            return Failure(mismatch)
        except Exception as error:
            return Failure(describe(error))
        elapsed = time.monotonic() - started
        episode.used_s += elapsed
        if elapsed > allowed:
            return Failure(f"a {kind} took {elapsed:.1f} s and passed {limit}", timed_out=True)
        return outcome

    def close(self) -> None:
        """Close every environment."""
        self._closed = True
        for env in [*self._envs.values(), *self._spare]:
            env.close()
        self._envs, self._spare = {}, []


@dataclass(slots=True)
class _Lane:
    """One worker with the slots that wait for it and the moves of the one in hand."""

    worker: Worker
    waiting: deque[int] = field(default_factory=deque)
    slot: int = -1
    #: Moves that restore the episode after the loss of its worker, then those that were asked for.
    restoring: deque[Move] = field(default_factory=deque)
    asked: deque[Move] = field(default_factory=deque)
    deadline: float = float("inf")
    limit: str = ""

    @property
    def move(self) -> Move:
        return self.restoring[0] if self.restoring else self.asked[0]

    @property
    def busy(self) -> bool:
        return self.slot >= 0


class ProcessPool(SlotPool):
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
        super().__init__(size, TimeLimits(step_timeout_s, reset_timeout_s, episode_timeout_s))
        self._start_timeout_s = start_timeout_s
        self._lost: set[int] = set()  # slots whose episode was played in a worker that is gone
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

    def _play(self, scripts: dict[int, list[Move]]) -> dict[int, Any]:
        outcomes: dict[int, Any] = {}
        for slot in scripts:
            self._lane(slot).waiting.append(slot)
        for lane in self._lanes:
            self._next_slot(lane, scripts)
        while busy := [lane for lane in self._lanes if lane.busy]:
            patience = max(0.0, min(lane.deadline for lane in busy) - time.monotonic())
            ready = wait([lane.worker.connection for lane in busy], None if patience == float("inf") else patience)
            for lane in busy:
                if lane.worker.connection in ready:
                    self._take_answer(lane, scripts, outcomes)
                elif time.monotonic() >= lane.deadline and not lane.worker.connection.poll():
                    cause = f"a {lane.move.message[0]} passed {lane.limit}"
                    self._give_up(lane, scripts, outcomes, Failure(cause, timed_out=True))
        return outcomes

    def _lane(self, slot: int) -> _Lane:
        return self._lanes[slot * len(self._lanes) // self.size]

    def _next_slot(self, lane: _Lane, scripts: dict[int, list[Move]]) -> None:
        lane.slot = lane.waiting.popleft() if lane.waiting else -1
        if not lane.busy:
            return
        lane.asked = deque(scripts[lane.slot])
        lost = lane.slot in self._lost and lane.move.message[0] == "step"
        lane.restoring = deque(moves(self._episodes[lane.slot].recording()) if lost else [])
        self._send(lane)

    def _send(self, lane: _Lane) -> None:
        kind, *arguments = lane.move.message
        allowed, lane.limit = self._limits.allowance(kind, self._episodes[lane.slot].used_s)
        lane.deadline = time.monotonic() + allowed
        lane.worker.send((kind, lane.slot, *arguments))

    def _take_answer(self, lane: _Lane, scripts: dict[int, list[Move]], outcomes: dict[int, Any]) -> None:
        episode, move = self._episodes[lane.slot], lane.move
        try:
            ok, answer, seconds = lane.worker.receive()
        except WorkerError as error:
            self._give_up(lane, scripts, outcomes, Failure(str(error)))
            return
        outcomes[lane.slot] = answer if ok else Failure(answer)
        try:
            if ok:
                move.check(answer)
        except ReplayMismatch as mismatch:
            outcomes[lane.slot], ok = Failure(mismatch), False
        if ok and lane.restoring:
            lane.restoring.popleft()
        elif ok:
            self._lost.discard(lane.slot)
            episode.used_s += seconds
            episode.take(move.message, answer)
            lane.asked.popleft()
        if ok and (lane.restoring or lane.asked):
            self._send(lane)
        else:
            self._next_slot(lane, scripts)

    def _give_up(
        self, lane: _Lane, scripts: dict[int, list[Move]], outcomes: dict[int, Any], failure: Failure
    ) -> None:
        """Fail the slot in flight, replace its worker and mark the worker's other episodes for replay."""
        outcomes[lane.slot] = failure
        lane.worker.replace(self._start_timeout_s)
        self._lost |= {slot for slot in self._episodes if self._lane(slot) is lane}
        self._next_slot(lane, scripts)

    def close(self) -> None:
        """Stop the workers; none is left when this returns."""
        self._closed = True
        self._finalizer()


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.finish()
