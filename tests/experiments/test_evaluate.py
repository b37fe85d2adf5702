"""Whole panels, raw records and paired differences, on a word game."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.extras import missing

pytest.importorskip("pyarrow", reason=missing("pyarrow"))

from stepopsd import cli
from stepopsd.envs.base import Observation, StepResult
from stepopsd.experiments.compare import compare_evaluations
from stepopsd.experiments.evaluate import (
    EPISODES,
    evaluate,
    format_summary,
    read_episodes,
    summarise,
    write_episodes,
)
from stepopsd.experiments.report.load import load_run
from stepopsd.experiments.statistics import wilson_interval
from stepopsd.train import episodes
from stepopsd.train.trainer import Trainer
from tests.train.conftest import make_policy
from tests.train.toy import TASKS, WordGame, config


class ScoredGame(WordGame):
    """Reports how many answers had a winning word, as a question-answering environment reports F1."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return replace(result, observation=Observation("go"), info={"hits": self.said / 2, "note": "not a number"})


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(episodes, "AlfworldEnv", ScoredGame)
    for module in ("stepopsd.train.trainer", "stepopsd.train.episodes"):
        monkeypatch.setattr(f"{module}.tasks_of", lambda env, split: TASKS)
    policy = make_policy()
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def quiet(line):
    pass


def record(game, success, *, kind="a", sample=0, panel="seen", decoding="sample", **more):
    return {
        "panel": panel, "decoding": decoding, "temperature": 0.4, "task_id": game, "kind": kind, "sample": sample,
        "seed": 1, "success": success, "steps": 10, "invalid_actions": 2, "status": "success" if success else "failure",
        "scores": {}, **more,
    }  # fmt: skip


def folder(path, records):
    path.mkdir(parents=True)
    write_episodes(path / EPISODES, records)
    return path


def test_every_game_is_played_k_times_and_once_greedily(model, tmp_path):
    run = config(tmp_path / "eval", model, eval={"games": 0, "samples": 3, "greedy": True})
    out = evaluate(run, say=quiet)
    records = read_episodes(out / EPISODES, turns=True)
    played = {(r["task_id"], r["decoding"], r["sample"]) for r in records}
    wanted = {(t.task_id, "sample", s) for t in TASKS for s in range(3)} | {(t.task_id, "greedy", 0) for t in TASKS}
    assert played == wanted
    assert len(records) == 4 * len(TASKS)
    assert {r["temperature"] for r in records if r["decoding"] == "greedy"} == {0.0}
    assert all(len(r["turns"]) == r["steps"] and r["scores"]["hits"] in (0.0, 0.5, 1.0) for r in records)
    assert all(r["success"] == (r["scores"]["hits"] == 1.0) for r in records)
    assert {r["turns"][0]["observation"] for r in records} == {"look shelf 1"}
    summary = json.loads((out / "summary.json").read_text())
    total = next(row for row in summary if row["kind"] == "all" and row["decoding"] == "sample")
    assert total["success"] == pytest.approx(np.mean([r["success"] for r in records if r["decoding"] == "sample"]))
    assert set(total["scores"]) == {"hits"}
    again = evaluate(replace(run, run_dir=str(tmp_path / "again"), env=replace(run.env, workers=0)), say=quiet)
    assert read_episodes(again / EPISODES, turns=True) == records


def test_greedy_episodes_stay_out_of_the_training_curve(model, tmp_path):
    run = config(tmp_path / "run", model, optim={"updates": 1}, eval={"games": 2, "samples": 2, "greedy": True})
    trainer = Trainer(run)
    trainer.run()
    shown = load_run(trainer.run_dir, method="grpo").episodes
    lines = [json.loads(line) for line in (trainer.run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (2 * 2 + 2)
    assert len(shown) == 2 * 2 * 2
    assert {r["decoding"] for r in shown} == {"sample"}


def test_drawn_panels_differ_between_evaluations_and_repeat_on_resume(model, tmp_path):
    run = config(tmp_path / "run", model, optim={"updates": 2}, eval={"games": 3, "panel": "draw", "every": 1})
    trainer = Trainer(run)
    trainer.run()
    lines = [json.loads(line) for line in (trainer.run_dir / "evaluations.jsonl").read_text().splitlines()]
    drawn = [tuple(r["task_id"] for r in lines if r["update"] == u) for u in range(3)]
    assert len(set(drawn)) > 1
    assert all(len(games) == 3 for games in drawn)
    assert not trainer._owes_evaluation(2)


def test_evaluation_never_lands_in_a_training_run(model, tmp_path):
    run = config(tmp_path / "run", model, optim={"updates": 1})
    Trainer(run).run()
    with pytest.raises(ValueError, match="holds a training run"):
        evaluate(run, say=quiet)


def test_summary_counts_per_type_in_any_environment():
    rows = summarise([
        record("q1", True, kind="nq", scores={"f1": 1.0}), record("q2", False, kind="nq", scores={"f1": 0.5}),
        record("q3", True, kind="hotpotqa", scores={"f1": 1.0}, steps=4, invalid_actions=0),
        record("q4", False, kind="hotpotqa", status="time_limit", steps=0, invalid_actions=0),
        record("q5", False, kind="hotpotqa", status="env_error"),
    ])  # fmt: skip
    total, hotpot, nq = rows
    assert [row["kind"] for row in rows] == ["all", "hotpotqa", "nq"]
    assert total["success"] == pytest.approx(2 / 5)
    assert total["macro"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert (nq["success_low"], nq["success_high"]) == (wilson_interval(1, 2).low, wilson_interval(1, 2).high)
    assert nq["scores"] == {"f1": 0.75}
    assert hotpot["scores"] == {"f1": 1.0}
    assert (total["invalid_actions"], total["timeouts"]) == (6, 1)
    assert total["valid_action_rate"] == pytest.approx(1 - 6 / 34)
    assert total["status"] == {"env_error": 1, "failure": 1, "success": 2, "time_limit": 1}
    text = format_summary(rows)
    assert "6 invalid actions, 1 timeouts, 1 env_error" in text
    assert "f1 0.750" in text


def test_compare_pairs_games_and_says_what_is_shown(tmp_path, capsys):
    games = [f"game-{i}" for i in range(40)]
    a = folder(tmp_path / "a", [record(g, i % 4 == 0, kind="ab"[i % 2], sample=s)
                                for i, g in enumerate(games) for s in range(2)])  # fmt: skip
    b = folder(tmp_path / "b", [record(g, i % 4 == 0 or (i % 4 == 1 and s == 0), kind="ab"[i % 2], sample=s, steps=7)
                                for i, g in enumerate(games) for s in range(2)])  # fmt: skip
    rows = compare_evaluations(compare=(a, b), out=tmp_path / "table.json")
    total = rows[0]
    assert (total["figure"], total["kind"], total["games"]) == ("success", "all", 40)
    assert (total["a"], total["b"]) == (0.25, 0.375)
    assert 0 < total["low"] < 0.125 < total["high"]
    by_kind = {row["kind"]: row["difference"] for row in rows if row["figure"] == "success"}
    assert by_kind == {"all": 0.125, "a": 0.0, "b": 0.25}
    steps = next(row for row in rows if row["figure"] == "steps")
    assert (steps["difference"], steps["low"], steps["high"]) == (-3.0, -3.0, -3.0)
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    said = capsys.readouterr().out
    assert "B is higher on these games" in said
    assert "One seed is not evidence" in said


def test_panels_of_unlike_size_are_averaged_both_ways(tmp_path, capsys):
    sizes, won = {"small": 20, "large": 80}, {"a": {"small": 10, "large": 40}, "b": {"small": 15, "large": 40}}
    sides = [
        folder(tmp_path / side, [
            record(f"{panel}/{i}", i < won[side][panel], panel=panel) for panel in sizes for i in range(sizes[panel])
        ])
        for side in won
    ]  # fmt: skip
    rows = {(r["panel"], r["figure"], r["kind"]): r for r in compare_evaluations(compare=tuple(sides), resamples=200)}
    small, micro, macro = (rows[panel, "success", "all"] for panel in ("small", "micro", "macro"))
    assert small["difference"] == pytest.approx(0.25)
    assert (micro["difference"], micro["games"]) == (pytest.approx(0.05), 100)
    assert macro["difference"] == pytest.approx(0.125)
    assert macro["low"] == pytest.approx(0.125 - (small["difference"] - small["low"]) / 2)
    assert "in four of five comparisons of this size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train"], ("--preset NAME", "--dry-run", "--credit.alpha-clip")),
        (["eval"], ("--preset NAME", "stepopsd eval --compare A B", "--eval.samples")),
        (["eval", "--compare"], ("--compare PATH PATH", "--resamples")),
        (["sft"], ("--config FILE", "--sft.expert")),
    ],
)
def test_help_tells_what_a_command_takes_besides_keys(args, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*args, "--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(word in told for word in said), told[:600]


def test_samples_of_one_game_are_one_cluster(tmp_path):
    """Ten copies of every episode must not make the interval narrower."""
    rng = np.random.default_rng(0)
    outcomes = rng.random((2, 30)) < 0.5
    sides = []
    for copies in (1, 10):
        for side in range(2):
            rows = [record(f"g{i}", bool(outcomes[side, i]), sample=s) for i in range(30) for s in range(copies)]
            sides.append(folder(tmp_path / f"{copies}-{side}", rows))
    once, often = (compare_evaluations(compare=tuple(sides[i : i + 2]))[0] for i in (0, 2))
    assert (once["low"], once["high"]) == (often["low"], often["high"])
    assert once["low"] < once["difference"] < once["high"]


def test_seeds_are_folders_of_evaluations(tmp_path):
    for side, rate in (("a", 0), ("b", 1)):
        for seed in range(3):
            rows = [record(f"g{i}", (i + seed) % 3 == 0 or bool(rate and i % 3 == 1)) for i in range(12)]
            folder(tmp_path / side / f"seed-{seed}", rows)
    total = compare_evaluations(compare=(tmp_path / "a", tmp_path / "b"))[0]
    one = compare_evaluations(compare=(tmp_path / "a" / "seed-0", tmp_path / "b" / "seed-0"))[0]
    assert one["difference"] == pytest.approx(1 / 3)
    assert total["difference"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert total["low"] < 0 < total["high"]  # one seed of three shows nothing
    folder(tmp_path / "b" / "seed-3", [record("g0", True)])
    with pytest.raises(ValueError, match="same training seeds"):
        compare_evaluations(compare=(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([record("g0", True)], "games differ"),
        ([record("g0", True), record("g1", True, seed=5)], "samples differ"),
        ([record("g0", True, temperature=1.0), record("g1", True, temperature=1.0)], "temperatures differ"),
        ([record("g0", True, panel="unseen"), record("g1", True, panel="unseen")], "same panels must be played"),
    ],
)
def test_only_evaluations_of_one_plan_are_compared(tmp_path, other, message):
    a = folder(tmp_path / "a", [record("g0", True), record("g1", False)])
    with pytest.raises(ValueError, match=message):
        compare_evaluations(compare=(a, folder(tmp_path / "b", other)))


def test_missing_and_broken_evaluations_are_named(tmp_path):
    a = folder(tmp_path / "a", [record("g0", True)])
    with pytest.raises(FileNotFoundError, match=r"expected episodes\.parquet"):
        compare_evaluations(compare=(a, tmp_path / "nowhere"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / EPISODES).write_text("not parquet")
    with pytest.raises(ValueError, match="not a Parquet file"):
        compare_evaluations(compare=(a, tmp_path / "c"))
