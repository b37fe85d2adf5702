"""Workers: finished cells are skipped, failed ones tried again, two share, a killed one takes its training along."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stepopsd.experiments.study import claims, work
from stepopsd.train.config_io import dump_config
from tests.experiments.study.conftest import SOURCE, read
from tests.experiments.synthetic_runs import write_lines

SLEEPER = """
import os, time
from stepopsd.experiments.study import cell
cell.end_with_worker()
print("pid", os.getpid(), flush=True)
time.sleep(60)
"""


WORKER = """
import subprocess, sys, time
process = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(60)
"""


class Trained(list):
    """Folders of the cells that were trained, in order; ``broken`` fails once."""

    broken = "nothing"


@pytest.fixture
def trained(monkeypatch):
    """Replaces training."""
    names = Trained()

    def run(config, folder, claim):
        names.append(str(folder))
        time.sleep(0.02)
        write_lines(folder / "metrics.jsonl", [{"update": 1}])
        (folder / "config.yaml").write_text(dump_config(config))
        (folder / work.LOG).write_text("no space left\n")
        return int(names.broken in str(folder) and names.count(str(folder)) == 1)

    monkeypatch.setattr(work, "_run", run)
    return names


def test_failed_cells_are_tried_again_and_finished_ones_are_not(study, tmp_path, trained, capsys):
    trained.broken = "stepopsd/seed-1"
    first = work.work(study, tmp_path)
    assert first.failed == ("toy/stepopsd/seed-1",)
    assert len(first.finished) == 5
    assert "no space left" in capsys.readouterr().out
    second = work.work(study, tmp_path)
    assert second == work.Outcome(("toy/stepopsd/seed-1",), (), ())
    assert work.work(study, tmp_path) == work.Outcome((), (), ())
    assert len(trained) == 7


def test_two_workers_never_train_a_cell_twice(study, tmp_path, trained):
    outcomes = []
    workers = [threading.Thread(target=lambda: outcomes.append(work.work(study, tmp_path))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(trained) == sorted({str(tmp_path / "cells" / cell.name) for cell in study.cells})
    assert sum(len(outcome.finished) for outcome in outcomes) == 6


def test_a_finished_cell_of_another_study_is_refused(study, tmp_path, trained):
    work.work(study, tmp_path)
    other = read(tmp_path, SOURCE.replace("lambda_mix: 0.1", "lambda_mix: 0.2"))
    with pytest.raises(ValueError, match=r"credit\.lambda_mix was 0.1 and is now 0.2"):
        work.work(other, tmp_path)


def test_methods_may_be_added_to_a_study_that_has_begun(study, tmp_path, trained):
    work.work(study, tmp_path)
    before = len(trained)
    more = read(tmp_path, SOURCE + "  sdar: {credit: {name: sdar}}\n")
    assert len(work.work(more, tmp_path).finished) == 3
    assert len(trained) == before + 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "model: {path: bundled}, env: {games: nowhere/at-all}",
            "toy, grpo: games root 'nowhere/at-all' is not a folder",
        ),
        ("model: {path: bundled}, env: {games: $NO_SUCH_GAMES}", "the environment variable in it is not set"),
        ("model: {path: bundled}, env: {eval_splits: [unsen]}", "toy, grpo: split 'unsen' not found"),
        ("model: {path: ./not-made}", "toy, grpo: model.path: no model in ./not-made"),
        ("model: {path: ''}", "toy, grpo: model.path must name a model directory"),
    ],
)
def test_what_is_not_there_is_told_once_and_nothing_is_trained(tmp_path, trained, given, said):
    study = read(tmp_path, SOURCE.replace("model: {path: bundled}", given))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(said)):
        work.work(study, tmp_path)
    assert not trained
    assert not (tmp_path / "cells").exists()


def test_training_ends_with_a_worker_that_is_killed(tmp_path):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, SLEEPER], stdout=subprocess.PIPE, text=True
    )
    training = int(worker.stdout.readline().split()[1])
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    deadline = time.time() + 20
    while _alive(training) and time.time() < deadline:
        time.sleep(0.05)
    assert not _alive(training)


def test_a_cell_that_was_taken_over_stops_training(study, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.05)
    folder = tmp_path / "cell"
    claim = claims.take(folder, stale_after_s=600)
    monkeypatch.setattr(work.sys, "executable", str(_program(tmp_path, "exec cat > /dev/null")))
    (folder / "claim-1.json").write_text("{}")
    started = time.time()
    assert work._run(study.cells[0].config, folder, claim) == 1
    assert time.time() - started < 10
    claim.release()


def _program(folder: Path, body: str) -> Path:
    """Stands in for Python: ends when its standard input does."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
