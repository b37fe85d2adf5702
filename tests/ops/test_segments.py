"""Segments of steps against a plain sort, and the statistics per step that are reduced over them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.ops.segments import StepSegments, sort_steps
from stepopsd.ops.shaping import step_segments
from stepopsd.ops.steps import step_statistics

TOKENS = st.lists(
    st.tuples(
        st.floats(-3, 3, width=32) | st.just(math.nan) | st.just(math.inf),
        st.integers(-2, 3),
        st.sampled_from((-(2**40), -1, 0, 1, 2**62)),
    ),
    max_size=40,
)
MAKERS = (sort_steps, step_segments)


def columns(tokens: list[tuple[float, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, steps, trajectories = zip(*tokens, strict=True) if tokens else ((), (), ())
    return (
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(steps, dtype=torch.int32),
        torch.tensor(trajectories, dtype=torch.int64),
    )


def expected(steps: list[int], trajectories: list[int]) -> StepSegments:
    order = sorted(range(len(steps)), key=lambda i: (steps[i] < 0, (trajectories[i], steps[i]) if steps[i] >= 0 else i))
    inside = [i for i in order if steps[i] >= 0]
    keys = [(trajectories[i], steps[i]) for i in inside]
    step_starts = [k for k, key in enumerate(keys) if k == 0 or key != keys[k - 1]]
    firsts = [keys[k][0] for k in step_starts]
    trajectory_starts = [k for k, t in enumerate(firsts) if k == 0 or t != firsts[k - 1]]
    counts = [len(step_starts), len(trajectory_starts)]
    size = len(steps) + 1
    step_starts += [len(inside)] * (size - counts[0])
    trajectory_starts += [counts[0]] * (size - counts[1])
    return StepSegments(*(torch.tensor(x, dtype=torch.int64) for x in (order, step_starts, trajectory_starts, counts)))


@pytest.mark.parametrize("make", MAKERS)
def test_segments_equal_a_sort(make) -> None:  # type: ignore[no-untyped-def]
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(TOKENS)
    def check(tokens: list[tuple[float, int, int]]) -> None:
        _, steps, trajectories = columns(tokens)
        got, want = make(steps, trajectories), expected(steps.tolist(), trajectories.tolist())
        for mine, theirs in zip(got.tensors, want.tensors, strict=True):
            assert mine.dtype == torch.int64
            assert torch.equal(mine, theirs)

    check()


@pytest.mark.parametrize("make", MAKERS)
def test_a_large_batch_is_sorted_alike(make) -> None:  # type: ignore[no-untyped-def]
    rng = torch.Generator().manual_seed(0)
    steps, trajectories = torch.randint(-1, 40, (5000,), generator=rng), torch.randint(9, (5000,), generator=rng)
    got, want = make(steps, trajectories), expected(steps.tolist(), trajectories.tolist())
    assert all(torch.equal(a, b) for a, b in zip(got.tensors, want.tensors, strict=True))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TOKENS)
def test_statistics_equal_a_loop_over_steps(tokens: list[tuple[float, int, int]]) -> None:
    values, steps, trajectories = columns(tokens)
    got = step_statistics(values, step_segments(steps, trajectories))
    keys = sorted({(t, s) for _, s, t in tokens if s >= 0})
    assert got.count.tolist() == [
        *(sum((t, s) == key for _, s, t in tokens) for key in keys),
        *[0] * (len(tokens) - len(keys)),
    ]
    for k, (trajectory, step) in enumerate(keys):
        x = np.array([v for v, s, t in tokens if (t, s) == (trajectory, step)])
        with np.errstate(invalid="ignore"):
            want = (x.sum(), x.mean(), x.std(), x.min(), x.max())
        have = (got.sum, got.mean, got.std, got.min, got.max)
        np.testing.assert_allclose([float(column[k]) for column in have], want, rtol=1e-9, atol=1e-12)


def test_a_trajectory_s_statistics_do_not_depend_on_its_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    values, steps = torch.randn(4000, generator=rng), torch.randint(-1, 9, (4000,), generator=rng)
    trajectories = torch.randint(20, (4000,), generator=rng)
    segments = step_segments(steps, trajectories)
    whole, starts = step_statistics(values, segments), segments.trajectory_starts.tolist()
    for trajectory in range(20):
        mine = trajectories == trajectory
        alone = step_statistics(values[mine], step_segments(steps[mine], trajectories[mine]))
        first, end = starts[trajectory], starts[trajectory + 1]
        assert torch.equal(alone.std[: end - first], whole.std[first:end])


def test_ids_per_row_are_spread_over_its_tokens() -> None:
    steps = torch.tensor([[0, 1, -1], [0, 0, 2]])
    got, want = step_segments(steps, torch.tensor([4, 3])), sort_steps(steps.flatten(), torch.tensor([4] * 3 + [3] * 3))
    assert all(torch.equal(a, b) for a, b in zip(got.tensors, want.tensors, strict=True))
    with pytest.raises(TypeError, match=r"step_ids must be torch.int64, torch.int32, got torch.float32"):
        step_segments(steps.float(), torch.tensor([4, 3]))
