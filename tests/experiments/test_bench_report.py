"""The sweep and its report: budget, resumption, exit codes, and what is written from given figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stepopsd.experiments.bench import machine, overhead, sweep
from stepopsd.experiments.bench.plot import draw_roofline
from stepopsd.experiments.bench.report import duration, render
from stepopsd.experiments.bench.rows import Case
from stepopsd.experiments.bench.timing import Samples, Settings, paired

FAST = Settings(rounds=3, sample_seconds=0.0, seconds=0.0)
CASES = [Case("pair", 2, 64, "bf16"), Case("pair", 4, 64, "bf16"), Case("score", 2, 64, "fp32", 0.5)]


def spread(seconds: float) -> dict[str, float]:
    return {"min": seconds, "q1": seconds, "median": seconds * 1.1, "q3": seconds * 1.2, "max": seconds * 2,
            "samples": 9, "cpu": seconds}  # fmt: skip


def gpu_report() -> dict[str, Any]:
    """Figures as a GPU run would leave them, chosen so that the ratios are round."""

    def case(rows: int) -> dict[str, Any]:
        results = [
            {"contender": "read only", "seconds": spread(8e-4)},
            {"contender": "stepopsd triton", "ours": True, "seconds": spread(2e-3), "replay_seconds": spread(1e-3),
             "host_seconds": 3e-5, "difference": 1e-6, "extra_bytes": 2**20},
            {"contender": "stepopsd torch", "ours": True, "seconds": spread(9e-3), "host_seconds": None},
            {"contender": "eager log_softmax", "seconds": spread(1e-2), "difference": 2e-6, "extra_bytes": 2**30},
            {"contender": "torch.compile", "error": "out of memory"},
            {"contender": "TRL fused kernel", "seconds": spread(3e-3)},
        ]  # fmt: skip
        clocks = {"sm_mhz": 1980, "memory_mhz": 3201, "power_w": 500, "temperature_c": 50}
        return {"op": "pair", "rows": rows, "vocab": 1000, "dtype": "bf16", "masked": 0.0, "bytes": 4 * 10**9,
                "results": results, "clocks": clocks}  # fmt: skip

    skipped = {**CASES[2].as_dict(), "bytes": 1, "skipped": "inputs of 99 GiB"}
    overhead = {"backend": "triton", "tokens": 1, "stage": "shape", "seconds": 1e-5, "replay_seconds": None}
    return {
        "date": "2026-01-02", "device": "cuda", "chip": "NVIDIA X1", "multiprocessors": 10, "driver": "1.2",
        "cache_bytes": 2**20, "versions": {"torch": "2"}, "command": "c", "limits": {"copy": 4.4e12, "read": 5e12},
        "cases": [case(8), case(16), skipped], "absent": {"Liger": "no | module"}, "not_measured": 7,
        "overheads": [overhead], "seconds": 1.0,
    }  # fmt: skip


def test_ratios_come_from_pairs_of_one_round() -> None:
    # Everything takes twice as long in the second half, of which the minimum of one of them has no sample.
    read = Samples([1.0, 1.0, 2.0, 2.0], [1.0] * 4)
    kernel = Samples([4.0, 4.0, 2.5, 2.5], [9.0] * 4)
    slow = paired({"read": read, "kernel": kernel}, threads=2)
    assert slow["kernel"]["read"] == pytest.approx((1 / 4 + 2 / 2.5) / 2)
    assert slow["read"] == {"read": 1.0, "kernel": pytest.approx((4 + 1.25) / 2)}
    assert paired({"read": read, "kernel": kernel}, threads=1)["kernel"]["read"] == pytest.approx((1 / 4 + 1 / 2.5) / 2)


def test_a_cpu_report_shows_the_paired_ratios_where_it_has_them() -> None:
    report = gpu_report() | {"device": "cpu", "threads": 2}
    line = "| pair | 8 | 1,000 | bf16 | 0% | triton |"
    assert "as_long" not in json.dumps(report)
    assert f"{line} 1.00 ms | 4,000.0 | 80% | 91% | 10.0× |" in render(report)
    report["cases"][0]["results"][1]["as_long"] = {"read only": 0.5, "eager log_softmax": 12.0}
    assert f"{line} 1.00 ms | 4,000.0 | 50% | 91% | 12.0× |" in render(report)
    assert "medians over rounds" in render(report)


def test_the_grid_is_whole_and_begins_with_the_headline() -> None:
    cases = sweep.gpu_cases()
    assert len(cases) == len(set(cases))
    assert sum(case.op in ("pair", "score") for case in cases) == 2 * 8 * 5 * 3 * 3
    assert {(c.rows, c.vocab, c.dtype, c.masked) for c in cases[:8]} == {(n, 151_936, "bf16", 0.0) for n in sweep.ROWS}
    assert len(sweep.cpu_cases()) == len(set(sweep.cpu_cases())) < 40


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "cpu_cases", lambda: CASES)
    monkeypatch.setattr(sweep, "CPU", FAST)
    monkeypatch.setattr(sweep, "ceilings", lambda device: {"copy": 1e10, "read": 2e10})
    monkeypatch.setattr(overhead, "TOKENS", (1, 70))
    monkeypatch.setattr(overhead, "SHORT", FAST)


def test_a_sweep_grows_case_by_case_and_stops_when_the_time_is_up(quick: None) -> None:
    sizes = [len(r["cases"]) for r in sweep.sweep("cpu", CASES, budget=60, settings=FAST, command="c")]
    assert sizes == [0, 0, 1, 2, 3, 3]
    *_, last = sweep.sweep("cpu", CASES, budget=-1, settings=FAST, command="c")
    assert last["cases"] == []
    assert last["not_measured"] == 3
    assert last["limits"].keys() == last["limits_at_end"].keys() == {"copy", "read"}
    assert {r["stage"] for r in last["overheads"]} >= {"score", "shape", "shape with step budget", "shape_advantages"}


def run(folder: Path, *words: str) -> int:
    return sweep.main(["--device", "cpu", "--results", str(folder), "--name", "a.b", *words])


def test_results_are_written_and_resumed(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, "--budget", "60") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.json", "a.b.md", "a.b.png"]
    first = json.loads((tmp_path / "a.b.json").read_text())
    assert [c["rows"] for c in first["cases"]] == [2, 4, 2]

    monkeypatch.setattr(sweep, "cpu_cases", lambda: [*CASES, Case("pair", 8, 64, "fp16")])
    assert run(tmp_path, "--resume") == 0
    second = json.loads((tmp_path / "a.b.json").read_text())
    assert second["cases"][:3] == first["cases"]
    assert [c["rows"] for c in second["cases"]] == [2, 4, 2, 8]

    (tmp_path / "a.b.md").unlink()
    assert sweep.main(["--render", str(tmp_path / "a.b.json")]) == 0
    assert (tmp_path / "a.b.md").read_text() == render(second)


def test_rounds_and_cases_can_be_chosen_and_are_recorded(quick: None, tmp_path: Path) -> None:
    assert run(tmp_path, "--rounds", "5", "--cases", "1", "--threads", "1") == 0
    report = json.loads((tmp_path / "a.b.json").read_text())
    assert [len(report["cases"]), report["not_measured"]] == [1, 0]
    assert {r["seconds"]["samples"] for r in report["cases"][0]["results"] if "seconds" in r} <= {3, 4, 5}
    assert report["command"].endswith("--device cpu --budget 420 --threads 1 --rounds 5 --cases 1")


def test_a_report_of_other_versions_is_not_resumed(quick: None, tmp_path: Path) -> None:
    assert run(tmp_path, "--budget", "-1") == 0
    report = json.loads((tmp_path / "a.b.json").read_text())
    report["versions"]["torch"] = "0.1"
    (tmp_path / "a.b.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="cannot resume: versions was"):
        run(tmp_path, "--resume")


@pytest.mark.parametrize(("result", "code"), [
    ({"contender": "a", "error": "out of memory"}, 0),
    ({"contender": "a", "error": "off by 3", "wrong": True}, 1),
    ({"contender": "stepopsd cpu", "ours": True, "error": "RuntimeError: boom"}, 1),
    ({"contender": "stepopsd torch", "ours": True, "error": "needs about 9 GiB beyond the inputs"}, 0),
])  # fmt: skip
def test_a_wrong_result_and_a_failure_of_ours_show_in_the_exit_code(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], code: int
) -> None:
    monkeypatch.setattr(sweep, "measure", lambda case, *_: {**case.as_dict(), "bytes": 1, "results": [result]})
    assert run(tmp_path) == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_nothing_is_written_without_the_device(tmp_path: Path) -> None:
    assert sweep.main(["--device", "cuda", "--results", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_the_report_has_rates_shares_and_ratios() -> None:
    text = render(gpu_report())
    summary = next(line for line in text.splitlines() if line.startswith("| pair | 8 |"))
    # the median of the replays, 1.1 ms: 4 GB / 1.1 ms of a copy at 4.4 TB/s; a read took 0.88 ms
    assert "| triton | 1.10 ms | 3,636.4 | 80% | 83% | 10.0× |  | 3.00× TRL fused kernel |" in summary
    assert "| stepopsd triton | 1.10 ms | 9.1% | 3,636.4 | 80% | 10.0× | 1.0e-06 | 1.0 MiB | 30.0 µs |" in text
    assert "| stepopsd torch | 9.90 ms (call) |" in text
    assert "| waits |" in text
    assert "| torch.compile | out of memory |" in text
    assert "SM 1980 MHz" in text
    assert "- Liger: no | module" in text
    assert "7 further cases" in text
    assert "inputs of 99 GiB" in text
    assert "| triton | shape | 1 | 10.0 µs |  |  |" in text


def test_every_table_has_one_number_of_columns() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", render(gpu_report()), re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_the_roofline_is_drawn_where_there_are_two_sizes(tmp_path: Path) -> None:
    report = gpu_report()
    path = draw_roofline(report, tmp_path / "a.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    report["cases"] = report["cases"][:1]
    assert draw_roofline(report, tmp_path / "b.png") is None


def test_durations_have_three_digits() -> None:
    assert [duration(s) for s in (2.5, 0.0123, 1.5e-6, 3.2e-8)] == ["2.50 s", "12.3 ms", "1.50 µs", "32 ns"]


def test_file_names_come_from_the_chip() -> None:
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    about = machine.describe("cpu")
    assert about["versions"]["torch"] == torch.__version__
    assert about["chip"]
