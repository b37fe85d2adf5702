"""What goes wrong inside an update: memory that runs out, gradients that are not finite, a disk that is full."""

from __future__ import annotations

import errno
import json
import warnings
from dataclasses import replace

import pytest
import torch

from stepopsd.train import checkpoint
from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.memory import halving
from stepopsd.train.policy import Policy
from stepopsd.train.step import PolicyStep
from stepopsd.train.trainer import Trainer
from tests.train.toy import config


@pytest.fixture
def run(model, tmp_path):
    credit = {"name": "stepopsd", "lambda_mix": 1.0, "alpha_clip": 0.9}
    return config(tmp_path / "run", model, credit=credit, loss={"kl_coef": 0.01})


def train(run):
    trainer = Trainer(run)
    trainer.run()
    records = [json.loads(line) for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()]
    return torch.cat([p.detach().flatten() for p in trainer.policy.model.parameters()]), records


def test_without_memory_micro_batches_are_halved_and_the_result_is_the_same(run, tmp_path, monkeypatch):
    whole, expected = train(replace(run, run_dir=str(tmp_path / "whole")))
    original, sizes = Policy.read_targets, []

    def scarce(self, input_ids, attention_mask, targets):
        sizes.append(input_ids.numel())
        readout = original(self, input_ids, attention_mask, targets)
        if input_ids.numel() > 300:
            raise torch.OutOfMemoryError("injected")
        return readout

    monkeypatch.setattr(Policy, "read_targets", scarce)
    with pytest.warns(UserWarning, match="policy step: out of memory, goes on with micro-batches of"):
        halved, records = train(run)
    assert max(sizes) > 300
    torch.testing.assert_close(halved, whole, rtol=1e-4, atol=1e-5)
    assert records[0]["microbatch_tokens"] <= 300 < expected[0]["microbatch_tokens"]
    for mine, theirs in zip(records, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["entropy"] == pytest.approx(theirs["entropy"], abs=1e-5)


def test_memory_that_runs_out_in_the_backward_leaves_no_half_gradient(run, tmp_path, monkeypatch):
    whole, _ = train(replace(run, run_dir=str(tmp_path / "whole"), optim=replace(run.optim, microbatch_tokens=300)))
    calls = []

    def backward(self, loss):
        loss.backward()
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("injected after the gradients were added")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("accelerate.Accelerator.backward", backward)
        again, _ = train(replace(run, optim=replace(run.optim, microbatch_tokens=300)))
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)


def test_a_row_that_does_not_fit_alone_says_what_to_do():
    with (
        pytest.warns(UserWarning, match="micro-batches of 70 tokens"),
        pytest.raises(torch.OutOfMemoryError, match=r"a single row of 70 tokens .*rollout\.max_prompt_tokens"),
    ):
        halving(_fail, 100, least=70, what="scoring")


def _fail(tokens):
    raise torch.OutOfMemoryError("always")


def poison(monkeypatch, at):
    """Make the loss of some optimiser steps, counted from 1, not finite."""
    original, calls = PolicyStep._loss, []

    def loss(self, *args):
        calls.append(1)
        return original(self, *args) * (float("nan") if len(calls) in at else 1.0)

    monkeypatch.setattr(PolicyStep, "_loss", loss)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(run, monkeypatch):
    poison(monkeypatch, at={2})
    with pytest.warns(UserWarning, match="a step was skipped"):
        parameters, records = train(run)
    assert [r["skipped_steps"] for r in records] == [0, 1, 0]
    assert torch.isfinite(parameters).all()


def test_too_many_of_them_stop_the_run_and_the_checkpoint_is_from_before(run, monkeypatch):
    poison(monkeypatch, at={2, 3, 4, 5})
    run = replace(run, checkpoint_every=1, optim=replace(run.optim, updates=6, max_skipped_steps=1))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(FloatingPointError, match=r"2 steps in a row .* is 1"),
    ):
        train(run)
    last = checkpoints(Trainer(run).run_dir)[-1]
    assert last.name == "update-000002"
    trainer = Trainer(run)
    checkpoint.load_checkpoint(last, trainer._state())
    assert all(torch.isfinite(p).all() for p in trainer.policy.model.parameters())


def test_a_full_disk_leaves_the_checkpoint_before(run, monkeypatch, tmp_path):
    whole, expected = train(replace(run, run_dir=str(tmp_path / "whole")))
    original = torch.save

    def full(content, path):
        if "update-000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(content, path)

    run = replace(run, checkpoint_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            train(run)
    assert [p.name for p in checkpoints(Trainer(run).run_dir)] == ["update-000001"]
    again, records = train(run)
    assert torch.equal(again, whole)
    assert [r["loss"] for r in records] == [r["loss"] for r in expected]
