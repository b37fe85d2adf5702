"""Plays tasks with the current policy: environments, prompts and sampler of a run, wired once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from stepopsd.credit.plan import Question
from stepopsd.envs.alfworld import AlfworldEnv, list_tasks
from stepopsd.envs.base import EnvPool, Task
from stepopsd.envs.chain import ChainEnv, chain_tasks
from stepopsd.envs.games.bundle import bundled_root
from stepopsd.envs.games.preflight import require_games
from stepopsd.envs.pool import InlinePool, ProcessPool
from stepopsd.envs.searchqa import SearchPool
from stepopsd.retrieval import Retriever
from stepopsd.rollout.contexts import ContextPolicy, DialogueContext, TurnContext
from stepopsd.rollout.engines.base import Sampling, call_seed
from stepopsd.rollout.limits import Limits
from stepopsd.rollout.loop import Job, group_jobs, run_episodes
from stepopsd.rollout.records import Trajectory
from stepopsd.train.config import EnvConfig, RunConfig
from stepopsd.train.engines import make_engine
from stepopsd.train.format import chat_of, prompting_of
from stepopsd.train.policy import Policy
from stepopsd.train.search import (
    Usage,
    require_infrastructure,
    search_context,
    search_retriever,
    search_rules,
    search_tasks,
)
from stepopsd.train.windows import require_window


def tasks_of(config: EnvConfig, split: str) -> list[Task]:
    """The tasks of one split of ``env.games``, or of ``env.search.data``.

    Raises:
        FileNotFoundError: The games, the split or the variable does not exist; the message says what was looked for.
        ValueError: A game cannot be read or won, or an official split is incomplete; the message names the file.
    """
    if config.name == "searchqa":
        return search_tasks(config.search, split)
    if config.name == "chain":
        return chain_tasks(config.max_steps, split)
    if config.games == "bundled":
        return list_tasks(bundled_root(), split)
    root = os.path.expandvars(config.games)
    if "$" in root:
        raise FileNotFoundError(f"env.games is {config.games!r} but the environment variable in it is not set")
    return require_games(root, split)


class Episodes:
    """The rollout side of a run.

    Args:
        config: The run.
        policy: Sampled as it is at the time of each ``play``.
        retriever: Of ``search_retriever``, opened before the policy was loaded; None opens one when it is first needed.
        processes: That share the run's groups, and this machine's cores.
    """

    def __init__(
        self, config: RunConfig, policy: Policy, retriever: Retriever | None = None, *, processes: int = 1
    ) -> None:
        rollout, env = config.rollout, config.env
        self.batch_size = rollout.batch_size or -(-rollout.groups // processes) * rollout.group_size
        self._processes = processes
        steps = search_rules(env.search).max_turns if env.name == "searchqa" else env.max_steps
        self.limits = Limits(steps, rollout.max_prompt_tokens, rollout.max_response_tokens)
        self.context = _context(config, policy)
        self.engine = make_engine(config, policy.model)
        self.limits.check_engine(self.engine)
        self._env = env
        self.retriever = retriever
        self.usage = Usage(self.retriever)
        self._pool: EnvPool | None = None

    def require_window(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError, naming a game, where prompts with a full history window exceed ``max_prompt_tokens``."""
        if self._env.name == "alfworld":
            env = AlfworldEnv()
            try:
                require_window(env, self.context, self.limits, tasks, self._env.history)
            finally:
                env.close()

    def play(
        self,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        members: int,
        *,
        temperature: float,
        progress: Callable[[int, int], None] | None = None,
        groups: Sequence[int] | None = None,
    ) -> list[Trajectory]:
        """``members`` episodes of every task, in task order; seeds and group numbers fix environment and sampling.

        Raises:
            RetrieverError: Too many of them lost the retriever.
        """
        jobs = group_jobs(tasks, seeds, members, groups)
        played = self.play_jobs(jobs, temperature=temperature, progress=progress)
        self.require_infrastructure(played)
        return played

    def play_jobs(
        self, jobs: Sequence[Job], *, temperature: float, progress: Callable[[int, int], None] | None = None
    ) -> list[Trajectory]:
        """The episodes of these jobs, in order; see ``run_episodes``."""
        if not jobs:
            return []
        if self._pool is None:
            if self.retriever is None:
                self.retriever = search_retriever(self._env)
            self._pool = _make_pool(self._env, self.batch_size, self.retriever, self._processes)
        return run_episodes(
            jobs,
            self._pool,
            self.engine,
            self.context,
            limits=self.limits,
            temperature=temperature,
            admissible_only=self._env.invalid == "inadmissible",
            progress=progress,
        )

    def require_infrastructure(self, played: Sequence[Trajectory]) -> None:
        """Raises RetrieverError where too many of these episodes lost the retriever."""
        require_infrastructure(played, self._env)

    def ask(
        self, questions: Sequence[Question], seeds: Sequence[tuple[int, int]]
    ) -> list[tuple[str | None, int]]:
        """Reply and number of its tokens; (None, 0) where the model can hold none of a question's wordings."""
        chat = self.context.chat
        out: list[tuple[str | None, int]] = [(None, 0)] * len(questions)
        contexts: dict[int, list[int]] = {}
        for i, question in enumerate(questions):
            forms = (chat.opening(text) for text in question.texts)
            fitting = (ids for ids in forms if len(ids) + question.max_tokens <= self.engine.max_context)
            if ids := next(fitting, None):
                contexts[i] = ids
        # One call for all of a kind; in practice there is one.
        for kind in sorted({(q.max_tokens, q.temperature) for q in questions}):
            asked = [i for i in contexts if (questions[i].max_tokens, questions[i].temperature) == kind]
            sampling = Sampling(*kind, chat.stop_ids)
            noise = [call_seed("question", *seeds[i]) for i in asked]
            replies = self.engine.generate([contexts[i] for i in asked], sampling, seeds=noise)
            for i, reply in zip(asked, replies, strict=True):
                out[i] = chat.text(reply.ids), len(reply.ids)
        return out

    def prepare(self, tasks: Sequence[Task], seeds: Sequence[int], members: int) -> None:
        """Let environments without an episode start what ``play`` will be asked for next; changes no result."""
        if self._pool is not None:
            jobs = group_jobs(tasks, seeds, members)[: self._pool.size]
            self._pool.prefetch([(job.task, job.seed) for job in jobs])

    def close(self) -> None:
        """Stop the environment workers and what the engine holds."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self.engine.close()


def _context(config: RunConfig, policy: Policy) -> ContextPolicy:
    chat = chat_of(config.env, policy.tokenizer)
    if config.env.name == "searchqa":
        return search_context(config, chat)
    prompting = prompting_of(config.env, chat)
    if config.rollout.context == "turn":
        return TurnContext(chat, prompting)
    return DialogueContext(chat, prompting)


def world(config: EnvConfig) -> type:
    """What plays the episodes of a run."""
    return SearchPool if config.name == "searchqa" else AlfworldEnv


def _make_pool(config: EnvConfig, size: int, retriever: Retriever | None, processes: int) -> EnvPool:
    if retriever is not None:
        return SearchPool(retriever, size, search_rules(config.search))
    step_s, episode_s = config.step_timeout_s, config.episode_timeout_s
    factory = ChainEnv if config.name == "chain" else AlfworldEnv
    if config.workers == 0:
        return InlinePool(factory, size, step_timeout_s=step_s, episode_timeout_s=episode_s)
    return ProcessPool(
        factory,
        size,
        workers=_workers(config.workers, processes),
        step_timeout_s=step_s,
        episode_timeout_s=episode_s,
        crash_retries=config.crash_retries,
    )


def _workers(asked: int, processes: int) -> int | None:
    """Environment processes of one of ``processes``; None for one per usable core."""
    if asked >= 0 or processes == 1:
        return None if asked < 0 else asked
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
