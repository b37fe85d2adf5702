"""Searches in both layouts: exact spans, passages as context only, whole passages within a budget, infrastructure."""

from __future__ import annotations

import pytest

from stepopsd.envs.base import Observation
from stepopsd.envs.searchqa import SearchPool, SearchPrompting, SearchRules
from stepopsd.envs.searchqa.protocol import observe
from stepopsd.rollout.limits import Limits
from stepopsd.rollout.loop import group_jobs, run_episodes
from stepopsd.rollout.rows import build_rows, collate
from stepopsd.rollout.search_contexts import Budget, SearchDialogueContext, SearchTurnContext
from stepopsd.text.chat import ChatFormat, decode
from stepopsd.text.spans import token_span
from tests.envs.fake_search import EMMA, PASSAGES, FakeRetriever, task
from tests.rollout.toy import ScriptedEngine

SEARCH, ANSWER = "<think>who ?</think><search>author of emma</search>", "<answer>jane austen</answer>"
CONTEXTS = {"turn": SearchTurnContext, "dialogue": SearchDialogueContext}


def play(tokenizer, script, *, layout="dialogue", retriever=None, members=1, rules=None, tokens=4000, stop=True,
         observation_tokens=0):  # fmt: skip
    prompting = SearchPrompting(window=4, think=True, style="compact", stop_at_action=stop)
    context = CONTEXTS[layout](ChatFormat(tokenizer), prompting, Budget(tokens, observation_tokens))
    rules = rules or SearchRules(max_searches=2)
    return run_episodes(
        group_jobs([task()], [0], members), SearchPool(retriever or FakeRetriever(), members, rules),
        ScriptedEngine(tokenizer, script), context,
        limits=Limits(rules.max_turns, tokens, 64), temperature=1.0,
    )  # fmt: skip


def said(tokenizer, row, wanted):
    return decode(tokenizer, [i for i, w in zip(row.input_ids, wanted, strict=True) if w])


@pytest.mark.parametrize("tokenizer", ["bpe", "fallback"])
@pytest.mark.parametrize("layout", ["turn", "dialogue"])
def test_only_sampled_tokens_carry_loss(layout, tokenizer, request):
    tokenizer = request.getfixturevalue(tokenizer)
    trajectory = play(tokenizer, lambda key, turn: [SEARCH, ANSWER][turn], layout=layout)[0]
    assert trajectory.status == "success"
    rows = build_rows([trajectory], span="clean_step_no_observation")
    assert len(rows) == {"turn": 2, "dialogue": 1}[layout]
    sampled = [i for turn in trajectory.turns for i in turn.response_ids]
    kept = [i for row in rows for i, mask in zip(row.input_ids, row.response_mask, strict=True) if mask]
    assert kept == sampled
    assert not any("actress" in said(tokenizer, row, row.response_mask) for row in rows)
    assert "actress" in decode(tokenizer, rows[-1].input_ids)  # it was shown all the same


@pytest.mark.parametrize(
    ("span", "expected"),
    [("clean_step_no_observation", [SEARCH, ANSWER]), ("action_only", ["<search>author of emma</search>", ANSWER]),
     ("answer_only", [None, ANSWER])],
)  # fmt: skip
def test_spans_are_the_exact_tokens(bpe, span, expected):
    trajectory = play(bpe, lambda key, turn: [SEARCH, ANSWER][turn])[0]
    for turn, text in zip(trajectory.turns, expected, strict=True):
        if text is None:
            assert span not in turn.spans
            continue
        content = turn.response_ids[:-1]  # without the stop id
        at = decode(bpe, content).index(text)
        assert turn.spans[span] == token_span(bpe, content, (at, at + len(text)))
        start, stop = turn.spans[span]
        assert text in decode(bpe, content[start:stop])
    row = build_rows([trajectory], span=span)[0]
    steps = {s for s in row.step_ids if s >= 0}
    assert steps == ({1} if expected[0] is None else {0, 1})
    assert all(mask for mask, step in zip(row.response_mask, row.step_ids, strict=True) if step >= 0)


def test_what_is_sampled_after_the_action_is_dropped_with_its_logprobs(bpe):
    trailing = "<search>author of emma</search><information>[1] jane</information><answer>wrong</answer>"
    trajectory = play(bpe, lambda key, turn: [trailing, ANSWER][turn])[0]
    first = trajectory.turns[0]
    assert trajectory.success
    assert first.is_valid
    assert first.action == "<search>author of emma</search>"
    assert "wrong" not in first.response
    assert len(first.logprobs) == len(first.response_ids)
    whole = bpe(trailing, add_special_tokens=False)["input_ids"]
    assert whole[: len(first.response_ids)] == first.response_ids  # sampled ids, not re-tokenised text
    assert bpe.eos_token_id not in first.response_ids
    kept = play(bpe, lambda key, turn: [trailing, ANSWER][turn], stop=False)[0].turns[0]
    assert not kept.is_valid
    assert "wrong" in kept.response
    assert kept.action == first.action


def test_stop_id_right_after_the_action_is_kept(bpe):
    turns = play(bpe, lambda key, turn: [SEARCH, ANSWER][turn])[0].turns
    assert [turn.response_ids[-1] for turn in turns] == [bpe.eos_token_id] * 2


@pytest.mark.parametrize("layout", ["turn", "dialogue"])
def test_passages_are_left_out_whole_and_the_question_stays(bpe, layout):
    def shown(tokens):
        played = play(bpe, lambda key, turn: [SEARCH, SEARCH, ANSWER][turn], layout=layout, tokens=tokens)[0]
        return played, [decode(bpe, turn.prompt_ids) for turn in played.turns]

    whole, roomy = shown(4000)
    assert all("left_out" not in turn.info for turn in whole.turns)
    full = len(whole.turns[-1].prompt_ids)
    finished = 0
    for tokens in range(full - 1, full - 150, -25):
        played, prompts = shown(tokens)
        assert all(len(turn.prompt_ids) <= tokens for turn in played.turns)
        finished += played.success
        assert not played.success or played.turns[-1].info["left_out"] > 0
        assert played.success or played.status == "context_limit"
        for prompt in prompts:
            assert EMMA.question in prompt
            assert prompt.count("<information>") == prompt.count("</information>")
            lines = [line for line in prompt.splitlines() if line.startswith("[")]
            assert all(any(line in text for text in roomy) for line in lines)  # no half passage
    assert finished >= 2
    shortest = shown(full - 1)[1][-1]
    if layout == "turn":  # the newest step keeps all of its passages
        assert shortest.count("[3]") == 1
        assert shortest.index("[3]") > shortest.rindex("<search>")


def test_observation_budget_counts_tokens_of_whole_passages(bpe):
    roomy = play(bpe, lambda key, turn: [SEARCH, ANSWER][turn])[0].turns[1]
    tight = play(bpe, lambda key, turn: [SEARCH, ANSWER][turn], observation_tokens=100)[0].turns[1]
    assert tight.info["left_out"] == 2
    prompt = decode(bpe, tight.prompt_ids)
    assert "Emma (novel)" in prompt
    assert "actress" not in prompt
    assert len(tight.prompt_ids) < len(roomy.prompt_ids)
    none = play(bpe, lambda key, turn: [SEARCH, ANSWER][turn], observation_tokens=5)[0].turns[1]
    assert "too long to show" in decode(bpe, none.prompt_ids)
    assert none.info["left_out"] == 3


@pytest.mark.parametrize("layout", ["turn", "dialogue"])
def test_question_that_does_not_fit_ends_the_episode(bpe, layout):
    trajectory = play(bpe, lambda key, turn: ANSWER, layout=layout, tokens=5)[0]
    assert (trajectory.status, trajectory.turns) == ("context_limit", [])


def test_windowed_prompt_forgets_what_leaves_the_window(bpe):
    context = SearchTurnContext(ChatFormat(bpe), SearchPrompting(window=1), Budget(4096))
    conversation = context.open("who ?", Observation(""))
    for word in ("first", "second"):
        conversation.advance([], f"<search>{word}</search>", observe([f"[1] about {word}"]))
    prompt = decode(bpe, conversation.prompt_ids)
    assert "about second" in prompt
    assert "about first" not in prompt
    assert "Steps taken so far: 2." in prompt
    with pytest.raises(TypeError, match="SearchObservation"):
        conversation.advance([], "", Observation("plain"))


def test_infrastructure_failure_is_a_status_of_its_own(bpe):
    def script(key, turn):
        return [f"<search>{'bad' if key == 1 else 'good'} words</search>", ANSWER][turn]

    played = play(bpe, script, members=3, retriever=FakeRetriever(broken="bad", partial=True))
    assert [t.status for t in played] == ["success", "infra_error", "success"]
    assert not any("503" in turn.observation for t in played for turn in t.turns)


def test_facts_of_an_episode_are_its_newest_numbers(bpe):
    facts = play(bpe, lambda key, turn: [SEARCH, SEARCH, ANSWER][turn])[0].facts
    assert facts["searches"] == 2
    assert facts["em"] == facts["answered"] == facts["hit"] == 1.0
    assert "query" not in facts


@pytest.mark.parametrize("broken", [{"prompt_tokens": 0}, {"prompt_tokens": 9, "observation_tokens": -1}])
def test_budgets_out_of_range_are_refused(broken):
    with pytest.raises(ValueError, match="must be at least"):
        Budget(**broken)


def test_batch_of_a_group_holds_one_reward_per_member(bpe):
    played = play(bpe, lambda key, turn: [ANSWER, "<answer>x</answer>"][key], members=2, layout="turn")
    rows = build_rows(played, span="answer_only")
    batch = collate(rows, played, pad_id=bpe.pad_token_id, reward_scale=1.0, invalid_action_penalty=0.01)
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert PASSAGES[0].text not in decode(bpe, batch.input_ids[0].tolist())
