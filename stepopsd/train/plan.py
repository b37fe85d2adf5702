"""Carries out the rollout plan of one update: fresh attempts, continuations from a cut, questions to the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from stepopsd.credit.base import REWARDS
from stepopsd.credit.plan import Attempt, Continuation, Fresh, Plan, Planned, Question, Request, Step
from stepopsd.envs.base import Task
from stepopsd.rollout.loop import Job
from stepopsd.rollout.records import UNUSABLE, Prefix, Trajectory, Turn
from stepopsd.text.chat import ChatFormat
from stepopsd.text.spans import token_span
from stepopsd.train.episodes import Episodes
from stepopsd.train.extras import Played, provide


class Conductor:
    """The rollouts of one update.

    Args:
        episodes: Plays with the policy as it is at the time of each request.
        tasks, seeds: Of the prompts; continuations and questions inherit the seed of their prompt.
        temperature: Of sampling.
        delimiter: Ends a step inside a turn; empty: a step is a turn.
        share: Where these prompts are in the whole update, (first, stride); the numbers of groups, which fix samples,
            follow.

    Attributes:
        trajectories: Everything that was played; ``Attempt.index`` indexes it.
        first: Attempts of the first request round: a fair sample of the policy.
        dropped: Reason -> continuations that were given up for it (``replay_mismatch``: requests).
        generated: Tokens that were sampled, replies to questions included.
        order: Attempts that ``trained`` returned, in its order.
    """

    def __init__(
        self,
        episodes: Episodes,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        *,
        temperature: float,
        delimiter: str = "",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._first, self._stride = share
        self.episodes, self.tasks, self.seeds = episodes, tasks, seeds
        self.temperature, self.delimiter = temperature, delimiter
        self.trajectories: list[Trajectory] = []
        self.first: list[int] = []
        self.dropped: Counter[str] = Counter()
        self.generated = 0
        self.order: list[int] = []
        self._prompts: list[int] = []
        self._members = [0] * len(tasks)
        self._questions = 0

    def carry_out(self, plan: Plan) -> Planned:
        """Answer a plan's requests until it is made."""
        answers: list[Any] | None = None
        try:
            while True:
                requests = next(plan) if answers is None else plan.send(answers)
                answers = self.answer(requests)
                self.first = self.first or list(range(len(self.trajectories)))
        except StopIteration as made:
            return made.value

    def answer(self, requests: Sequence[Request]) -> list[Any]:
        """One answer per request; all episodes of a call are played side by side, all questions are asked together."""
        jobs = [self._jobs(r) if isinstance(r, (Fresh, Continuation)) else [] for r in requests]
        played = self.episodes.play_jobs([job for own in jobs for job in own], temperature=self.temperature)
        self.episodes.require_infrastructure([*self.trajectories, *played])
        replies = iter(self._ask([r for r in requests if isinstance(r, Question)]))
        answers: list[Any] = []
        for request, own in zip(requests, jobs, strict=True):
            if isinstance(request, Question):
                answers.append(next(replies))
                continue
            indices = [self._note(played.pop(0), request) for _ in own]
            answers.append(self._kept(request, [self.attempt(i) for i in indices]))
        return answers

    def trained(self, planned: Planned) -> list[Trajectory]:
        """The trajectories to train on, each in its group, in the order in which they were played."""
        usable = (i for i in sorted(planned.groups) if self.trajectories[i].turns)
        self.order = [i for i in usable if self.trajectories[i].status not in UNUSABLE]
        return [replace(self.trajectories[i], group_id=self._number(planned.groups[i])) for i in self.order]

    @property
    def failures(self) -> int:
        """Attempts that the environment broke, or that have no turn."""
        return sum(not t.turns or t.status in UNUSABLE for t in self.trajectories)

    def attempt(self, index: int) -> Attempt:
        """What a plan sees of an episode."""
        own = self.trajectories[index]
        problem = "\n".join(part for part in (own.goal, own.turns[0].observation if own.turns else "") if part)
        usable = bool(own.turns) and own.status not in UNUSABLE
        steps = steps_of(own, self.episodes.context.chat, self.delimiter)
        return Attempt(index, self._prompts[index], usable, own.success, problem, steps, sampled_tokens(own))

    def _jobs(self, request: Fresh | Continuation) -> list[Job]:
        if isinstance(request, Fresh):
            prompt, prefix = request.prompt, None
        else:
            prompt = self._prompts[request.row]
            prefix = Prefix.upto(self.trajectories[request.row].turns, request.cut)
        start = self._members[prompt]
        self._members[prompt] += request.count
        number = self._number(prompt)
        # Number and member are all that tells the samples of one prompt apart.
        members = range(start, start + request.count)
        return [Job(self.tasks[prompt], self.seeds[prompt], number, member, prefix) for member in members]

    def _number(self, group: int) -> int:
        """Number of a group, counted in this part of the update, in the whole of it."""
        return self._first + self._stride * group

    def _note(self, trajectory: Trajectory, request: Fresh | Continuation) -> int:
        self.trajectories.append(trajectory)
        self._prompts.append(request.prompt if isinstance(request, Fresh) else self._prompts[request.row])
        self.generated += sampled_tokens(trajectory)
        return len(self.trajectories) - 1

    def _kept(self, request: Fresh | Continuation, attempts: list[Attempt]) -> list[Attempt]:
        if isinstance(request, Fresh):
            return attempts
        reasons = [self.trajectories[a.index].status for a in attempts if not a.usable]
        if "replay_mismatch" in reasons:
            # Where one replay went astray the place itself is in doubt.
            self.dropped["replay_mismatch"] += 1
            return []
        self.dropped.update(reasons)
        return [a for a in attempts if a.usable]

    def _ask(self, questions: Sequence[Question]) -> list[str | None]:
        if not questions:
            return []
        seeds = [(self.seeds[q.prompt], self._questions + i) for i, q in enumerate(questions)]
        self._questions += len(questions)
        replies = self.episodes.ask(questions, seeds)
        self.generated += sum(count for _, count in replies)
        return [text for text, _ in replies]


def sampled_tokens(trajectory: Trajectory) -> int:
    """Response tokens that were sampled in the episode, not taken over from another."""
    return sum(len(turn.response_ids) - turn.kept for turn in trajectory.turns[trajectory.kept :])


def steps_of(trajectory: Trajectory, chat: ChatFormat, delimiter: str) -> tuple[Step, ...]:
    """The steps of an episode: its turns, divided after every ``delimiter`` in them."""
    steps: list[Step] = []
    before = 0
    for number, turn in enumerate(trajectory.turns):
        later = trajectory.turns[number + 1 : number + 2]
        result = later[0].observation if later else ""
        for text, end in _parts(turn, chat, delimiter):
            whole = end == len(turn.response_ids)
            steps.append(Step(text, result if whole else "", before + end))
        before += len(turn.response_ids)
    return tuple(steps)


def _parts(turn: Turn, chat: ChatFormat, delimiter: str) -> list[tuple[str, int]]:
    """Texts of a turn's steps, without the delimiter, and response tokens up to the end of each."""
    whole = len(turn.response_ids)
    if not delimiter:
        return [(turn.response, whole)]
    content, text = chat.content(turn.response_ids), turn.response
    parts: list[tuple[str, int]] = []
    start = text.find(delimiter)
    begin = 0
    while start >= 0:
        stop = start + len(delimiter)
        end = token_span(chat.tokenizer, content, (start, stop))[1]
        if end > (parts[-1][1] if parts else 0):
            parts.append((text[begin:start], end))
            begin = stop
        start = text.find(delimiter, stop)
    if text[begin:].strip() or not parts:
        return [*parts, (text[begin:], whole)]
    # Nothing but blanks and the end of the turn follows the last delimiter.
    return [*parts[:-1], (parts[-1][0], whole)]


@provide(REWARDS)
def rewards(played: Played) -> Tensor:
    """(N,) rewards of the rows."""
    return played.batch.rewards
