"""Environments as chats for other people's rollouts, and tasks as rows of their data sets."""

from __future__ import annotations

import json

import pytest

from stepopsd.envs.chat import task_from
from stepopsd.envs.games.bundle import bundled_tasks
from stepopsd.envs.searchqa import task_of
from stepopsd.envs.searchqa.chat import SearchChat
from stepopsd.envs.searchqa.world import bundled_questions
from stepopsd.envs.verl_rows import data_verl, verl_rows
from tests.extras import missing


def fields(task, **changed):
    names = ("task_id", "env", "kind", "split", "source")
    return {name: getattr(task, name) for name in names} | changed


def test_alfworld_is_won_through_its_chat():
    pytest.importorskip("textworld", reason=missing("textworld"))
    from stepopsd.envs.alfworld import walkthrough
    from stepopsd.envs.alfworld.chat import AlfworldChat

    task = bundled_tasks("seen")[0]
    chat = AlfworldChat(think=False)
    # Without a source, as a data set that travels between machines holds it.
    assert "Actions that you can take now" in chat.open(fields(task, source=""), 0)
    lost = chat.respond("no tags at all")
    assert (lost.is_valid, lost.is_over, lost.char_span) == (False, False, None)
    for action in walkthrough(task.source):
        reply = chat.respond(f"so: <action>{action}</action>")
        assert reply.action == action
        assert reply.char_span == (4, 4 + len(f"<action>{action}</action>"))
    assert (reply.success, reply.is_over, reply.reward, reply.message) == (True, True, 1.0, "")
    chat.close()


def test_alfworld_prompts_hold_a_window_of_past_steps():
    pytest.importorskip("textworld", reason=missing("textworld"))
    from stepopsd.envs.alfworld.chat import AlfworldChat

    chat = AlfworldChat(think=False, window=1)
    chat.open(fields(bundled_tasks("seen")[0]), 0)
    chat.respond("<action>look</action>")
    message = chat.respond("<action>inventory</action>").message
    assert 'chose "inventory"' in message
    assert 'chose "look"' not in message
    assert "This is step 3" in message
    with pytest.raises(ValueError, match="max_turns must be at least 1, got 0"):
        AlfworldChat(max_turns=0)


def test_a_question_is_answered_through_its_chat():
    question = bundled_questions("train")[0]
    chat = SearchChat(retriever="bundled", max_searches=2)
    assert chat.max_turns == 3
    assert question.question in chat.open(fields(task_of(question, "train")), 0)
    found = chat.respond(f"<search>{question.question}</search>")
    assert "<information>" in found.message
    assert found.facts["searches"] == 1.0
    answered = chat.respond(f"<answer>{question.golden_answers[0]}</answer>")
    assert (answered.success, answered.reward, answered.is_over) == (True, 1.0, True)
    assert answered.facts["em"] == 1.0
    assert answered.facts.keys() == found.facts.keys()


def test_a_task_with_other_fields_is_refused():
    with pytest.raises(ValueError, match="a task has the fields task_id, env, kind, split, source, got seed"):
        task_from({"seed": 1})


def test_rows_hold_what_the_agent_loop_reads():
    tasks = [task_of(question, "nq") for question in bundled_questions("world_nq")[:2]]
    first, second = verl_rows(tasks, training=False, seed=4)
    assert (first["agent_name"], second["extra_info"]["index"]) == ("stepopsd", 1)
    assert first["extra_info"]["split"] == "nq"
    assert task_from(json.loads(first["extra_info"]["task"])) == tasks[0]
    assert verl_rows(tasks, training=True)[0]["extra_info"]["split"] == "train"


def test_bundled_games_travel_without_their_paths():
    pytest.importorskip("textworld", reason=missing("textworld"))
    (row,) = verl_rows(bundled_tasks("seen")[:1], training=True, bundled=True)
    assert json.loads(row["extra_info"]["task"])["source"] == ""


def test_files_are_written_per_split(tmp_path):
    pytest.importorskip("pyarrow", reason=missing("pyarrow"))
    import pyarrow.parquet

    written = data_verl(tmp_path, env="searchqa", evaluation=("world_nq", "world_popqa"))
    names = [f"searchqa-{split}.parquet" for split in ("train", "world_nq", "world_popqa")]
    assert [path.name for path in written] == names
    rows = pyarrow.parquet.read_table(written[1]).to_pylist()
    assert rows[0]["prompt"][0]["role"] == "user"
    assert json.loads(rows[0]["extra_info"]["task"])["env"] == "searchqa"
