"""Branching rounds in whole runs: when they are played, what they lend, and that nothing of them is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepopsd.train import episodes
from stepopsd.train.branches import Branches
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.plan import sampled_tokens
from stepopsd.train.trainer import Trainer
from tests.train.test_plan import watched
from tests.train.test_trainer import config, log, parameters, train
from tests.train.toy import WordGame

__all__ = ["watched"]  # the fixture


@pytest.fixture
def rounds(monkeypatch):
    """Rows and result of every round, and the conductor that played it."""
    seen, play = [], Branches.play

    def note(self, rows, *, first):
        result = play(self, rows, first=first)
        seen.append((self, rows, first, result))
        return result

    monkeypatch.setattr(Branches, "play", note)
    return seen


def _tokens(pairs):
    """The marked tokens of each row."""
    return {tuple(row[keep].tolist()) for ids, marks in pairs for row, keep in zip(ids, marks, strict=True)}


@pytest.mark.parametrize("context", ["dialogue", "turn"])
@pytest.mark.parametrize(("when", "per_update"), [("minibatch", 2), ("lagged", 1), ("rollout", 1)])
def test_branches_lend_their_rewards_and_are_not_trained(model, tmp_path, watched, rounds, when, per_update, context):
    options = {"context": context, "groups": 4, "group_size": 3, "max_prompt_tokens": 100, "max_response_tokens": 4}
    run = config(tmp_path / "run", model, credit={"name": "appo", "appo": {"when": when, "branches": 2}},
                 rollout=options, optim={"updates": 2, "minibatch_groups": 2})  # fmt: skip
    entries = log(train(run))
    batches, passes = watched
    assert len(rounds) == 2 * per_update
    assert all(e["branches/played"] == e["branches/asked"] == 24 for e in entries)
    assert any(e["grad_norm"] > 0 for e in entries)
    assert all(e["branches/candidates"] > 0 and 0 <= e["branches/filled_up"] < 1 for e in entries)
    for batch, entry in zip(batches, entries, strict=True):
        assert entry["branches/attempt_reward_mean"] == pytest.approx(float(batch.rewards.mean()))
        assert entry["appo/log_ratio_std"] == 0
        assert entry["later/appo/multiplier_mean"] >= entry["appo/multiplier_mean"] == 1.5
    # Elsewhere rows without an advantage are not looked at again.
    assert when != "minibatch" or any(e["later/appo/log_ratio_std"] > 0 for e in entries)
    for batch in batches:
        assert torch.unique(batch.trajectory_ids).numel() == 12, "attempts alone are in the batch"
    attempts = _tokens((b.input_ids, b.response_mask) for b in batches)
    assert _tokens(passes) <= attempts
    for branches, rows, first, result in rounds:
        assert first == (when != "minibatch" or int(rows[0]) == 0)
        groups = branches.batch.group_ids[rows]
        assert result.rewards.shape[1] == 6
        for group in torch.unique(groups).tolist():
            assert result.rewards[groups == group].unique(dim=0).shape[0] == 1
    conductor = rounds[-1][0].conductor
    assert entries[-1]["tokens/generated"] == sum(map(sampled_tokens, conductor.trajectories))
    assert all(t.kept or t.turns[t.kept].kept or t.member >= 3 for t in conductor.trajectories[12:])


def test_a_group_that_does_not_vary_learns_from_its_branches(model, tmp_path, rounds):
    options = {"name": "appo", "appo": {"when": "rollout", "branches": 3}}
    train(config(tmp_path / "run", model, credit=options, optim={"updates": 3}))
    found = 0
    for branches, _, _, result in rounds:
        for group in torch.unique(branches.batch.group_ids).tolist():
            own = branches.batch.group_ids == group
            flat = branches.batch.rewards[own].std() == 0 and result.rewards[own][0].std() > 0
            found += bool(flat)
    assert found, "no flat group with branches that vary: nothing was tested"


def test_a_resumed_lagged_run_equals_an_uninterrupted_one(model, tmp_path):
    options = {"name": "appo", "appo": {"when": "lagged", "branches": 1}}
    whole = config(tmp_path / "whole", model, credit=options, optim={"updates": 3})
    first = replace(whole, run_dir=str(tmp_path / "parts"), optim=replace(whole.optim, updates=2))
    train(first)
    resumed = train(replace(first, optim=whole.optim))
    assert torch.equal(parameters(train(whole)), parameters(resumed))


@pytest.mark.parametrize(("tree", "message"), [
    ({"credit": {"name": "appo", "dynamic_sampling": "drop"}}, "credit.name appo needs advantages that may change"),
    ({"credit": {"name": "appo"}, "optim": {"minibatch_rows": 8}}, "optim.minibatch_rows must be 0, got 8"),
    ({"credit": {"name": "appo+oar_g"}}, r"credit.name must be appo, got appo\+oar_g; or set credit.appo.when"),
    ({"credit": {"name": "appo", "appo": {"branches": 0}}}, "credit.appo.branches must lie in"),
])  # fmt: skip
def test_what_a_round_cannot_have_is_named(tree, message):
    with pytest.raises(ValueError, match=message):
        from_tree(RunConfig, tree)


@pytest.mark.parametrize("name", ["appo", "rrpo", "srpo"])
def test_an_environment_that_cannot_replay_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, name):
    class Once(WordGame):
        replays = False

    monkeypatch.setattr(episodes, "AlfworldEnv", Once)
    run = config(tmp_path / "run", tmp_path / "no-model", credit={"name": name})
    with pytest.raises(ValueError, match=f"credit.name {name} needs an environment that can replay: env.name alfworld"):
        Trainer(run)
