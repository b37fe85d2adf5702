"""Outcome scores of a batch: which tokens reason for which answer, and a run that uses them."""

from __future__ import annotations

import functools

import pytest
import torch

from stepopsd.options.credit import CreditConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.outcome import reasoning_and_answer
from stepopsd.train.trainer import Trainer
from tests.train.test_trainer import config, log, train


def test_the_last_span_is_the_answer():
    response = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    steps = torch.tensor([[-1, -1, 0, 0, -1, -1, 1, 1], [-1, 4, 4, -1, -1, -1, -1, -1], [-1] * 8])
    reasoning, answer = reasoning_and_answer(response, steps)
    assert reasoning.int().tolist() == [[0, 1, 1, 1, 0, 1, 0, 0], [0] * 8, [0] * 8]
    assert answer.int().tolist() == [[0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 0, 0], [0] * 8]


@pytest.mark.parametrize("name", ["oar_g", "oar_p"])
def test_a_run_reshapes_its_advantages(model, tmp_path, name):
    options = {"name": name, "oar": {"min_tokens": 1}}
    entry = log(train(config(tmp_path / "a", model, credit=options, optim={"updates": 1})))[0]
    assert entry["oar/rows"] > 0
    assert 0 < entry["oar/ess"] <= 1
    assert 0 <= entry["oar/at_floor"] <= entry["oar/damped"] + 1e-6
    assert 0 < entry["oar/seconds"] <= entry["teacher_seconds"]
    assert "oar/draw_agreement" not in entry


def test_draws_of_noise_are_compared_where_there_are_several(model, tmp_path):
    options = {"name": "oar_g", "oar": {"min_tokens": 1, "draws": 3}}
    entry = log(train(config(tmp_path / "a", model, credit=options, optim={"updates": 1})))[0]
    assert 0 < entry["oar/draw_agreement"] <= 1


def test_rows_without_advantage_are_not_scored(model, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr("stepopsd.train.outcome.oar_p", lambda model, ids, reasoning, *_, **__: scored.append(ids))
    run = config(tmp_path / "a", model, credit={"name": "oar_p"}, optim={"updates": 1}, env={"max_steps": 1})
    entry = log(train(run))[0]  # nobody can win in one step
    assert (scored, entry["oar/rows"]) == ([], 0)


def test_a_model_without_a_cache_is_refused_before_anything_is_played(model, tmp_path, monkeypatch):
    from transformers import Qwen3ForCausalLM

    forward = Qwen3ForCausalLM.forward

    def forgetful(self, *args, use_cache=None, past_key_values=None, **kwargs):
        return forward(self, *args, use_cache=False, **kwargs)

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", functools.wraps(forward)(forgetful))
    with pytest.raises(ValueError, match=r"oar_p needs a model with a KV cache.*Qwen3ForCausalLM keeps no"):
        Trainer(config(tmp_path / "a", model, credit={"name": "oar_p"}))
    assert Trainer(config(tmp_path / "b", model, credit={"name": "oar_g"})).credit.parts[0].name == "oar_g"


def test_noiseless_gradients_are_refused_before_the_run():
    with pytest.raises(ValueError, match=r"credit.oar.sigma must lie in \(0.0, 1.0\]"):
        from_tree(CreditConfig, {"name": "oar_g", "oar": {"sigma": 0.0}})
