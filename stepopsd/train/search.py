"""Search-QA in a run: its tasks, its pool with the retriever, its contexts, and when its infrastructure is to blame."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stepopsd.envs.base import Task
from stepopsd.envs.searchqa import SearchPrompting, SearchRules, task_of
from stepopsd.envs.searchqa.questions import read_questions
from stepopsd.envs.searchqa.world import bundled_passages, bundled_questions
from stepopsd.retrieval import Retriever, RetrieverError, open_retriever
from stepopsd.rollout.contexts import ContextPolicy
from stepopsd.rollout.records import Trajectory
from stepopsd.rollout.search_contexts import Budget, SearchDialogueContext, SearchTurnContext
from stepopsd.text.chat import ChatFormat
from stepopsd.train.config import EnvConfig, RunConfig
from stepopsd.train.search_config import SearchConfig


def search_tasks(config: SearchConfig, split: str) -> list[Task]:
    """The questions of one split of ``env.search.data``.

    Raises:
        FileNotFoundError: No such split, or a variable in the path is not set.
        ValueError: A broken file.
    """
    if config.data == "bundled":
        questions = bundled_questions(split)
    else:
        questions = read_questions(Path(_expanded("env.search.data", config.data)) / f"{split}.jsonl")
    return [task_of(question, split) for question in questions]


def search_retriever(config: EnvConfig) -> Retriever | None:
    """The retriever of a run, ready to answer; None where the environment has none.

    Raises:
        FileNotFoundError: No such file or index.
        ValueError: A server that is down or speaks neither dialect, an index that is empty, damaged or of another
            corpus, an unknown form.
        ImportError: What the form needs is not installed.
    """
    if config.name != "searchqa":
        return None
    search = config.search
    corpus = _expanded("env.search.corpus", search.corpus) or None
    if search.retriever == "bundled":
        return open_retriever(bundled_passages(), corpus=corpus)
    try:
        return open_retriever(
            _expanded("env.search.retriever", search.retriever), corpus=corpus,
            encoder=_expanded("env.search.encoder", search.encoder) or None, device=search.encoder_device,
            timeout_s=search.timeout_s, deadline_s=search.deadline_s,
        )  # fmt: skip
    except (RetrieverError, ValueError) as error:
        raise ValueError(f"env.search.retriever is {search.retriever!r}: {error}") from error


def retriever_facts(retriever: Retriever | None) -> dict[str, str]:
    """What ``environment.json`` says about the retriever: the fingerprint of what it answers from."""
    return {} if retriever is None else {"retriever": str(getattr(retriever, "fingerprint", "unknown"))}


def search_rules(config: SearchConfig) -> SearchRules:
    """What an episode allows."""
    return SearchRules(
        max_searches=config.max_searches, final_answer_turn=config.final_answer_turn, top_k=config.top_k,
        query_words=config.query_words, metric=config.metric,
    )  # fmt: skip


class Usage:
    """What a retriever was asked since the last time one looked; nothing for one that does not count."""

    def __init__(self, retriever: Retriever | None) -> None:
        self._count: Callable[[], dict[str, float]] = getattr(retriever, "statistics", dict)
        self._before: dict[str, float] = {}

    def since(self) -> dict[str, float]:
        """``retriever/<name>``: new queries, requests, retries and failures; seconds of a request since the start."""
        now = self._count()
        grown = {name: n if name.endswith("_s") else n - self._before.get(name, 0) for name, n in now.items()}
        self._before = now
        return {f"retriever/{name}": n for name, n in grown.items()}


def search_context(config: RunConfig, chat: ChatFormat) -> ContextPolicy:
    """Windowed turns or one dialogue, in whole passages."""
    env = config.env
    prompting = SearchPrompting(env.history, env.think, env.prompt_style, env.search.stop_at_action)
    budget = Budget(config.rollout.max_prompt_tokens, env.search.observation_tokens)
    kind = SearchTurnContext if config.rollout.context == "turn" else SearchDialogueContext
    return kind(chat, prompting, budget)


def require_infrastructure(played: Sequence[Trajectory], config: EnvConfig) -> None:
    """Stop a run whose retriever is down.

    Raises:
        RetrieverError: More than ``env.search.max_infra_share`` of the episodes ended with ``infra_error``.
    """
    lost = [t for t in played if t.status == "infra_error"]
    if len(lost) > config.search.max_infra_share * len(played):
        raise RetrieverError(
            f"{len(lost)} of {len(played)} episodes lost the retriever, more than the share of "
            f"{config.search.max_infra_share:g} that env.search.max_infra_share allows; the first: {lost[0].error}"
        )


def _expanded(key: str, path: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        raise FileNotFoundError(f"{key} is {path!r} but the environment variable in it is not set")
    return expanded
