"""Pools of environments stepped together: in this process, or in worker processes with enforced time limits."""

from __future__ import annotations

import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from stepopsd.envs.base import Env, EnvError, Task
from stepopsd.envs.lanes import Lane, Recycling, choose_lane, most_episodes, share_wishes
from stepopsd.envs.replay import ReplayMismatch
from stepopsd.envs.slots import Failure, Move, SlotPool, TimeLimits, moves
from stepopsd.envs.worker import Answer, Key, Worker, WorkerError, describe, play, usable_cores

#: Seconds that the workers of a closed pool have together to leave by themselves.
LEAVING_S = 2.0


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
        except EnvError as error:
            return Failure(error)
        except Exception as error:
            return Failure(describe(error))
        elapsed = time.monotonic() - started
        episode.used_s += elapsed
        if elapsed > allowed:
            return Failure(f"a {kind} took {elapsed:.1f} s and passed {limit}", timed_out=True)
        return outcome

    def prefetch(self, upcoming: Sequence[tuple[Task, int]]) -> None:
        """Nothing: in one process there is no idle time to use."""

    def close(self) -> None:
        """Close every environment."""
        self._closed = True
        for env in [*self._envs.values(), *self._spare]:
            env.close()
        self._envs, self._spare = {}, []


class ProcessPool(SlotPool):
    """Environments in worker processes, which may hang, die or leak without an episode being lost.

    Members of a group, which play the same game, share a worker as far as its load allows, so that the game is loaded
    once. Which worker plays an episode changes no observation. Workers do not import torch.

    A worker that dies is replaced, and all its episodes are restored: replayed from their actions, compared
    observation by observation. A worker that passes a time limit is killed; the episode that waited fails, the others
    are restored. A worker that has grown or has started many episodes is replaced by one that was started beside it.

    Args:
        factory: Makes one environment; must be picklable (a class or ``functools.partial`` at module level).
        size: Number of slots.
        workers: Number of processes; None for one per usable core. More than ``size`` are not started.
        step_timeout_s, reset_timeout_s, episode_timeout_s: As for ``InlinePool``; the worker of a call that takes
            longer is killed.
        start_timeout_s: Wall-clock limit for a worker process until its first environment stands.
        crash_retries: How often the episode that a dying worker was playing is restored and the step tried again,
            counted anew after each step that works; then it fails. 0 fails it at once.
        prefetch: Environments per worker beside those of its slots, to start what ``prefetch`` announces; 0 for none.
        recycle_episodes: A worker that has started so many is replaced, at a moment without running episodes where
            there is one before twice as many; 0 for never.
        worker_memory_mb: Resident memory of a worker beyond which it is replaced at once. At twice as much its
            allocations fail. None for 256 MB and 32 MB for each of its slots; 0 for no limit.

    Raises:
        WorkerError: A worker cannot make its environment, or starts keep failing. The pool is closed then.

    Example:
        >>> pool = ProcessPool(AlfworldEnv, size=16, workers=2)
        >>> started = pool.reset({slot: (task, 0) for slot in range(16)})
    """

    def __init__(
        self,
        factory: Callable[[], Env],
        size: int,
        *,
        workers: int | None = None,
        step_timeout_s: float = 30.0,
        reset_timeout_s: float = 120.0,
        episode_timeout_s: float = 600.0,
        start_timeout_s: float = 120.0,
        crash_retries: int = 2,
        prefetch: int = 2,
        recycle_episodes: int = 2000,
        worker_memory_mb: int | None = None,
    ) -> None:
        super().__init__(size, TimeLimits(step_timeout_s, reset_timeout_s, episode_timeout_s))
        if workers is None:
            workers = usable_cores()
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        counts = {"crash_retries": crash_retries, "prefetch": prefetch, "recycle_episodes": recycle_episodes}
        for name, count in {**counts, "worker_memory_mb": worker_memory_mb or 0}.items():
            if count < 0:
                raise ValueError(f"{name} must not be negative, got {count}")
        workers = min(workers, size)
        self._slots_per_lane = -(-size // workers)
        if worker_memory_mb is None:
            worker_memory_mb = 256 + 32 * (self._slots_per_lane + prefetch)
        self._crash_retries, self._ahead = crash_retries, prefetch
        self._lane_of: dict[int, int] = {}
        self._lost: set[int] = set()  # slots whose episode was played in a worker that is gone
        self._not_prepared: set[Key] = set()  # preparing these took too long
        launch = partial(Worker, factory, 2 * worker_memory_mb << 20)
        recycling = Recycling(recycle_episodes, worker_memory_mb << 20)
        self._lanes = [Lane(launch, recycling, start_timeout_s) for _ in range(workers)]
        self._finalizer = weakref.finalize(self, _stop, self._lanes)
        self._until(lambda: [lane for lane in self._lanes if not lane.ready])

    def pids(self) -> list[int]:
        """Process ids of the workers that play now."""
        return [lane.worker.pid for lane in self._lanes]

    def release(self, slots: Iterable[int]) -> None:
        """As for every pool; the slots' environments are free to prepare other episodes."""
        slots = list(slots)
        super().release(slots)
        for slot in slots:
            self._leave_lane(slot)

    def prefetch(self, upcoming: Sequence[tuple[Task, int]]) -> None:
        """Let idle workers start these episodes ahead; a later ``reset`` with the same task and seed takes them over.

        As many are prepared as there are slots without an episode, and ``prefetch`` more in each worker. A call never
        waits for more than one of them.
        """
        if not self._ahead or self._closed:
            return
        keys, load = [key for key in upcoming if key not in self._not_prepared], self._load()
        fair = most_episodes(load.total() + len(keys), len(self._lanes))
        shares = share_wishes(self._lanes, keys, load, min(fair, self._slots_per_lane + self._ahead))
        for lane, share in zip(self._lanes, shares, strict=True):
            lane.wish(share)

    def _play(self, scripts: dict[int, list[Move]]) -> dict[int, Any]:
        self._outcomes: dict[int, Any] = {}
        self._scripts = scripts
        starting = [slot for slot, script in scripts.items() if script[0].message[0] == "reset"]
        for lane in self._lanes:
            self._listen(lane)
        self._recycle(starting)
        self._assign(starting)
        for slot in scripts:
            self._lanes[self._lane_of[slot]].waiting.append(slot)
        for lane in self._lanes:
            self._next_slot(lane)
        self._until(lambda: [lane for lane in self._lanes if lane.busy])
        return self._outcomes

    def _until(self, busy: Callable[[], list[Lane]]) -> None:
        """Serve lanes until none is busy any more."""
        try:
            while lanes := busy():
                patience = max(0.0, min(lane.deadline for lane in lanes) - time.monotonic())
                connections = [lane.worker.connection for lane in lanes]
                ready = wait(connections, None if patience == float("inf") else patience)
                for lane, connection in zip(lanes, connections, strict=True):
                    if connection in ready or connection.poll():
                        self._receive(lane)
                    elif time.monotonic() >= lane.deadline:
                        self._time_out(lane)
        except WorkerError:
            self.close()
            raise

    # which lane

    def _load(self) -> Counter[int]:
        return Counter(index for slot, index in self._lane_of.items() if self._episodes[slot].running)

    def _assign(self, starting: list[int]) -> None:
        for slot in starting:
            self._leave_lane(slot)
        load = self._load()
        most = most_episodes(load.total() + len(starting), len(self._lanes))
        for slot in starting:
            episode = self._episodes[slot]
            key = (episode.task, episode.seed)
            index = choose_lane(self._lanes, key, load, most)
            self._lanes[index].started(episode.task.task_id, key)
            self._lane_of[slot] = index
            load[index] += 1

    def _leave_lane(self, slot: int) -> None:
        index = self._lane_of.pop(slot, None)
        if index is not None and slot not in self._lost:
            self._lanes[index].worker.send(("release", slot))
        self._lost.discard(slot)

    def _slots_of(self, lane: Lane) -> set[int]:
        return {slot for slot, index in self._lane_of.items() if self._lanes[index] is lane}

    def _recycle(self, starting: list[int]) -> None:
        for lane in self._lanes:
            slots = self._slots_of(lane)
            live = {slot for slot in slots.difference(starting) if self._episodes[slot].running}
            if lane.recycle(idle=not live):
                self._lost |= slots

    # one lane's calls

    def _next_slot(self, lane: Lane) -> None:
        """Send the first move of the next waiting slot, when the worker is ready for it."""
        if lane.slot >= 0 or not lane.waiting or not lane.ready or lane.preparing:
            return
        lane.slot = lane.waiting.popleft()
        lane.asked = deque(self._scripts[lane.slot])
        lost = lane.slot in self._lost and lane.asked[0].message[0] == "step"
        lane.restoring = deque(moves(self._episodes[lane.slot].recording()) if lost else [])
        self._send(lane)

    def _send(self, lane: Lane) -> None:
        kind, *arguments = lane.move.message
        self._set_deadline(lane)
        lane.worker.send((kind, lane.slot, *arguments))

    def _set_deadline(self, lane: Lane) -> None:
        allowed, lane.limit = self._limits.allowance(lane.move.message[0], self._episodes[lane.slot].used_s)
        lane.deadline = time.monotonic() + allowed

    def _listen(self, lane: Lane) -> None:
        """Read what an idle worker has said since the last call, or notice that it is gone."""
        while lane.worker.connection.poll():
            self._receive(lane)

    def _receive(self, lane: Lane) -> None:
        try:
            answer = lane.receive()
        except WorkerError as error:
            self._lose(lane, Failure(str(error)), blame=lane.preparing is None)
            return
        if answer is not None:
            self._take(lane, answer)
        elif lane.preparing:  # began before it could see the move in hand, which waits
            lane.deadline = time.monotonic() + self._limits.reset_timeout_s
        elif lane.slot >= 0:
            self._set_deadline(lane)
        else:
            self._next_slot(lane)

    def _take(self, lane: Lane, answer: Answer) -> None:
        episode, move = self._episodes[lane.slot], lane.move
        outcome: Any = answer.value if answer.ok else Failure(answer.value)
        try:
            if answer.ok:
                move.check(answer.value)
        except ReplayMismatch as mismatch:
            outcome = Failure(mismatch)
        failed = isinstance(outcome, Failure)
        if not failed and lane.restoring:
            lane.restoring.popleft()
        elif not failed:
            self._lost.discard(lane.slot)
            episode.crashes = 0
            episode.used_s += answer.seconds
            episode.take(move.message, answer.value)
            lane.asked.popleft()
        if not failed and (lane.restoring or lane.asked):
            self._send(lane)
            return
        self._outcomes[lane.slot], lane.slot = outcome, -1
        self._next_slot(lane)

    def _time_out(self, lane: Lane) -> None:
        if lane.ready and lane.preparing is None:
            cause = Failure(f"a {lane.move.message[0]} passed {lane.limit}", timed_out=True)
            self._lose(lane, cause, blame=True)
            return
        if lane.preparing is not None:
            self._not_prepared.add(lane.preparing)
        self._lose(lane, Failure(f"an environment worker did not start within {lane.start_timeout_s:g} s"), blame=False)

    def _lose(self, lane: Lane, failure: Failure, *, blame: bool) -> None:
        """Replace a lane's worker; its episodes are restored before they go on, unless the one in hand is to blame."""
        slot, lane.slot = lane.slot, -1
        self._lost |= self._slots_of(lane)
        if slot >= 0:
            episode = self._episodes[slot]
            episode.crashes += blame
            if blame and (failure.timed_out or episode.crashes > self._crash_retries):
                self._outcomes[slot] = failure
            else:
                self._scripts[slot] = list(lane.asked)
                lane.waiting.appendleft(slot)
        lane.replace(str(failure.cause))

    def close(self) -> None:
        """Stop the workers; none is left when this returns."""
        self._closed = True
        self._finalizer()


def _stop(lanes: list[Lane]) -> None:
    workers = [worker for lane in lanes for worker in lane.workers()]
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + LEAVING_S
    for worker in workers:
        worker.finish(max(0.0, deadline - time.monotonic()))
