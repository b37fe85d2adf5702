"""Standing again where another episode was: its actions, played again, and what must come of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepopsd.envs.base import Observation, StepResult
from stepopsd.envs.replay import Recording, ReplayMismatch
from stepopsd.rollout.contexts import Conversation
from stepopsd.rollout.records import Turn

if TYPE_CHECKING:
    from stepopsd.rollout.loop import Job


class Restoration:
    """The replay of one job's prefix, step by step.

    Every observation is compared with the record (``envs.replay``), and so are the ids of every prompt: what was
    sampled after the prefix continues exactly what the first episode's model saw.

    Attributes:
        turn: The recorded turn to play next; at the end the one that is sampled again.
        head: Ids that the next response keeps, with their log-probs; for the end.
    """

    def __init__(self, job: Job) -> None:
        assert job.prefix is not None
        turns, kept = job.prefix.turns, job.prefix.tokens
        self._turns = turns
        self._record = Recording(
            job.task, job.seed, tuple(turn.action for turn in turns[:-1]), tuple(turn.observation for turn in turns)
        )
        self._played = 0
        self.head = (turns[-1].response_ids[:kept], turns[-1].logprobs[:kept])

    @property
    def done(self) -> bool:
        return self._played == len(self._turns) - 1

    @property
    def turn(self) -> Turn:
        return self._turns[self._played]

    @property
    def action(self) -> str:
        return self.turn.action

    def compare(self, answer: Observation | StepResult, conversation: Conversation) -> None:
        """Compare what the environment said, to the reset or to ``action``, and the prompt made of it.

        Raises:
            ReplayMismatch: Either differs, or the episode is over.
        """
        if isinstance(answer, StepResult):
            self._played += 1
        task_id, step = self._record.task.task_id, self._played
        self._record.verify(step, answer)
        if isinstance(answer, StepResult) and answer.done:
            raise ReplayMismatch(task_id, step, "a running episode", "its end")
        if conversation.prompt_ids != self.turn.prompt_ids:
            # The texts agree, so the actions on offer or the passages behind them do not.
            raise ReplayMismatch(task_id, step, "the recorded prompt", "another prompt")
