"""What every pool keeps about its slots: the running episodes, their limits, and what becomes of answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepopsd.envs.base import EnvError, EnvTimeLimit, Observation, StepResult, Task
from stepopsd.envs.replay import Recording

Message = tuple[Any, ...]  #: ("reset", task, seed) or ("step", action)
#: (goal, first or last observation) of a started episode.
Opening = tuple[str, Observation]


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Wall-clock limits in seconds of one step, one reset and all calls of an episode together; inf for none."""

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
class Episode:
    """The episode in a slot: what was played and seen, which is all that it takes to restore it."""

    task: Task
    seed: int
    goal: str = ""
    actions: list[str] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)
    used_s: float = 0.0
    over: bool = False
    failure: EnvError | None = None
    #: Workers that died in its hands since it last went on.
    crashes: int = 0

    @property
    def running(self) -> bool:
        return not self.over and self.failure is None

    def recording(self) -> Recording:
        return Recording(self.task, self.seed, tuple(self.actions), tuple(self.seen))

    def take(self, message: Message, answer: Any) -> None:
        """Write down the answer to a message."""
        if message[0] == "reset":
            self.goal, first = answer
            self.seen = [first]
            return
        self.actions.append(message[1])
        self.seen.append(answer.observation)
        self.over = answer.done


@dataclass(frozen=True, slots=True)
class Move:
    """One message to an environment and, in a replay, the record that its answer must agree with."""

    message: Message
    record: Recording | None = None
    step: int = 0

    def check(self, answer: Any) -> None:
        """Raises ReplayMismatch."""
        if self.record is not None:
            self.record.verify(self.step, answer[1] if self.message[0] == "reset" else answer)


def moves(record: Recording) -> list[Move]:
    """A recording as messages, each with its check."""
    messages: list[Message] = [("reset", record.task, record.seed), *(("step", action) for action in record.actions)]
    return [Move(message, record, step) for step, message in enumerate(messages)]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a slot's episode cannot go on; an ``EnvError`` as it is, or words for one."""

    cause: str | EnvError
    timed_out: bool = False


class SlotPool(ABC):
    """Slot bookkeeping; how messages are played is the subclass's business."""

    def __init__(self, size: int, limits: TimeLimits) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self._limits = limits
        self._episodes: dict[int, Episode] = {}
        self._closed = False

    def reset(self, starts: dict[int, tuple[Task, int]]) -> dict[int, Opening | EnvError]:
        """Start episodes: slot -> (task, seed). Returns slot -> (goal, first observation) or what went wrong."""
        self._check(starts)
        return self._start({slot: (task, seed, [Move(("reset", task, seed))]) for slot, (task, seed) in starts.items()})

    def replay(self, recordings: dict[int, Recording]) -> dict[int, Opening | EnvError]:
        """Start episodes at the end of recordings, from where ``step`` goes on; every observation is compared.

        Returns:
            slot -> (goal, last observation), or a ``ReplayMismatch`` or another error in its place.
        """
        self._check(recordings)
        return self._start({slot: (record.task, record.seed, moves(record)) for slot, record in recordings.items()})

    def _start(self, scripts: dict[int, tuple[Task, int, list[Move]]]) -> dict[int, Opening | EnvError]:
        order = sorted(scripts)
        for slot in order:
            self._episodes[slot] = Episode(*scripts[slot][:2])
        outcomes = self._play({slot: scripts[slot][2] for slot in order})
        results: dict[int, Opening | EnvError] = {}
        for slot in order:
            episode, failure = self._episodes[slot], outcomes[slot]
            if isinstance(failure, Failure):
                results[slot] = self._fail(slot, failure)
            else:
                results[slot] = (episode.goal, episode.seen[-1])
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
        outcomes = self._play({slot: [Move(("step", actions[slot]))] for slot in alive})
        return {slot: self._settle(slot, outcomes.get(slot)) for slot in sorted(actions)}

    def release(self, slots: Iterable[int]) -> None:
        """Give up the episodes in these slots, whether running or not; what they held is free for others."""
        for slot in slots:
            self._episodes.pop(slot, None)

    @abstractmethod
    def prefetch(self, upcoming: Sequence[tuple[Task, int]]) -> None:
        """Episodes that will be started next, in order; replaces what an earlier call said and changes no result."""

    def _settle(self, slot: int, outcome: Any) -> StepResult | EnvError:
        failure = self._episodes[slot].failure
        if failure is not None:
            return failure
        if isinstance(outcome, Failure):
            return self._fail(slot, outcome)
        result: StepResult = outcome
        return result

    def _fail(self, slot: int, failure: Failure) -> EnvError:
        episode = self._episodes[slot]
        if isinstance(failure.cause, EnvError):
            episode.failure = failure.cause
        else:
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
    def _play(self, scripts: dict[int, list[Move]]) -> dict[int, Any]:
        """Play the moves of every slot in order and note them in its episode; the last answer or a ``Failure``."""

    @abstractmethod
    def close(self) -> None:
        """Free the environments; the pool may not be used afterwards. Safe to call again."""
