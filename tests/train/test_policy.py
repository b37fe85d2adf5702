"""Scoring through the compacted head equals the model's own logits."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stepopsd.ops import linear_head
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
    chosen = ids[targets]
    plain = policy.read_targets(ids, mask, targets)
    policy._head_only = False
    full = policy.read_targets(ids, mask, targets)
    assert full.head is None
    torch.testing.assert_close(full.logprobs(chosen, 0.7), plain.logprobs(chosen, 0.7))
    ones = torch.ones(len(chosen))
    losses = [states.loss(chosen, ones, -2 * ones, token_weights=ones).loss for states in (plain, full)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(policy.model.parameters())) for loss in losses]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def largest_allocation(call):
    """Bytes of the largest single piece of memory that ``call`` asks PyTorch for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    return max(event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")


def test_no_logits_of_a_whole_batch_exist(policy, monkeypatch):
    vocab, tokens = 3000, 512
    policy.model.resize_token_embeddings(vocab)
    ids = torch.randint(vocab, (4, tokens // 4 + 1), generator=torch.Generator().manual_seed(0))
    mask, targets = torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool)
    targets[:, 0] = False
    chunk = 128 * vocab * 4
    monkeypatch.setitem(linear_head._CHUNK_BYTES, "cpu", chunk)

    def update():
        policy.score(ids, mask, targets, temperature=0.8, max_tokens=10_000)
        states = policy.read_targets(ids, mask, targets)
        chosen = ids[targets]
        ones = torch.ones(tokens)
        states.loss(chosen, ones, -8 * ones, token_weights=ones / tokens, temperature=0.8).loss.backward()

    assert chunk <= largest_allocation(update) < 2 * chunk
    assert largest_allocation(lambda: policy.model(ids).logits.float()) >= tokens * vocab * 4


def test_first_token_cannot_be_a_target(policy):
    ids, mask, targets = batch()
    targets[0, 0] = True
    with pytest.raises(ValueError, match="position 0"):
        policy.read_targets(ids, mask, targets)


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
