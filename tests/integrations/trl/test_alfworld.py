"""Whole episodes on the bundled games, through the example."""

from __future__ import annotations

import pytest
import torch

from tests.examples.loading import example
from tests.extras import missing
from tests.integrations.trl.conftest import luck

pytest.importorskip("trl", reason=missing("trl"))
pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    from stepopsd.experiments.tiny_model import save

    save(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("credit", ["grpo", "stepopsd", "gigpo+stepopsd"])
def test_a_random_model_trains_three_steps_on_the_bundled_games(folder, tmp_path, monkeypatch, credit):
    module = example("trl_alfworld")
    # A random model wins nothing: it is paid for what it can do.
    monkeypatch.setattr(module, "kept_the_format", luck)
    monkeypatch.setattr(module, "BUNDLED_MODEL", folder)  # the compact wording
    options = {"steps": 3, "games": 2, "group": 4, "batch": 4, "max-turns": 3, "turn-tokens": 6, "max-tokens": 160}
    trainer = module.main(
        ["--model", str(folder), "--credit", credit, "--lr", "1e-2", "--out", str(tmp_path / "run")]
        + [part for key, value in options.items() for part in (f"--{key}", str(value))]
    )
    assert trainer.state.global_step == 3
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(folder)
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), trainer.model.parameters(), strict=True)]
    assert any(changed)
    for logged in trainer.state.log_history[:-1]:
        assert logged["completions/mean_length"] <= 18
        assert logged["grad_norm"] > 0
        assert ("credit/delta/count" in logged or "credit/stepopsd/delta/count" in logged) == ("stepopsd" in credit)
