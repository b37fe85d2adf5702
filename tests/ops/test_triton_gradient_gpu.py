"""The Triton gradient kernels on a real GPU, at real sizes, run by `make gpu`; test_triton_gradient.py has the rest."""

from __future__ import annotations

import pytest
import torch

from stepopsd.ops.triton import gradient_rows, scale_rows, score_rows
from tests.ops.derivatives import NAN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VOCABULARIES = [32_000, 50_257, 128_256, 151_936]
TEMPERATURE = 0.9


def rows(count: int, vocab: int, dtype: torch.dtype, *, seed: int = 0, pad: int = 0, lead: int = 0) -> torch.Tensor:
    """(1, count, V) logits, ``lead`` elements into their memory and ``pad`` apart, NaN around them."""
    rng = torch.Generator("cuda").manual_seed(seed)
    memory = torch.full((lead + count * (vocab + pad),), NAN, dtype=dtype, device="cuda")
    values = torch.randn((1, count, vocab), device="cuda", generator=rng).mul_(3)
    return memory[lead:].view(1, count, vocab + pad)[..., :vocab].copy_(values)


def planes(x: torch.Tensor, *, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Ids, active, normaliser and coefficients of the rows; every other row without c."""
    rng = torch.Generator("cuda").manual_seed(seed)
    ids = torch.randint(x.shape[-1], x.shape[:2], device="cuda", generator=rng)
    active = torch.ones_like(ids, dtype=torch.bool)
    scored = score_rows([x], ids, active, temperature=TEMPERATURE, entropy=True, normaliser=True)
    abc = torch.randn((3, *ids.shape), device="cuda", generator=rng)
    abc[2, :, ::2] = 0
    return ids, active, scored[0, 3:], abc


def run(x: torch.Tensor, what: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
    gradient_rows(x, *what, temperature=TEMPERATURE, out=out)
    return out


def expected(x: torch.Tensor, ids: torch.Tensor, abc: torch.Tensor) -> torch.Tensor:
    log_p = (x.double() / TEMPERATURE).log_softmax(-1)
    p, (a, b, c) = log_p.exp(), abc.double()[..., None]
    return (p * (b + c * log_p)).scatter_add_(-1, ids[..., None], a) / TEMPERATURE


def assert_rows(got: torch.Tensor, want: torch.Tensor) -> None:
    kind = torch.finfo(got.dtype)
    allowed = 1e-5 + 0.502 * kind.eps * want.abs() + kind.smallest_normal
    assert ((got.double() - want).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_real_vocabularies_match_float64_at_every_alignment(vocab: int, dtype: torch.dtype) -> None:
    for pad, lead in ((0, 0), ((1 - vocab) % 8, 3)):
        x = rows(40, vocab, dtype, pad=pad, lead=lead)
        what = planes(x)
        want = expected(x, what[0], what[3])
        apart = run(x, what, torch.full((1, 40, vocab), NAN, dtype=dtype, device="cuda"))
        assert_rows(apart, want)
        assert torch.equal(run(x, what, x), apart)


def test_repeated_in_place_calls_give_the_same_bits() -> None:
    kept = rows(2048, 50_257, torch.bfloat16)
    what = planes(kept)
    want = run(kept, what, torch.empty_like(kept))
    for _ in range(10):  # two threads at one element would show now and then
        x = kept.clone()
        assert torch.equal(run(x, what, x), want)


def test_rows_without_a_gradient_are_zero_and_not_read() -> None:
    x = rows(64, 151_936, torch.bfloat16)
    ids, active, normaliser, abc = planes(x)
    active[:, ::3], abc[:, :, 1::3] = False, 0
    want = run(x, (ids, active, normaliser, abc), torch.empty_like(x))
    off = torch.arange(x.shape[1], device="cuda") % 3 < 2
    x[:, off], normaliser[:, :, off], ids[:, off] = NAN, NAN, -(10**12)
    got = run(x, (ids, active, normaliser, abc), x)
    assert torch.equal(got, want)
    assert got[:, off].view(torch.int16).eq(0).all()


def test_rows_beyond_two_billion_elements_are_written() -> None:
    count, vocab = 14_500, 151_936  # 2.2e9 logits
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GiB of free memory")
    x = torch.zeros((1, count, vocab), dtype=torch.bfloat16, device="cuda")
    x[0, -8:] = rows(8, vocab, torch.bfloat16)[0]
    what = planes(x)
    want = expected(x[:, -8:], what[0][:, -8:], what[3][:, :, -8:])
    run(x, what, x)
    assert_rows(x[:, -8:], want)
    before = x[:, -8:].clone()
    scale_rows(x, torch.tensor(-0.5, device="cuda"))
    assert torch.equal(x[:, -8:], before * -0.5)


def test_more_rows_than_other_grid_axes_have() -> None:
    x = rows(200_003, 17, torch.bfloat16)
    what = planes(x)
    want = expected(x, what[0], what[3])
    assert_rows(run(x, what, x), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_is_a_product_in_float32(dtype: torch.dtype) -> None:
    for pad in (0, 3):
        x = rows(300, 50_257, dtype, pad=pad)
        for number in (1.0, 1 / 3, -7.0, 0.0):
            factor = torch.tensor(number, device="cuda")
            want = (x.float() * factor).to(dtype)
            scale_rows(x, factor)
            assert torch.equal(x, want)


def test_nothing_is_allocated_and_nothing_waits() -> None:
    x = rows(256, 151_936, torch.bfloat16)
    what, factor = planes(x), torch.tensor(0.5, device="cuda")
    run(x, what, x)
    scale_rows(x, factor)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(x, what, x)
        scale_rows(x, factor)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before


def test_a_cuda_graph_replays_both_on_new_values() -> None:
    x, factor = rows(64, 50_257, torch.bfloat16), torch.tensor(0.5, device="cuda")
    what, out = planes(x), torch.empty_like(x)

    def call() -> None:
        run(x, what, out)
        scale_rows(out, factor)

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    x.copy_(rows(64, 50_257, torch.bfloat16, seed=5))
    for plane, new in zip(what, planes(x, seed=6), strict=True):
        plane.copy_(new)
    factor.fill_(0.25)
    graph.replay()
    got = out.clone()
    call()
    assert torch.equal(got, out)
