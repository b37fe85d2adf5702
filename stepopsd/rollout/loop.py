"""The rollout loop: episodes side by side, one batched model call per round, every token kept."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepopsd.envs.base import EnvError, EnvPool, Observation, StepResult, Task
from stepopsd.rollout.contexts import ContextPolicy, Conversation
from stepopsd.rollout.engines.base import Completion, Engine, Sampling, Session, call_seed
from stepopsd.rollout.limits import Limits, status_of
from stepopsd.rollout.records import Prefix, Trajectory, Turn
from stepopsd.rollout.restore import Restoration
from stepopsd.rollout.spans import step_spans
from stepopsd.text.spans import token_span


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play; members of a group share task and seed.

    With a ``prefix`` it begins where another episode of this task and seed was: that one's actions are played again,
    and what the environment says and what the model would see are compared with the record on the way.
    """

    task: Task
    seed: int
    group_id: int
    member: int
    prefix: Prefix | None = None


def group_jobs(
    tasks: Sequence[Task], seeds: Sequence[int], group_size: int, groups: Sequence[int] | None = None
) -> list[Job]:
    """``group_size`` members for each task, group by group; ``groups`` are their numbers, None counts from 0."""
    numbers = range(len(tasks)) if groups is None else groups
    return [
        Job(task, seed, group_id, member)
        for group_id, task, seed in zip(numbers, tasks, seeds, strict=True)
        for member in range(group_size)
    ]


def run_episodes(
    jobs: Sequence[Job],
    pool: EnvPool,
    engine: Engine,
    context: ContextPolicy,
    *,
    limits: Limits,
    temperature: float,
    sampling_seed: int = 0,
    batch_size: int = 0,
    admissible_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Play every job to its end and return the trajectories in job order.

    Free slots are refilled at once, so a slow episode holds up nobody. Samples depend on ``sampling_seed`` and the
    job alone, so the slot count and ``batch_size`` change the speed, not the result (up to the rounding of batched
    matrix products).

    Args:
        jobs: Episodes to play.
        pool: Environments; reused across calls, closed on KeyboardInterrupt.
        engine: Sampler.
        context: What the model sees.
        limits: Bounds of an episode.
        temperature: See ``Sampling``.
        sampling_seed: Distinguishes updates and panels from each other.
        batch_size: Most episodes at a time; 0 for as many as the pool has slots.
        admissible_only: Count a turn as invalid, too, when its action is not among those that the environment offered.
        progress: Called with (finished, all) after each round that finished an episode.

    Returns:
        One trajectory per job. An environment failure ends its own trajectory with ``env_error`` or ``time_limit``;
        such a trajectory may have no turns. A prefix that the environment does not repeat word for word ends its
        trajectory with ``replay_mismatch``.

    Raises:
        ValueError: The limits do not fit the model.

    Example:
        >>> jobs = group_jobs(tasks, seeds=[0, 1], group_size=8)                          # doctest: +SKIP
        >>> run_episodes(jobs, pool, engine, context, limits=limits, temperature=1.0)     # doctest: +SKIP
    """
    limits.check_engine(engine)
    sampling = Sampling(limits.max_response_tokens, temperature, context.chat.stop_ids)
    try:
        with engine.session() as session:
            play = _Play(jobs, pool, session, context, limits, sampling, sampling_seed, admissible_only)
            return play.run(min(batch_size or pool.size, pool.size), progress)
    except KeyboardInterrupt:
        pool.close()
        raise


class _Episode:
    """A job in a slot."""

    __slots__ = ("conversation", "head", "index", "job", "observation", "trajectory")

    def __init__(self, index: int, job: Job, context: ContextPolicy) -> None:
        self.index, self.job = index, job
        self.trajectory = Trajectory(job.task, "", job.group_id, job.member, job.seed, context.name)
        self.head: tuple[list[int], list[float]] = ([], [])  # of the next response: kept ids and their log-probs
        self.observation: Observation
        self.conversation: Conversation


class _Play:
    """State of one ``run_episodes`` call."""

    def __init__(
        self,
        jobs: Sequence[Job],
        pool: EnvPool,
        session: Session,
        context: ContextPolicy,
        limits: Limits,
        sampling: Sampling,
        sampling_seed: int,
        admissible_only: bool,
    ) -> None:
        self.pool, self.session, self.context = pool, session, context
        self.limits, self.sampling, self.sampling_seed = limits, sampling, sampling_seed
        self.admissible_only = admissible_only
        self.episodes = [_Episode(i, job, context) for i, job in enumerate(jobs)]
        self.waiting = deque(self.episodes)
        self.active: dict[int, _Episode] = {}  # slot -> episode
        self.finished = 0

    def run(self, slots: int, progress: Callable[[int, int], None] | None) -> list[Trajectory]:
        while self.waiting or self.active:
            before = self.finished
            self._fill([slot for slot in range(slots) if slot not in self.active])
            self._drop_outgrown()
            if self.active:
                self._round()
            if progress is not None and self.finished > before:
                progress(self.finished, len(self.episodes))
        return [episode.trajectory for episode in self.episodes]

    def _fill(self, free: list[int]) -> None:
        starts = dict(zip(free, [self.waiting.popleft() for _ in free[: len(self.waiting)]], strict=False))
        if not starts:
            return
        opened = self.pool.reset({slot: (e.job.task, e.job.seed) for slot, e in starts.items()})
        for slot, episode in starts.items():
            result = opened[slot]
            if isinstance(result, EnvError):
                episode.trajectory.error = str(result)
                self._end(episode, status_of(result))
                continue
            episode.trajectory.goal, episode.observation = result
            episode.conversation = self.context.open(*result)
            self.active[slot] = episode
        self._restore([slot for slot in starts if slot in self.active and self.active[slot].job.prefix is not None])
        self.pool.prefetch([(e.job.task, e.job.seed) for e in itertools.islice(self.waiting, self.pool.size)])

    def _restore(self, slots: list[int]) -> None:
        """Play the prefixes of newly opened episodes again, side by side."""
        going = {slot: Restoration(self.active[slot].job) for slot in slots}
        for slot in slots:
            self._follow(going, slot, self.active[slot].observation)
        while actions := {slot: r.action for slot, r in going.items() if not r.done}:
            results = self.pool.step(actions)
            for slot in actions:
                self._follow(going, slot, results[slot])
        for slot, restoration in going.items():
            self.active[slot].head = restoration.head

    def _follow(
        self, going: dict[int, Restoration], slot: int, answer: Observation | StepResult | EnvError
    ) -> None:
        """Take over the turn that the environment has answered; give the episode up where the answer is another."""
        episode, restoration = self.active[slot], going[slot]
        try:
            if isinstance(answer, EnvError):
                raise answer
            if isinstance(answer, StepResult):
                self._repeat(episode, restoration.turn, answer)
            restoration.compare(answer, episode.conversation)
        except EnvError as error:
            del going[slot], self.active[slot]
            episode.trajectory.error = str(error)
            self._end(episode, status_of(error))
            self.pool.release([slot])

    def _repeat(self, episode: _Episode, turn: Turn, result: StepResult) -> None:
        trajectory = episode.trajectory
        trajectory.turns.append(turn)
        trajectory.kept += 1
        trajectory.reward += result.reward
        episode.observation = result.observation
        episode.conversation.advance(turn.response_ids, turn.action, result.observation)

    def _drop_outgrown(self) -> None:
        for slot, episode in list(self.active.items()):
            if not self.limits.fits(episode.conversation.prompt_ids):
                self._end(self.active.pop(slot), "context_limit")
                self.pool.release([slot])

    def _round(self) -> None:
        """One model call and one environment step for every active episode."""
        by_slot = dict(self.active)
        cut = {e.index: self.sampling.max_new_tokens - len(e.head[0]) for e in by_slot.values() if e.head[0]}
        completions = self.session.generate(
            {e.index: e.conversation.prompt_ids + e.head[0] for e in by_slot.values()},
            self.sampling,
            seeds={e.index: self._seed(e) for e in by_slot.values()},
            budgets=cut,
        )
        for episode in by_slot.values():
            episode.trajectory.turns.append(self._turn(episode, completions[episode.index]))
        results = self.pool.step({slot: e.trajectory.turns[-1].action for slot, e in by_slot.items()})
        for slot, episode in by_slot.items():
            self._take(slot, episode, results[slot])

    def _seed(self, episode: _Episode) -> int:
        job = episode.job
        return call_seed(
            self.sampling_seed, job.task.task_id, job.seed, job.group_id, job.member, len(episode.trajectory.turns)
        )

    def _turn(self, episode: _Episode, completion: Completion) -> Turn:
        chat = self.context.chat
        head, head_logprobs = episode.head
        episode.head = ([], [])
        ids = head + completion.ids
        parsed = self.context.prompting.parse(chat.text(ids))
        if parsed.stops and parsed.char_span is not None:
            ids = self._up_to_action(ids, parsed.char_span)
        left_out = episode.conversation.left_out
        return Turn(
            prompt_ids=episode.conversation.prompt_ids,
            response_ids=ids,
            logprobs=(head_logprobs + completion.logprobs)[: len(ids)],
            spans=step_spans(chat.tokenizer, chat.content(ids), parsed.char_span, is_answer=parsed.is_answer),
            observation=episode.observation.text,
            response=chat.text(ids),
            action=parsed.action,
            is_valid=parsed.is_valid and self._is_offered(parsed.action, episode.observation),
            info={"left_out": left_out} if left_out else {},
            kept=min(len(head), len(ids)),
        )

    def _up_to_action(self, ids: list[int], action_chars: tuple[int, int]) -> list[int]:
        """The sampled ids up to the action's last token, with the stop id where it is the very next one."""
        content = self.context.chat.content(ids)
        end = token_span(self.context.chat.tokenizer, content, action_chars)[1]
        return ids if end == len(content) else ids[:end]

    def _is_offered(self, action: str, observation: Observation) -> bool:
        return not self.admissible_only or not observation.admissible or action in observation.admissible

    def _take(self, slot: int, episode: _Episode, result: StepResult | EnvError) -> None:
        trajectory = episode.trajectory
        if isinstance(result, EnvError):
            status, trajectory.error = status_of(result), str(result)
        else:
            trajectory.reward += result.reward
            trajectory.success = result.success
            trajectory.turns[-1].reward = result.reward
            trajectory.turns[-1].info.update(result.info)
            if result.done:
                status = "success" if result.success else "failure"
            elif len(trajectory.turns) >= self.limits.max_steps:
                status = "step_limit"
            else:
                turn = trajectory.turns[-1]
                episode.observation = result.observation
                episode.conversation.advance(turn.response_ids, turn.action, result.observation)
                return
        del self.active[slot]
        self._end(episode, status)
        self.pool.release([slot])

    def _end(self, episode: _Episode, status: str) -> None:
        episode.trajectory.status = status
        self.session.drop([episode.index])
        self.finished += 1
