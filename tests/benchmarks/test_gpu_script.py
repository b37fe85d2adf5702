"""`make gpu`: what it says and returns without a GPU, and that one failing stage loses nothing of the others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STAGES = ("csrc/build_native.py", "-m pytest", "-m stepopsd", "-m benchmarks")

# Stands in for a Python whose torch sees a GPU; logs what it is asked to run and fails where told to.
STAND_IN = """#!/usr/bin/env bash
echo "$*" | head -1 >>"$LOG"
case "$*" in
    *"import $MISSING") exit 1 ;;
    *"$BROKEN"*) exit 3 ;;
esac
[ "$1" = - ] && cat >/dev/null
exit 0
"""


def run(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(STAND_IN)
    fake.chmod(0o755)
    settings = {"PYTHON": str(fake), "LOG": str(log), "MISSING": "nothing", "BROKEN": "no such words", "NVCC": "true",
                "SANITIZER": "true", "RESULTS": str(tmp_path / "results"), **environment}  # fmt: skip
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    return done, log.read_text().splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_script_says_so_and_writes_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=ROOT, env={**environment, "RESULTS": str(tmp_path)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NVIDIA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_stage_runs_in_order(tmp_path: Path) -> None:
    done, log = run(tmp_path, BUDGET="33")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [line for line in log if line.startswith(STAGES)]
    assert [line.split()[:2] for line in asked] == [
        ["csrc/build_native.py"], ["-m", "pytest"], ["-m", "stepopsd.experiments.bench.sweep"],
        ["-m", "benchmarks.throughput"],
    ]  # fmt: skip
    assert "tests/ops/test_triton" in asked[1]
    assert f"--device cuda --budget 33 --results {tmp_path / 'results'}" in asked[2]
    assert f"--device cuda --results {tmp_path / 'results'}" in asked[3]
    assert done.stdout.count("passed in") >= 4


@pytest.mark.parametrize("broken", STAGES)
def test_a_failing_stage_does_not_stop_the_others_but_shows_in_the_exit_code(tmp_path: Path, broken: str) -> None:
    done, log = run(tmp_path, BROKEN=broken)
    assert done.returncode == 1
    assert done.stdout.count("FAILED") == 1
    assert sum(line.startswith(STAGES) for line in log) == 4


def test_what_is_missing_is_said_and_is_no_failure(tmp_path: Path) -> None:
    done, log = run(tmp_path, MISSING="pytest", NVCC="no-such-compiler")
    assert done.returncode == 0
    assert "build: not run: no nvcc" in done.stdout
    assert "test: not run: pytest is not installed" in done.stdout
    assert any(line.startswith("-m stepopsd") for line in log)


def test_the_study_of_an_update_needs_transformers(tmp_path: Path) -> None:
    done, log = run(tmp_path, MISSING="transformers", STAGES="throughput")
    assert done.returncode == 0
    assert "throughput: not run: transformers and accelerate are not installed" in done.stdout
    assert not any(line.startswith("-m benchmarks") for line in log)


def test_tests_that_need_hypothesis_are_named_where_it_is_missing(tmp_path: Path) -> None:
    done, log = run(tmp_path, MISSING="hypothesis", STAGES="test")
    assert done.returncode == 0
    assert "left out, as hypothesis is not installed" in done.stdout
    assert "test_backends_agree.py" not in next(line for line in log if line.startswith("-m pytest"))


def test_an_unknown_stage_is_an_error(tmp_path: Path) -> None:
    done, _ = run(tmp_path, STAGES="sweeep")
    assert done.returncode == 1
    assert "STAGES must name" in done.stderr
