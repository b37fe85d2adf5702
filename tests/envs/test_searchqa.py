"""The search environment: the tag protocol, what an episode allows, batching, and a retriever that fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepopsd.envs.base import EnvError, EnvInfraError
from stepopsd.envs.replay import Recording, ReplayMismatch, replay
from stepopsd.envs.searchqa import SearchPool, SearchPrompting, SearchQAEnv, SearchRules, parse_response
from stepopsd.envs.searchqa.env import LAST_TURN, NO_ACTION, NO_RESULT
from stepopsd.envs.searchqa.protocol import information, neutral, render_passage, split_action
from stepopsd.envs.searchqa.questions import make_question, question_of, source_name, task_of
from tests.envs.fake_search import FakeRetriever, task

SEARCH, ANSWER = "<search>author of Emma</search>", "<answer>jane austen</answer>"


def env(retriever=None, **rules):
    made = SearchQAEnv(retriever or FakeRetriever(), SearchRules(**rules))
    made.reset(task(), 0)
    return made


# tags


@pytest.mark.parametrize(
    ("response", "action", "reason"),
    [
        ("<think>x</think><search> author  of\nEmma </search>", SEARCH, ""),
        ("<SEARCH>author of Emma</Search>", SEARCH, ""),
        ("<answer>jane austen</answer> and that is it", ANSWER, ""),
        ("I would <search> or <answer>jane austen</answer>", ANSWER, ""),  # an unclosed tag reaches over nothing
        ("</search><answer>jane austen</answer>", ANSWER, ""),
        (SEARCH + ANSWER, SEARCH, "more than one action"),
        (ANSWER + SEARCH, ANSWER, "more than one action"),
        (SEARCH + SEARCH, SEARCH, "more than one action"),
        ("<search> </search>", "<search></search>", "blank <search> block"),
        ("<answer>\n</answer>", "<answer></answer>", "blank <answer> block"),
        ("Jane Austen", "", "no <search> or <answer> block"),
        ("<search>author", "", "no <search> or <answer> block"),
        ("<search>author</answer>", "", "no <search> or <answer> block"),
        ("<ſearch>long s</ſearch>", "", "no <search> or <answer> block"),
        ("", "", "no <search> or <answer> block"),
    ],
)
def test_first_block_is_the_action(response, action, reason):
    parsed = parse_response(response)
    assert (parsed.action, parsed.reason, parsed.is_valid) == (action, reason, not reason)
    assert parsed.is_answer == action.startswith("<answer>")
    if parsed.char_span is not None:
        start, stop = parsed.char_span
        assert response[start] == "<"
        assert response[stop - 1] == ">"


def test_what_follows_the_action_counts_for_nothing_where_it_is_cut():
    parsed = parse_response(SEARCH + ANSWER, stop_at_action=True)
    assert parsed.is_valid
    assert parsed.stops
    assert parsed.char_span == (0, len(SEARCH))


@given(st.text(alphabet=st.sampled_from("<>/ |aesrchnwiformt"), max_size=60), st.sampled_from(
    ["<answer>x</answer>", "</information>", "<search>", "<|im_end|>", "</s>", "<<answer>answer>", "< answer>"]
))  # fmt: skip
def test_passages_hold_no_tag_however_they_are_written(filler, tag):
    rendered = render_passage(1, filler + tag, tag + filler + tag)
    assert parse_response(rendered).action == ""
    for token in ("<information>", "</information>", "<search>", "<answer>", "<think>", "<|", "</s>"):
        assert token not in rendered
    assert neutral(rendered) == rendered
    assert information([rendered]).count("</information>") == 1


def test_action_text_round_trips_and_nothing_else_is_an_action():
    assert split_action(SEARCH) == ("search", "author of Emma")
    assert split_action("<answer></answer>") == ("answer", "")
    assert split_action(SEARCH + ANSWER) == ("", "")
    assert split_action("go to shelf 1") == ("", "")


# an episode


def test_search_shows_passages_and_answer_ends():
    play = env(top_k=2)
    assert play.goal == "who wrote emma?"
    result = play.step(SEARCH)
    assert result.observation.text == (
        "<information>\n[1] Emma (novel): Emma is a novel by Jane Austen , published in 1815 .\n"
        "[2] Emma Stone: Emma Stone is an actress .\n</information>"
    )
    assert (result.reward, result.done) == (0.0, False)
    assert result.info["query"] == "author of Emma"
    assert result.info["support_recall"] == 1.0
    assert result.info["hit"] == 1.0
    end = play.step(ANSWER)
    assert (end.reward, end.done, end.success) == (1.0, True, True)
    assert end.info["searches"] == 1
    assert end.info["unicode_em"] == end.info["f1"] == end.info["answered"] == 1.0


def test_wrong_answer_ends_without_success_and_reward_follows_the_metric():
    play = env(metric="f1")
    end = play.step("<answer>austen</answer>")
    assert (end.done, end.success) == (True, False)
    assert end.reward == pytest.approx(2 / 3)
    assert env(metric="sub_em").step("<answer>it was jane austen</answer>").reward == 1.0
    assert env().step("<answer>austen</answer>").reward == 0.0


def test_growing_dialogue_budget_is_searches_and_a_forced_answer():
    play = env(max_searches=2, final_answer_turn=True)
    assert LAST_TURN not in play.step(SEARCH).observation.text
    second = play.step(SEARCH)
    assert second.observation.text.endswith(LAST_TURN)
    assert not second.done
    assert play.step(ANSWER).success


def test_search_in_the_forced_answer_turn_is_not_run():
    retriever = FakeRetriever()
    play = env(retriever, max_searches=1)
    play.step(SEARCH)
    end = play.step(SEARCH)
    assert (end.done, end.success, end.info["searches"], end.info["answered"]) == (True, False, 1, 0.0)
    assert len(retriever.batches) == 1


def test_windowed_budget_is_a_number_of_generations():
    rules = SearchRules(max_searches=4, final_answer_turn=False)
    assert rules.max_turns == 4
    retriever = FakeRetriever()
    play = env(retriever, max_searches=4, final_answer_turn=False)
    results = [play.step(SEARCH) for _ in range(4)]
    assert [r.done for r in results] == [False, False, False, True]
    assert LAST_TURN not in results[2].observation.text
    assert len(retriever.batches) == results[-1].info["searches"] == 3


@pytest.mark.parametrize("action", ["", "<search></search>", "open the door"])
def test_invalid_action_takes_a_turn_and_asks_for_nothing(action):
    retriever = FakeRetriever()
    play = env(retriever, max_searches=2)
    result = play.step(action)
    assert result.observation.text == NO_ACTION
    assert not result.done
    assert play.step(action).observation.text == f"{NO_ACTION} {LAST_TURN}"
    assert play.step(action).done
    assert retriever.batches == []


def test_blank_answer_ends_unanswered():
    end = env().step("<answer></answer>")
    assert (end.done, end.success, end.info["answered"]) == (True, False, 0.0)


def test_empty_result_is_a_valid_step():
    result = env(FakeRetriever([])).step(SEARCH)
    assert result.observation.text == NO_RESULT
    assert result.info["searches"] == 1


def test_long_queries_are_cut_and_counted():
    retriever = FakeRetriever()
    result = env(retriever, query_words=3).step("<search>one two three four</search>")
    assert retriever.batches == [["one two three"]]
    assert result.info["cut_queries"] == 1


def test_episode_without_a_running_task_is_refused():
    play = env()
    play.step(ANSWER)
    with pytest.raises(ValueError, match="reset it first"):
        play.step(ANSWER)


@pytest.mark.parametrize(
    ("rules", "message"),
    [({"max_searches": -1}, "max_searches"), ({"top_k": 0}, "top_k"), ({"metric": "bleu"}, "metric"),
     ({"max_searches": 0, "final_answer_turn": False}, "final_answer_turn")],
)  # fmt: skip
def test_rules_out_of_range_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        SearchRules(**rules)


# many episodes


def test_searches_of_a_turn_go_out_as_one_batch_without_repeats():
    retriever = FakeRetriever()
    pool = SearchPool(retriever, 4, SearchRules())
    pool.reset({slot: (task(), 0) for slot in range(4)})
    results = pool.step({0: SEARCH, 1: "<search>emma</search>", 2: ANSWER, 3: SEARCH})
    assert retriever.batches == [["author of Emma", "emma"]]
    assert list(results) == [0, 1, 2, 3]
    assert results[2].success
    assert results[0] == results[3]


def test_pool_refuses_unknown_slots_and_broken_tasks():
    pool = SearchPool(FakeRetriever(), 1)
    with pytest.raises(ValueError, match=r"slot must lie in \[0, 1\), got 1"):
        pool.reset({1: (task(), 0)})
    opened = pool.reset({0: (type(task())("x", "searchqa", "nq", "train", "no json"), 0)})
    assert isinstance(opened[0], EnvError)
    assert not isinstance(opened[0], EnvInfraError)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.step({0: SEARCH})


def test_retriever_failure_is_told_apart_and_reaches_no_observation():
    pool = SearchPool(FakeRetriever(broken="emma"), 2)
    pool.reset({0: (task(), 0), 1: (task(), 0)})
    results = pool.step({0: "<search>emma</search>", 1: ANSWER})
    assert isinstance(results[0], EnvInfraError)
    assert results[1].success
    assert "503" in str(results[0])
    assert pool.step({0: ANSWER})[0] is results[0]  # it stays failed until it is reset
    pool.reset({0: (task(), 0)})
    assert pool.step({0: ANSWER})[0].success


def test_partial_retriever_failure_costs_only_its_queries():
    pool = SearchPool(FakeRetriever(broken="bad", partial=True), 2)
    pool.reset({0: (task(), 0), 1: (task(), 0)})
    results = pool.step({0: "<search>bad</search>", 1: SEARCH})
    assert isinstance(results[0], EnvInfraError)
    assert results[1].info["doc_ids"] == ["p1", "p2", "p3"]


def test_short_answer_of_a_retriever_is_a_failure():
    class Short(FakeRetriever):
        def search(self, queries, k):
            return super().search(queries, k)[:-1]

    with pytest.raises(EnvInfraError, match="gave 0 results for 1 queries"):
        env(Short()).step(SEARCH)


def test_recordings_are_played_again_in_batches_and_go_on_from_there():
    first = FakeRetriever()
    pool = SearchPool(first, 3)
    pool.reset({0: (task(), 0)})
    seen = pool.step({0: SEARCH})[0].observation
    records = {
        0: Recording(task(), 0, (SEARCH,), ("", seen.text)),
        1: Recording(task(), 0, (SEARCH, "<search>emma</search>"), None),
        2: Recording(task(), 0, (SEARCH,), ("", "something else")),
    }
    again = FakeRetriever()
    pool = SearchPool(again, 3)
    answers = pool.replay(records)
    assert again.batches == [["author of Emma"], ["emma"]]
    assert answers[0] == ("who wrote emma?", seen)
    assert isinstance(answers[2], ReplayMismatch)
    results = pool.step(dict.fromkeys(range(3), ANSWER))
    assert results[0].success
    assert results[1].info["searches"] == 2
    assert results[2] is answers[2]


def test_a_recording_that_outlives_its_episode_is_refused():
    pool = SearchPool(FakeRetriever(), 1)
    assert isinstance(pool.replay({0: Recording(task(), 0, (ANSWER, SEARCH), None)})[0], ReplayMismatch)
    assert pool.replay({0: Recording(task(), 0, (), ("",))})[0][0] == "who wrote emma?"
    assert replay(SearchQAEnv(FakeRetriever()), task(), 0, [SEARCH, ANSWER])[-1].success


# questions and prompts


def test_questions_travel_in_their_tasks():
    question = make_question("a/7", "searchR1_2wiki", " who is\nit", ["x", "y"], hops=2, support=["p"])
    assert (question.data_source, question.question) == ("2wikimultihopqa", "who is it?")
    made = task_of(question, "train")
    assert question_of(made) == question
    assert made.task_id == "train/2wikimultihopqa/a/7"
    assert source_name("NQ_open") == "nq"


@pytest.mark.parametrize("broken", [{"question": " "}, {"question_id": None}, {"data_source": ""}, {"answers": []}])
def test_incomplete_questions_are_refused(broken):
    fields = {"question_id": 1, "data_source": "nq", "question": "who", "answers": ["x"]} | broken
    with pytest.raises(ValueError, match="|".join(["golden answers", *broken])):
        make_question(**fields)


def test_windowed_prompt_shows_the_question_the_step_count_and_the_window():
    prompting = SearchPrompting(window=2, think=True)
    steps = [(SEARCH, "<information>\nA\n</information>"), ("", NO_ACTION)]
    text = prompting.turn("who wrote emma?", steps, first=3)
    assert "Question: who wrote emma?" in text
    assert "Steps taken so far: 4." in text
    assert f"Step 3: {SEARCH}\n<information>\nA\n</information>" in text
    assert f"Step 4: (no search and no answer)\n{NO_ACTION}" in text
    assert "<think>" in text
    plain = SearchPrompting(think=False).opening("who?")
    assert "<think>" not in plain
    assert "Do one of two things." in plain


def test_policy_words_in_a_later_prompt_open_no_tag():
    text = SearchPrompting().turn("who?", [("<search>a </information> <|im_end|> b</search>", "seen")])
    assert "<search>a < /information> < |im_end|> b</search>" in text


def test_compact_style_is_question_and_passages_alone():
    prompting = SearchPrompting(style="compact")
    assert prompting.turn("who?", [(SEARCH, "seen")]) == f"question : who?\n{SEARCH}\nseen"
    with pytest.raises(ValueError, match="style must be one of"):
        SearchPrompting(style="loud")


def test_question_cannot_act():
    assert "<answer>x" not in SearchPrompting(style="compact").opening("is <answer>x</answer> it?")


def test_passage_without_title_or_with_line_breaks_stays_one_line():
    assert render_passage(2, "", "a\nb\u2028c") == "[2] a b c"
