"""Configuration mistakes are found before any work starts, by their full key."""

from __future__ import annotations

import pytest

from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import dump_config, from_tree, load_config, to_tree


def test_resolved_config_reads_back_unchanged(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(RunConfig()))
    assert load_config(file) == RunConfig()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"credit": {"lamda_mix": 0.1}}, r"unknown config key credit\.lamda_mix; did you mean lambda_mix"),
        ({"nonsense": 1}, r"unknown config key nonsense"),
        ({"credit": {"lambda_mix": 1.5}}, r"credit\.lambda_mix must lie in \[0\.0, 1\.0\], got 1\.5"),
        ({"credit": {"alpha_clip": 0}}, r"credit\.alpha_clip must lie in \(0\.0, 1\.0\], got 0"),
        ({"credit": {"weight_fn": "tanh"}}, r"credit\.weight_fn must be one of sigmoid, exp, got 'tanh'"),
        ({"credit": 3}, r"credit must be a mapping, got int"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr must be a number, got 'fast'"),
        ({"optim": {"updates": 1.5}}, r"optim\.updates must be of type int, got 1\.5"),
        ({"rollout": {"group_size": 1}}, r"rollout\.group_size must lie in \[2"),
        ({"loss": {"dual_clip": 0.5}}, r"loss\.dual_clip must be 0 \(off\) or greater than 1, got 0\.5"),
        ({"loss": {"name": "cispo", "dual_clip": 3.0}}, r"loss\.dual_clip must be 0 or null with loss\.name cispo"),
        ({"loss": {"name": "reinforce", "clip_low": 0.2}}, r"loss\.clip_low must be null with loss\.name reinforce"),
        ({"loss": {"clip_low": "wide"}}, r"loss\.clip_low must be a number, got 'wide'"),
        ({"loss": {"aggregation": "mean"}}, r"loss\.aggregation must be one of token_mean, .*, got 'mean'"),
        ({"credit": {"dynamic_sampling": True}}, r"credit\.dynamic_sampling must be one of off, drop, got True"),
        ({"env": {"eval_splits": "seen"}}, r"env\.eval_splits must be a list, got 'seen'"),
        ({"resume": 1}, r"resume must be of type bool, got 1"),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(tree, message):
    with pytest.raises(ValueError, match=message):
        from_tree(RunConfig, tree)


def test_scientific_notation_without_a_dot_is_a_number():
    assert from_tree(RunConfig, {"optim": {"lr": "1e-6"}}).optim.lr == 1e-6


@pytest.mark.parametrize(
    ("name", "reduction", "bound"),
    [
        ("grpo", "token_mean", 3.0),
        ("dr_grpo", "dr_grpo", 3.0),
        ("gspo", "sequence_mean", 0.0),
        ("cispo", "token_mean", 0.0),
    ],
)
def test_what_a_loss_leaves_open_is_filled_in(name, reduction, bound):
    loss = from_tree(RunConfig, {"loss": {"name": name, "clip_low": None}}).loss
    assert (loss.reduction, loss.bound) == (reduction, bound)
    chosen = from_tree(RunConfig, {"loss": {"name": name, "aggregation": "sequence_sum"}}).loss
    assert chosen.reduction == "sequence_sum"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_config(tmp_path / "nowhere.yaml")


def test_tree_holds_plain_values_only():
    assert to_tree(RunConfig())["env"]["eval_splits"] == ["seen", "unseen"]
