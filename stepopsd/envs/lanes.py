"""Lanes of a process pool: one worker each, the calls that wait for it, and its replacement."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stepopsd.envs.slots import Move
from stepopsd.envs.worker import Answer, Key, Preparing, Ready, Worker, WorkerError

#: Starts in a row that may fail for reasons outside the environment before the pool gives up.
MAX_FAILED_STARTS = 5
#: Recently started games that a lane is thought to have in its caches.
WARM_GAMES = 32


@dataclass(frozen=True, slots=True)
class Recycling:
    """When a worker is replaced by a fresh one although nothing is wrong with it.

    Attributes:
        episodes: Started episodes; 0 for never.
        memory_bytes: Resident memory; 0 for no limit.
    """

    episodes: int
    memory_bytes: int


@dataclass(slots=True)
class Lane:
    """One worker, the slots that wait for it, and the moves of the one in hand.

    ``deadline`` is that of whatever the worker does now: starting, preparing an episode, or the move in hand.
    """

    launch: Callable[[], Worker]
    recycling: Recycling
    start_timeout_s: float
    worker: Worker = field(init=False)
    ready: bool = False
    failed_starts: int = 0
    #: Starts while the worker still plays, then takes its place.
    successor: Worker | None = None
    leaving: list[Worker] = field(default_factory=list)

    waiting: deque[int] = field(default_factory=deque)
    slot: int = -1
    #: Moves that restore the episode after the loss of its worker, then those that were asked for.
    restoring: deque[Move] = field(default_factory=deque)
    asked: deque[Move] = field(default_factory=deque)
    deadline: float = float("inf")
    limit: str = ""
    preparing: Key | None = None

    episodes: int = 0
    resident_bytes: int = 0
    games: dict[str, None] = field(default_factory=dict)  # insertion order: least recently started first
    wishes: list[Key] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._launch()

    @property
    def move(self) -> Move:
        return self.restoring[0] if self.restoring else self.asked[0]

    @property
    def busy(self) -> bool:
        return self.slot >= 0 or bool(self.waiting)

    def _launch(self) -> None:
        self._adopt(self.successor or self.launch())
        self.ready, self.deadline = False, time.monotonic() + self.start_timeout_s

    def _adopt(self, worker: Worker) -> None:
        """Go on with a worker that knows nothing yet."""
        self.worker, self.successor = worker, None
        self.episodes, self.resident_bytes, self.preparing = 0, 0, None
        self.games, self.wishes = {}, []

    def receive(self) -> Answer | None:
        """The answer to the move in hand, or None after a message about the worker itself.

        Raises:
            WorkerError: The process is gone or cannot make its environment.
        """
        message = self.worker.receive()
        if isinstance(message, Ready):
            self.ready, self.failed_starts = True, 0
        elif isinstance(message, Preparing):
            self.preparing = message.key
        elif not self.ready:
            self.failed_starts = MAX_FAILED_STARTS
            raise WorkerError(f"an environment worker could not make its environment: {message.value}")
        else:
            self.resident_bytes = message.resident_bytes
            return message
        return None

    def replace(self, cause: str) -> None:
        """Kill the worker and begin to start another.

        Raises:
            WorkerError: Too many starts have failed in a row.
        """
        self.worker.kill()
        if not self.ready:
            self.failed_starts += 1
        if self.failed_starts >= MAX_FAILED_STARTS:
            raise WorkerError(cause)
        self._launch()

    def started(self, task_id: str, key: Key) -> None:
        """Take note of an episode that this lane is about to start."""
        self.episodes += 1
        self.games.pop(task_id, None)
        self.games[task_id] = None
        if len(self.games) > WARM_GAMES:
            del self.games[next(iter(self.games))]
        if key in self.wishes:
            self.wishes.remove(key)

    def wish(self, keys: list[Key]) -> None:
        """Let the worker prepare these episodes while it has nothing else to do."""
        if keys != self.wishes:
            self.wishes = keys
            self.worker.send(("prefetch", keys))

    # recycling

    @property
    def due(self) -> bool:
        limits = self.recycling
        return bool(limits.episodes and self.episodes >= limits.episodes) or self.overweight

    @property
    def overweight(self) -> bool:
        """Too large, and not just because of the episodes that a fresh worker would have to restore."""
        limit = self.recycling.memory_bytes
        return bool(limit and self.episodes and self.resident_bytes >= limit)

    @property
    def overdue(self) -> bool:
        """Too late to wait for a moment without running episodes."""
        return self.overweight or bool(self.recycling.episodes and self.episodes >= 2 * self.recycling.episodes)

    def recycle(self, idle: bool) -> bool:
        """Go on with a fresh worker when it is due and one stands ready; whether that has happened.

        Args:
            idle: No running episode would have to be restored.
        """
        self.leaving = [worker for worker in self.leaving if not worker.left()]
        if not self.due:
            return False
        if self.successor is None:
            self.successor = self.launch()
        if not (idle or self.overdue) or not self._successor_ready():
            return False
        self.worker.hang_up()
        self.leaving.append(self.worker)
        self._adopt(self.successor)
        return True

    def _successor_ready(self) -> bool:
        """Blocks where the worker's memory must not grow any further."""
        assert self.successor is not None
        if not self.successor.connection.poll(self.start_timeout_s if self.overweight else 0.0):
            return False
        try:
            if isinstance(self.successor.receive(), Ready):
                return True
        except WorkerError:
            pass
        self.successor.kill()
        self.successor = None
        return False

    def workers(self) -> list[Worker]:
        return [self.worker, *self.leaving, *([self.successor] if self.successor else [])]


def choose_lane(lanes: Sequence[Lane], key: Key, load: Mapping[int, int], most: int) -> int:
    """Index of the lane that an episode starts in.

    One that has prepared it, else one that knows the game, else the one with the least to do; none that has ``most``
    episodes already.

    Args:
        load: Lane -> its episodes.
    """

    def rank(index: int) -> tuple[bool, bool, int, int]:
        lane = lanes[index]
        return key not in lane.wishes, key[0].task_id not in lane.games, load[index], index

    return min((index for index in range(len(lanes)) if load[index] < most), key=rank)


def most_episodes(total: int, lanes: int) -> int:
    """A lane's share of all episodes; with many, a little more, so that a group can stay together."""
    return -(-total // lanes) + total // (16 * lanes)


def share_wishes(lanes: Sequence[Lane], keys: Sequence[Key], load: Mapping[int, int], most: int) -> list[list[Key]]:
    """Which lane prepares what: keys stay where they are, members of a group go to the same lane.

    Args:
        keys: Next episodes, in order; what exceeds the room is left out.
        load: Lane -> its running episodes.
        most: Running and prepared episodes of a lane, at most.
    """
    shares: list[list[Key]] = [[] for _ in lanes]
    before = [Counter(lane.wishes) for lane in lanes]

    def rank(index: int) -> tuple[bool, bool, bool, int, int]:
        known = key[0].task_id in lanes[index].games
        return before[index][key] <= 0, key not in shares[index], not known, load[index] + len(shares[index]), index

    for key in keys:
        room = [index for index, share in enumerate(shares) if load[index] + len(share) < most]
        if not room:
            break
        chosen = min(room, key=rank)
        before[chosen][key] -= 1
        shares[chosen].append(key)
    return shares
