"""Controls keep the size of what they deal out, and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.credit.controls import shuffled_gaps


def scores(seed):
    g = torch.Generator().manual_seed(seed)
    student = -3 * torch.rand(4, 9, generator=g)
    gaps = torch.randn(4, 9, generator=g).where(torch.rand(4, 9, generator=g) < 0.6, torch.nan)
    return student, gaps


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 16))
def test_gaps_stay_the_same_as_a_whole(seed):
    student, gaps = scores(seed)
    dealt = shuffled_gaps(student + gaps, student, seed=seed)
    assert torch.equal(dealt.isnan(), gaps.isnan())
    before, after = (x[~gaps.isnan()].sort().values for x in (gaps, dealt - student))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert torch.equal(dealt.nan_to_num(), shuffled_gaps(student + gaps, student, seed=seed).nan_to_num())


def test_gaps_leave_their_tokens():
    student, gaps = scores(0)
    dealt = shuffled_gaps(student + gaps, student, seed=1) - student
    scored = ~gaps.isnan()
    moved = ((dealt - gaps).abs() > 1e-4)[scored]
    assert float(moved.float().mean()) > 0.5
    assert not torch.equal(
        dealt.nan_to_num(), (shuffled_gaps(student + gaps, student, seed=2) - student).nan_to_num()
    )


def test_nobody_asked_is_nothing_dealt():
    student, _ = scores(0)
    assert bool(shuffled_gaps(torch.full_like(student, torch.nan), student, seed=0).isnan().all())
