"""The Triton kernels themselves: interpreted on a CPU, compiled where there is a GPU, against float64."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stepopsd.ops.reference import row_distribution, weight
from stepopsd.ops.triton import availability, epilogue_rows, pair_rows
from stepopsd.ops.triton.table import Launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(availability(DEVICE) is not None, reason=str(availability(DEVICE)))
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="looks at host memory that the interpreter reads")

# One warp, so that a few thousand logits are many tiles.
NARROW = Launch(threads=32, warp=32, vectors=2)
OPTIONS = {"alpha_clip": 0.2, "lambda_mix": 0.3, "weight_fn": "sigmoid", "temperature": 1.0, "entropy": True}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INF, NAN = float("inf"), float("nan")


def run(student, teacher, ids, advantages=None, active=None, *, launch=NARROW, **options) -> torch.Tensor:
    advantages = torch.ones(ids.shape, device=DEVICE) if advantages is None else advantages
    active = torch.ones(ids.shape, dtype=torch.bool, device=DEVICE) if active is None else active
    return pair_rows(student, teacher, ids, advantages, active, launch=launch, **{**OPTIONS, **options})


def expected(student, teacher, ids, advantages, *, temperature=1.0, weight_fn="sigmoid", lambda_mix=0.3):
    out = torch.empty(7, *ids.shape, dtype=torch.float64)
    for b, r in torch.ones(ids.shape).nonzero().tolist():
        lines = [row_distribution(x[b, r].cpu().double() / temperature, int(ids[b, r])) for x in (student, teacher)]
        (s, s_entropy), (t, t_entropy) = lines
        a = float(advantages[b, r])
        w = weight(a, float(t - s), 0.2, weight_fn)
        out[:, b, r] = torch.tensor([a * (1 + lambda_mix * (w - 1)), w, t - s, s, t, s_entropy, t_entropy])
    return out


def rows(shape: tuple[int, ...], dtype: torch.dtype, *, pad: int = 0, lead: int = 0, seed: int = 0) -> torch.Tensor:
    """Random logits (B, R, V), ``pad`` elements apart, ``lead`` elements into their memory; NaN around them."""
    b, r, v = shape
    rng = torch.Generator().manual_seed(seed)
    memory = torch.full((lead + b * r * (v + pad),), NAN, dtype=dtype, device=DEVICE)
    return memory[lead:].view(b, r, v + pad)[..., :v].copy_(torch.randn(shape, generator=rng) * 3)


def ids_for(shape: tuple[int, ...], seed: int = 9) -> torch.Tensor:
    return torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_rows(got: torch.Tensor, want: torch.Tensor, tolerance: float = 6e-6) -> None:
    torch.testing.assert_close(got.cpu().double(), want, atol=tolerance, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 511, 512, 1000, 4099])
def test_random_rows_match_float64(vocab: int, dtype: torch.dtype) -> None:
    for pad, lead, temperature in ((0, 0, 1.0), (3, 1, 0.7), (8, 5, 1.0)):
        shape = (2, 1, vocab)
        student, teacher = rows(shape, dtype, pad=pad, lead=lead), rows(shape, dtype, pad=pad, seed=1)
        ids, advantages = ids_for(shape), torch.tensor([[1.5], [-0.5]], device=DEVICE)
        got = run(student, teacher, ids, advantages, temperature=temperature)
        assert_rows(got, expected(student, teacher, ids, advantages, temperature=temperature))


def test_a_full_vocabulary_matches_float64_with_the_launch_of_the_table() -> None:
    shape = (1, 2, 151_936)
    student, teacher, ids = rows(shape, torch.bfloat16), rows(shape, torch.bfloat16, seed=1), ids_for(shape)
    got = run(student, teacher, ids, launch=None)
    assert_rows(got, expected(student, teacher, ids, torch.ones(1, 2)))


def test_models_may_have_different_dtypes() -> None:
    shape = (1, 2, 1003)
    student, teacher, ids = rows(shape, torch.float32), rows(shape, torch.bfloat16, seed=1), ids_for(shape)
    assert_rows(run(student, teacher, ids), expected(student, teacher, ids, torch.ones(1, 2)))
    assert_rows(run(teacher, student, ids), expected(teacher, student, ids, torch.ones(1, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_row_do_not_depend_on_its_place_in_memory(dtype: torch.dtype) -> None:
    shape = (1, 1, 1437)
    student, teacher, ids = rows(shape, dtype), rows(shape, dtype, seed=1), ids_for(shape)
    first = run(student, teacher, ids)
    for lead in range(1, 8):
        moved = rows(shape, dtype, lead=lead)
        assert torch.equal(run(moved, teacher, ids), first)


def test_identical_rows_at_different_alignments_give_a_delta_of_zero() -> None:
    shape = (1, 3, 1437)
    student, teacher = (rows(shape, torch.bfloat16, pad=pad, lead=lead) for pad, lead in ((0, 0), (3, 5)))
    got = run(student, teacher, ids_for(shape), torch.tensor([[0.3, -2.0, 0.1]], device=DEVICE))
    assert got[2].eq(0).all()
    assert got[1].eq(1).all()
    assert torch.equal(got[0].cpu(), torch.tensor([[0.3, -2.0, 0.1]]))


def test_inactive_rows_keep_their_advantage_and_ignore_what_is_in_memory() -> None:
    student, teacher = rows((2, 2, 600), torch.bfloat16), rows((2, 2, 600), torch.bfloat16, seed=1)
    student[0, 1], teacher[1, 0] = NAN, INF
    ids = ids_for((2, 2, 600))
    ids[0, 1] = -(10**12)
    active = torch.tensor([[True, False], [False, True]], device=DEVICE)
    advantages = torch.tensor([[1.0, 0.1], [-0.3, 2.0]], device=DEVICE)
    got = run(student, teacher, ids, advantages, active).cpu()
    off = ~active.cpu()
    assert torch.equal(got[0][off], advantages.cpu()[off])
    assert torch.equal(got[1][off], torch.ones(2))
    assert torch.equal(got[2:][:, off], torch.zeros(5, 2))
    assert got[:, active.cpu()].isfinite().all()


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
    for place in (0, 2 * page):
        assert protect(ctypes.c_void_p(flat.data_ptr() + place), page, 0) == 0  # PROT_NONE
    vocab = page // size - 13
    front, back = middle[:vocab].view(1, 1, vocab), middle[-vocab:].view(1, 1, vocab)
    ids = ids_for((1, 1, vocab))
    # Overlapping rows, so that the last is one whole tile that ends with the page while the first is off a boundary.
    tile = middle[-511:].as_strided((2, 1, 256), (255, 255, 1))
    off = torch.zeros(1, 1, dtype=torch.bool)
    outside = flat[2 * page // size :][:vocab].view(1, 1, vocab)
    assert survives(lambda: run(front, back, ids))
    assert survives(lambda: run(back, front, ids))
    assert survives(lambda: run(tile, tile, ids_for((2, 1, 256))))
    assert survives(lambda: run(outside, front, ids, active=off))
    assert not survives(lambda: run(outside, front, ids)), "the guard itself does not work"


@pytest.mark.parametrize("place", [0, 3, 255, 256, 1000, 1026])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_logit_breaks_its_row_alone(value: float, place: int) -> None:
    student, teacher = rows((1, 3, 1027), torch.bfloat16), rows((1, 3, 1027), torch.bfloat16, seed=1)
    student[0, 1, place] = value
    got = run(student, teacher, ids_for((1, 3, 1027)))
    assert got[:4, 0, 1].isnan().all()
    assert got[5, 0, 1].isnan()
    assert got[:, 0, ::2].isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 600, 10**12, -(10**12)])
def test_an_unknown_id_gives_nan_in_its_row_alone(wrong: int) -> None:
    shape = (1, 3, 600)
    ids = ids_for(shape)
    ids[0, 1] = wrong
    got = run(rows(shape, torch.bfloat16), rows(shape, torch.bfloat16, seed=1), ids)
    assert got[:5, 0, 1].isnan().all()
    assert got[:, 0, ::2].isfinite().all()


def test_a_row_of_minus_inf_gives_nan() -> None:
    student, teacher = rows((1, 2, 600), torch.float32), rows((1, 2, 600), torch.float32, seed=1)
    teacher[0, 0] = -INF
    got = run(student, teacher, ids_for((1, 2, 600)))
    assert got[[0, 1, 2, 4, 6], 0, 0].isnan().all()
    assert got[:, 0, 1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_vocabulary_and_extreme_logits_match_float64(dtype: torch.dtype) -> None:
    shape = (1, 5, 2000)
    student, teacher = rows(shape, dtype), rows(shape, dtype, seed=1)
    student[0, 0, 100:1500] = -INF  # whole tiles without a finite logit
    teacher[0, 0, :700] = -INF
    student[0, 1] = -INF  # one-hot
    student[0, 1, 1999] = 4.0
    student[0, 2, 3], student[0, 2, 1800] = -1e4, 1e4
    teacher[0, 3] = torch.linspace(-1e4, 1e4, 2000)
    student[0, 4] = torch.finfo(dtype).min  # how some mask a vocabulary
    student[0, 4, 5:10] = 1.0
    ids = torch.tensor([[1999, 1999, 3, 40, 7]], device=DEVICE)
    got, want = run(student, teacher, ids).cpu().double(), expected(student, teacher, ids, torch.ones(1, 5))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-6)
    assert got[5:].isfinite().all()


def test_a_token_impossible_for_one_model_gets_an_edge_weight() -> None:
    student, teacher = rows((1, 3, 300), torch.float32), rows((1, 3, 300), torch.float32, seed=1)
    ids = torch.full((1, 3), 17, device=DEVICE)
    student[0, :, 17] = -INF
    advantages = torch.tensor([[2.0, -2.0, 0.0]], device=DEVICE)
    for weight_fn in ("sigmoid", "exp"):
        got = run(student, teacher, ids, advantages, weight_fn=weight_fn, lambda_mix=1.0).cpu()
        torch.testing.assert_close(got[1], torch.tensor([[1.2, 0.8, 1.0]]))
        torch.testing.assert_close(got[0], torch.tensor([[2.4, -1.6, 0.0]]))


def test_the_exponential_weight_matches_float64() -> None:
    shape = (1, 4, 700)
    student, ids = rows(shape, torch.float32), ids_for(shape)
    teacher = student + rows(shape, torch.float32, seed=1) * 0.05
    advantages = torch.tensor([[1.0, -1.0, 0.0, 3.0]], device=DEVICE)
    got = run(student, teacher, ids, advantages, weight_fn="exp")
    assert_rows(got, expected(student, teacher, ids, advantages, weight_fn="exp"))


def test_lambda_zero_returns_the_advantages_bit_for_bit() -> None:
    shape = (1, 4, 300)
    advantages = torch.tensor([[0.1, -1e-30, 3e30, -0.0]], device=DEVICE)
    student, teacher = rows(shape, torch.float16), rows(shape, torch.float16, seed=1)
    got = run(student, teacher, ids_for(shape), advantages, lambda_mix=0.0)
    assert torch.equal(got[0].view(torch.int32), advantages.view(torch.int32))


def test_entropies_are_zero_unless_asked_for() -> None:
    shape = (1, 2, 300)
    got = run(rows(shape, torch.float16), rows(shape, torch.float16, seed=1), ids_for(shape), entropy=False)
    assert got[5:].eq(0).all()
    assert got[3:5].lt(0).all()


@pytest.mark.parametrize(("count", "apart"), [(2, 2**31 + 1024), (3, 2**30 + 512)], ids=["stride", "product"])
def test_rows_may_lie_more_than_two_billion_elements_apart(count: int, apart: int) -> None:
    vocab = 300
    size = (count - 1) * apart + 2 * vocab
    memory = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)  # pages never touched cost nothing
    student, teacher = (memory[lead:].as_strided((count, 1, vocab), (apart, vocab, 1)) for lead in (0, vocab))
    for seed, x in enumerate((student, teacher)):
        x.copy_(rows((count, 1, vocab), torch.bfloat16, seed=seed))
    ids = ids_for((count, 1, vocab))
    assert_rows(run(student, teacher, ids), expected(student, teacher, ids, torch.ones(count, 1)))


def test_rows_with_two_strides_are_read_in_place() -> None:
    student = rows((3, 4, 200), torch.bfloat16)[:, :-1]
    teacher = rows((4, 3, 200), torch.bfloat16, seed=1).transpose(0, 1)[:, :-1]
    ids, advantages = ids_for((3, 3, 200)), torch.ones(3, 3, device=DEVICE)
    assert_rows(run(student, teacher, ids), expected(student, teacher, ids, advantages))


def test_no_rows_give_no_rows() -> None:
    empty = torch.empty(0, 4, 50, device=DEVICE)
    assert run(empty, empty, torch.empty(0, 4, dtype=torch.int64, device=DEVICE)).shape == (7, 0, 4)
    nothing = torch.empty(0, device=DEVICE)
    packed = epilogue_rows(nothing, nothing, nothing, nothing.bool(), alpha_clip=0.2, lambda_mix=0.2, weight_fn="exp")
    assert packed.shape == (3, 0)


@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
def test_ready_logprobs_over_several_blocks_match_float64(weight_fn: str) -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (-torch.rand(2500, generator=rng) for _ in range(2))
    advantages, active = torch.randn(2500, generator=rng), torch.rand(2500, generator=rng) < 0.7
    student[~active] = NAN
    moved = (x.to(DEVICE) for x in (student, teacher, advantages, active))
    got = epilogue_rows(*moved, alpha_clip=0.2, lambda_mix=0.3, weight_fn=weight_fn).cpu()
    for i in range(2500):
        if active[i]:
            a, delta = float(advantages[i]), float(teacher[i].double() - student[i].double())
            w = weight(a, delta, 0.2, weight_fn)
            assert got[:, i].tolist() == pytest.approx([a * (1 + 0.3 * (w - 1)), w, delta], abs=1e-6)
        else:
            assert got[:, i].tolist() == [float(advantages[i]), 1.0, 0.0]


def test_the_reasons_why_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got 'mps'" in str(availability("mps"))
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        assert "TRITON_INTERPRET=1" in str(availability("cpu"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        assert "cannot be imported" in str(availability("cuda"))


def test_importing_the_package_loads_no_triton() -> None:
    code = "import sys, stepopsd.ops.triton.pair; sys.exit('triton' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0
