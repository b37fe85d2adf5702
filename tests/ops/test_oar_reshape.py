"""oar_reshape: every backend against the specification, and what the weights promise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepopsd.ops import token_ops
from stepopsd.ops.oar_reshape import oar_reshape
from stepopsd.ops.reference_tokens import oar_reference
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
FILLS = ("skewed", "tiny", "equal", "ties", "negative", "outlier", "huge")


@pytest.fixture(autouse=True, scope="module")
def blocks() -> Iterator[None]:
    with small_blocks():
        yield


@pytest.fixture(autouse=True)
def has_kernel(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames:
        need("oar_rows", request.getfixturevalue("backend"))


def make_scores(shape: tuple[int, int], fill: str, rng: torch.Generator) -> torch.Tensor:
    x = torch.rand(shape, generator=rng) ** 4
    if fill == "tiny":
        return x * 1e-7
    if fill == "equal":
        return torch.full(shape, 0.37)
    if fill == "ties":
        return (x * 4).round()
    if fill == "negative":
        return x - 0.2
    if fill == "outlier":
        return x.clone().index_fill_(1, torch.arange(min(1, shape[1])), 1e4)
    return x * 1e37 if fill == "huge" else x


def run(scores: torch.Tensor, mask: torch.Tensor, backend: BackendUnderTest, **options: Any) -> torch.Tensor:
    return oar_reshape(scores.to(backend.device), mask.to(backend.device), backend=backend.name, **options).cpu()


def test_matches_the_specification(backend: BackendUnderTest) -> None:
    @examples(backend)
    @given(
        shape=shapes, share=shares, fill=st.sampled_from(FILLS), seed=seeds,
        quantile=st.sampled_from((0.0, 0.25, 0.5, 1.0)), beta=st.sampled_from((0.0, 1.0, 3.0)),
        floor=st.sampled_from((0.01, 0.1, 1.0)), cut=st.sampled_from(("quantile", "absolute")), preserve=st.booleans(),
        min_tokens=st.sampled_from((0, 4)),
    )  # fmt: skip
    def check(shape: tuple[int, int], share: float, fill: str, seed: int, **options: Any) -> None:
        rng = torch.Generator().manual_seed(seed)
        mask = masks(*shape, share, rng)
        scores = make_scores(shape, fill, rng).where(mask, NAN)
        got = run(scores, mask, backend, **options)
        torch.testing.assert_close(got.double(), oar_reference(scores, mask, **options), atol=2e-5, rtol=2e-5)
        assert got.dtype == torch.float32
        assert (got > 0).all()
        assert got[~mask].eq(1).all()

    check()


def test_mass_is_preserved_and_signs_are_kept(backend: BackendUnderTest) -> None:
    rng = torch.Generator().manual_seed(0)
    mask = masks(4, 300, 0.6, rng)
    w = run(make_scores((4, 300), "skewed", rng), mask, backend)
    torch.testing.assert_close((w.double() * mask).sum(-1), mask.sum(-1).double(), rtol=1e-6, atol=0)
    inside = w[mask]
    assert inside.min() > 0.05
    assert inside.max() <= 2.4
    for row, live in zip(w, mask, strict=True):
        damped = (row[live] < row[live].median()).float().mean()
        assert 0.2 < float(damped) < 0.8


def test_equal_scores_give_weights_of_exactly_one(backend: BackendUnderTest) -> None:
    mask = masks(3, 50, 0.7, torch.Generator().manual_seed(1))
    for value in (0.0, 1e-9, 0.37, 1e30):
        assert run(torch.full((3, 50), value), mask, backend).eq(1).all()


def test_small_scores_may_have_any_scale_but_an_outlier_changes_all_weights(backend: BackendUnderTest) -> None:
    rng = torch.Generator().manual_seed(2)
    scores, mask = torch.rand(2, 64, generator=rng) * 1e-6, torch.ones(2, 64, dtype=torch.bool)
    base = run(scores, mask, backend)
    torch.testing.assert_close(run(scores * 1e-3, mask, backend), base, atol=1e-4, rtol=0)
    torch.testing.assert_close(run(scores * 16, mask, backend), base, atol=1e-4, rtol=0)
    scores[:, 5] = 1e-3
    assert (run(scores, mask, backend) - base).abs().median() > 0.1


def test_short_rows_keep_their_advantages(backend: BackendUnderTest) -> None:
    mask = torch.arange(8) < torch.arange(8)[:, None]
    w = run(torch.rand(8, 8, generator=torch.Generator().manual_seed(3)), mask, backend)
    assert w[:4].eq(1).all()
    assert all(row[live].std() > 0 for row, live in zip(w[4:], mask[4:], strict=True))


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_broken_score_breaks_its_own_row_only(backend: BackendUnderTest, broken: float) -> None:
    rng = torch.Generator().manual_seed(4)
    scores, mask = torch.rand(3, 40, generator=rng), masks(3, 40, 0.8, rng)
    mask[1, 7] = True
    clean = run(scores, mask, backend)
    scores[1, 7] = broken
    got = run(scores, mask, backend)
    assert got[1, mask[1]].isnan().all()
    assert got[1, ~mask[1]].eq(1).all()
    torch.testing.assert_close(got[::2], clean[::2], rtol=0, atol=0)


def test_a_row_s_bits_do_not_depend_on_its_batch_or_its_padding(backend: BackendUnderTest) -> None:
    if not fixed_order(backend):
        pytest.skip("torch adds in an order that depends on the shape")
    rng = torch.Generator().manual_seed(5)
    scores, mask = torch.rand(6, 90, generator=rng) ** 3, masks(6, 90, 0.7, rng)
    whole = run(scores, mask, backend)
    for row in (0, 3):
        alone = run(scores[row : row + 1], mask[row : row + 1], backend)
        assert same(alone[0], whole[row])
    padded = run(
        torch.nn.functional.pad(scores, (0, 70), value=NAN), torch.nn.functional.pad(mask, (0, 70)), backend
    )
    assert same(padded[:, :90], whole)
    assert padded[:, 90:].eq(1).all()


def test_strides_and_half_precision_are_taken(backend: BackendUnderTest) -> None:
    rng = torch.Generator().manual_seed(6)
    scores, mask = torch.rand(40, 3, generator=rng).bfloat16(), masks(40, 3, 0.9, rng)
    got = run(scores.t(), mask.t(), backend)
    torch.testing.assert_close(got.double(), oar_reference(scores.t().float(), mask.t()), atol=1e-5, rtol=0)


def test_float64_is_computed_in_float64() -> None:
    rng = torch.Generator().manual_seed(7)
    scores, mask = torch.rand(2, 60, generator=rng).double(), masks(2, 60, 0.9, rng)
    torch.testing.assert_close(oar_reshape(scores, mask), oar_reference(scores, mask), atol=1e-12, rtol=0)


def test_weights_are_detached_and_compile_into_one_graph(backend: BackendUnderTest) -> None:
    scores = torch.rand(2, 40, device=backend.device, requires_grad=True)
    mask = torch.ones(2, 40, dtype=torch.bool, device=backend.device)
    eager = oar_reshape(scores, mask, backend=backend.name)
    assert not eager.requires_grad
    compiled = torch.compile(oar_reshape, fullgraph=True, backend="aot_eager")(scores, mask, backend=backend.name)
    torch.testing.assert_close(compiled, eager)
    knobs = (0.25, 1.0, 0.1, False, True, 4, backend.name)
    torch.library.opcheck(token_ops._oar_op, (scores.detach(), mask, *knobs))


@pytest.mark.skipif(torch.cuda.is_available(), reason="only the interpreter runs small blocks")
def test_the_block_of_the_launcher_gives_the_same_weights() -> None:
    from stepopsd.ops.triton import oar

    need("oar_rows", BackendUnderTest("triton", "cpu"))
    rng = torch.Generator().manual_seed(8)
    scores, mask = torch.rand(2, 70, generator=rng), masks(2, 70, 0.9, rng)
    small = oar_reshape(scores, mask, backend="triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oar, "BLOCK", 2048)
        torch.testing.assert_close(oar_reshape(scores, mask, backend="triton"), small, atol=1e-6, rtol=1e-6)
        patch.setattr(oar, "LONGEST_ROW", 69)
        with pytest.raises(ValueError, match="at most 69 tokens, got 70"):
            oar_reshape(scores, mask, backend="triton")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 1.5}, r"quantile must lie in \[0, 1\], got 1.5"),
        ({"beta": -1.0}, "beta must be a number of at least 0, got -1"),
        ({"floor": 0.0}, r"floor must lie in \(0, 1\], got 0"),
        ({"cut": "median"}, "cut must be one of quantile, absolute, got 'median'"),
        ({"min_tokens": -1}, "min_tokens must be at least 0, got -1"),
        ({"backend": "cuda"}, "backend 'cuda'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oar_reshape(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), **options)


def test_wrong_tensors_are_named() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"scores must have shape \(N, T\), got \(4,\)"):
        oar_reshape(torch.zeros(4), mask)
    with pytest.raises(ValueError, match=r"mask must have shape \(1, 5\)"):
        oar_reshape(torch.zeros(1, 5), mask)
    with pytest.raises(TypeError, match="mask must be torch"):
        oar_reshape(torch.zeros(1, 4), mask.int())
