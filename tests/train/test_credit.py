"""How the trainer calls credit methods: joined by name, given what they need, followed while the policy moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from stepopsd.credit import AuxiliaryLoss, CreditMethod, CreditResult, base, create, registered
from stepopsd.credit.base import broadcast_advantages
from stepopsd.options import credit as credit_config
from stepopsd.train import extras
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree, to_tree
from tests.train.test_trainer import config, log, parameters, train


@dataclass(frozen=True)
class Doubting(CreditMethod):
    """Doubles the advantages while the policy is where it was, and leaves them alone once it has moved."""

    per_minibatch: ClassVar[bool] = True

    def needs(self, update):
        return frozenset({"doubt"})

    def assign(self, inputs):
        seen.append((len(inputs.advantages), inputs.current_logprobs is None))
        factors = inputs.extras["doubt"] if inputs.current_logprobs is None else torch.ones_like(inputs.old_logprobs)
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        return CreditResult(plain * factors, {"doubt": factors.mean()}, factors=factors)


seen: list[tuple[int, bool]] = []


@pytest.fixture
def doubting(monkeypatch):
    seen.clear()
    monkeypatch.setitem(base._REGISTRY, "doubting", lambda options: Doubting())
    monkeypatch.setitem(credit_config.METHODS, "doubting", "factor")
    monkeypatch.setitem(extras.PROVIDERS, "doubt", lambda played: torch.full(played.batch.input_ids.shape, 2.0))


def test_joined_methods_multiply(model, tmp_path):
    shaping = {"lambda_mix": 1.0, "alpha_clip": 0.9}
    alone = train(config(tmp_path / "a", model, credit={"name": "stepopsd", **shaping}))
    joined = train(config(tmp_path / "b", model, credit={"name": "grpo+stepopsd", **shaping}))
    torch.testing.assert_close(parameters(alone), parameters(joined), atol=1e-3, rtol=0)
    assert "stepopsd/delta/std" in log(joined)[0]


def test_methods_that_follow_the_policy_are_asked_again_before_later_steps(model, tmp_path, doubting):
    run = config(tmp_path / "a", model, credit={"name": "doubting"}, optim={"updates": 1, "minibatch_groups": 2})
    train(run)
    assert seen == [(16, True), (8, False)]


def test_what_nobody_provides_is_named(model, tmp_path, doubting, monkeypatch):
    monkeypatch.delitem(extras.PROVIDERS, "doubt")
    with pytest.raises(ValueError, match="needs 'doubt'"):
        train(config(tmp_path / "a", model, credit={"name": "doubting"}))


@dataclass(frozen=True)
class Anchored(CreditMethod):
    """Only a loss term: the negative log-prob of every scored token."""

    role: ClassVar[str] = "auxiliary"
    rewarded: ClassVar[bool] = False

    def wants_teacher(self, update):
        return True

    def assign(self, inputs):
        return CreditResult(broadcast_advantages(inputs.advantages, inputs.response_mask))

    def auxiliary(self, inputs):
        logits = inputs.hidden @ inputs.weight.T
        picked = logits.log_softmax(-1).gather(-1, inputs.token_ids[:, None])[:, 0]
        torch.testing.assert_close(picked.detach(), inputs.logprobs, atol=1e-4, rtol=0)
        return AuxiliaryLoss(-(inputs.token_weights * picked).sum(), {"nll": -picked.mean()})


def test_an_auxiliary_term_trains_rows_without_advantage(model, tmp_path, monkeypatch):
    monkeypatch.setitem(base._REGISTRY, "anchored", lambda options: Anchored())
    monkeypatch.setitem(credit_config.METHODS, "anchored", "auxiliary")
    monkeypatch.setattr(credit_config.CreditConfig, "teacher_options", lambda self, name: self)
    # nobody can win in one step: every advantage is 0
    run = config(tmp_path / "a", model, env={"max_steps": 1}, credit={"name": "anchored", "teacher": "live"})
    records = log(train(run))
    assert all(r["mixed_groups"] == 0 and r["grad_norm"] > 0 for r in records)
    assert records[-1]["anchored/nll"] < records[0]["anchored/nll"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "one of .*grpo, .*stepopsd, or several joined by '\\+', got 'magic'"),
        ("stepopsd+stepopsd", "name a method once"),
        ("grpo+", "got 'grpo\\+'"),
        ("stepopsd+sdar", "at most one method may keep a stale teacher, got stepopsd and sdar"),
    ],
)
def test_impossible_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        credit_config.CreditConfig(name=name, sdar=credit_config.SdarConfig(teacher="stale"))


@pytest.mark.parametrize("name", ["rlsd", "sdar"])
def test_a_teacher_that_is_told_nothing_is_refused(name):
    section = {"hindsight": {"label": False, "peer": False, "rows_without_peer": "score"}}
    with pytest.raises(ValueError, match=f"credit.name {name} needs a privileged context: credit.{name}.hindsight"):
        from_tree(RunConfig, {"credit": {"name": name, name: section}})
    assert from_tree(RunConfig, {"credit": {"name": "grpo", name: section}}).credit.name == "grpo"
    section = {"hindsight": {"peer": False, "rows_without_peer": "skip"}}
    with pytest.raises(ValueError, match=f"credit.{name}.hindsight.peer must be true where rows_without_peer is skip"):
        from_tree(RunConfig, {"credit": {"name": name, name: section}})


@pytest.mark.parametrize("name", ["stepopsd", "rlsd", "sdar"])
def test_the_shuffled_teacher_keeps_gaps_and_trains_otherwise(model, tmp_path, name):
    told = {"label": True, "rows_without_peer": "score"}
    options = {"name": name, "lambda_mix": 1.0, "sdar": {"coefficient": 1.0, "hindsight": told}}

    def run(control):
        credit = {**options, "control": control}
        return train(config(tmp_path / control, model, credit=credit, optim={"updates": 1}))

    real, control = run("none"), run("shuffled_teacher")
    statistic = "sdar/gap_mean" if name == "sdar" else "delta/std"
    assert log(real)[0][statistic] != 0
    assert log(control)[0][statistic] == pytest.approx(log(real)[0][statistic], rel=1e-3)
    assert not torch.equal(parameters(real), parameters(control))


@pytest.mark.parametrize(
    ("name", "control", "message"),
    [
        ("grpo", "shuffled_teacher", "needs a teacher: credit.name grpo has none"),
        ("gigpo", "shuffled_teacher", "needs a teacher: credit.name gigpo has none"),
        ("grpo+opsd", "shuffled_teacher", "credit.name opsd compares whole distributions"),
        ("stepopsd+opsd", "shuffled_teacher", "credit.name opsd compares whole distributions"),
        ("opsd", "shuffled_advantages", "needs rewards: credit.name opsd has none"),
    ],
)
def test_controls_that_would_change_nothing_are_refused(name, control, message):
    live = credit_config.OpsdConfig(teacher="live")
    with pytest.raises(ValueError, match=message):
        credit_config.CreditConfig(name=name, control=control, opsd=live)


def test_the_configuration_knows_who_compares_distributions():
    options = to_tree(credit_config.CreditConfig())
    reading = {name for name in registered() if create(name, options).reads_teacher_states}
    assert reading == set(credit_config.READ_STATES)
