"""Tokens that went through each model, against counts by hand."""

from __future__ import annotations

import pytest

from stepopsd.credit.contexts import prefix_context, suffix_context
from stepopsd.rollout.engines.base import Sampling
from stepopsd.rollout.engines.transformers import TransformersEngine
from stepopsd.train.accounting import Forwards
from tests.train.conftest import make_policy
from tests.train.test_step import make_batch
from tests.train.test_trainer import config, log, train


def test_only_rows_with_targets_are_counted_and_without_padding():
    policy = make_policy()
    batch = make_batch(policy)
    forwards = Forwards(policy, None, object())
    targets = batch.response_mask.clone()
    targets[1] = False
    policy.score(batch.input_ids, batch.attention_mask, targets, temperature=1.0, max_tokens=20)
    lengths = batch.attention_mask.sum(1)
    assert forwards.since() == {"tokens/forward_student": int(lengths.sum() - lengths[1])}
    assert forwards.since() == {"tokens/forward_student": 0}


def test_a_conversation_is_forwarded_once():
    engine = TransformersEngine(make_policy().model)
    with engine.session() as session:
        [first] = session.generate({0: [5, 6, 7]}, Sampling(4), seeds={0: 1}).values()
        assert engine.forwarded == 3 + 3  # the prompt, and every sampled token but the last
        session.generate({0: [5, 6, 7, *first.ids, 8, 9]}, Sampling(1), seeds={0: 2})
    assert engine.forwarded == 6 + 1 + 2


def test_an_update_says_what_went_through_each_model(model, tmp_path):
    run = config(
        tmp_path / "run", model, loss={"kl_coef": 0.01}, optim={"updates": 2},
        credit={"name": "stepopsd", "lambda_mix": 1.0}, eval={"every": 1},
    )  # fmt: skip
    for record in log(train(run)):
        every_row = record["tokens/student"]  # the KL term reads them all
        assert record["tokens/forward_student"] == every_row
        assert record["tokens/forward_reference"] == every_row
        assert record["tokens/forward_loss"] == every_row
        # A dialogue is forwarded once, less each episode's last token; neighbours that wait are extra.
        assert record["tokens/forward_generation"] >= every_row - 16
        assert record["tokens/forward_generation"] < 2 * every_row


def test_rows_without_advantage_cost_nothing_without_kl(model, tmp_path):
    record = log(train(config(tmp_path / "run", model, optim={"updates": 1})))[0]
    assert 0 < record["tokens/forward_loss"] < record["tokens/student"]
    assert record["tokens/forward_loss"] == record["tokens/forward_student"]
    assert "tokens/forward_reference" not in record


@pytest.mark.parametrize("block", [[], [11, 13]])
def test_the_teacher_counts_what_sharing_a_dialogue_saves(block):
    row, steps = list(range(2, 12)), [-1, -1, 0, 0, -1, -1, 1, 1, -1, -1]
    shared = suffix_context(row, steps, block)
    # Apart: 2 tokens, the block and one of two span tokens; then 6 and the same again.
    assert shared.apart == (len(shared.ids) if not block else (2 + 2 + 1) + (6 + 2 + 1))
    assert len(shared.ids) == (7 if not block else 6 + 2 * 3)
    once = prefix_context(row, steps, block, 1)
    assert once.apart == len(once.ids)
