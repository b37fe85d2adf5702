"""The GPU report: what it refuses, and what it writes from given figures."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import WrongResult, contenders, make_rows, verify
from benchmarks.report_gpu import main, render, slug

ROOT = Path(__file__).parents[2]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@no_gpu
def test_the_script_says_so_and_stops_where_there_is_no_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=ROOT, env={**os.environ, "RESULTS": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NVIDIA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


@no_gpu
def test_the_report_writes_nothing_where_there_is_no_gpu(tmp_path: Path) -> None:
    assert main(["--results", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_every_contender_on_the_cpu_passes_the_check_that_precedes_timing() -> None:
    rows = make_rows(5, 97, dtype=torch.bfloat16, device="cpu", masked=0.5)
    assert rows.active.sum() == 3
    assert rows.bytes_read == 3 * 2 * 97 * 2
    for name, contender in contenders("cpu").items():
        if name != "torch.compile":
            verify(name, contender, rows)


def test_a_wrong_contender_is_not_timed() -> None:
    rows = make_rows(5, 97, dtype=torch.float32, device="cpu")
    with pytest.raises(WrongResult, match="off by nan"):
        verify("broken", lambda x: x.advantages * float("nan"), rows)
    with pytest.raises(WrongResult, match="lazy is off by"):
        verify("lazy", lambda x: x.advantages, rows)


def test_the_table_has_rates_and_speedups() -> None:
    eager = {"rows": 64, "masked": 0.0, "contender": "eager log_softmax", "bytes": 4 * 10**9, "extra_bytes": 2**21}
    ours = {**eager, "contender": "stepopsd triton", "extra_bytes": 0}
    report = {
        "date": "2026-01-02", "chip": "NVIDIA X1", "command": "c", "versions": {"torch": "2"}, "vocab": 10,
        "dtype": "bfloat16", "ceilings": {"copy": 4e12, "read": 5e12},
        "timings": [
            {**eager, "seconds": {"median": 0.010}},
            {**ours, "seconds": {"median": 0.002}, "replay_seconds": {"median": 0.001}},
            {"rows": 128, "masked": 0.5, "contender": "torch.compile", "bytes": 1, "error": "out of memory"},
        ],
    }  # fmt: skip
    text = render(report)
    assert "| 64 | 0% | stepopsd triton | 2,000.0 | 1,000.0 | 4,000 | 100% | 80% | 5.0× | 0.0 MiB |" in text
    assert "| 128 | 50% | torch.compile | out of memory |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert columns == {11}


def test_file_names_come_from_the_chip() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
