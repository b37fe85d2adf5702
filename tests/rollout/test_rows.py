from __future__ import annotations

from typing import Any

import pytest
import torch

from stepopsd.rollout.contexts import DialogueContext, Prompting, TurnContext
from stepopsd.rollout.engines.transformers import TransformersEngine
from stepopsd.rollout.limits import Limits
from stepopsd.rollout.loop import Job, run_episodes
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.rollout.rows import build_rows, collate
from stepopsd.text.chat import ChatFormat
from tests.rollout.toy import TASK, ScriptedEngine, ToyPool

CONTEXTS = {"turn": TurnContext, "dialogue": DialogueContext}


def turn(prompt: list[int], response: list[int], *, span: tuple[int, int] | None, valid: bool = True) -> Turn:
    spans = {} if span is None else {"action_only": span}
    return Turn(prompt, response, [-0.1 * i for i in response], spans, "", "", "", valid)


def dialogue() -> Trajectory:
    trajectory = Trajectory(TASK, "", 4, 1, 0, "dialogue", reward=1.0, success=True, status="success")
    trajectory.turns = [
        turn([1, 2], [3, 4, 9], span=(1, 2)),
        turn([1, 2, 3, 4, 9, 7, 8], [5, 6], span=None, valid=False),
        turn([1, 2, 3, 4, 9, 7, 8, 5, 6, 9, 7], [3, 9], span=(0, 2)),
    ]
    return trajectory


def test_dialogue_row_masks_exactly_the_sampled_tokens() -> None:
    [row] = build_rows([dialogue()], span="action_only")
    assert row.input_ids == [1, 2, 3, 4, 9, 7, 8, 5, 6, 9, 7, 3, 9]
    assert [i for i, own in enumerate(row.response_mask) if own] == [2, 3, 4, 7, 8, 11, 12]
    assert row.step_ids == [-1, -1, -1, 0, -1, -1, -1, -1, -1, -1, -1, 2, 2]
    assert (row.turn_ids, row.turn_starts) == ([0, 1, 2], [2, 7, 11])
    assert row.old_logprobs == pytest.approx([0, 0, -0.3, -0.4, -0.9, 0, 0, -0.5, -0.6, 0, 0, -0.3, -0.9])


def test_turn_rows_are_one_per_call() -> None:
    trajectory = dialogue()
    trajectory.context = "turn"
    rows = build_rows([Trajectory(TASK, "", 0, 0, 0, "turn"), trajectory], span="action_only")
    assert [row.input_ids for row in rows] == [t.prompt_ids + t.response_ids for t in trajectory.turns]
    assert [(row.trajectory, row.turn_ids, row.turn_starts) for row in rows] == [
        (1, [0], [2]), (1, [1], [7]), (1, [2], [11]),
    ]
    assert [sum(row.response_mask) for row in rows] == [3, 2, 2]
    assert rows[2].step_ids[-2:] == [2, 2]


def test_dialogue_that_rewrites_history_is_refused() -> None:
    trajectory = dialogue()
    trajectory.turns[1].prompt_ids[3] = 99
    with pytest.raises(ValueError, match="turn 1 of trajectory 0 does not continue"):
        build_rows([trajectory], span="action_only")


def test_batch_is_padded_on_the_right_and_rewards_are_row_wise() -> None:
    turns = dialogue()
    turns.context = "turn"
    failed = Trajectory(TASK, "", 4, 0, 0, "dialogue", turns=[turn([1], [2, 3], span=(0, 2), valid=False)])
    trajectories = [turns, failed, dialogue()]
    rows = build_rows(trajectories, span="action_only")
    batch = collate(rows, trajectories, pad_id=77, reward_scale=10.0, invalid_action_penalty=0.1)
    assert batch.input_ids.shape == (5, 13)
    assert batch.input_ids[3].tolist() == [1, 2, 3] + [77] * 10
    assert batch.attention_mask.sum(1).tolist() == [len(row.input_ids) for row in rows]
    assert batch.response_mask[3].tolist() == [False, True, True] + [False] * 10
    assert batch.step_ids[3].tolist() == [-1, 0, 0] + [-1] * 10
    assert batch.rewards.tolist() == pytest.approx([10.0, 9.9, 10.0, -0.1, 9.9])
    assert batch.trajectory_ids.tolist() == [0, 0, 0, 1, 2]
    assert batch.group_ids.tolist() == [4] * 5
    assert batch.success.tolist() == [True, True, True, False, True]
    assert not batch.advantages.any()
    types = [batch.input_ids, batch.step_ids, batch.old_logprobs, batch.rewards, batch.response_mask]
    assert [t.dtype for t in types] == [torch.int64, torch.int32, torch.float32, torch.float32, torch.bool]


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="rows must not be empty"):
        collate([], [], pad_id=0, reward_scale=1.0, invalid_action_penalty=0.0)


@pytest.mark.parametrize("kind", ["turn", "dialogue"])
def test_row_logprobs_equal_a_full_forward_pass(chat: ChatFormat, model: Any, kind: str) -> None:
    context = CONTEXTS[kind](chat, Prompting(window=2, think=False, style="compact"))
    limits = Limits(max_steps=4, max_prompt_tokens=900, max_response_tokens=10)
    played = run_episodes(
        [Job(TASK, 0, 0, m) for m in range(4)], ToyPool(3), TransformersEngine(model), context,
        limits=limits, temperature=0.7,
    )
    rows = build_rows(played, span="clean_step_no_observation")
    batch = collate(rows, played, pad_id=0, reward_scale=1.0, invalid_action_penalty=0.0)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    fresh = torch.log_softmax(logits[:, :-1] / 0.7, -1).gather(2, batch.input_ids[:, 1:, None])[..., 0]
    mask = batch.response_mask[:, 1:]
    assert (fresh - batch.old_logprobs[:, 1:])[mask].abs().max() < 1e-4
    assert int(mask.sum()) == sum(len(turn.response_ids) for t in played for turn in t.turns)


def test_step_ids_follow_the_chosen_span(chat: ChatFormat) -> None:
    engine = ScriptedEngine(chat.tokenizer, lambda key, turn: "hm <action>open door</action>")
    context = DialogueContext(chat, Prompting(window=2, think=False, style="compact"))
    limits = Limits(max_steps=5, max_prompt_tokens=900, max_response_tokens=40)
    played = run_episodes([Job(TASK, 0, 0, 0)], ToyPool(1), engine, context, limits=limits, temperature=1.0)
    counts = {
        name: sum(step >= 0 for step in build_rows(played, span=name)[0].step_ids)
        for name in ("action_only", "clean_step_no_observation")
    }
    sampled = sum(build_rows(played, span="action_only")[0].response_mask)
    assert 0 < counts["action_only"] < counts["clean_step_no_observation"] == sampled - 3  # three stop ids
