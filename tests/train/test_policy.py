"""Scoring through the compacted head equals the model's own logits."""

from __future__ import annotations

import pytest
import torch

from stepopsd.train.config import ModelConfig
from stepopsd.train.policy import load_policy, microbatches


def batch():
    ids = torch.tensor([[2, 4, 6, 8, 3, 7], [2, 5, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    targets = torch.tensor([[0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    return ids, mask, targets


@pytest.mark.parametrize("max_tokens", [6, 1000])
def test_scores_equal_full_forward_and_do_not_depend_on_microbatches(policy, max_tokens):
    ids, mask, targets = batch()
    got = policy.score(ids, mask, targets, temperature=0.7, max_tokens=max_tokens)
    with torch.no_grad():
        logps = (policy.model(ids, attention_mask=mask).logits / 0.7).log_softmax(-1)
    want = torch.roll(logps, 1, 1).gather(2, ids[..., None]).squeeze(2)
    assert torch.equal(got != 0, targets)
    torch.testing.assert_close(got[targets], want[targets], atol=2e-5, rtol=0)


def test_full_logits_are_used_where_the_head_is_not_plain(policy):
    ids, mask, targets = batch()
    plain = policy.logits_of(ids, mask, targets)
    policy._head_only = False
    torch.testing.assert_close(policy.logits_of(ids, mask, targets), plain)


def test_first_token_cannot_be_a_target(policy):
    ids, mask, targets = batch()
    targets[0, 0] = True
    with pytest.raises(ValueError, match="position 0"):
        policy.logits_of(ids, mask, targets)


def test_microbatches_cover_every_row_once_within_the_budget():
    lengths = torch.tensor([3, 0, 9, 5, 5, 40])
    seen = []
    for rows, width in microbatches(lengths, 20):
        assert width == int(lengths[rows].max())
        assert len(rows) == 1 or len(rows) * width <= 20
        seen += rows.tolist()
    assert sorted(seen) == [0, 2, 3, 4, 5]


def test_model_without_chat_template_is_refused(policy, tmp_path):
    policy.tokenizer.chat_template = None
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="chat template"):
        load_policy(ModelConfig(path=str(tmp_path)), "cpu")


@pytest.mark.parametrize(("path", "message"), [("", "empty string"), ("./no/such/model", "no such directory")])
def test_missing_model_is_named(path, message):
    with pytest.raises(ValueError, match=message):
        load_policy(ModelConfig(path=path), "cpu")
