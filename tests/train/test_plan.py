"""Rollout plans in whole runs: what is trained, what is only context, and what happens where a replay goes astray."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch

from stepopsd.envs.base import Observation, Task
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.text.chat import ChatFormat
from stepopsd.train import episodes
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.plan import steps_of
from stepopsd.train.policy import Policy
from stepopsd.train.step import PolicyStep
from tests.train.conftest import make_policy
from tests.train.test_trainer import config, log, parameters, train
from tests.train.toy import WordGame

RESETS = {"resets": {"n_reset": 4, "n_probes": 2, "localiser_tokens": 4}}


@pytest.fixture
def watched(monkeypatch):
    """Batches that a run trains on, and the (ids, targets) of every forward pass with a gradient."""
    batches, passes = [], []
    run, read = PolicyStep.run, Policy.read_targets

    def note_batch(self, batch, *args, **more):
        batches.append(batch)
        return run(self, batch, *args, **more)

    def note_pass(self, ids, attention, targets):
        if torch.is_grad_enabled():
            passes.append((ids, targets))
        return read(self, ids, attention, targets)

    monkeypatch.setattr(PolicyStep, "run", note_batch)
    monkeypatch.setattr(Policy, "read_targets", note_pass)
    return batches, passes


@pytest.mark.parametrize("name", ["rrpo", "srpo"])
@pytest.mark.parametrize("context", ["dialogue", "turn"])
def test_resets_learn_on_their_suffixes_alone(model, tmp_path, watched, name, context):
    options = {"context": context, "groups": 4, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 4}
    loss = {"name": "reinforce", "aggregation": "sequence_mean"}
    run = config(tmp_path / "run", model, credit={"name": name, **RESETS}, rollout=options, loss=loss,
                 env={"max_steps": 4}, optim={"updates": 2})  # fmt: skip
    entries = log(train(run))
    batches, passes = watched
    assert all(e["reset/rate"] > 0 and 0 < e["reset/step"] <= 1 for e in entries)
    assert all(e["tokens/generated_per_trained"] >= 1 for e in entries)
    assert any(e["grad_norm"] > 0 for e in entries)
    for batch in batches:
        for group in torch.unique(batch.group_ids).tolist():
            rows = batch.group_ids == group
            _, first = torch.unique(batch.trajectory_ids[rows], return_inverse=True)
            assert len(first) >= 2
            values = batch.advantages[rows].sum(1) / batch.response_mask[rows].sum(1).clamp(min=1)
            if context == "dialogue":  # one row a trajectory
                assert float(values.sum()) == pytest.approx(0, abs=1e-4), "groups are normalised apart"
        assert not batch.advantages[~batch.response_mask].any()
    if context == "dialogue" and name == "rrpo":
        assert any((~b.response_mask & b.attention_mask).sum(1).unique().numel() > 1 for b in batches), "no prefix"
    trained = {tuple(row[keep].tolist()) for ids, targets in passes for row, keep in zip(ids, targets, strict=True)}
    live = [b.response_mask[i] & (b.advantages[i] != 0) for b in batches for i in range(len(b))]
    rows = [b.input_ids[i] for b in batches for i in range(len(b))]
    assert trained == {tuple(row[mask].tolist()) for row, mask in zip(rows, live, strict=True) if mask.any()}
    assert sum(len(ids) for ids, _ in passes) == sum(bool(mask.any()) for mask in live), "rows without gradient"


class Wandering(WordGame):
    """No two episodes look alike."""

    episodes = count()

    def reset(self, task, seed):
        super().reset(task, seed)
        return Observation(f"look shelf {next(self.episodes) % 3 + 1}")


def test_a_replay_that_goes_astray_drops_the_reset_and_is_counted(model, tmp_path, monkeypatch):
    monkeypatch.setattr(episodes, "AlfworldEnv", Wandering)
    entries = log(train(config(tmp_path / "run", model, credit={"name": "rrpo", **RESETS})))
    assert sum(e.get("dropped/replay_mismatch", 0) for e in entries) > 0
    assert all(e["reset/rate"] < 1 for e in entries)
    assert [e["update"] for e in entries] == [1, 2, 3]


def test_a_resumed_run_of_a_plan_equals_an_uninterrupted_one(model, tmp_path):
    whole = config(tmp_path / "whole", model, credit={"name": "srpo", **RESETS}, optim={"updates": 3})
    first = replace(whole, run_dir=str(tmp_path / "parts"), optim=replace(whole.optim, updates=2))
    train(first)
    resumed = train(replace(first, optim=whole.optim))
    assert torch.equal(parameters(train(whole)), parameters(resumed))


def test_a_question_that_no_wording_of_fits_is_not_asked(model, tmp_path):
    credit = {"name": "srpo", "resets": {"n_probes": 0, "localiser_tokens": 505}}
    entries = log(train(config(tmp_path / "run", model, credit=credit, optim={"updates": 1})))
    assert entries[0]["localiser/too_long"] == 1
    assert entries[0]["reset/rate"] > 0


def test_delimiters_divide_turns_into_steps():
    policy = make_policy()
    chat = ChatFormat(policy.tokenizer)
    trajectory = Trajectory(Task("t", "toy", "k", "train", ""), "", 0, 0, 0, "dialogue")
    for words, seen in (("look . go to . cup", "first"), ("take . <|im_end|>", "second"), (". .", "third")):
        ids = policy.tokenizer(words, add_special_tokens=False)["input_ids"]
        trajectory.turns.append(Turn([1], ids, [0.0] * len(ids), {}, seen, chat.text(ids), "", True))
    got = [(step.text.split(), step.result, step.end) for step in steps_of(trajectory, chat, ".")]
    assert got == [
        (["look"], "", 2), (["go", "to"], "", 5), (["cup"], "second", 6), (["take"], "third", 9), ([], "", 10),
        ([], "", 11),
    ]  # fmt: skip
    assert [step.end for step in steps_of(trajectory, chat, "")] == [6, 9, 11]


@pytest.mark.parametrize(("tree", "message"), [
    ({"env": {"max_steps": 1}, "credit": {"name": "srpo"}}, "credit.name srpo needs attempts of several steps: env"),
    ({"env": {"name": "searchqa", "search": {"max_searches": 0}}, "credit": {"name": "srpo"}},
     "credit.name srpo needs attempts of several steps: env.search.max_searches allows one turn, and"),
    ({"credit": {"name": "rrpo", "control": "shuffled_advantages"}}, "credit.name rrpo needs its own advantages"),
    ({"credit": {"name": "rrpo", "resets": {"n_parents": 3}}}, "credit.resets.n_reset must be a multiple of n_parents"),
    ({"credit": {"name": "grpo+rrpo"}}, "at most one method that makes advantages, got grpo and rrpo"),
])  # fmt: skip
def test_what_a_run_lacks_is_named_before_it_starts(tree, message):
    with pytest.raises(ValueError, match=message):
        from_tree(RunConfig, tree)


def test_a_delimiter_makes_steps_of_a_single_turn():
    tree = {"env": {"max_steps": 1}, "credit": {"name": "srpo", "resets": {"delimiter": "</thought>"}}}
    assert from_tree(RunConfig, tree).credit.resets.delimiter == "</thought>"
