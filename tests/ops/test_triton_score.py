"""The Triton score kernels themselves: interpreted on a CPU, compiled where there is a GPU, against float64."""

from __future__ import annotations

import ctypes
import faulthandler
import math
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stepopsd.ops.triton import availability, score_rows
from stepopsd.ops.triton.availability import _imported
from stepopsd.ops.triton.table import OVERRIDE, TABLE, Launch, launch_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(availability(DEVICE) is not None, reason=str(availability(DEVICE))),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's, of NaN and infinity
]
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="looks at host memory that the interpreter reads")

# One warp, so that a few thousand logits are many trips of both loops.
NARROW = Launch(threads=32, groups=2)
SPLITS = (1, 2, 4, 8)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INF, NAN = float("inf"), float("nan")

if availability(DEVICE) is None:
    import triton
    import triton.language as tl

    from stepopsd.ops.triton.softmax import exp2_by_polynomial

    @triton.jit
    def polynomial_kernel(x, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
        place = tl.arange(0, SIZE)
        tl.store(out + place, exp2_by_polynomial(tl.load(x + place)))


def run(*logits: torch.Tensor, ids: torch.Tensor, active: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    active = torch.ones(ids.shape, dtype=torch.bool, device=DEVICE) if active is None else active
    options = {"temperature": 1.0, "entropy": True, "launch": NARROW, **options}
    return score_rows(logits, ids, active, **options)


def expected(logits: torch.Tensor, ids: torch.Tensor, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
    """(3, B, R) float64."""
    divisor = temperature.cpu().double()[..., None] if isinstance(temperature, torch.Tensor) else temperature
    z = logits.cpu().double() / divisor
    lse = z.logsumexp(-1)
    logp = z - lse[..., None]
    entropy = -(logp.exp() * logp).where(logp.exp() > 0, 0 * logp.nan_to_num(neginf=0)).sum(-1)
    return torch.stack((logp.gather(-1, ids.cpu()[..., None])[..., 0].clamp(max=0), lse, entropy))


def rows(shape: tuple[int, ...], dtype: torch.dtype, *, pad: int = 0, lead: int = 0, seed: int = 0) -> torch.Tensor:
    """Random logits (B, R, V), ``pad`` elements apart, ``lead`` elements into their memory; NaN around them."""
    rng = torch.Generator().manual_seed(seed)
    return place(torch.randn(shape, generator=rng) * 3, dtype, pad=pad, lead=lead)


def place(values: torch.Tensor, dtype: torch.dtype, *, pad: int = 0, lead: int = 0) -> torch.Tensor:
    b, r, v = values.shape
    memory = torch.full((lead + b * r * (v + pad),), NAN, dtype=dtype, device=DEVICE)
    return memory[lead:].view(b, r, v + pad)[..., :v].copy_(values)


def one_apart(vocab: int) -> int:
    """Padding with which each row lies one element further from a 16-byte boundary than the row before."""
    return (1 - vocab) % 8


def ids_for(shape: tuple[int, ...], seed: int = 9) -> torch.Tensor:
    return torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_rows(got: torch.Tensor, want: torch.Tensor, tolerance: float = 4e-6) -> None:
    torch.testing.assert_close(got.cpu().double(), want, atol=tolerance, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 511, 512, 1000, 4099])
def test_random_rows_of_every_alignment_match_float64(vocab: int, dtype: torch.dtype) -> None:
    shape = (1, 4 if dtype == torch.float32 else 8, vocab)
    x, ids = rows(shape, dtype, pad=one_apart(vocab), lead=3), ids_for(shape)
    assert_rows(run(x, ids=ids, temperature=0.7)[0], expected(x, ids, 0.7))
    own = torch.linspace(0.5, 2, shape[1], device=DEVICE).view(1, -1)
    got = run(x, ids=ids, temperature=own, launch=replace(NARROW, splits=4 if vocab > 3000 else 2))
    assert_rows(got[0], expected(x, ids, own))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_vocabulary_of_odd_size_matches_float64(dtype: torch.dtype) -> None:
    shape = (1, 4, 50_257)
    x, ids = rows(shape, dtype), ids_for(shape)
    assert_rows(run(x, ids=ids, launch=replace(NARROW, threads=128, groups=4))[0], expected(x, ids))


def test_a_full_vocabulary_matches_float64_with_the_launch_of_the_table() -> None:
    shape = (1, 2, 151_936)
    x, y, ids = rows(shape, torch.bfloat16), rows(shape, torch.bfloat16, seed=1), ids_for(shape)
    got = run(x, y, ids=ids, launch=None)
    assert_rows(got, torch.stack((expected(x, ids), expected(y, ids))))


def test_two_tensors_may_differ_in_dtype_and_strides() -> None:
    shape = (1, 2, 1003)
    x, y, ids = rows(shape, torch.float32), rows(shape, torch.bfloat16, seed=1, pad=5), ids_for(shape)
    want = torch.stack((expected(x, ids), expected(y, ids)))
    for splits in (1, 2):
        assert_rows(run(x, y, ids=ids, launch=replace(NARROW, splits=splits)), want)
        assert_rows(run(y, x, ids=ids, launch=replace(NARROW, splits=splits)), want.flip(0))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_row_follow_from_its_values_alone(dtype: torch.dtype, splits: int) -> None:
    vocab, launch = 1437, replace(NARROW, splits=splits)
    values = torch.randn(1, 1, vocab, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.full((1, 9), 1234, device=DEVICE)
    # Nine rows of equal values: all alignments, two batch positions, two places in the grid of a pair.
    x = place(values.expand(1, 9, vocab), dtype, pad=one_apart(vocab))
    x[0, 8] = NAN
    y = place(values.expand(1, 9, vocab), dtype, lead=5, pad=2)
    got = run(x, y, ids=ids, launch=launch)
    alone = run(values.to(dtype).to(DEVICE), ids=ids[:, :1], launch=launch)
    assert alone.isfinite().all()
    assert torch.equal(got[0, :, :, :8], alone[0].expand(3, 1, 8))
    assert torch.equal(got[1], alone[0].expand(3, 1, 9))
    upright = run(y.transpose(0, 1), ids=ids.T.contiguous(), launch=launch, entropy=False)
    assert torch.equal(upright[0, :2], alone[0, :2].expand(2, 9, 1))


def test_split_rows_are_the_same_numbers_up_to_rounding() -> None:
    shape = (1, 2, 9000)
    x, ids = rows(shape, torch.bfloat16, pad=3), ids_for(shape)
    ids[0, 1] = 8999
    whole = run(x, ids=ids, launch=replace(NARROW, splits=1))
    for splits in SPLITS[1:]:
        torch.testing.assert_close(run(x, ids=ids, launch=replace(NARROW, splits=splits)), whole, atol=3e-6, rtol=3e-7)


def test_splits_follow_from_the_vocabulary() -> None:
    for vocab, splits in ((1, 1), (16_383, 1), (16_384, 2), (32_768, 4), (65_535, 4), (65_536, 8), (151_936, 8)):
        count, chunk = NARROW.split(vocab)
        assert count == splits
        assert chunk % 1024 == 0
        assert (count - 1) * chunk < vocab <= count * chunk
    assert NARROW.split(50_257) == (4, 13_312)
    assert replace(NARROW, splits=2).split(1000) == (2, 1024)


def test_a_temperature_has_the_same_bits_as_a_number_and_as_a_tensor() -> None:
    shape = (1, 3, 700)
    x, ids = rows(shape, torch.float32), ids_for(shape)
    for temperature in (0.1, 0.7, 1.3):
        own = torch.full((1, 3), temperature, device=DEVICE)
        for splits in (1, 2):
            got = [run(x, ids=ids, temperature=t, launch=replace(NARROW, splits=splits)) for t in (temperature, own)]
            assert torch.equal(got[0], got[1])


@pytest.mark.parametrize("splits", [1, 4])
def test_inactive_rows_are_zero_and_ignore_what_is_in_memory(splits: int) -> None:
    x, y = rows((2, 2, 600), torch.bfloat16), rows((2, 2, 600), torch.bfloat16, seed=1)
    ids, own = ids_for((2, 2, 600)), torch.full((2, 2), 0.8, device=DEVICE)
    active = torch.tensor([[True, False], [False, True]], device=DEVICE)
    want = run(x, y, ids=ids, active=active, temperature=own, launch=replace(NARROW, splits=splits))
    x[0, 1], y[1, 0], own[0, 1], ids[0, 1] = NAN, INF, NAN, -(10**12)
    got = run(x, y, ids=ids, active=active, temperature=own, launch=replace(NARROW, splits=splits), normaliser=True)
    assert got.shape == (2, 5, 2, 2)
    assert torch.equal(got[:, :3], want)
    assert got[:, :, ~active].eq(0).all()
    assert got[:, :, active].isfinite().all()


def survives(body: Callable[[], object]) -> bool:
    """Run ``body`` in a forked process; False when it touches protected memory."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        body()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGSEGV, status
    return status == 0


@on_cpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_read_leaves_the_active_rows(dtype: torch.dtype) -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    size = torch.empty((), dtype=dtype).element_size()
    flat = torch.frombuffer(memory, dtype=dtype)
    flat.zero_()
    # Guarded pages around the middle one, whose first and last elements belong to rows of odd length.
    middle = flat[page // size : 2 * page // size]
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guarded in (0, 2 * page):
        assert protect(ctypes.c_void_p(flat.data_ptr() + guarded), page, 0) == 0  # PROT_NONE
    vocab = page // size - 13
    front, back = middle[:vocab].view(1, 1, vocab), middle[-vocab:].view(1, 1, vocab)
    ids = ids_for((1, 1, vocab))
    # Overlapping rows, so that the last is one whole trip that ends with the page while the first is off a boundary.
    trip = 32 * 16 // size
    tile = middle[1 - 2 * trip :].as_strided((2, 1, trip), (trip - 1, trip - 1, 1))
    off = torch.zeros(1, 1, dtype=torch.bool)
    outside = flat[2 * page // size :][:vocab].view(1, 1, vocab)
    assert survives(lambda: run(front, back, ids=ids))
    assert survives(lambda: run(back, front, ids=ids, launch=replace(NARROW, splits=8)))
    assert survives(lambda: run(tile, ids=ids_for((2, 1, trip)), launch=replace(NARROW, groups=1)))
    assert survives(lambda: run(outside, front, ids=ids, active=off))
    assert not survives(lambda: run(outside, front, ids=ids)), "the guard itself does not work"


@pytest.mark.parametrize("launch", [NARROW, Launch(threads=32, polynomial=2), replace(NARROW, splits=2)],
                         ids=["plain", "polynomial", "splits"])  # fmt: skip
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_logit_breaks_its_row_alone(value: float, launch: Launch) -> None:
    places = [0, 1, 2, 7, 255, 256, 1000, 1024, 1535, 1536, 1539, 2026]
    shape = (1, len(places) + 1, 2027)
    x = rows(shape, torch.bfloat16)
    for row, column in enumerate(places):
        x[0, row, column] = value
    got = run(x, ids=ids_for(shape), launch=launch)[0]
    assert got[:, 0, :-1].isnan().all()
    assert got[:, 0, -1].isfinite().all()


def test_a_broken_row_leaves_that_of_the_other_tensor() -> None:
    shape = (1, 2, 1100)
    x, y, ids = rows(shape, torch.bfloat16), rows(shape, torch.bfloat16, seed=1), ids_for(shape)
    x[0, 0, 3], y[0, 1, 1099] = NAN, INF
    for splits in (1, 2):
        got = run(x, y, ids=ids, launch=replace(NARROW, splits=splits))
        assert got.isnan()[:, 0, 0].tolist() == [[True, False], [False, True]]
        assert torch.equal(got.isnan(), got.isnan()[:, :1].expand(2, 3, 1, 2))


@pytest.mark.parametrize("splits", [1, 4])
def test_an_unknown_id_has_no_log_prob_and_leaves_the_rest(splits: int) -> None:
    shape = (1, 5, 1600)
    x, launch = rows(shape, torch.bfloat16), replace(NARROW, splits=splits)
    ids = ids_for(shape)
    want = run(x, ids=ids, launch=launch)
    ids[0, :4] = torch.tensor([-1, 1600, 10**12, -(10**12)], device=DEVICE)
    got = run(x, ids=ids, launch=launch)
    assert got[0, 0, 0].isnan().tolist() == [True, True, True, True, False]
    assert torch.equal(got[0, 1:], want[0, 1:])


@pytest.mark.parametrize("launch", [NARROW, Launch(threads=32, polynomial=2), replace(NARROW, splits=4)],
                         ids=["plain", "polynomial", "splits"])  # fmt: skip
def test_a_row_of_minus_inf_gives_nan(launch: Launch) -> None:
    x = rows((1, 2, 1600), torch.bfloat16)
    x[0, 0] = -INF
    got = run(x, ids=ids_for((1, 2, 1600)), launch=launch)
    assert got[0, :, 0, 0].isnan().all()
    assert got[0, :, 0, 1].isfinite().all()


@pytest.mark.parametrize("launch", [NARROW, Launch(threads=32, polynomial=2), replace(NARROW, splits=4)],
                         ids=["plain", "polynomial", "splits"])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_vocabulary_and_extreme_logits_match_float64(dtype: torch.dtype, launch: Launch) -> None:
    shape = (1, 7, 2000)
    x = rows(shape, dtype, pad=1)
    x[0, 0, 100:1500] = -INF  # whole trips without a finite logit
    x[0, 1, :1100] = -INF  # a whole split
    x[0, 2] = -INF  # one-hot
    x[0, 2, 1999] = 4.0
    x[0, 3, 3], x[0, 3, 1800] = -1e4, 1e4
    x[0, 4] = torch.linspace(-1e4, 1e4, 2000)
    x[0, 5] = torch.finfo(dtype).min  # how some mask a vocabulary
    x[0, 5, 5:10] = 1.0
    x[0, 6] = (x[0, 6].float() + 1e4).to(dtype)
    ids = torch.tensor([[1999, 1999, 1999, 3, 40, 7, 11]], device=DEVICE)
    got = run(x, ids=ids, launch=launch)[0]
    # The interpreter rounds the product of an fma, which hardware does not: an error of the logits' size.
    torch.testing.assert_close(got.cpu().double(), expected(x, ids), atol=1e-5 if DEVICE == "cuda" else 4e-3, rtol=1e-6)
    ordinary = got[:, 0, :3].cpu().double()
    torch.testing.assert_close(ordinary, expected(x, ids)[:, 0, :3], atol=5e-6, rtol=1e-6)
    assert got[:, 0, 2].tolist() == pytest.approx([0.0, 4.0, 0.0], abs=1e-6)
    assert got[0].le(0).all()
    assert got[2].ge(0).all()


@pytest.mark.parametrize(("dtype", "constant"), list(zip(DTYPES, (2.0, -16.0, 1024.0), strict=True)))
def test_a_constant_moves_the_log_sum_exp_and_nothing_else(dtype: torch.dtype, constant: float) -> None:
    # Multiples of 1/16 with few digits, so that the sums below are exact in any dtype.
    values = torch.randint(-32, 32, (1, 3, 1500), generator=torch.Generator().manual_seed(0)) / 16
    moved = (values + constant).to(dtype)
    x, y = place(values, dtype), place(moved, dtype, lead=1)
    assert torch.equal(y.cpu().double() - constant, x.cpu().double())
    got = run(x, y, ids=ids_for((1, 3, 1500)), temperature=0.5).cpu()
    rounding = 3e-6 + (0 if DEVICE == "cuda" else 5e-7 * abs(constant))  # the interpreter's fma rounds twice
    torch.testing.assert_close(got[1, 1] - got[0, 1], torch.full((1, 3), 2 * constant), atol=1e-5, rtol=2e-6)
    torch.testing.assert_close(got[1, ::2], got[0, ::2], atol=rounding, rtol=1e-6)


@pytest.mark.parametrize("splits", [1, 4])
def test_the_normaliser_gives_the_probabilities(splits: int) -> None:
    shape = (1, 3, 1300)
    x, ids = rows(shape, torch.float32), ids_for(shape)
    x[0, 1] += 1e4
    got = run(x, ids=ids, temperature=0.8, launch=replace(NARROW, splits=splits), normaliser=True)[0].cpu()
    assert torch.equal(got[:3], run(x, ids=ids, temperature=0.8, launch=replace(NARROW, splits=splits))[0].cpu())
    peak, log_mass = got[3:].double()
    scale = torch.tensor(math.log2(math.e)) / torch.tensor(0.8)
    exponents = x.cpu().double() * scale.double() - peak[..., None]
    tolerance = 1e-6 if DEVICE == "cuda" else 1e-3  # see above
    torch.testing.assert_close(exponents.exp2().sum(-1).log2(), log_mass, atol=tolerance, rtol=1e-6)
    assert exponents.amax(-1).abs().max() < 2e-3


def test_entropies_are_zero_unless_asked_for() -> None:
    shape = (1, 2, 1300)
    x, ids = rows(shape, torch.float16), ids_for(shape)
    for splits in (1, 2):
        launch = replace(NARROW, splits=splits)
        got, want = run(x, ids=ids, entropy=False, launch=launch), run(x, ids=ids, launch=launch)
        assert got[0, 2].eq(0).all()
        assert torch.equal(got[0, :2], want[0, :2])
        assert want[0, 2].gt(1).all()


@pytest.mark.parametrize(("count", "apart"), [(2, 2**31 + 1023), (3, 2**30 + 512)], ids=["stride", "product"])
def test_rows_may_lie_more_than_two_billion_elements_apart(count: int, apart: int) -> None:
    vocab = 300
    size = (count - 1) * apart + 2 * vocab
    memory = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)  # pages never touched cost nothing
    x, y = (memory[lead:].as_strided((count, 1, vocab), (apart, vocab, 1)) for lead in (0, vocab))
    for seed, values in enumerate((x, y)):
        values.copy_(rows((count, 1, vocab), torch.bfloat16, seed=seed))
    ids = ids_for((count, 1, vocab))
    assert_rows(run(x, y, ids=ids), torch.stack((expected(x, ids), expected(y, ids))))


def test_rows_with_any_strides_are_read_in_place() -> None:
    x = rows((3, 4, 200), torch.bfloat16)[:, :-1]
    y = rows((4, 3, 200), torch.bfloat16, seed=1).transpose(0, 1)[:, :-1]
    same = rows((1, 1, 200), torch.bfloat16).expand(3, 3, 200)  # all strides 0
    ids = ids_for((3, 3, 200))
    assert_rows(run(x, y, ids=ids), torch.stack((expected(x, ids), expected(y, ids))))
    assert_rows(run(same, ids=ids)[0], expected(same, ids))


def test_the_grid_has_one_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepopsd.ops.triton import score_kernels

    grids = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("score_kernel", "merge_kernel"):
        monkeypatch.setattr(score_kernels, name, Recorder())
    ids = torch.zeros(1, 70_000, dtype=torch.int64)
    few, many = (torch.zeros(1, 1, vocab).expand(1, 70_000, vocab) for vocab in (3, 40_000))
    run(few, few, ids=ids)
    run(many, ids=ids)
    assert grids == [(140_000,), (280_000,), (547,)]  # other axes end at 65,535


def test_no_rows_give_no_rows() -> None:
    empty = torch.empty(0, 4, 50, device=DEVICE)
    assert run(empty, empty, ids=torch.empty(0, 4, dtype=torch.int64, device=DEVICE)).shape == (2, 3, 0, 4)


def test_the_polynomial_is_as_good_as_its_bound() -> None:
    x = torch.linspace(-126, 0, 2**17, device=DEVICE)
    x[:4] = torch.tensor([0.0, -1.0, -127.0, -INF])
    out = torch.empty_like(x)
    polynomial_kernel[(1,)](x, out, SIZE=2**17)
    assert out[:4].tolist() == [1.0, 0.5, 0.0, 0.0]
    want = x[4:].double().exp2()
    assert float((out[4:].double() / want - 1).abs().max()) < (5e-7 if DEVICE == "cuda" else 5.2e-7)  # a rounding more


@pytest.mark.parametrize("share", [1, 2, 8])
def test_exponentials_by_polynomial_match_float64(share: int) -> None:
    shape = (1, 4, 1500)
    x, ids = rows(shape, torch.bfloat16, pad=1), ids_for(shape)
    got = run(x, ids=ids, launch=replace(NARROW, polynomial=share))
    assert_rows(got[0], expected(x, ids))
    assert share < 8 or not torch.equal(got, run(x, ids=ids))


def test_the_launch_is_a_row_of_the_table_that_a_variable_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device(DEVICE)
    monkeypatch.delenv(OVERRIDE, raising=False)
    row = launch_for(device)
    assert row in TABLE.values()
    monkeypatch.setenv(OVERRIDE, "threads=32,splits=2")
    assert launch_for(device) == replace(row, threads=32, splits=2)
    for wrong in ("threads", "warps=4", "threads=many"):
        monkeypatch.setenv(OVERRIDE, wrong)
        with pytest.raises(ValueError, match=OVERRIDE):
            launch_for(device)


def test_the_reasons_why_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got 'mps'" in str(availability("mps"))
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        assert "TRITON_INTERPRET=1" in str(availability("cpu"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        _imported.cache_clear()
        assert "cannot be imported" in str(availability("cuda"))


def test_importing_the_package_loads_no_triton() -> None:
    code = "import sys, stepopsd.ops.triton; sys.exit('triton' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0
