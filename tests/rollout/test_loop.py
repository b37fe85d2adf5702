from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stepopsd.rollout.contexts import DialogueContext, Prompting, TurnContext
from stepopsd.rollout.engines.transformers import TransformersEngine
from stepopsd.rollout.limits import Limits
from stepopsd.rollout.loop import Job, group_jobs, run_episodes
from stepopsd.rollout.records import Trajectory
from stepopsd.text.chat import ChatFormat, decode
from tests.rollout.toy import TASK, ScriptedEngine, ToyPool

LIMITS = Limits(max_steps=5, max_prompt_tokens=2000, max_response_tokens=40)
OPEN, WAIT = "<action>open door</action>", "<action>wait</action>"
CONTEXTS = {"turn": TurnContext, "dialogue": DialogueContext}


def jobs_of(count: int, **changes: Any) -> list[Job]:
    return [replace(Job(TASK, i // 2, i // 2, i % 2), **changes) for i in range(count)]


def play(
    chat: ChatFormat, script: Callable[[int, int], str], jobs: list[Job], *, kind: str = "dialogue", slots: int = 4,
    limits: Limits = LIMITS, **options: Any,
) -> tuple[list[Trajectory], ScriptedEngine, ToyPool]:
    engine, pool = ScriptedEngine(chat.tokenizer, script), ToyPool(slots)
    context = CONTEXTS[kind](chat, Prompting(window=2, think=False, style="compact"))
    played = run_episodes(jobs, pool, engine, context, limits=limits, temperature=1.0, **options)
    return played, engine, pool


@pytest.mark.parametrize("kind", ["turn", "dialogue"])
def test_episode_is_recorded_turn_by_turn(chat: ChatFormat, kind: str) -> None:
    script = ["hm", f"so {OPEN}", OPEN, OPEN]
    [t], _, _ = play(chat, lambda key, turn: script[turn], jobs_of(1), kind=kind)
    assert (t.status, t.success, t.reward, t.goal, t.context) == ("success", True, 1.0, "open doors", kind)
    assert [turn.action for turn in t.turns] == ["hm", "open door", "open door", "open door"]
    assert [turn.is_valid for turn in t.turns] == [False, True, True, True]
    assert t.invalid_turns == 1
    assert [turn.reward for turn in t.turns] == [0.0, 0.0, 0.0, 1.0]
    assert [turn.observation[:6] for turn in t.turns] == ["0 open", "0 open", "1 open", "2 open"]
    assert [turn.response for turn in t.turns] == script
    for turn in t.turns:
        assert len(turn.logprobs) == len(turn.response_ids)
        assert turn.response_ids[-1] == chat.tokenizer.eos_token_id
    start, stop = t.turns[1].spans["action_only"]
    assert OPEN in decode(chat.tokenizer, t.turns[1].response_ids[start:stop])
    assert "action_only" not in t.turns[0].spans


def test_dialogue_prompts_grow_by_sampled_ids_and_turn_prompts_by_the_window(chat: ChatFormat) -> None:
    [grown], _, _ = play(chat, lambda key, turn: WAIT + "~" * (turn % 2), jobs_of(1))
    for before, after in zip(grown.turns, grown.turns[1:], strict=False):
        known = before.prompt_ids + before.response_ids
        assert after.prompt_ids[: len(known)] == known
    [windowed], _, _ = play(chat, lambda key, turn: WAIT, jobs_of(1), kind="turn")
    shown = [decode(chat.tokenizer, turn.prompt_ids).count(WAIT) for turn in windowed.turns]
    assert shown == [0, 1, 2, 2, 2]


def test_step_limit_ends_an_episode_after_its_last_action(chat: ChatFormat) -> None:
    [t], _, _ = play(chat, lambda key, turn: WAIT, jobs_of(1))
    assert (t.status, t.success, t.reward, len(t.turns)) == ("step_limit", False, 0.0, LIMITS.max_steps)


def test_success_on_the_last_allowed_step_counts(chat: ChatFormat) -> None:
    [t], _, _ = play(chat, lambda key, turn: OPEN, jobs_of(1), limits=replace(LIMITS, max_steps=3))
    assert (t.status, t.success) == ("success", True)


def test_environment_may_end_an_episode_without_success(chat: ChatFormat) -> None:
    [t], _, _ = play(chat, lambda key, turn: "<action>give up</action>", jobs_of(1))
    assert (t.status, t.success, len(t.turns)) == ("failure", False, 1)


def test_outgrown_context_ends_the_episode_and_nothing_is_cut(chat: ChatFormat) -> None:
    [free], _, _ = play(chat, lambda key, turn: WAIT, jobs_of(1))
    cap = len(free.turns[2].prompt_ids)
    limits = replace(LIMITS, max_prompt_tokens=cap)
    [t], _, _ = play(chat, lambda key, turn: WAIT, jobs_of(1), limits=limits)
    assert (t.status, len(t.turns)) == ("context_limit", 3)
    assert t.turns == free.turns[:3]
    [none], engine, _ = play(chat, lambda key, turn: WAIT, jobs_of(1), limits=replace(LIMITS, max_prompt_tokens=2))
    assert (none.status, none.turns, engine.calls) == ("context_limit", [], [])


def test_failing_environment_ends_its_own_episode_only(chat: ChatFormat) -> None:
    def script(key: int, turn: int) -> str:
        return {(0, 1): "<action>crash</action>", (2, 0): "<action>hang</action>"}.get((key, turn), OPEN)

    jobs = jobs_of(5)
    jobs[3] = replace(jobs[3], task=replace(TASK, task_id="toy/broken"))
    played, _, _ = play(chat, script, jobs)
    assert [t.status for t in played] == ["env_error", "success", "time_limit", "env_error", "success"]
    assert [len(t.turns) for t in played] == [2, 3, 1, 0, 3]


def test_action_that_was_not_offered_is_invalid_only_on_request(chat: ChatFormat) -> None:
    def script(key: int, turn: int) -> str:
        return "<action>dance</action>" if turn == 0 else OPEN

    for admissible_only, first in ((False, True), (True, False)):
        played, _, _ = play(chat, script, jobs_of(1), admissible_only=admissible_only)
        assert [turn.is_valid for turn in played[0].turns] == [first, True, True, True]


def test_free_slots_are_refilled_and_conversations_dropped(chat: ChatFormat) -> None:
    played, engine, pool = play(chat, lambda key, turn: OPEN if key else WAIT, jobs_of(7), slots=3)
    assert [t.status for t in played] == ["step_limit"] + ["success"] * 6
    assert engine.calls[3] == {0, 3, 4}  # 1 and 2 are done, 0 still plays
    assert sorted(engine.dropped) == list(range(7))
    assert len(pool.resets) == 7
    assert {slot for slot, _, _ in pool.resets} == {0, 1, 2}
    assert pool.announced == [[(TASK, job.seed) for job in jobs_of(7)[done:][:3]] for done in (3, 5, 6, 7)]
    assert not pool._opened  # every slot was given back
    assert len(set(engine.seeds)) == len(engine.seeds)


def test_batch_size_bounds_what_plays_at_once(chat: ChatFormat) -> None:
    _, engine, _ = play(chat, lambda key, turn: OPEN, jobs_of(6), slots=6, batch_size=2)
    assert max(map(len, engine.calls)) == 2


@pytest.mark.parametrize("kind", ["turn", "dialogue"])
def test_slots_and_batch_size_do_not_change_what_a_model_plays(chat: ChatFormat, model: Any, kind: str) -> None:
    context = CONTEXTS[kind](chat, Prompting(window=1, think=False, style="compact"))
    limits = Limits(max_steps=3, max_prompt_tokens=900, max_response_tokens=8)
    runs = [
        run_episodes(
            jobs_of(6), ToyPool(slots), TransformersEngine(model), context,
            limits=limits, temperature=1.0, sampling_seed=seed, batch_size=size,
        )
        for slots, size, seed in ((6, 0, 1), (4, 3, 1), (6, 0, 2))
    ]
    said = [[[turn.response_ids for turn in t.turns] for t in run] for run in runs]
    assert said[0] == said[1] != said[2]
    assert len({str(s) for s in said[0]}) == 6  # members of a group differ


def test_progress_counts_up_to_all(chat: ChatFormat) -> None:
    seen: list[tuple[int, int]] = []
    play(chat, lambda key, turn: OPEN, jobs_of(5), slots=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_interrupt_closes_the_environments(chat: ChatFormat) -> None:
    def script(key: int, turn: int) -> str:
        raise KeyboardInterrupt

    pool, context = ToyPool(2), DialogueContext(chat, Prompting(window=2, think=False, style="compact"))
    with pytest.raises(KeyboardInterrupt):
        run_episodes(
            jobs_of(2), pool, ScriptedEngine(chat.tokenizer, script), context, limits=LIMITS, temperature=1.0
        )
    assert pool.closed


def test_limits_that_the_model_cannot_hold_are_refused(chat: ChatFormat) -> None:
    with pytest.raises(ValueError, match=r"max_prompt_tokens=4090 plus max_response_tokens=40 .* 4096 positions"):
        play(chat, lambda key, turn: OPEN, jobs_of(1), limits=replace(LIMITS, max_prompt_tokens=4090))
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        replace(LIMITS, max_steps=0)


def test_group_jobs_share_task_and_seed(chat: ChatFormat) -> None:
    jobs = group_jobs([TASK, replace(TASK, task_id="toy/2")], [5, 6], 3)
    assert [(j.task.task_id, j.seed, j.group_id, j.member) for j in jobs[2:4]] == [
        ("toy/count-1", 5, 0, 2), ("toy/2", 6, 1, 0),
    ]
