"""Episodes that begin where another one was: replayed word for word, continued token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stepopsd.envs.searchqa import SearchPool, SearchPrompting
from stepopsd.rollout.engines.base import Sampling
from stepopsd.rollout.engines.transformers import TransformersEngine
from stepopsd.rollout.loop import Job, run_episodes
from stepopsd.rollout.records import Prefix, Trajectory
from stepopsd.rollout.rows import build_rows
from stepopsd.rollout.search_contexts import Budget, SearchDialogueContext, SearchTurnContext
from stepopsd.text.chat import ChatFormat
from tests.envs.fake_search import FakeRetriever, task
from tests.rollout.test_loop import LIMITS, OPEN, WAIT, play
from tests.rollout.toy import TASK, ScriptedEngine


def ends(trajectory: Trajectory) -> list[int]:
    """Response ids up to the end of each turn."""
    return [sum(len(t.response_ids) for t in trajectory.turns[: i + 1]) for i in range(len(trajectory.turns))]


def parent(chat: ChatFormat, kind: str) -> Trajectory:
    script = [f"first {OPEN}", f"second {WAIT}", OPEN, "<action>give up</action>"]
    [played], _, _ = play(chat, lambda key, turn: script[turn], [Job(TASK, 1, 0, 0)], kind=kind)
    return played


@pytest.mark.parametrize("kind", ["turn", "dialogue"])
def test_an_episode_goes_on_from_the_end_of_a_turn(chat: ChatFormat, kind: str) -> None:
    first = parent(chat, kind)
    prefix = Prefix.upto(first.turns, ends(first)[1])
    # The conversation key is new, so the script begins anew after the two turns that are taken over.
    [t], engine, _ = play(chat, lambda key, turn: OPEN, [Job(TASK, 1, 7, 4, prefix)], kind=kind)
    assert t.turns[:2] == first.turns[:2]
    assert [turn.action for turn in t.turns] == ["open door", "wait", "open door", "open door"]
    assert (t.kept, t.success, t.reward, t.group_id, t.member) == (2, True, 1.0, 7, 4)
    assert len(engine.calls) == 2, "kept turns are played again without the model"
    assert t.turns[2].prompt_ids == first.turns[2].prompt_ids
    rows = build_rows([t], span="clean_step_no_observation")
    own = sum(len(turn.response_ids) for turn in t.turns[2:])
    assert sum(sum(row.response_mask) for row in rows) == own
    assert [row.turn_ids for row in rows] == ([[2], [3]] if kind == "turn" else [[0, 1, 2, 3]])
    assert {s for row in rows for s in row.step_ids} == {-1, 2, 3}


@pytest.mark.parametrize("kind", ["turn", "dialogue"])
def test_an_episode_goes_on_in_the_middle_of_a_turn(chat: ChatFormat, kind: str) -> None:
    first = parent(chat, kind)
    kept = len(chat.tokenizer("second", add_special_tokens=False)["input_ids"])
    prefix = Prefix.upto(first.turns, ends(first)[0] + kept)
    [t], _, _ = play(chat, lambda key, turn: OPEN, [Job(TASK, 1, 0, 1, prefix)], kind=kind)
    turn, old = t.turns[1], first.turns[1]
    assert turn.response.split() == ["second", *OPEN.split()]
    assert (turn.response_ids[:kept], turn.logprobs[:kept]) == (old.response_ids[:kept], old.logprobs[:kept])
    assert (t.kept, turn.kept, turn.action) == (1, kept, "open door")
    row = build_rows([t], span="clean_step_no_observation")[0]
    start = row.turn_starts[row.turn_ids.index(1)]
    assert row.response_mask[start : start + kept + 1] == [False] * kept + [True]
    assert row.old_logprobs[start : start + kept] == [0.0] * kept
    assert row.step_ids[start : start + kept + 1] == [-1] * kept + [1]


def test_nothing_kept_is_a_fresh_episode(chat: ChatFormat) -> None:
    first = parent(chat, "dialogue")
    assert Prefix.upto(first.turns, 0) is None
    for cut in (-1, ends(first)[-1]):
        with pytest.raises(ValueError, match="cut must lie in"):
            Prefix.upto(first.turns, cut)
    with pytest.raises(ValueError, match="tokens must lie in"):
        Prefix(tuple(first.turns), 999)


@pytest.mark.parametrize(("turn", "change"), [
    (0, {"observation": "something else"}), (1, {"observation": "something else"}), (2, {"prompt_ids": [1, 2]}),
])  # fmt: skip
def test_a_world_that_went_another_way_ends_the_continuation(chat: ChatFormat, turn: int, change: Any) -> None:
    first = parent(chat, "dialogue")
    turns = [replace(t, **change) if i == turn else t for i, t in enumerate(first.turns)]
    jobs = [Job(TASK, 1, 0, 1, Prefix.upto(turns, ends(first)[1])), Job(TASK, 1, 0, 2)]
    [lost, fresh], engine, _ = play(chat, lambda key, turn: OPEN, jobs)
    assert (lost.status, len(lost.turns)) == ("replay_mismatch", turn)
    assert f"differs at step {turn}" in lost.error
    assert fresh.success
    assert engine.dropped == [0, 1]


def test_a_world_that_ends_too_early_or_breaks_ends_the_continuation(chat: ChatFormat) -> None:
    first = parent(chat, "dialogue")
    for action, status in (("give up", "replay_mismatch"), ("crash", "env_error"), ("hang", "time_limit")):
        turns = [replace(first.turns[0], action=action), *first.turns[1:]]
        [t], _, _ = play(chat, lambda key, turn: OPEN, [Job(TASK, 1, 0, 1, Prefix.upto(turns, ends(first)[1]))])
        assert t.status == status


@pytest.mark.parametrize("kind", [SearchTurnContext, SearchDialogueContext])
def test_searches_are_run_again_and_compared(chat: ChatFormat, kind: Any) -> None:
    context = kind(chat, SearchPrompting(think=False, style="compact"), Budget(2000))
    script = ["<search>who</search>", "<search>what</search>", "<answer>no</answer>"]

    def run(job: Job, retriever: Any, lines: list[str]) -> Trajectory:
        engine = ScriptedEngine(chat.tokenizer, lambda key, turn: lines[turn])
        return run_episodes([job], SearchPool(retriever, 1), engine, context, limits=LIMITS, temperature=1.0)[0]

    first = run(Job(task(), 0, 0, 0), FakeRetriever(), script)
    assert len(first.turns) == 3
    prefix = Prefix.upto(first.turns, ends(first)[1])
    again = run(Job(task(), 0, 0, 1, prefix), FakeRetriever(), ["<answer>yes</answer>"])
    assert again.turns[:2] == first.turns[:2]
    assert again.turns[2].prompt_ids == first.turns[2].prompt_ids
    assert again.turns[2].action == "<answer>yes</answer>"

    class Other(FakeRetriever):
        def search(self, queries: Any, k: int) -> Any:
            return [found[::-1] for found in super().search(queries, k)]

    other = run(Job(task(), 0, 0, 1, prefix), Other(), ["<answer>yes</answer>"])
    assert other.status == "replay_mismatch"


def test_budgets_bound_single_completions(model: Any) -> None:
    engine = TransformersEngine(model)
    with engine.session() as session:
        seeds = {0: 5, 1: 5}
        done = session.generate({0: [7, 8], 1: [7, 8]}, Sampling(6), seeds=seeds, budgets={1: 2})
        assert [len(done[key].ids) for key in (0, 1)] == [6, 2]
        assert done[0].ids[:2] == done[1].ids
        assert done[1].finish == "length"
        with pytest.raises(ValueError, match="the budget of context 1 must be at least 1, got 0"):
            session.generate({0: [7], 1: [7]}, Sampling(6), seeds=seeds, budgets={1: 0})
