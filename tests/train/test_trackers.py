"""Trackers are told what metrics.jsonl holds, once, also by a run that continues; what is missing is said at once."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import math
import sys
import types
from dataclasses import replace

import pytest
from accelerate import PartialState

from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.logging_config import LoggingConfig
from stepopsd.train.progress import Progress
from stepopsd.train.trackers import Trackers, require_trackers
from stepopsd.train.trainer import Trainer
from tests.extras import missing
from tests.train.toy import config


def read_events(folder):
    """Tag -> [(step, value)] as TensorBoard's own reader sees them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=missing("tensorboard")
    )
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_the_metrics_of_an_interrupted_run_once(model, tmp_path):
    pytest.importorskip("tensorboard", reason=missing("tensorboard"))
    run = config(
        tmp_path / "run", model, optim={"updates": 2}, checkpoint_every=1, logging={"trackers": ["tensorboard"]},
        eval={"every": 2},
    )  # fmt: skip
    Trainer(run).run()
    Trainer(replace(run, optim=replace(run.optim, updates=3))).run()
    found = read_events(tmp_path / "run" / "tensorboard")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    for key in ("success", "tokens/generated", "advantage/std"):
        assert [value for _, value in found[key]] == pytest.approx([r[key] for r in records], rel=1e-6)
    assert dict(found["evaluation/seen/all"]).keys() == {0, 2, 3}


@pytest.fixture
def state():
    """What a trainer has made before it starts its trackers."""
    PartialState(cpu=True)


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_one_run_that_goes_on(state, monkeypatch, tmp_path, name):
    started = []

    def init(**options):
        if real is not None:
            inspect.signature(real.init).bind(**options)
        started.append((options, FakeRun()))
        return started[-1][1]

    real = importlib.import_module(name) if importlib.util.find_spec(name) else None
    fake = types.ModuleType(name)
    fake.init, fake.__spec__ = init, importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, fake)
    run = from_tree(RunConfig, {"run_dir": str(tmp_path / "r"), "seed": 3, "logging": {"trackers": [name]}})
    for done in (0, 2):
        trackers = Trackers(run, done)
        trackers.log(done + 1, {"update": done + 1, "loss": 0.5, "kl": math.nan, "note": "text", "count": 2})
        trackers.close()
    (first, one), (second, other) = started
    assert first == second, "the same run"
    assert (first["project"], first["resume"], first["config"]["seed"]) == ("stepopsd", "allow", 3)
    assert first["name"].startswith(f"{run.credit.name}-r-seed-3")
    assert one.logged == [(1, {"loss": 0.5, "count": 2.0})]
    assert other.logged[0][0] == 3
    assert one.finished


def test_weights_and_biases_offline_for_real(state, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason=missing("wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = from_tree(RunConfig, {"run_dir": str(tmp_path / "run"), "logging": {"trackers": ["wandb"]}})
    trackers = Trackers(run, 0)
    trackers.log(1, {"loss": 0.25})
    trackers.close()
    (stored,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert stored.name == f"run-{(tmp_path / 'run' / 'tracker_id').read_text().strip()}.wandb"
    assert stored.stat().st_size > 0


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_said_before_the_model_is_loaded(monkeypatch, model, tmp_path, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    monkeypatch.setattr("stepopsd.train.trainer.load_policy", lambda *_: pytest.fail("too late"))
    run = config(tmp_path / "run", model, logging={"trackers": [name]})
    with pytest.raises(ImportError, match=rf"{name} is not installed: pip install 'stepopsd\[{name}\]'"):
        Trainer(run)
    require_trackers(replace(run, logging=LoggingConfig()))


def test_bad_sections_are_refused():
    with pytest.raises(ValueError, match=r"logging.trackers must be one of tensorboard, wandb, trackio, got 'mlflow'"):
        LoggingConfig(trackers=("mlflow",))
    with pytest.raises(ValueError, match="each tracker once"):
        LoggingConfig(trackers=("wandb", "wandb"))
    with pytest.raises(ValueError, match="project must not be empty"):
        LoggingConfig(project="")


def test_a_terminal_gets_the_time_left_and_a_file_gets_lines(monkeypatch, tmp_path, capsys):
    record = {"success": 0.5, "invalid_share": 0.0, "mixed_groups": 1.0, "sampler_gap_max": 0.0, "seconds": 90.0,
              "tokens/generated": 400}  # fmt: skip
    run = from_tree(RunConfig, {"run_dir": str(tmp_path), "optim": {"updates": 10, "generated_tokens": 2000}})
    shown = Progress(run, 0)
    clock = [0.0]
    monkeypatch.setattr(shown.bar, "get_time", lambda: clock[0])
    for update in (1, 2, 3):
        clock[0] += 90.0
        shown.update({**record, "update": update})
    task = shown.bar.tasks[0]
    assert task.total == 5, "the tokens end it after five updates"
    assert task.time_remaining == pytest.approx(180, abs=2)
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["update", f"{u}/10"] for u in (1, 2, 3)]
