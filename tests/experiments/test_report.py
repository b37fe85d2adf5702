"""The page is whole, safe and honest; run directories with gaps are named, broken ones refused."""

from __future__ import annotations

import json
import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from stepopsd.experiments.report import report_from_arguments, write_report
from stepopsd.experiments.report.command import parse_runs
from stepopsd.experiments.report.diagnostics import mean_series
from stepopsd.experiments.report.load import load_run, load_runs
from stepopsd.experiments.report.sections import comparison
from stepopsd.experiments.report.summary import compare, differing_settings, gain, success_curve
from stepopsd.experiments.report.text import amount, seconds, signed
from tests.experiments.pages import browser_data
from tests.experiments.synthetic_runs import write_lines, write_run

FIGURES = {"success", "task_types", "difference", "delta", "step_budget", "optimisation", "cost"}
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(root) -> dict[str, list[Path]]:
    return {
        "GRPO": [write_run(root / f"grpo-{s}", method="grpo", seed=s, final_rate=0.5) for s in (0, 1, 2)],
        "StepOPSD": [write_run(root / f"step-{s}", seed=s) for s in (0, 1, 2)],
    }


@pytest.fixture(scope="module")
def report(root, runs) -> Path:
    one_seed = {label: paths[:1] for label, paths in runs.items()}
    return write_report(one_seed, root / "report", title="Demo", notes=["Two cores, one seed."])


def test_page_needs_nothing_but_itself(report):
    page = Page(report.read_text(encoding="utf-8"))
    assert not any(tag in ("link", "iframe", "object") for tag, _ in page.tags)
    assert [a for tag, a in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "transcript-data"}, {},
    ]  # fmt: skip
    references = [a.get("src") or a.get("href") for tag, a in page.tags if "src" in a or "href" in a]
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in references)
    assert sum(r.startswith("data:") for r in references) == len(FIGURES)
    assert "http" not in re.sub(r"base64,[^\"]*", "", report.read_text(encoding="utf-8"))


def test_every_link_in_the_page_has_its_section(report):
    page = Page(report.read_text(encoding="utf-8"))
    anchors = {a.get("id") for _, a in page.tags}
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert len(links) == 8
    assert links <= anchors


def test_figures_lie_beside_the_page_in_readme_width(report):
    assert {path.stem for path in report.parent.glob("*.png")} == FIGURES
    for path in report.parent.glob("*.png"):
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", head[16:20])[0] == 1400


def test_page_says_what_ran_and_what_one_seed_is_worth(report):
    text = Page(report.read_text(encoding="utf-8")).text
    for expected in (
        "tiny-qwen3 (4.2 M parameters)", "GRPO × 1 seed", "20 updates of 8 games × 6 rollouts", "24 unseen games",
        "Two cores, one seed.", "One seed is not evidence", "stepopsd train --config demo.yaml --seed 0",
        "torch 2.13.0", "credit.name", "Pick two", "First and last evaluation, never the best one",
    ):  # fmt: skip
        assert expected in text, expected


def test_equal_runs_give_an_equal_report(report, runs, tmp_path):
    one_seed = {label: paths[:1] for label, paths in runs.items()}
    again = write_report(one_seed, tmp_path, title="Demo", notes=["Two cores, one seed."])
    assert again.read_bytes() == report.read_bytes()


def test_text_from_runs_is_escaped_everywhere(tmp_path):
    bad = "</span><script>alert('$x$')</script>&"
    run = write_run(tmp_path / "run", updates=2, every=1, games=4)
    for name in ("metrics", "evaluations", "transcripts"):
        path = run / f"{name}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record.update({k: bad for k in ("panel", "kind", "task_id", "goal", "status") if k in record})
            for turn in record.get("turns", ()):
                turn.update(observation=bad * 20, tokens=[bad] * len(turn["tokens"]))
        write_lines(path, records)
    (run / "environment.json").write_text(json.dumps({"command": bad, "torch": bad}))
    report = write_report({bad: [run]}, tmp_path / "out", title=bad, notes=[bad])
    page = Page(report.read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert page.text.count(bad) > 10
    assert bad in json.dumps(browser_data(report), ensure_ascii=False).replace('\\"', '"')


def test_runs_with_gaps_still_report_and_name_what_is_missing(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    write_lines(run / "metrics.jsonl", [{"update": 1, "loss": math.nan, "success": None}, {"update": 2, "loss": 0.1}])
    text = Page(write_report({"GRPO": [run], "Empty": [tmp_path]}, tmp_path / "out").read_text(encoding="utf-8")).text
    for expected in (
        "No evaluation episodes", "No run recorded statistics of Δ", "No transcripts were stored",
        "The command was not recorded", "Not in bare: config.yaml, evaluations.jsonl", "Neither time nor tokens",
    ):  # fmt: skip
        assert expected in text, expected
    assert "success" in text[text.index("Not recorded:") :]


def test_nan_and_null_leave_gaps_in_a_series(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    values = (0.1, math.nan, None, 0.3)
    write_lines(run / "metrics.jsonl", [{"update": i, "kl": value} for i, value in enumerate(values, start=1)])
    loaded = load_run(run, method="GRPO")
    assert np.isnan(loaded.series("kl")[1]).tolist() == [False, True, True, False]
    updates, means = mean_series([loaded], "kl")
    assert (updates.tolist(), means.tolist()) == ([1, 4], [0.1, 0.3])
    assert loaded.total("kl") == pytest.approx(0.4)
    assert math.isnan(loaded.total("entropy"))


def test_resumed_run_keeps_the_newest_record_of_each_update(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_lines(run / "metrics.jsonl", [{"update": u, "loss": v} for u, v in ((1, 1.0), (2, 2.0), (2, 5.0), (3, 3.0))])
    updates, values = load_run(run, method="GRPO").series("loss")
    assert (updates.tolist(), values.tolist()) == ([1, 2, 3], [1.0, 5.0, 3.0])


def test_line_cut_off_while_writing_is_left_out_and_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "loss": 1.0}\n{"update": 2, "lo')
    run = load_run(tmp_path, method="GRPO")
    assert [row["update"] for row in run.metrics] == [1]
    assert "end of metrics.jsonl" in run.missing


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"update": 1}\nnonsense\n{"update": 2}\n', r"metrics\.jsonl, line 2: not JSON"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl, line 1: not an object"),
        ("metrics.jsonl", '{"loss": 1}\n', r"line 1: keys missing: update"),
        ("evaluations.jsonl", '{"update": 0, "panel": "seen"}\n', "keys missing: task_id, kind, success"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("environment.json", "[]", r"environment\.json must hold a mapping, got list"),
        (
            "transcripts.jsonl",
            '{"update":1,"task_id":"t","group":0,"member":0,"success":true,"turns":[{"tokens":["a","b"],"delta":[0.1]}]}\n',
            r"line 1: turn 0: delta must have one entry per token \(2\), got 1",
        ),
    ],
)
def test_broken_file_is_refused_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path, method="GRPO")


def test_absent_runs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run directory of 'GRPO' does not exist"):
        load_runs({"GRPO": [tmp_path / "nowhere"]})
    with pytest.raises(ValueError, match="at least one method"):
        load_runs({})
    with pytest.raises(ValueError, match="'GRPO'"):
        load_runs({"GRPO": []})


def test_command_collects_seeds_under_their_label(runs, tmp_path, capsys):
    arguments = tuple(f"{label}={path}" for label in ("StepOPSD", "GRPO") for path in runs[label][:2])
    assert parse_runs(arguments) == {label: runs[label][:2] for label in ("StepOPSD", "GRPO")}
    path = report_from_arguments((f"GRPO={runs['GRPO'][0]}",), out=tmp_path)
    assert capsys.readouterr().out == f"report: {path}\n"
    assert "there is nothing to compare it with" in path.read_text(encoding="utf-8")


def test_command_takes_a_run_by_its_directory_and_writes_into_it(runs, capsys):
    run = runs["StepOPSD"][0]
    assert parse_runs((str(run), f"GRPO={runs['GRPO'][0]}")) == {"stepopsd": [run], "GRPO": [runs["GRPO"][0]]}
    assert report_from_arguments((str(run),)) == run / "report" / "report.html"
    assert "stepopsd, seed 0" in (run / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [("=runs/grpo",), ("GRPO=",), ()])
def test_command_refuses_what_is_not_label_and_directory(arguments):
    with pytest.raises(ValueError, match=r"runs must .* LABEL=DIRECTORY"):
        parse_runs(arguments)


def test_command_refuses_a_run_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse_runs((str(tmp_path / "nowhere"),))


def test_methods_are_paired_by_seed_not_by_position(runs):
    methods = load_runs({"GRPO": runs["GRPO"], "StepOPSD": [runs["StepOPSD"][2], runs["StepOPSD"][1]]})
    points = compare(methods, "GRPO", "StepOPSD", "seen", resamples=200)
    assert [p.update for p in points] == [0, 5, 10, 15, 20]
    assert {p.seeds for p in points} == {2}
    expected = np.mean(
        [success_curve([run], "seen")[1][-1].estimate for run in methods["StepOPSD"]]
    ) - np.mean([success_curve([run], "seen")[1][-1].estimate for run in methods["GRPO"][1:]])
    assert points[-1].difference.estimate == pytest.approx(expected)
    assert sum(points[-1].wins) == 2 * 24


def test_a_run_compared_with_itself_differs_by_exactly_zero(runs, tmp_path):
    methods = load_runs({"A": runs["GRPO"][:1], "B": runs["GRPO"][:1]})
    last = compare(methods, "A", "B", "unseen")[-1]
    assert (last.difference.estimate, last.difference.low, last.difference.high) == (0.0, 0.0, 0.0)
    assert last.wins[1:3] == (0, 0)
    assert "did equally well on every game" in comparison(methods, tmp_path)


def test_without_a_common_seed_nothing_is_compared(runs, tmp_path):
    methods = load_runs({"GRPO": runs["GRPO"][:1], "StepOPSD": runs["StepOPSD"][1:2]})
    assert compare(methods, "GRPO", "StepOPSD", "seen") == []
    assert "no training seed in common" in comparison(methods, tmp_path)
    assert not (tmp_path / "difference.png").exists()


def test_gain_is_the_change_from_the_first_to_the_last_evaluation(runs):
    run = load_runs(runs)["StepOPSD"][:1]
    _, curve = success_curve(run, "seen")
    change = gain(run, "seen")
    assert change is not None
    assert change.estimate == pytest.approx(curve[-1].estimate - curve[0].estimate)
    assert change.low <= change.estimate <= change.high


def test_only_settings_that_differ_between_methods_are_listed(runs):
    assert differing_settings(load_runs(runs)) == [("credit.name", ["grpo", "stepopsd"])]


def test_numbers_read_well():
    assert [signed(v, 1) for v in (-1.25, 0.0, -0.01, math.nan)] == ["−1.2", "0.0", "0.0", "–"]
    assert [seconds(v) for v in (3.21, 150, 7325, math.nan)] == ["3.2 s", "2 min 30 s", "2 h 02 min", "–"]
    assert [amount(v) for v in (512, 21_000, 4.2e6, math.nan)] == ["512", "21.0 k", "4.2 M", "–"]
