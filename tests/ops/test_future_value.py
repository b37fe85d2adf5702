"""future_value and future_branching: every backend against the specification, the scan against a matrix product."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepopsd.ops import token_ops
from stepopsd.ops.branching import branching_score
from stepopsd.ops.future_options import FutureOptions
from stepopsd.ops.future_value import HALF_LIFE_32, future_branching, future_value
from stepopsd.ops.reference_tokens import future_reference
from tests.ops.conftest import BackendUnderTest
from tests.ops.token_rows import (
    INF,
    INTERPRETER_WARNINGS,
    NAN,
    examples,
    fixed_order,
    masks,
    need,
    same,
    seeds,
    shapes,
    shares,
    small_blocks,
)  # fmt: skip

pytestmark = INTERPRETER_WARNINGS


@pytest.fixture(autouse=True, scope="module")
def blocks() -> Iterator[None]:
    with small_blocks():
        yield


@pytest.fixture(autouse=True)
def has_kernel(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames:
        need("future_rows", request.getfixturevalue("backend"))


def make(shape: tuple[int, int], drift: float, share: float, seed: int) -> tuple[torch.Tensor, ...]:
    """New and old log-probs, entropies and mask; NaN outside the mask."""
    rng = torch.Generator().manual_seed(seed)
    mask = masks(*shape, share, rng)
    new = -torch.rand(shape, generator=rng) * 3
    old, entropies = new - drift * torch.randn(shape, generator=rng), torch.rand(shape, generator=rng) * 4
    return (*(x.where(mask, NAN) for x in (new, old, entropies)), mask)


def run(x: tuple[torch.Tensor, ...], backend: BackendUnderTest, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    result = future_branching(*(t.to(backend.device) for t in x), backend=backend.name, **options)
    return result.future.cpu(), result.scores.cpu()


def agree(scores: torch.Tensor, want: torch.Tensor) -> None:
    """Equal but for candidates so near a z-score of 0 that rounding decides about them."""
    decided = (scores.isfinite() == want.isfinite()) | (torch.where(want.isfinite(), want, scores).abs() < 1e-4)
    assert decided.all()
    both = scores.isfinite() & want.isfinite()
    torch.testing.assert_close(scores.double()[both], want[both], atol=2e-4, rtol=2e-4)


def test_matches_the_specification(backend: BackendUnderTest) -> None:
    @examples(backend)
    @given(
        shape=shapes, share=shares, seed=seeds, drift=st.sampled_from((0.0, 0.02, 0.3, 40.0)),
        gamma=st.sampled_from((HALF_LIFE_32, 1.0, 0.5)), decay=st.sampled_from(("position", "valid")),
        max_log_ratio=st.sampled_from((None, math.log(3))), gate=st.booleans(),
    )  # fmt: skip
    def check(shape: tuple[int, int], share: float, seed: int, drift: float, **options: Any) -> None:
        x = make(shape, drift, share, seed)
        future, scores = run(x, backend, **options)
        want = future_reference(x[0], x[1], x[3], x[2], FutureOptions(**options))
        torch.testing.assert_close(future.double(), want[0], atol=1e-5, rtol=1e-5)
        agree(scores, want[1])
        assert future[~x[3]].eq(1).all()
        assert scores[~x[3]].eq(-INF).all()

    check()


def test_without_entropies_the_future_is_the_same(backend: BackendUnderTest) -> None:
    x = make((2, 40), 0.05, 0.8, 10)
    new, old, mask = (x[i].to(backend.device) for i in (0, 1, 3))
    for decay in ("position", "valid"):
        alone = future_value(new, old, mask, decay=decay, backend=backend.name)
        assert same(alone.cpu(), run(x, backend, decay=decay)[0])


@pytest.mark.parametrize("width", [1, 33, 70])
def test_the_scan_is_the_decay_matrix(backend: BackendUnderTest, width: int) -> None:
    new, old, _, mask = make((3, width), 0.05, 0.8, 0)
    gaps = (new - old).where(mask, 0).double()
    lag = torch.arange(width)[:, None] - torch.arange(width)
    matrix = torch.where(lag >= 0, HALF_LIFE_32 ** lag.clamp(min=0).double(), 0.0)  # (from j, to t)
    want = (gaps @ matrix).exp().where(mask, 1)
    got = future_value(new.to(backend.device), old.to(backend.device), mask.to(backend.device), low=1e-3, high=1e3,
                       backend=backend.name)  # fmt: skip
    torch.testing.assert_close(got.cpu().double(), want, atol=0, rtol=1e-5)


def test_on_policy_the_future_is_exactly_one_and_the_score_is_that_of_the_entropy(backend: BackendUnderTest) -> None:
    new, _, entropies, mask = make((3, 70), 0.0, 0.8, 1)
    future, scores = run((new, new, entropies, mask), backend)
    assert future.eq(1).all()
    for row in range(3):
        h = entropies[row, mask[row]].double()
        z = (h - h.mean()) / h.std(unbiased=False)
        torch.testing.assert_close(scores[row, mask[row]].double(), z, atol=1e-5, rtol=1e-5)
    assert scores[mask].lt(0).any(), "a degenerate row is not gated"


def test_unclipped_ratios_are_exact_to_rounding(backend: BackendUnderTest) -> None:
    gaps = torch.linspace(-19.9, 19.9, 64)[:, None]  # one token per row
    ones = torch.ones(64, 1, dtype=torch.bool)
    got = future_value(gaps.to(backend.device), torch.zeros_like(gaps).to(backend.device), ones.to(backend.device),
                       low=1e-30, high=1e30, backend=backend.name)  # fmt: skip
    torch.testing.assert_close(got.cpu().double(), gaps.double().exp(), atol=0, rtol=2e-6)


def test_bounds_are_met_exactly(backend: BackendUnderTest) -> None:
    new, old, entropies, mask = make((2, 60), 0.5, 1.0, 2)
    future, _ = run((new, old, entropies, mask), backend, low=0.8, high=1.3)
    edges = torch.tensor([0.8, 1.3])
    assert torch.isin(future, edges).float().mean() > 0.5
    assert future.min() == edges[0]
    assert future.max() == edges[1]


def test_fused_scores_are_those_of_branching_score(backend: BackendUnderTest) -> None:
    new, old, entropies, mask = make((4, 80), 0.03, 0.8, 3)
    _, scores = run((new, old, entropies, mask), backend)
    ratios = future_value(new, old, mask, low=0.8, high=1.2)
    agree(scores, branching_score(ratios, entropies, mask).double())
    for row in range(4):
        assert 0 < int(scores[row].isfinite().sum()) < int(mask[row].sum())


def test_a_broken_log_prob_reaches_earlier_futures_and_the_row_s_scores_only(backend: BackendUnderTest) -> None:
    new, old, entropies, mask = make((3, 70), 0.1, 1.0, 4)
    clean = run((new, old, entropies, mask), backend)
    new[1, 40] = NAN
    future, scores = run((new, old, entropies, mask), backend)
    assert future[1, :41].isnan().all()
    torch.testing.assert_close(future[1, 41:], clean[0][1, 41:], atol=0, rtol=0)
    assert scores[1].isnan().all()
    for got, want in zip((future, scores), clean, strict=True):
        torch.testing.assert_close(got[::2], want[::2], atol=0, rtol=0)


def test_broken_entropies_leave_the_future_alone(backend: BackendUnderTest) -> None:
    new, old, entropies, mask = make((2, 40), 0.1, 0.9, 5)
    clean = run((new, old, entropies, mask), backend)
    entropies[0, mask[0].nonzero()[3]] = NAN
    future, scores = run((new, old, entropies, mask), backend)
    torch.testing.assert_close(future, clean[0], atol=0, rtol=0)
    assert scores[0, mask[0]].isnan().all()
    assert scores[0, ~mask[0]].eq(-INF).all()


def test_impossible_tokens_are_clamped(backend: BackendUnderTest) -> None:
    new, old, entropies, mask = make((2, 10), 0.0, 1.0, 6)
    new[0, 9] = old[1, 9] = -INF
    future, _ = run((new, old, entropies, mask), backend, low=0.5, high=2.0)
    assert future[0].eq(0.5).all()
    assert future[1].eq(2.0).all()


def test_a_row_s_bits_do_not_depend_on_its_batch_or_its_padding(backend: BackendUnderTest) -> None:
    if not fixed_order(backend):
        pytest.skip("torch adds in an order that depends on the shape")
    x = make((3, 70), 0.05, 0.8, 7)
    whole = run(x, backend)
    for row in range(2):
        alone = run(tuple(t[row : row + 1] for t in x), backend)
        assert all(same(a[0], b[row]) for a, b in zip(alone, whole, strict=True))
    wider = (torch.nn.functional.pad(t, (0, 50), value=v) for t, v in zip(x, (NAN, NAN, NAN, 0), strict=True))
    padded = run(tuple(wider), backend)
    assert all(same(a[:, :70], b) for a, b in zip(padded, whole, strict=True))


def test_results_are_detached_and_compile_into_one_graph(backend: BackendUnderTest) -> None:
    new, old, entropies, mask = (t.to(backend.device) for t in make((2, 40), 0.05, 1.0, 8))
    new.requires_grad_()
    eager = future_branching(new, old, entropies, mask, backend=backend.name)
    assert not eager.future.requires_grad
    assert not eager.scores.requires_grad

    def call(*x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = future_branching(*x, backend=backend.name)
        return result.future, result.scores

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(new, old, entropies, mask)
    torch.testing.assert_close(compiled, (eager.future, eager.scores))
    knobs = (*token_ops._flat(FutureOptions()), backend.name)
    for h in (None, entropies):
        torch.library.opcheck(token_ops._future_op, (new.detach(), old, mask, h, *knobs))


def test_float64_and_half_precision() -> None:
    new, old, entropies, mask = make((2, 50), 0.05, 0.9, 9)
    wide = future_value(new.double(), old.double(), mask)
    want = future_reference(new, old, mask, None, FutureOptions())[0]
    torch.testing.assert_close(wide, want, atol=0, rtol=1e-6)
    halves = future_branching(new.bfloat16(), old.bfloat16(), entropies.half(), mask)
    assert halves.future.dtype == halves.scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma must lie in \(0, 1\], got 0"),
        ({"low": 1.1}, "low and high must satisfy 1e-30 <= low <= 1 <= high <= 1e30, got 1.1, 1.2"),
        ({"branch_high": INF}, "branch_low and branch_high must satisfy"),
        ({"log_clamp": -1.0}, "log_clamp must be a positive number, got -1"),
        ({"max_log_ratio": 0.0}, "max_log_ratio must be positive or None, got 0"),
        ({"decay": "token"}, "decay must be one of position, valid, got 'token'"),
        ({"std_eps": NAN}, "std_eps must be a number of at least 0, got nan"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        future_branching(*make((1, 4), 0.0, 1.0, 0), **options)


def test_wrong_tensors_are_named() -> None:
    new, old, entropies, mask = make((1, 4), 0.0, 1.0, 0)
    with pytest.raises(ValueError, match=r"old_logprobs must have shape \(1, 4\)"):
        future_value(new, old[:, 1:], mask)
    with pytest.raises(ValueError, match=r"entropies must have shape \(1, 4\)"):
        future_branching(new, old, entropies[:, 1:], mask)
    with pytest.raises(TypeError, match="logprobs must be"):
        future_value(new.long(), old, mask)
