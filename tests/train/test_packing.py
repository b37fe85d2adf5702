"""Rows side by side in bins read what they would read alone, and hardly any padding is computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.train.packing import fill_bins, pack, packed_microbatches
from stepopsd.train.policy import microbatches
from tests.train.conftest import make_policy
from tests.train.test_step import LOSSES, make_batch, step_of
from tests.train.test_trainer import config, log, train

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_micro_batch_that_fits(lengths, budget):
    seen = []
    for rows, width in packed_microbatches(torch.tensor(lengths), budget):
        sizes = [lengths[row] for row in rows.tolist()]
        bins = fill_bins(sizes, width, len(sizes))
        assert max(sizes) == width
        assert sorted(i for own in bins for i in own) == list(range(len(sizes)))
        assert len(bins) * width <= max(budget, width)
        seen += rows.tolist()
    assert sorted(seen) == [i for i, length in enumerate(lengths) if length]


@given(LENGTHS.filter(any), st.booleans())
@settings(max_examples=30, deadline=None)
def test_tokens_keep_their_ids_and_positions(lengths, flat):
    lengths = torch.tensor([length for length in lengths if length])
    ids = torch.arange(lengths.numel() * int(lengths.max())).view(lengths.numel(), -1) + 1
    packed = pack(ids, lengths, 0, flat=flat)
    for row, length in enumerate(lengths.tolist()):
        at = packed.at[row, :length]
        assert packed.ids.flatten()[at].tolist() == ids[row, :length].tolist()
        assert packed.positions.flatten()[at].tolist() == list(range(length))
    assert int((packed.ids > 0).sum()) == int(lengths.sum())
    if flat:
        assert packed.ids.shape == (1, int(lengths.sum()))


def test_a_row_sees_itself_alone():
    policy = make_policy()
    policy.packed = True
    batch = make_batch(policy)
    where = batch.attention_mask, batch.response_mask
    options = {"temperature": 1.0, "max_tokens": 10_000}
    before = policy.score(batch.input_ids, *where, **options)
    changed = batch.input_ids.clone()
    changed[3] = torch.where(batch.attention_mask[3], 7, 0)
    after = policy.score(changed, *where, **options)
    others = [0, 1, 2, 4, 5]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[3], after[3])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("budget", [13, 30, 10_000])
def test_the_gradient_is_that_of_padded_rows(name, budget):
    steps = []
    for packing in ("rows", "packed"):
        policy = make_policy()
        batch = make_batch(policy)
        policy.packed = packing == "packed"
        step = step_of(policy, loss={"name": name}, optim={"microbatch_tokens": budget})
        step.run(batch, None, 1)
        steps.append(policy)
    for packed, padded in zip(steps[1].model.parameters(), steps[0].model.parameters(), strict=True):
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


def test_a_model_whose_head_is_more_than_a_product_packs_too():
    scores = []
    for packed in (False, True):
        policy = make_policy()
        policy.packed, policy._head_only = packed, False
        batch = make_batch(policy)
        where = batch.input_ids, batch.attention_mask, batch.response_mask
        scores.append(policy.score(*where, temperature=1.0, max_tokens=10_000))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)


def test_bins_leave_less_padding_than_rows():
    """Rows of a few lengths, as turns and dialogues have them."""
    lengths = torch.randint(20, 500, (64,), generator=torch.Generator().manual_seed(0))
    real = int(lengths.sum())
    rows = sum(len(part) * width for part, width in microbatches(lengths, 4096))
    bins = sum(
        len(fill_bins(lengths[part].tolist(), width, 64)) * width for part, width in packed_microbatches(lengths, 4096)
    )
    assert 1 - real / bins < 0.7 * (1 - real / rows), (1 - real / bins, 1 - real / rows)


def test_a_packed_run_is_the_same_run(model, tmp_path):
    options = {"credit": {"name": "stepopsd", "lambda_mix": 1.0}, "loss": {"kl_coef": 0.01}}
    runs = [
        config(tmp_path / packing, model, **options, optim={"updates": 2, "lr": 1e-4, "packing": packing})
        for packing in ("rows", "packed")
    ]
    padded, packed = (train(run) for run in runs)
    for mine, theirs in zip(packed.policy.model.parameters(), padded.policy.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for mine, theirs in zip(log(packed), log(padded), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert 0 <= mine["padding_share"] <= theirs["padding_share"] < 1
        assert mine["peak_memory_mib"] > 10
