"""What the trainer tells a method about turns: rewards, penalties, anchors; and GiGPO in whole runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepopsd.credit import CreditInputs
from stepopsd.credit.gigpo import TURNS, Gigpo
from stepopsd.envs.base import Task
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.rollout.rows import build_rows, collate
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.extras import Played, gather
from stepopsd.train.turns import anchors_of
from tests.train.test_trainer import config, log, parameters, train

TASK = Task("t", "toy", "kind", "train", "")
LOSS = {"loss": {"reward_scale": 2.0, "invalid_action_penalty": 0.5}}


def episode(group, member, context, *turns):
    """Turns as (observation, reward, is_valid); ids are such that a dialogue continues itself."""
    made, ids = [], [1]
    for k, (observation, reward, is_valid) in enumerate(turns):
        answer = [10 + k, 20 + k][: 1 + k % 2]
        made.append(Turn(ids, answer, [-1.0] * len(answer), {}, observation, "", "", is_valid, reward=reward))
        ids = [*ids, *answer, 5]
    return Trajectory(TASK, "", group, member, 0, context, made, reward=sum(t[1] for t in turns))


def episodes(context):
    return [
        episode(0, 0, context, ("door", 0.0, True), ("hall", 0.0, False), ("door", 1.0, True)),
        episode(0, 1, context, ("door", 0.0, True), ("hall", 0.0, True)),
        episode(1, 0, context, ("door", 0.0, True)),
        episode(1, 1, context, ("door", 1.0, True)),
    ]


def played(context):
    run = from_tree(RunConfig, {"credit": {"name": "gigpo"}, "rollout": {"context": context}, **LOSS})
    trajectories = episodes(context)
    rows = build_rows(trajectories, span="action_only")
    batch = collate(rows, trajectories, pad_id=0, reward_scale=2.0, invalid_action_penalty=0.5)
    return Played(run, None, batch, rows, trajectories)


def test_turns_of_dialogues_lie_side_by_side():
    x = gather(TURNS, played("dialogue"))
    assert x["turn_rewards"].tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0], [2, 0, 0]]
    assert x["turn_penalties"].tolist() == [[0, 0.5, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert x["turn_numbers"].tolist() == [[0, 1, 2], [0, 1, -1], [0, -1, -1], [0, -1, -1]]
    assert x["turn_anchors"].tolist() == [[0, 1, 0], [0, 1, -1], [2, -1, -1], [2, -1, -1]]
    # prompt, turn 0, environment, both tokens of turn 1, environment, turn 2
    assert x["turn_of_token"][0].tolist() == [-1, 0, -1, 1, 1, -1, 2]


def test_turns_of_windowed_rows_stand_alone():
    x = gather(TURNS, played("turn"))
    assert x["turn_numbers"].tolist() == [[0], [1], [2], [0], [1], [0], [0]]
    assert x["turn_anchors"].tolist() == [[0], [1], [0], [0], [1], [2], [2]]


def assigned(context):
    """Step advantages by trajectory and turn."""
    p = played(context)
    batch = p.batch
    result = Gigpo().assign(CreditInputs(
        advantages=torch.zeros(len(batch)), response_mask=batch.response_mask, step_ids=batch.step_ids,
        trajectory_ids=batch.trajectory_ids, old_logprobs=batch.old_logprobs, teacher_logprobs=None, update=1,
        group_ids=batch.group_ids, extras=gather(TURNS, p),
    ))  # fmt: skip
    return {
        (row.trajectory, turn): float(result.advantages[r, start])
        for r, row in enumerate(p.rows)
        for turn, start in zip(row.turn_ids, row.turn_starts, strict=True)
    }


def test_both_layouts_give_a_turn_the_same():
    turn, dialogue = assigned("turn"), assigned("dialogue")
    assert turn == pytest.approx(dialogue)
    assert turn[2, 0] == pytest.approx(-turn[3, 0])
    assert turn[0, 1] == pytest.approx(-turn[1, 1])
    assert turn[1, 0] < turn[0, 0] < turn[0, 2]


def test_similar_observations_are_one_anchor_only_on_request():
    first, alike = "you see a mug 1 and a pan 2", "you see a mug 1 and a pan 3"
    texts = [first, alike, "nothing happens", first]
    one = [episode(0, 0, "turn", *((text, 0.0, True) for text in texts))]
    assert anchors_of(one) == [[0, 1, 2, 0]]
    assert anchors_of(one, similarity=0.9) == [[0, 0, 1, 0]]
    other = [*one, replace(one[0], group_id=1)]
    assert not set(anchors_of(other, similarity=0.9)[0]) & set(anchors_of(other, similarity=0.9)[1])


@pytest.mark.parametrize("context", ["turn", "dialogue"])
def test_without_its_step_part_a_run_is_grpo_to_the_bit(model, tmp_path, context):
    rollout = {"context": context}
    grpo = train(config(tmp_path / "a", model, rollout=rollout, credit={"name": "grpo"}, optim={"updates": 2}))
    options = {"name": "gigpo", "gigpo": {"step_advantage_w": 0.0}}
    same = train(config(tmp_path / "b", model, rollout=rollout, credit=options, optim={"updates": 2}))
    steps = train(config(tmp_path / "c", model, rollout=rollout, credit={"name": "gigpo"}, optim={"updates": 2}))
    assert torch.equal(parameters(grpo), parameters(same))
    assert not torch.equal(parameters(grpo), parameters(steps))
    assert all(record["anchor/groups"] > 0 for record in log(steps))
