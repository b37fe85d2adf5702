"""Which tokens are candidates for a branch, and which of them are chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepopsd.ops.branching import branching_score, topk_branch
from tests.ops.token_rows import INF, NAN, PROPERTY, seeds

ALL = torch.ones(1, 4, dtype=torch.bool)


def test_the_gate_excludes_two_negative_scores() -> None:
    future = torch.tensor([[0.8, 1.2, 1.2, 0.8]])
    entropies = torch.tensor([[0.0, 2.0, 0.0, 2.0]])
    gated = branching_score(future, entropies, ALL)
    assert gated.isfinite().tolist() == [[False, True, False, False]]
    open_gate = branching_score(future, entropies, ALL, gate=False)
    torch.testing.assert_close(open_gate, torch.tensor([[1.0, 1.0, -1.0, -1.0]]))


def test_a_degenerate_future_leaves_the_entropy_to_rank() -> None:
    entropies = torch.tensor([[0.0, 2.0, 1.0, 3.0]])
    scores = branching_score(torch.full((1, 4), 1.1), entropies, ALL)
    h = entropies.double()
    torch.testing.assert_close(scores.double(), (h - h.mean()) / h.std(unbiased=False), rtol=1e-6, atol=0)
    assert topk_branch(scores, 4)[1].tolist() == [3, 1, 2, 0]


def test_masked_tokens_are_not_read_and_never_chosen() -> None:
    mask = torch.tensor([[True, False, True, True]])
    future, entropies = torch.tensor([[0.9, NAN, 1.1, 1.0]]), torch.tensor([[0.1, NAN, 2.0, 1.0]])
    scores = branching_score(future, entropies, mask)
    assert scores[0, 1] == -INF
    rows, positions, _ = topk_branch(scores, 4, fallback=entropies.masked_fill(~mask, -INF))
    assert rows.tolist() == [0, 0, 0]
    assert sorted(positions.tolist()) == [0, 2, 3]


def test_a_flat_entropy_has_no_candidates() -> None:
    scores = branching_score(torch.tensor([[0.8, 1.2, 1.2, 0.8]]), torch.ones(1, 4), ALL)
    assert scores.eq(-INF).all()
    assert topk_branch(scores, 3)[0].numel() == 0


def test_fallbacks_fill_up_and_are_told_apart() -> None:
    scores = torch.tensor([[-INF, 5.0, NAN, -INF]])
    _, positions, values = topk_branch(scores, 3, fallback=torch.tensor([[1.0, 9.0, 3.0, 2.0]]))
    assert positions.tolist() == [1, 2, 3]
    assert values.tolist() == [5.0, -INF, -INF]


@pytest.mark.parametrize("gap", [0, 2, 4])
def test_positions_of_a_row_keep_their_distance(gap: int) -> None:
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 6.0, 5.0]])
    _, positions, _ = topk_branch(scores, 3, min_gap=gap)
    assert positions.tolist() == {0: [0, 1, 2], 2: [0, 2, 4], 4: [0, 4]}[gap]


def test_prompts_pool_their_rows() -> None:
    scores = torch.tensor([[1.0, 9.0], [2.0, 8.0], [5.0, 4.0], [7.0, 6.0]])
    rows, positions, values = topk_branch(scores, 2, per="prompt", group_ids=torch.tensor([3, 8, 3, 8]))
    assert rows.tolist() == [0, 2, 1, 3]
    assert positions.tolist() == [1, 0, 1, 0]
    assert values.tolist() == [9.0, 5.0, 8.0, 7.0]


@PROPERTY
@given(
    rows=st.integers(1, 6), width=st.integers(1, 30), k=st.integers(0, 8), groups=st.integers(1, 3), seed=seeds,
    holes=st.sampled_from((0.0, 0.6, 1.0)),
)  # fmt: skip
def test_the_best_are_chosen(rows: int, width: int, k: int, groups: int, seed: int, holes: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, width, generator=rng)
    scores[torch.rand(rows, width, generator=rng) < holes] = -INF
    ids = torch.randint(groups, (rows,), generator=rng)
    row, position, value = topk_branch(scores, k, per="prompt", group_ids=ids)
    for group in ids.unique().tolist():
        pool = scores[ids == group]
        want = pool[pool.isfinite()].sort(descending=True).values[:k]
        mine = ids[row] == group
        assert torch.equal(value[mine], want)
        assert torch.equal(scores[row[mine], position[mine]], want)
    assert torch.equal(topk_branch(scores, k)[0], torch.arange(rows).repeat_interleave(
        scores.isfinite().sum(-1).clamp(max=k)))  # fmt: skip


def test_of_equal_scores_the_first_is_taken() -> None:
    rows, positions, _ = topk_branch(torch.zeros(2, 5), 2, per="prompt", group_ids=torch.zeros(2, dtype=torch.int64))
    assert (rows.tolist(), positions.tolist()) == ([0, 0], [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k must be at least 0, got -1"),
        ({"min_gap": -2}, "min_gap must be at least 0, got -2"),
        ({"per": "token"}, "per must be one of row, prompt, got 'token'"),
        ({"per": "prompt"}, "group_ids must be given with per='prompt'"),
        ({"group_ids": torch.zeros(1, dtype=torch.int64)}, "group_ids must be given with per='prompt', and only then"),
        ({"fallback": torch.zeros(1, 2)}, r"fallback must have shape \(1, 4\)"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topk_branch(torch.zeros(1, 4), **{"k": 1, **options})


def test_wrong_scores_are_named() -> None:
    with pytest.raises(ValueError, match="std_eps must be at least 0"):
        branching_score(torch.zeros(1, 4), torch.zeros(1, 4), ALL, std_eps=-1.0)
    with pytest.raises(TypeError, match="entropies must be"):
        branching_score(torch.zeros(1, 4), torch.zeros(1, 4).long(), ALL)
