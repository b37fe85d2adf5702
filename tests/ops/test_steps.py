"""The step budget and per-step statistics against plain loops; determinism and independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.ops.steps import step_scales, step_statistics

TOKENS = st.lists(
    st.tuples(
        st.floats(-3, 3, width=32) | st.just(math.nan) | st.just(math.inf),
        st.integers(-2, 3),
        st.sampled_from((-(2**40), -1, 0, 1, 2**62)),
    ),
    max_size=40,
)


def columns(tokens: list[tuple[float, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, steps, trajectories = zip(*tokens, strict=True) if tokens else ((), (), ())
    return (
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(steps, dtype=torch.int32),
        torch.tensor(trajectories, dtype=torch.int64),
    )


def loop_scales(tokens: list[tuple[float, int, int]]) -> tuple[list[float], list[float]]:
    scale, factors = [1.0] * len(tokens), []
    for trajectory in sorted({t for _, _, t in tokens}):
        steps = sorted({s for _, s, t in tokens if t == trajectory and s >= 0})
        places = {k: [i for i, (_, s, t) in enumerate(tokens) if t == trajectory and s == k] for k in steps}
        finite = {k: [abs(tokens[i][0]) for i in where if math.isfinite(tokens[i][0])] for k, where in places.items()}
        m = {k: float(np.mean(v)) for k, v in finite.items() if v}
        for k, m_k in m.items():
            budget = float(np.mean(list(m.values())))
            c = 1.0 if len(m) < 2 or budget == 0 else min(max(budget / (m_k + 1e-6), 0.5), 2.0)
            factors.append(c)
            for i in places[k]:
                scale[i] = c
    return scale, factors


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TOKENS)
def test_scales_equal_a_loop_over_steps(tokens: list[tuple[float, int, int]]) -> None:
    scale, factors = step_scales(*columns(tokens))
    want_scale, want_factors = loop_scales(tokens)
    np.testing.assert_allclose(scale.numpy(), want_scale, rtol=1e-6)
    used = factors[factors > 0]
    np.testing.assert_allclose(used.numpy(), want_factors, rtol=1e-6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TOKENS)
def test_statistics_equal_a_loop_over_steps(tokens: list[tuple[float, int, int]]) -> None:
    got = step_statistics(*columns(tokens))
    keys = sorted({(t, s) for _, s, t in tokens if s >= 0})
    slots = (got.count > 0).nonzero()[:, 0].tolist()
    assert [(int(got.trajectory_ids[k]), int(got.step_ids[k])) for k in slots] == keys
    for k, (trajectory, step) in zip(slots, keys, strict=True):
        x = np.array([v for v, s, t in tokens if (t, s) == (trajectory, step)])
        with np.errstate(invalid="ignore"):
            want = (len(x), x.sum(), x.mean(), x.std(), x.min(), x.max())
        have = (got.count, got.sum, got.mean, got.std, got.min, got.max)
        np.testing.assert_allclose([float(column[k]) for column in have], want, rtol=1e-9, atol=1e-12)


def test_a_step_may_be_spread_over_rows() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 2.0])
    steps, trajectories = torch.tensor([0, 1, 0, 1]), torch.tensor([7, 7, 7, 7])
    scale, _ = step_scales(values, steps, trajectories)
    torch.testing.assert_close(scale, torch.ones(4), atol=1e-6, rtol=0)  # both steps have mean 2


@pytest.mark.parametrize(
    ("values", "steps"),
    [([3.0, 5.0], [0, 0]), ([3.0, 5.0], [0, -1]), ([0.0, 0.0], [0, 1]), ([3.0, math.nan], [0, 1])],
)
def test_budget_is_skipped_below_two_live_steps(values: list[float], steps: list[int]) -> None:
    scale, _ = step_scales(torch.tensor(values), torch.tensor(steps), torch.zeros(2, dtype=torch.int64))
    assert scale.tolist() == [1.0, 1.0]


def test_factors_are_clamped_to_a_half_and_two() -> None:
    scale, factors = step_scales(torch.tensor([100.0, 1.0]), torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert scale.tolist() == factors.tolist()
    assert scale[1] == 2.0
    assert 0.5 <= scale[0] < 0.51


def test_a_trajectory_s_bits_do_not_depend_on_its_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    values, steps = torch.randn(4000, generator=rng), torch.randint(-1, 9, (4000,), generator=rng)
    trajectories = torch.randint(20, (4000,), generator=rng)
    whole, _ = step_scales(values, steps, trajectories)
    statistics = step_statistics(values, steps, trajectories)
    for trajectory in range(20):
        mine = trajectories == trajectory
        alone, _ = step_scales(values[mine], steps[mine], trajectories[mine])
        assert torch.equal(alone, whole[mine])
        single = step_statistics(values[mine], steps[mine], trajectories[mine])
        used = single.count > 0
        assert torch.equal(single.std[used], statistics.std[statistics.trajectory_ids == trajectory])


def test_no_tokens() -> None:
    empty = torch.empty(0)
    ids = torch.empty(0, dtype=torch.int64)
    scale, factors = step_scales(empty, ids, ids)
    assert scale.shape == factors.shape == (0,)
    assert step_statistics(empty, ids, ids).mean.shape == (0,)
