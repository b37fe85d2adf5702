"""A bfloat16 model with exact weights beside it: small steps add up, runs resume to the bits, fp32 is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from stepopsd.train.checkpoint import checkpoints, load_checkpoint
from stepopsd.train.precision import Masters
from stepopsd.train.trainer import Trainer
from tests.train.test_trainer import config, parameters, train

HALF = {"dtype": "bfloat16"}


def half(tmp_path, model, name, **optim):
    run = config(tmp_path / name, model, optim={"lr": 1e-5, "updates": 4, **optim}, loss={"kl_coef": 0.01})
    return replace(run, model=replace(run.model, **HALF))


def test_steps_below_the_spacing_of_bfloat16_add_up():
    weight = nn.Parameter(torch.full((4,), 1.0, dtype=torch.bfloat16))
    masters = Masters([weight])
    optimizer = torch.optim.SGD(masters.weights, lr=1e-3)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        masters.collect()
        assert weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
        masters.round()
    torch.testing.assert_close(masters.weights[0], torch.full((4,), 0.99), rtol=0, atol=1e-6)
    assert torch.equal(weight, masters.weights[0].bfloat16())
    assert weight[0].item() < 1.0, "alone, bfloat16 would have stayed at 1"


def test_gradients_of_micro_batches_add_up_in_fp32():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    masters = Masters([weight])
    for _ in range(300):
        weight.grad = torch.ones_like(weight)
        masters.collect()
    assert float(masters.weights[0].grad) == 300.0  # bfloat16 stops at 256


def test_weights_in_fp32_are_their_own_masters():
    weight = nn.Parameter(torch.zeros(1))
    assert Masters([weight]).weights[0] is weight


def test_a_run_in_bfloat16_moves_and_resumes_to_the_same_bits(model, tmp_path):
    whole = train(half(tmp_path, model, "whole"))
    assert whole.policy.model.dtype == torch.bfloat16
    exact = torch.cat([w.detach().flatten() for w in whole.masters.weights])
    assert torch.equal(exact.bfloat16(), parameters(whole))
    start = torch.cat([p.flatten() for p in Trainer(half(tmp_path, model, "new")).policy.model.parameters()])
    assert 0 < (exact - start.float()).abs().max() < 1e-4
    first = half(tmp_path, model, "parts", updates=2)
    train(first)
    resumed = train(replace(first, optim=replace(first.optim, updates=4)))
    assert torch.equal(torch.cat([w.detach().flatten() for w in resumed.masters.weights]), exact)


def test_a_checkpoint_without_exact_weights_takes_those_of_the_policy(model, tmp_path):
    rounded = train(half(tmp_path, model, "rounded", master_weights=False))
    assert rounded.masters is None
    trainer = Trainer(half(tmp_path, model, "exact"))
    content = torch.load(checkpoints(tmp_path / "rounded")[-1] / "optimizer.pt")
    assert "weights" not in content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.optimizer, "load_state_dict", lambda state: None)
        load_checkpoint(checkpoints(tmp_path / "rounded")[-1], trainer._state())
    taken = torch.cat([w.detach().flatten() for w in trainer.masters.weights])
    assert torch.equal(taken.bfloat16(), parameters(rounded))
