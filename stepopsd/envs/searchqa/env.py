"""Question answering with a search engine behind the environment protocol: one episode, or all of a turn together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stepopsd.envs.base import EnvError, EnvInfraError, Observation, StepResult, Task
from stepopsd.envs.replay import Recording, ReplayMismatch
from stepopsd.envs.searchqa.protocol import SearchObservation, observe, render_passage, split_action
from stepopsd.envs.searchqa.questions import Question, question_of
from stepopsd.envs.searchqa.scoring import METRICS, Metric, Scores, contains, score_answer
from stepopsd.retrieval.base import Passage, Retriever, RetrieverError

NO_RESULT = "The search found nothing; try other words."
NO_ACTION = "That was neither a search nor an answer."
LAST_TURN = "No searches are left; give your answer now."


@dataclass(frozen=True, slots=True)
class SearchRules:
    """What an episode allows and what it pays.

    Attributes:
        max_searches: Turns in which the policy may search; a turn without a usable action uses one up as well.
        final_answer_turn: One more turn after these, in which nothing but an answer counts. Search-R1 is 4 with it,
            verl-agent 4 without: there a search in the last turn is neither run nor counted and ends the episode.
        top_k: Passages per search.
        query_words: Longer queries are cut to so many words.
        metric: What the reward is; success is always exact match.
    """

    max_searches: int = 4
    final_answer_turn: bool = True
    top_k: int = 3
    query_words: int = 64
    metric: Metric = "em"

    def __post_init__(self) -> None:
        for name in ("max_searches", "top_k", "query_words"):
            low = 0 if name == "max_searches" else 1
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.max_turns < 1:
            raise ValueError("max_searches=0 needs final_answer_turn=True: an episode must have a turn")
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")

    @property
    def max_turns(self) -> int:
        """Model calls of an episode."""
        return self.max_searches + self.final_answer_turn


@dataclass(slots=True)
class _Episode:
    """One question being answered. ``act`` says what to search for, or what came of the action without a search."""

    question: Question
    rules: SearchRules
    turns: int = 0
    searches: int = 0
    cut_queries: int = 0
    seen: set[str] = field(default_factory=set)
    hit: bool = False
    over: bool = False

    def act(self, action: str) -> str | StepResult:
        self.turns += 1
        kind, text = split_action(action)
        if kind == "answer":
            return self._end(text)
        if self.turns >= self.rules.max_turns:
            return self._end(None)
        if kind == "search" and text:
            words = text.split()
            self.cut_queries += len(words) > self.rules.query_words
            return " ".join(words[: self.rules.query_words])
        return StepResult(observe((), self._note(NO_ACTION)), 0.0, False, False, self._facts())

    def found(self, query: str, passages: Sequence[Passage]) -> StepResult:
        self.searches += 1
        shown = passages[: self.rules.top_k]
        self.seen.update(p.id for p in shown)
        self.hit |= any(contains(f"{p.title} {p.text}", a) for p in shown for a in self.question.golden_answers)
        rendered = [render_passage(i, p.title, p.text) for i, p in enumerate(shown, start=1)]
        # The passages' ids, not their words, say which state a step starts from.
        found = {"query": query, "doc_ids": [p.id for p in shown]}
        observation = observe(rendered, self._note("" if rendered else NO_RESULT))
        return StepResult(observation, 0.0, False, False, found | self._facts())

    def _note(self, text: str) -> str:
        last = self.turns == self.rules.max_turns - 1 and self.rules.final_answer_turn
        return " ".join(part for part in (text, LAST_TURN if last else "") if part)

    def _facts(self) -> dict[str, Any]:
        # Unanswered until there is an answer, so that an episode that ends early counts as such.
        facts: dict[str, Any] = {name: float(value) for name, value in asdict(Scores()).items()}
        facts |= {"searches": self.searches, "tool_use": float(self.searches > 0)}
        facts |= {"hit": float(self.hit), "cut_queries": self.cut_queries}
        if self.question.support:
            facts["support_recall"] = len(self.seen.intersection(self.question.support)) / len(self.question.support)
        return facts

    def _end(self, answer: str | None) -> StepResult:
        self.over = True
        scores = Scores() if answer is None else score_answer(answer, self.question.golden_answers)
        facts = self._facts() | {k: float(v) for k, v in asdict(scores).items()} | {"answer": answer or ""}
        return StepResult(observe(()), float(getattr(scores, self.rules.metric)), True, scores.em == 1.0, facts)


class SearchQAEnv:
    """One question at a time.

    The reward comes with the answer and judges it alone: neither the prompt nor a passage can answer. A failing
    retriever is an error, never an observation.

    Args:
        retriever: Where searches go; shared, not closed.
        rules: What an episode allows.

    Example:
        >>> env = SearchQAEnv(retriever, SearchRules(max_searches=2))
        >>> env.reset(task_of(question, "train"), seed=0)
        >>> env.step("<answer>Paris</answer>").success
    """

    def __init__(self, retriever: Retriever, rules: SearchRules | None = None) -> None:
        self.goal = ""
        self._pool = SearchPool(retriever, 1, rules or SearchRules())

    def reset(self, task: Task, seed: int) -> Observation:
        """Start the task's question; the seed changes nothing. Raises ValueError for a task without one."""
        opened = self._pool.reset({0: (task, seed)})[0]
        if isinstance(opened, EnvError):
            raise ValueError(str(opened))
        self.goal, observation = opened
        return observation

    def step(self, action: str) -> StepResult:
        """Play ``<search>…</search>`` or ``<answer>…</answer>``; everything else is an invalid turn.

        Raises:
            EnvInfraError: The retriever failed.
            ValueError: No episode is running.
        """
        result = self._pool.step({0: action})[0]
        if isinstance(result, EnvError):
            raise result
        return result

    def close(self) -> None:
        """End the episode; the retriever stays open."""
        self._pool.close()


class SearchPool:
    """Many episodes whose searches of one turn go to the retriever as one batch; see ``EnvPool``.

    Equal queries of a turn are sent once. A search that the retriever could not run ends its episode with an
    ``EnvInfraError``, which is told apart from every outcome of the policy's own doing.

    Args:
        retriever: Where searches go; shared, not closed.
        size: Number of slots.
        rules: What an episode allows.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, retriever: Retriever, size: int, rules: SearchRules | None = None) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self.rules = rules or SearchRules()
        self._retriever = retriever
        self._episodes: dict[int, _Episode | EnvError] = {}
        self._closed = False

    def reset(self, starts: dict[int, tuple[Task, int]]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start episodes: slot -> (task, seed). Returns slot -> (question, empty observation)."""
        self._check(starts)
        opened: dict[int, tuple[str, Observation] | EnvError] = {}
        for slot, (task, _) in starts.items():
            try:
                episode = _Episode(question_of(task), self.rules)
            except ValueError as error:
                self._episodes[slot] = opened[slot] = EnvError(str(error))
                continue
            self._episodes[slot] = episode
            opened[slot] = episode.question.question, SearchObservation("")
        return opened

    def step(self, actions: dict[int, str]) -> dict[int, StepResult | EnvError]:
        """Play one action in each given slot. A failed episode keeps answering with its error until it is reset.

        Raises:
            ValueError: A slot has no running episode, or is not a slot of this pool.
        """
        self._check(actions)
        results: dict[int, StepResult | EnvError] = {}
        queries: dict[int, str] = {}
        for slot in sorted(actions):
            episode = self._running(slot)
            outcome = episode if isinstance(episode, EnvError) else episode.act(actions[slot])
            if isinstance(outcome, str):
                queries[slot] = outcome
            else:
                results[slot] = outcome
        found = self._search(list(dict.fromkeys(queries.values())))
        for slot, query in queries.items():
            results[slot] = self._settle(slot, query, found[query])
        return {slot: results[slot] for slot in sorted(results)}

    def replay(self, recordings: dict[int, Recording]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start episodes at the end of recordings, the searches of each step as one batch; see ``EnvPool``."""
        answers = self.reset({slot: (r.task, r.seed) for slot, r in recordings.items()})
        for step in range(1 + max((len(r.actions) for r in recordings.values()), default=0)):
            results: dict[int, StepResult | EnvError] = {}
            alive = [slot for slot, answer in answers.items() if not isinstance(answer, EnvError)]
            going = {slot: recordings[slot] for slot in alive if step <= len(recordings[slot].actions)}
            if step:
                results = self.step({slot: recording.actions[step - 1] for slot, recording in going.items()})
            for slot, recording in going.items():
                answers[slot] = self._replayed(slot, recording, step, results.get(slot), answers[slot])
        return answers

    def _replayed(
        self, slot: int, recording: Recording, step: int, result: StepResult | EnvError | None, answer: Any
    ) -> tuple[str, Observation] | EnvError:
        if isinstance(result, EnvError):
            return result
        goal, before = answer
        try:
            recording.verify(step, before if result is None else result)
        except ReplayMismatch as mismatch:
            self._episodes[slot] = mismatch
            return mismatch
        return goal, before if result is None else result.observation

    def release(self, slots: Iterable[int]) -> None:
        """Forget the episodes in these slots."""
        for slot in slots:
            self._episodes.pop(slot, None)

    def prefetch(self, upcoming: Sequence[tuple[Task, int]]) -> None:
        """Nothing: a question is there at once."""

    def close(self) -> None:
        """Forget the episodes; the retriever stays open."""
        self._closed = True
        self._episodes.clear()

    def _search(self, queries: list[str]) -> dict[str, Sequence[Passage] | str]:
        """query -> its passages, or the cause of the failure."""
        if not queries:
            return {}
        found: Sequence[Sequence[Passage] | None]
        cause = "no answer"
        try:
            found = self._retriever.search(queries, self.rules.top_k)
        except RetrieverError as error:
            found, cause = error.partial or [None] * len(queries), str(error)
        if len(found) != len(queries):
            cause = f"the retriever gave {len(found)} results for {len(queries)} queries"
            return dict.fromkeys(queries, cause)
        return {query: cause if hits is None else hits for query, hits in zip(queries, found, strict=True)}

    def _settle(self, slot: int, query: str, found: Sequence[Passage] | str) -> StepResult | EnvError:
        episode = self._episodes[slot]
        assert isinstance(episode, _Episode)
        if isinstance(found, str):
            failure = EnvInfraError(f"{'/'.join(episode.question.key)}: the search failed: {found}")
            self._episodes[slot] = failure
            return failure
        return episode.found(query, found)

    def _running(self, slot: int) -> _Episode | EnvError:
        episode = self._episodes.get(slot)
        if episode is None or (isinstance(episode, _Episode) and episode.over):
            raise ValueError(f"slot {slot} has no running episode: reset it first")
        return episode

    def _check(self, slots: Any) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")
        for slot in slots:
            if not 0 <= slot < self.size:
                raise ValueError(f"slot must lie in [0, {self.size}), got {slot}")
