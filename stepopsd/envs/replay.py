"""Exact replay: an episode is its task, its seed and its actions; every observation on the way is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepopsd.envs.base import Env, EnvError, Observation, StepResult, Task

#: What a replay must see: a whole observation, or its text alone, as turns of a trajectory record it.
Expected = Observation | str


class ReplayMismatch(EnvError):
    """A replayed episode went another way than the recorded one.

    Attributes:
        task_id: The episode's task.
        step: Actions played before the difference; 0 is the reset.
        expected: Recorded text, or the recorded commands where the texts agree.
        got: What came instead.
    """

    def __init__(self, task_id: str, step: int, expected: str, got: str) -> None:
        super().__init__(f"{task_id}: replay differs at step {step}: recorded {expected!r}, got {got!r}")
        self.task_id, self.step, self.expected, self.got = task_id, step, expected, got

    def __reduce__(self) -> tuple[type[ReplayMismatch], tuple[str, int, str, str]]:
        return type(self), (self.task_id, self.step, self.expected, self.got)


@dataclass(frozen=True, slots=True)
class Recording:
    """An episode up to a step: all that it takes to stand there again.

    Attributes:
        task: The instance.
        seed: Of the reset.
        actions: Played in order; empty for the initial state.
        expected: First observation and one after each action, ``len(actions) + 1``; None compares nothing.

    Raises:
        ValueError: ``expected`` has another length.
    """

    task: Task
    seed: int
    actions: tuple[str, ...] = ()
    expected: tuple[Expected, ...] | None = None

    def __post_init__(self) -> None:
        if self.expected is not None and len(self.expected) != len(self.actions) + 1:
            raise ValueError(f"expected must hold {len(self.actions) + 1} observations, got {len(self.expected)}")

    def verify(self, step: int, answer: Observation | StepResult) -> None:
        """Compare what came after ``step`` actions with the record.

        Raises:
            ReplayMismatch: Another observation, or an end of the episode with actions left.
        """
        seen = answer.observation if isinstance(answer, StepResult) else answer
        if self.expected is not None:
            _compare(self.task.task_id, step, self.expected[step], seen)
        if isinstance(answer, StepResult) and answer.done and step < len(self.actions):
            raise ReplayMismatch(self.task.task_id, step, self.actions[step], "the end of the episode")


def replay(
    env: Env,
    task: Task,
    seed: int,
    actions: Sequence[str],
    *,
    expected: Sequence[Expected] | None = None,
) -> list[StepResult]:
    """Play recorded actions from the start and stop at the first difference; the episode goes on from there.

    Args:
        env: Any environment; its running episode, if there is one, is given up.
        task: The instance.
        seed: Of the reset.
        actions: Played in order; with none the environment is reset.
        expected: First observation and one after each action; a plain text is compared with the text alone.

    Returns:
        One result per action.

    Raises:
        ReplayMismatch: An observation differs, or the episode ends before the last action.
        ValueError: ``expected`` does not have ``len(actions) + 1`` items.

    Example:
        >>> turns = trajectory.turns[: cut + 1]                                               # doctest: +SKIP
        >>> replay(env, trajectory.task, trajectory.seed, [turn.action for turn in turns[:-1]],
        ...        expected=[turn.observation for turn in turns])                             # doctest: +SKIP
    """
    recording = Recording(task, seed, tuple(actions), None if expected is None else tuple(expected))
    recording.verify(0, env.reset(task, seed))
    results: list[StepResult] = []
    for step, action in enumerate(recording.actions, start=1):
        results.append(env.step(action))
        recording.verify(step, results[-1])
    return results


def _compare(task_id: str, step: int, expected: Expected, seen: Observation) -> None:
    text = expected if isinstance(expected, str) else expected.text
    if seen.text != text:
        raise ReplayMismatch(task_id, step, text, seen.text)
    if isinstance(expected, Observation) and seen.admissible != expected.admissible:
        raise ReplayMismatch(task_id, step, ", ".join(expected.admissible), ", ".join(seen.admissible))
