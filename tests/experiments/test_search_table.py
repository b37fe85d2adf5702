"""Search-QA evaluated: the seven-set table, its averages and intervals, and what is not counted."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from stepopsd.envs.searchqa.world import bundled_passages
from stepopsd.experiments.search_table import SEARCH_TABLE, batch_mean, format_search_table, search_table
from stepopsd.experiments.statistics import wilson_interval
from tests.extras import missing
from tests.train.search_toy import config, save_model


def episode(source, number, em, *, searches=1, status="", decoding="sample", temperature=0.0, **more):
    scores = {"em": float(em), "f1": 0.5, "sub_em": 1.0, "unicode_em": float(em), "answered": 1.0,
              "searches": float(searches), "tool_use": float(searches > 0), "hit": 1.0}  # fmt: skip
    return {
        "panel": source, "kind": source, "task_id": f"{source}/{number}", "decoding": decoding, "sample": 0,
        "temperature": temperature, "status": status or ("success" if em else "failure"), "success": bool(em),
        "steps": searches + 1, "invalid_actions": 0, "response_tokens": 20, "scores": scores, **more,
    }  # fmt: skip


def rows_of(table):
    return {row["data_source"]: row for row in table}


def test_every_source_has_its_row_and_both_averages_differ():
    records = [episode("nq", i, i < 60, searches=1) for i in range(100)]
    records += [episode("bamboogle", i, i < 2, searches=i % 3) for i in range(10)]
    rows = rows_of(search_table(records))
    assert list(rows) == ["nq", "bamboogle", "macro", "micro"]
    wilson = wilson_interval(60, 100)
    assert (rows["nq"]["em"], rows["nq"]["em_low"], rows["nq"]["em_high"]) == (wilson.estimate, wilson.low, wilson.high)
    assert rows["macro"]["em"] == pytest.approx(0.4)
    assert rows["micro"]["em"] == pytest.approx(62 / 110)
    assert rows["bamboogle"]["searches_histogram"] == [4, 3, 3]
    assert rows["bamboogle"]["tool_use"] == pytest.approx(0.6)
    assert rows["macro"]["searches"] == pytest.approx((1 + 0.9) / 2)
    assert rows["macro"]["questions"] == rows["micro"]["questions"] == 110
    half = {name: rows[name]["em_high"] - rows[name]["em"] for name in ("nq", "bamboogle", "macro")}
    assert half["macro"] == pytest.approx((half["nq"] ** 2 + half["bamboogle"] ** 2) ** 0.5 / 2)


def test_the_published_bamboogle_score_stands_beside_the_honest_one():
    """Seven sets of 51,713 questions end in a batch of one: a single answer is worth half of Bamboogle's score."""
    first = [episode("nq", i, i % 2 == 0) for i in range(51_713 - 125)]
    right = {*range(37), 124}
    records = [*first, *(episode("bamboogle", i, i in right) for i in range(125))]
    rows = rows_of(search_table(records))
    assert rows["bamboogle"]["em"] == pytest.approx(38 / 125)
    assert rows["bamboogle"]["em_batch_mean"] == pytest.approx((37 / 124 + 1) / 2)
    assert rows["macro"]["em_batch_mean"] - rows["macro"]["em"] == pytest.approx(0.345 / 2, abs=1e-3)
    assert rows["micro"]["em_batch_mean"] is None
    assert "batch EM" in format_search_table(list(rows.values()))


def test_batch_mean_is_not_made_up_where_questions_were_played_twice():
    rows = rows_of(search_table([episode("nq", 0, True), episode("nq", 0, False)]))
    assert rows["nq"]["em_batch_mean"] is None
    with pytest.raises(ValueError, match="equal lengths above 0, got 0 and 0"):
        batch_mean([], [])


def test_unanswered_and_invalid_turns_are_shares():
    silent = episode("nq", 0, False) | {"steps": 4, "invalid_actions": 3}
    silent["scores"]["answered"] = 0.0
    cut_short = episode("nq", 1, False) | {"scores": {}, "steps": 0, "response_tokens": 0}
    [row, *_] = search_table([silent, cut_short, episode("nq", 2, True, searches=3), episode("nq", 3, True)])
    assert row["unanswered"] == 0.5
    assert row["invalid"] == 3 / (4 + 0 + 4 + 2)
    assert row["em"] == 0.5
    assert row["response_tokens"] == 15


def test_lost_episodes_are_counted_and_nothing_else():
    lost = [episode("nq", i, False, searches=0, status="infra_error") for i in range(3)]
    rows = rows_of(search_table([*lost, episode("nq", 9, True), *(r | {"kind": "popqa"} for r in lost)]))
    assert (rows["nq"]["em"], rows["nq"]["questions"], rows["nq"]["infra_errors"]) == (1.0, 1, 3)
    assert (rows["popqa"]["em"], rows["popqa"]["searches"], rows["popqa"]["invalid"]) == (None, None, None)
    assert (rows["macro"]["em"], rows["macro"]["infra_errors"]) == (1.0, 6)
    text = format_search_table(list(rows.values()))
    assert "3 lost to infrastructure" in text
    assert "popqa" in text


def test_decodings_are_told_apart():
    records = [episode("nq", 0, True), episode("nq", 0, False, temperature=1.0)]
    table = search_table(records)
    assert [(row["decoding"], row["em"]) for row in table] == [("greedy", 1.0)] * 3 + [("sample", 0.0)] * 3
    text = format_search_table(table)
    assert "Search-QA, greedy" in text
    assert "Search-QA, T = 1" in text


def test_evaluation_writes_the_table_of_what_it_played(tmp_path):
    pytest.importorskip("pyarrow", reason=missing("pyarrow"))
    from stepopsd.experiments.compare import compare_evaluations
    from stepopsd.experiments.evaluate import EPISODES, evaluate, read_episodes

    model = save_model(tmp_path / "model", bundled_passages())
    sets = ["world_nq", "world_musique"]
    told: list[str] = []
    env = {"eval_splits": sets}
    out = evaluate(config(tmp_path / "a", model, env=env), say=told.append)
    table = rows_of(json.loads((out / SEARCH_TABLE).read_text()))
    assert list(table) == [*sets, "macro", "micro"]
    assert {row["decoding"] for row in table.values()} == {"greedy"}
    records = read_episodes(out / EPISODES, turns=True)
    assert len(records) == 8
    assert table["micro"]["searches"] == fmean(r["scores"]["searches"] for r in records)
    searched = [sum("<search>" in turn["action"] for turn in r["turns"]) for r in records]
    assert all(n >= r["scores"]["searches"] for n, r in zip(searched, records, strict=True))
    assert "macro" in told[-1]

    again = evaluate(config(tmp_path / "b", model, env=env), say=told.append)
    differences = compare_evaluations(compare=(out, again), resamples=10)
    assert {row["panel"] for row in differences} == {*sets, "micro", "macro"}
    assert {row["figure"] for row in differences} >= {"success", "em", "f1", "searches"}
    assert all(row["difference"] == 0.0 for row in differences)
