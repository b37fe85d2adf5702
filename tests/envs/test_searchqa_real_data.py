"""Real questions and passages through loaders and scoring; skipped where SEARCHQA_DATA does not point at them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stepopsd.envs.searchqa import SearchQAEnv, score_answer, task_of
from stepopsd.envs.searchqa.data import load_questions
from stepopsd.retrieval import open_retriever

ROOT = Path(os.environ.get("SEARCHQA_DATA", "") or "/nonexistent")
FILES = {"bamboogle.json": ("bamboogle", 125), "2wiki.json": ("2wikimultihopqa", 500), "musique.json": ("musique", 500),
         "nq_open_dev.jsonl": ("nq", 3610)}  # fmt: skip

if not (ROOT / "nq_open_dev.jsonl").is_file():
    pytest.skip("SEARCHQA_DATA does not point at the folder with real questions", allow_module_level=True)


@pytest.mark.parametrize("name", FILES)
def test_every_real_question_loads_and_its_answers_score(name):
    source, count = FILES[name]
    questions = load_questions(ROOT / name, data_source=source)
    assert len(questions) == count
    assert {q.data_source for q in questions} == {source}
    for question in questions:
        for answer in question.golden_answers:
            scores = score_answer(answer, question.golden_answers)
            assert (scores.em, scores.f1, scores.sub_em, scores.unicode_em) == (1.0, 1.0, 1.0, 1.0), question
        assert score_answer(None, question.golden_answers).em == 0.0
        assert score_answer("Beijing 17 zzz", question.golden_answers).em == 0.0


def test_real_passages_are_found_and_shown():
    retriever = open_retriever(ROOT / "wiki18_sample10.jsonl")
    question = load_questions(ROOT / "bamboogle.json")[0]
    env = SearchQAEnv(retriever)
    env.reset(task_of(question, "bamboogle"), 0)
    result = env.step("<search>lobbyist for Genentech and Roche</search>")
    assert "[1] Evan Morris: Evan Morris Evan L. Morris (January 26, 1977" in result.observation.text
    assert result.info["doc_ids"][0] == "0"
