"""The sampler's log-probs beside the trainer's: what is logged, and truncated importance sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from stepopsd.train.config import OptimConfig
from stepopsd.train.mismatch import mismatch, truncated_importance
from stepopsd.train.preparation import Preparation
from tests.train.conftest import make_policy
from tests.train.test_step import LOSSES, make_batch, step_of
from tests.train.test_trainer import config, log, parameters, train


def test_the_gap_and_the_divergence_are_those_of_the_tokens_that_both_know():
    sampled = torch.tensor([[0.0, -1.0, -2.0, -9.0]])
    trainer = torch.tensor([[0.0, -1.5, -1.9, 0.0]])
    seen = mismatch(sampled, trainer, torch.tensor([[True, True, True, False]]))
    assert seen["sampler_gap_max"] == pytest.approx(0.5)
    wanted = (0 + (math.exp(-0.5) - 1 + 0.5) + (math.exp(0.1) - 1 - 0.1)) / 3
    assert seen["sampler_kl"] == pytest.approx(wanted, rel=1e-5)
    assert mismatch(sampled, trainer, torch.zeros(1, 4, dtype=torch.bool)) == {"sampler_gap_max": 0, "sampler_kl": 0}


def test_the_divergence_estimates_the_kl_of_two_distributions():
    torch.manual_seed(0)
    logits = torch.randn(2, 50)
    p, q = torch.log_softmax(logits, -1)
    ids = torch.multinomial(p.exp(), 200_000, replacement=True)[None]
    seen = mismatch(p[ids], q[ids], torch.ones_like(ids, dtype=torch.bool))
    assert seen["sampler_kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.05)


def test_weights_are_the_ratio_up_to_the_cap_and_one_elsewhere():
    sampled = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    trainer = torch.tensor([[-1.0, -2.0, 0.0, 5.0]])
    weights, seen = truncated_importance(sampled, trainer, torch.tensor([[True, True, True, False]]), 2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, math.exp(-1), 2.0, 1.0]]))
    assert seen == {"tis/mean": pytest.approx((1 + math.exp(-1) + 2) / 3), "tis/capped": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match=r"cap must be greater than 0, got 0"):
        truncated_importance(sampled, trainer, torch.ones(1, 4, dtype=torch.bool), 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_scales_the_policy_term_of_every_loss_and_no_other_term(name):
    """With gradient P of the policy term and K of the KL term, a weight of 1/4 gives P/4 + K."""
    found = {}
    for weight, kl in ((1.0, 0.0), (0.25, 0.0), (1.0, 0.5), (0.25, 0.5)):
        policy = make_policy()
        before = parameters_of(policy)
        batch = make_batch(policy)
        shape = batch.input_ids.shape
        step = step_of(policy, loss={"name": name, "kl_coef": kl})
        step.run(batch, torch.full(shape, -2.0) if kl else None, 1, importance=torch.full(shape, weight))
        found[weight, kl] = parameters_of(policy) - before
    close = {"atol": 5e-6, "rtol": 1e-4}
    torch.testing.assert_close(found[0.25, 0.0], 0.25 * found[1.0, 0.0], **close)
    torch.testing.assert_close(found[1.0, 0.5] - found[0.25, 0.5], 0.75 * found[1.0, 0.0], **close)


def parameters_of(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize("old_logprobs", ["recompute", "sampled"])
def test_every_update_logs_gap_and_divergence_and_fp32_agrees(model, tmp_path, old_logprobs):
    trainer = train(config(tmp_path / "run", model, optim={"old_logprobs": old_logprobs}))
    for record in log(trainer):
        assert 0 < record["sampler_gap_max"] < 1e-4
        assert 0 <= record["sampler_kl"] < 1e-8


def test_an_update_without_advantages_is_compared_as_well(model, tmp_path):
    trainer = train(config(tmp_path / "run", model, env={"max_steps": 1}))  # nobody can win in one step
    assert all(0 < record["sampler_gap_max"] < 1e-4 for record in log(trainer))


def test_a_sampler_of_other_numerics_is_seen_and_weighed(model, tmp_path, monkeypatch):
    """A sampler whose log-probs are too high by 0.1: every weight is exp(-0.1), the divergence e^-0.1 - 1 + 0.1."""
    run = config(tmp_path / "run", model, optim={"tis_cap": 2.0, "updates": 1})
    real = Preparation._refresh_old_logprobs

    def shifted(self, batch, base):
        batch.old_logprobs[batch.response_mask] += 0.1
        return real(self, batch, base)

    monkeypatch.setattr(Preparation, "_refresh_old_logprobs", shifted)
    [record] = log(train(run))
    assert record["sampler_gap_max"] == pytest.approx(0.1, abs=1e-4)
    assert record["sampler_kl"] == pytest.approx(math.exp(-0.1) - 1 + 0.1, rel=1e-2)
    assert record["tis/mean"] == pytest.approx(math.exp(-0.1), abs=1e-4)
    assert record["tis/capped"] == 0
    capped = train(replace(run, run_dir=str(tmp_path / "capped"), optim=replace(run.optim, tis_cap=0.5)))
    assert log(capped)[0]["tis/mean"] == 0.5
    assert log(capped)[0]["tis/capped"] == 1


def test_without_a_gap_the_cap_changes_next_to_nothing(model, tmp_path):
    plain = train(config(tmp_path / "plain", model))
    weighed = train(config(tmp_path / "tis", model, optim={"tis_cap": 2.0}))
    torch.testing.assert_close(parameters(weighed), parameters(plain), atol=1e-4, rtol=1e-3)


def test_a_cap_needs_both_log_probs():
    with pytest.raises(ValueError, match=r"optim\.old_logprobs must be recompute, got sampled"):
        OptimConfig(tis_cap=2.0, old_logprobs="sampled")
    with pytest.raises(ValueError, match=r"optim\.tis_cap must lie in"):
        OptimConfig(tis_cap=-1.0)
