"""The table by question set: an honest mean, the one that published tables print, and both named."""

from __future__ import annotations

import re

import pytest

from stepopsd.experiments.published import SCORED, SEARCHQA
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.study.kinds import kinds_section, scoring_notes


def run(seed, *, samples=1):
    """Seven sets of 125 questions each; of Bamboogle, the last of them, 37 are right and the very last one, too."""
    episodes = []
    for kind in SEARCHQA[:-1]:
        for question in range(125):
            won = question < 37 or question == 124
            episodes += [
                {"update": 6, "panel": "test", "task_id": f"{kind}/{question}", "kind": kind, "sample": sample,
                 "success": won, "steps": 2, "status": "success", "scores": {"em": float(won)}}
                for sample in range(samples)
            ]  # fmt: skip
    config = {"env": {"name": "searchqa"}, "eval": {"temperature": 0.0}}
    return Run(
        method="grpo", path=None, seed=seed, config=config, environment={}, metrics=[], episodes=episodes,
        transcripts=[],
    )  # fmt: skip


def cells(page):
    rows = re.findall(r"<tr(?: class=\"quoted\")?>(.*?)</tr>", page)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return [[re.sub(r"<[^>]+>", " ", cell).split() for cell in row] for row in found]


def test_question_sets_stand_beside_published_ones_scored_both_ways(tmp_path):
    head, own, batched, *published = cells(kinds_section("searchqa", {"grpo": [run(0), run(1)]}, tmp_path))
    assert [" ".join(cell) for cell in head[3:]] == [
        "nq", "triviaqa", "popqa", "hotpotqa", "2wiki", "musique", "bamboogle", "mean of sets", "all",
    ]  # fmt: skip
    assert own[1] == ["this", "study,", "test", "questions"]
    assert [cell[0] for cell in own[3:]] == ["30.4"] * 9, "38 of 125"
    # 875 questions in batches of 512: hotpotqa, the fifth hundred, is cut after its twelfth question.
    assert batched[1][-2:] == ["batch", "means"]
    assert batched[2] == ["c"]
    cut = 100 * (12 / 12 + 26 / 113) / 2
    assert batched[7] == [f"{cut:.1f}"]
    assert float(batched[10][0]) == pytest.approx((6 * 30.4 + cut) / 7, abs=0.05)
    assert batched[11] == ["–"], "no published table has it"
    assert published[1][0] == ["GRPO"]
    assert published[1][10] == ["40.8", "[36.0]"]


def test_batch_means_need_every_question_once(tmp_path):
    rows = cells(kinds_section("searchqa", {"grpo": [run(0, samples=2)]}, tmp_path))
    assert [row[1] for row in rows if row[0] == ["grpo"]] == [["this", "study,", "test", "questions"]]


def test_notes_say_how_each_row_was_scored():
    notes = scoring_notes({"searchqa": {"grpo": [run(0)]}})
    assert "sampled at temperature 0" in notes
    assert all(SCORED[key] in notes.replace("&#x27;", "'") for key in "cd")
