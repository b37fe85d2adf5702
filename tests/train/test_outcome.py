"""Outcome scores of a batch: which tokens reason for which answer, and a run that uses them."""

from __future__ import annotations

import pytest
import torch

from stepopsd.train.config_io import from_tree
from stepopsd.train.credit_config import CreditConfig
from stepopsd.train.outcome import reasoning_and_answer
from tests.train.test_trainer import config, log, model, train

__all__ = ["model"]  # the fixture


def test_the_last_span_is_the_answer():
    response = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    steps = torch.tensor([[-1, -1, 0, 0, -1, -1, 1, 1], [-1, 4, 4, -1, -1, -1, -1, -1], [-1] * 8])
    reasoning, answer = reasoning_and_answer(response, steps)
    assert reasoning.int().tolist() == [[0, 1, 1, 1, 0, 1, 0, 0], [0] * 8, [0] * 8]
    assert answer.int().tolist() == [[0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 0, 0], [0] * 8]


@pytest.mark.parametrize("scorer", ["gradient", "perturbation"])
def test_a_run_reshapes_its_advantages(model, tmp_path, scorer):
    options = {"name": "oar", "oar": {"scorer": scorer, "min_tokens": 1, "stride": 1 if scorer == "gradient" else 5}}
    entry = log(train(config(tmp_path / "a", model, credit=options, optim={"updates": 1})))[0]
    assert entry["oar/rows"] > 0
    assert 0 < entry["oar/ess"] <= 1


def test_noiseless_gradients_are_refused_before_the_run():
    with pytest.raises(ValueError, match=r"credit.oar.sigma must lie in \(0.0, 1.0\]"):
        from_tree(CreditConfig, {"name": "oar", "oar": {"sigma": 0.0}})
