"""Runs that are stopped, killed, damaged or out of time go on to the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepopsd.cli import main
from stepopsd.train import deadline
from stepopsd.train.checkpoint import checkpoints, load_checkpoint
from stepopsd.train.config_io import dump_config, load_config
from stepopsd.train.deadline import Deadline, DeadlineReached
from stepopsd.train.episodes import Episodes
from stepopsd.train.interrupts import Stop
from stepopsd.train.step import PolicyStep
from stepopsd.train.trainer import Trainer
from tests.train.toy import config

CREDIT = {"name": "stepopsd", "teacher_refresh_every": 2, "lambda_mix": 1.0, "alpha_clip": 0.9}
KILLS = 10
RUNNER = """
import sys, torch
from stepopsd.train import episodes
from stepopsd.train.config_io import load_config
from stepopsd.train.trainer import Trainer
from tests.train.toy import TASKS, WordGame
episodes.AlfworldEnv = WordGame
sys.modules["stepopsd.train.trainer"].tasks_of = lambda env, split: TASKS
torch.set_num_threads(1)
Trainer(load_config(sys.argv[1])).run()
"""


@pytest.fixture
def run(model, tmp_path):
    return config(tmp_path / "run", model, credit=CREDIT, optim={"updates": 5}, checkpoint_every=100)


def state(run):
    """Parameters of the last checkpoint, and every record, without what a clock or the machine's memory wrote."""
    trainer = Trainer(run)
    load_checkpoint(checkpoints(_path(run))[-1], trainer._state())
    parameters = torch.cat([p.detach().flatten() for p in trainer.policy.model.parameters()])
    records = [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k and "memory" not in k}
        for name in ("metrics", "evaluations", "transcripts")
        if (_path(run) / f"{name}.jsonl").exists()
        for line in (_path(run) / f"{name}.jsonl").read_text().splitlines()
    ]
    return parameters, records


def _path(run):
    return Path(run.run_dir)


def require_same(a, b):
    (mine, my_records), (theirs, their_records) = state(a), state(b)
    assert torch.equal(mine, theirs)
    assert my_records == their_records


@pytest.fixture
def whole(run, tmp_path):
    """The same run, never stopped."""
    uninterrupted = replace(run, run_dir=str(tmp_path / "whole"))
    Trainer(uninterrupted).run()
    return uninterrupted


def at_call(monkeypatch, owner, name, number, action):
    """Do ``action`` at the start of the ``number``-th call of a method."""
    original, calls = getattr(owner, name), []

    def wrapped(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_rollout_saves_the_updates_so_far(run, whole, monkeypatch, signum):
    with monkeypatch.context() as patch:
        # the first evaluation is a call, too: the fourth plays the third update
        at_call(patch, Episodes, "play_jobs", 4, lambda: os.kill(os.getpid(), signum))
        with pytest.raises(Stop):
            Trainer(run).run()
    assert [p.name for p in checkpoints(_path(run))] == ["update-000002"]
    Trainer(run).run()
    require_same(run, whole)


def test_a_signal_during_the_step_waits_for_its_end(run, whole, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, PolicyStep, "run", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stop):
            Trainer(run).run()
    assert [p.name for p in checkpoints(_path(run))] == ["update-000003"]
    Trainer(run).run()
    require_same(run, whole)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, whole, tmp_path):
    run = replace(run, checkpoint_every=2, keep_checkpoints=2)
    Trainer(replace(run, optim=replace(run.optim, updates=4))).run()
    weights = checkpoints(_path(run))[-1] / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    with pytest.warns(UserWarning, match=r"policy/model\.safetensors does not have the content that was written"):
        Trainer(run).run()
    assert (_path(run) / "checkpoints" / "damaged-update-000004").is_dir()
    require_same(run, whole)


def test_a_deadline_stops_before_an_update_that_would_not_fit(run, whole, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: clock[0])

    def slow():
        clock[0] += 600.0

    with monkeypatch.context() as patch:
        original = PolicyStep.run
        patch.setattr(PolicyStep, "run", lambda self, *args, **more: (slow(), original(self, *args, **more))[1])
        with pytest.raises(DeadlineReached, match=r"20\.0 of 30\.0 minutes are spent and an update takes up to 10\.0"):
            Trainer(replace(run, deadline=0.5)).run()
    assert [p.name for p in checkpoints(_path(run))] == ["update-000002"]
    Trainer(run).run()
    require_same(run, whole)


def test_without_a_deadline_there_is_time(monkeypatch):
    limit = Deadline(0.0)
    monkeypatch.setattr(deadline.time, "monotonic", lambda: 1e9)
    limit.note()
    limit.require_time()


def test_exit_codes_of_the_command(run, monkeypatch, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(run))
    for error, code in ((Stop(signal.SIGTERM), 143), (Stop(signal.SIGINT), 130), (DeadlineReached("late"), 75)):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "run", _raise(error))
            assert main(["train", "--config", str(file)]) == code


def _raise(error):
    def run(self):
        raise error

    return run


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(run, whole, tmp_path):
    run = replace(run, optim=replace(run.optim, updates=5), checkpoint_every=1)
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(run))
    rng, killed = random.Random(0), 0
    while killed < KILLS:  # each time until it is past its imports and into an update
        process = subprocess.Popen([sys.executable, "-c", RUNNER, str(file)], stdout=subprocess.PIPE, text=True)
        _wait_for_work(process)
        time.sleep(rng.uniform(0.0, 0.8))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
    subprocess.run([sys.executable, "-c", RUNNER, str(file)], check=True, timeout=300)
    print(f"killed {killed} times")
    require_same(load_config(file), whole)
    assert killed >= 3


def _wait_for_work(process):
    """Until the run says something: before that it only imports."""
    assert process.stdout is not None
    process.stdout.readline()
