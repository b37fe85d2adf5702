"""Adapters train like a policy of their own: identities, one copy of the model, checkpoints, resuming."""

from __future__ import annotations

import builtins
from dataclasses import replace

import pytest
import torch

from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.lora_config import LoraConfig
from stepopsd.train.policy import load_policy
from tests.extras import missing
from tests.train.toy import config

LORA = {"rank": 4, "alpha": 8.0}
CREDIT = {"name": "stepopsd", "teacher_refresh_every": 2, "lambda_mix": 1.0, "alpha_clip": 0.9}


def train(run):
    from stepopsd.train.trainer import Trainer

    trainer = Trainer(run)
    trainer.run()
    return trainer


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason=missing("peft"))


@pytest.fixture
def own_weights(peft):
    from stepopsd.train.lora import own_weights

    return own_weights


@pytest.fixture
def loaded(model, peft):
    """A policy with adapters that are not 0."""
    policy = load_policy(config(model, model).model, "cpu", LoraConfig(**LORA))
    from stepopsd.train.lora import own_weights

    torch.manual_seed(1)
    for weight in own_weights(policy).values():
        torch.nn.init.normal_(weight, std=0.1)
    return policy


def score(policy):
    ids = torch.arange(1, 9).view(1, -1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    targets = mask.clone()
    targets[:, 0] = False
    return policy.score(ids, mask, targets, temperature=1.0, max_tokens=100)


def test_copies_are_adapters_of_one_model(loaded, model, own_weights):
    whole = sum(p.numel() for p in loaded.model.parameters())
    plain, trained = load_policy(config(model, model).model, "cpu"), score(loaded)
    start, teacher = loaded.starting_copy(), loaded.frozen_copy()
    assert start.model is teacher.model is loaded.model
    assert torch.equal(score(start), score(plain))
    assert torch.equal(score(teacher), trained)
    for weight in own_weights(loaded).values():
        weight.data += 0.05
    assert torch.equal(score(teacher), trained), "a snapshot stays"
    assert not torch.equal(score(loaded), trained)
    teacher.copy_weights_from(loaded)
    assert torch.equal(score(teacher), score(loaded))
    assert sum(p.numel() for p in loaded.model.parameters()) < 1.5 * whole


def test_only_its_own_adapter_trains(loaded, own_weights):
    loaded.frozen_copy()
    score(loaded.starting_copy())
    own = {id(weight) for weight in own_weights(loaded).values()}
    assert own
    assert {id(p) for p in loaded.model.parameters() if p.requires_grad} == own


def test_zero_lambda_trains_to_the_bits_of_grpo(model, tmp_path, own_weights):
    options = {"lora": LORA, "optim": {"lr": 1e-2, "updates": 2}, "loss": {"kl_coef": 0.01}}
    runs = [
        train(config(tmp_path / name, model, credit={"name": name, **more}, **options))
        for name, more in (("grpo", {}), ("stepopsd", {"lambda_mix": 0.0, "diagnose_every": 1}))
    ]
    grpo, same = (own_weights(run.policy) for run in runs)
    assert any(weight.abs().max() > 0 for name, weight in grpo.items() if "lora_B" in name)
    for name, weight in grpo.items():
        assert torch.equal(weight, same[name])
    before = load_policy(runs[0].config.model, "cpu").model.state_dict()
    for name, weight in runs[0].policy.model.state_dict().items():
        if "lora" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "")])


def test_resumed_run_equals_uninterrupted_run(model, tmp_path, own_weights):
    whole = config(tmp_path / "whole", model, credit=CREDIT, lora=LORA, loss={"kl_coef": 0.01},
                   optim={"lr": 1e-2, "updates": 4})  # fmt: skip
    uninterrupted = own_weights(train(whole).policy)
    first = replace(whole, run_dir=str(tmp_path / "parts"), optim=replace(whole.optim, updates=3))
    train(first)
    folder = checkpoints(tmp_path / "parts")[-1]
    assert (folder / "policy" / "adapter_model.safetensors").is_file()
    assert not (folder / "policy" / "model.safetensors").exists()
    resumed = own_weights(train(replace(first, optim=whole.optim)).policy)
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())


def test_a_checkpoint_is_a_model_that_can_be_evaluated(model, tmp_path, peft):
    trainer = train(config(tmp_path / "run", model, lora=LORA, optim={"lr": 1e-2, "updates": 2}))
    saved = checkpoints(tmp_path / "run")[-1] / "policy"
    again = load_policy(replace(trainer.config.model, path=str(saved)), "cpu")
    torch.testing.assert_close(score(again), score(trainer.policy), rtol=0, atol=1e-6)


def test_a_target_that_no_layer_has_is_refused(model, peft):
    with pytest.raises(ValueError, match=r"lora\.targets \['no_such'\]"):
        load_policy(config(model, model).model, "cpu", LoraConfig(rank=4, targets=("no_such",)))


def test_without_peft_the_extra_is_named(model, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "peft":
            raise ImportError("no peft")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"lora\.rank needs peft: pip install 'stepopsd\[lora\]'"):
        load_policy(config(model, model).model, "cpu", LoraConfig(rank=4))


def test_a_rank_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"lora\.rank must lie in \[0, 65536\], got -1"):
        LoraConfig(rank=-1)
