"""The Triton gradient kernels themselves: interpreted on a CPU, compiled where there is a GPU, against float64."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stepopsd.ops import dispatch
from stepopsd.ops.linear_loss import linear_grpo_loss
from stepopsd.ops.logprobs import token_logprobs
from stepopsd.ops.policy_loss import grpo_loss
from stepopsd.ops.triton import availability, gradient, gradient_rows, scale_rows, score_rows
from tests.ops.test_triton_score import on_cpu, survives

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(availability(DEVICE) is not None, reason=str(availability(DEVICE))),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # the interpreter's NumPy
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INF, NAN = float("inf"), float("nan")


@pytest.fixture
def short_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warp and one block per thread, so that a few thousand logits are many trips of many programs."""
    monkeypatch.setattr(gradient, "THREADS", 32)
    monkeypatch.setattr(gradient, "GROUPS", 1)


def place(values: torch.Tensor, dtype: torch.dtype, *, pad: int = 0, lead: int = 0) -> torch.Tensor:
    """``values`` (B, R, V) with rows ``pad`` elements apart, ``lead`` elements into their memory; NaN around them."""
    b, r, v = values.shape
    memory = torch.full((lead + b * r * (v + pad) + 8,), NAN, dtype=dtype, device=DEVICE)
    return memory[lead : lead + b * r * (v + pad)].view(b, r, v + pad)[..., :v].copy_(values)


def rows(shape: tuple[int, ...], dtype: torch.dtype, *, pad: int = 0, lead: int = 0, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return place(torch.randn(shape, generator=rng) * 3, dtype, pad=pad, lead=lead)


def blank(like: torch.Tensor, *, pad: int = 0, lead: int = 0) -> torch.Tensor:
    return place(torch.full(like.shape, NAN), like.dtype, pad=pad, lead=lead)


def untouched(x: torch.Tensor) -> bool:
    """Whether all memory of ``x`` outside its rows is still NaN."""
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    whole = whole.clone()
    whole.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(NAN)
    return bool(whole.isnan().all())


def one_apart(vocab: int) -> int:
    """Padding with which each row lies one element further from a 16-byte boundary than the row before."""
    return (1 - vocab) % 8


def ids_for(shape: tuple[int, ...], seed: int = 9) -> torch.Tensor:
    return torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def coefficients(shape: tuple[int, ...], seed: int = 4) -> torch.Tensor:
    """(3, B, R) a, b, c; every other row without c."""
    abc = torch.randn((3, *shape[:-1]), generator=torch.Generator().manual_seed(seed))
    abc[2].view(-1)[::2] = 0
    return abc.to(DEVICE)


def normaliser_of(x: torch.Tensor, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
    """(2, B, R) peak and log-mass of finite rows, from float64."""
    divisor = temperature.double()[..., None] if isinstance(temperature, torch.Tensor) else temperature
    z = x.double() / divisor * math.log2(math.e)
    peak = z.amax(-1).float()
    return torch.stack((peak, (z - peak.double()[..., None]).exp2().sum(-1).log2().float()))


def run(x: torch.Tensor, ids: torch.Tensor, abc: torch.Tensor, active: torch.Tensor | None = None, *,
        temperature: float | torch.Tensor = 1.0, out: torch.Tensor | None = None,
        normaliser: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    active = torch.ones(ids.shape, dtype=torch.bool, device=DEVICE) if active is None else active
    out = blank(x) if out is None else out
    normaliser = normaliser_of(x, temperature) if normaliser is None else normaliser
    gradient_rows(x, ids, active, normaliser, abc, temperature=temperature, out=out)
    return out


def expected(x: torch.Tensor, ids: torch.Tensor, abc: torch.Tensor, temperature: float | torch.Tensor = 1.0
             ) -> torch.Tensor:  # fmt: skip
    """(B, R, V) float64."""
    divisor = temperature.cpu().double()[..., None] if isinstance(temperature, torch.Tensor) else temperature
    log_p = (x.cpu().double() / divisor).log_softmax(-1)
    p, (a, b, c) = log_p.exp(), abc.cpu().double()[..., None]
    entropy = (p * log_p).where(p > 0, 0)
    chosen = torch.zeros_like(p).scatter_(-1, ids.cpu()[..., None], 1)
    return (a * chosen + b * p + c * entropy) / divisor


def assert_rows(got: torch.Tensor, want: torch.Tensor, relative: float = 4e-6) -> None:
    """Within ``relative`` of the size of the coefficients, about 1, and half a unit in the last place of the dtype."""
    kind = torch.finfo(got.dtype)
    error = (got.cpu().double() - want).abs()
    allowed = relative + 0.502 * kind.eps * want.abs() + kind.smallest_normal
    assert (error <= allowed).all(), f"off by {(error - allowed).max():.3g} more than allowed"


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes of each row, so that 0 and -0 differ."""
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 513, 4099])
def test_random_rows_of_every_alignment_match_float64(vocab: int, dtype: torch.dtype) -> None:
    shape = (1, 8, vocab)
    ids, abc, own = ids_for(shape), coefficients(shape), torch.linspace(0.5, 2, 8, device=DEVICE).view(1, 8)
    x = rows(shape, dtype, pad=one_apart(vocab), lead=3)
    want = expected(x, ids, abc, own)
    alike, unlike = blank(x, pad=one_apart(vocab), lead=3), blank(x, pad=one_apart(vocab) + 8, lead=1)
    for out in (alike, unlike, x):
        assert_rows(run(x, ids, abc, temperature=own, out=out), want)
        assert untouched(out)


def test_a_real_vocabulary_of_odd_size_matches_float64() -> None:
    shape = (2, 2, 50_257)
    x, ids, abc = rows(shape, torch.bfloat16), ids_for(shape), coefficients(shape)
    assert_rows(run(x, ids, abc, temperature=0.7), expected(x, ids, abc, 0.7))


def test_a_full_vocabulary_matches_float64() -> None:
    shape = (1, 1, 151_936)
    x, ids, abc = rows(shape, torch.float32), ids_for(shape), coefficients(shape)
    want = expected(x, ids, abc)
    assert_rows(run(x, ids, abc, out=x), want)


@pytest.mark.parametrize("programs", [1, 4, 1000])
def test_how_the_work_is_divided_changes_no_bit(
    programs: int, short_trips: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 3, 1280)  # whole trips, and the part of a block that rows off a boundary have beyond them
    x, ids, abc = rows(shape, torch.bfloat16, lead=5), ids_for(shape), coefficients(shape)
    ids[0] = torch.tensor([0, 640, 1279])
    monkeypatch.setattr(gradient, "PROGRAMS", programs)
    few = run(x, ids, abc, out=blank(x, lead=5))
    monkeypatch.undo()
    assert torch.equal(bits(few), bits(run(x, ids, abc)))


def test_every_place_of_the_selected_token_is_patched_once(short_trips: None) -> None:
    vocab = 21
    for lead in (0, 3):
        x = place(torch.zeros(1, vocab, vocab), torch.bfloat16, lead=lead)
        ids = torch.arange(vocab, device=DEVICE)[None]
        abc = torch.zeros(3, 1, vocab, device=DEVICE)
        abc[0], abc[1] = 2, -1
        for out in (blank(x), x):
            got = run(x, ids, abc, out=out)
            assert_rows(got, 2 * torch.eye(vocab, dtype=torch.float64)[None] - 1 / vocab)


def test_every_element_is_written_by_one_thread() -> None:
    import triton
    import triton.language as tl

    from stepopsd.ops.triton.gradient_kernels import single_elements, whole_blocks

    @triton.jit
    def kernel(counts, first, last, left_out, shift, vocab, whole: tl.constexpr, single: tl.constexpr):  # type: ignore[no-untyped-def]
        start = 4 * tl.program_id(0)
        place, inside = whole(start, first, last, left_out, 8, 4)
        tl.atomic_add(counts + place, 1, mask=inside)
        place, inside = single(start, start + 4, first, last, left_out, shift, vocab, 8)
        tl.atomic_add(counts + place, 1, mask=inside)

    for shift in (0, 1, 7):
        for vocab in (1, 6, 8, 15, 16, 25):
            for chosen in {-8, shift, (shift + vocab) // 2, shift + vocab - 1}:
                counts = torch.zeros(64, dtype=torch.int32, device=DEVICE)
                edges = (shift + 7) // 8, (vocab + shift) // 8
                kernel[(2,)](counts, *edges, chosen // 8, shift, vocab, whole_blocks, single_elements)
                assert counts.tolist() == [0] * shift + [1] * vocab + [0] * (64 - shift - vocab), (shift, vocab, chosen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entropy", [False, True])
def test_the_bits_of_a_row_follow_from_its_values_alone(dtype: torch.dtype, entropy: bool) -> None:
    vocab = 2437
    values = torch.randn(1, 1, vocab, generator=torch.Generator().manual_seed(0)) * 3
    values[0, 0, 5::7] = -INF  # 0 where b is negative: the sign counts too
    values = values.to(dtype)
    ids = torch.full((1, 9), 1234, device=DEVICE)
    abc = torch.tensor([0.7, -0.7, -0.3 if entropy else 0.0], device=DEVICE).view(3, 1, 1).expand(3, 1, 9).contiguous()
    abc[2, 0, 8] = 1.0
    alone = run(place(values, dtype), ids[:, :1], abc[:, :, :1].contiguous(), normaliser=stats(values, 1))
    assert alone.isfinite().all()
    x = place(values.expand(1, 9, vocab), dtype, pad=one_apart(vocab))
    for out in (blank(x, pad=one_apart(vocab)), blank(x, pad=2, lead=3), x):
        got = run(x, ids, abc, out=out, normaliser=stats(values, 9))
        assert torch.equal(bits(got[:, :8]), bits(alone.expand(1, 8, vocab)))
    upright = place(values.expand(1, 9, vocab), dtype, lead=5, pad=2).transpose(0, 1)
    got = run(upright, ids.T.contiguous(), abc.mT.contiguous(), normaliser=stats(values, 9).mT.contiguous())
    assert torch.equal(bits(got[:8]), bits(alone.expand(8, 1, vocab)))


def stats(values: torch.Tensor, count: int) -> torch.Tensor:
    return normaliser_of(values.to(DEVICE)).expand(2, 1, count).contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [8, 700, 4099])
def test_in_place_gives_the_bits_of_out_of_place(vocab: int, dtype: torch.dtype) -> None:
    shape = (2, 3, vocab)
    x, ids, abc = rows(shape, dtype, lead=1), ids_for(shape), coefficients(shape)
    active = torch.tensor([[True, False, True], [True, True, True]], device=DEVICE)
    apart = run(x, ids, abc, active)
    over = run(x, ids, abc, active, out=x)
    assert torch.equal(bits(over), bits(apart))


def test_half_precision_is_the_float32_gradient_rounded_to_nearest() -> None:
    shape = (1, 3, 3001)
    for dtype in (torch.bfloat16, torch.float16):
        x, ids, abc = rows(shape, dtype), ids_for(shape), coefficients(shape)
        wide = run(x.float(), ids, abc)
        normal = wide.abs() >= torch.finfo(dtype).smallest_normal
        assert torch.equal(run(x, ids, abc)[normal], wide.to(dtype)[normal])


def test_a_temperature_has_the_same_bits_as_a_number_and_as_a_tensor() -> None:
    shape = (1, 3, 700)
    x, ids, abc = rows(shape, torch.float32), ids_for(shape), coefficients(shape)
    for temperature in (0.1, 0.7, 1.0, 1.3, 60.0):
        planes = normaliser_of(x, temperature)
        one = run(x, ids, abc, temperature=temperature, normaliser=planes)
        own = torch.full((1, 3), temperature, device=DEVICE)
        assert torch.equal(one, run(x, ids, abc, temperature=own, normaliser=planes))


@pytest.mark.parametrize("inplace", [False, True])
def test_rows_without_a_gradient_are_zero_and_ignore_what_is_in_memory(inplace: bool) -> None:
    shape = (2, 3, 600)
    x, ids, abc = rows(shape, torch.bfloat16, pad=1), ids_for(shape), coefficients(shape)
    planes, own = normaliser_of(x, 0.8), torch.full((2, 3), 0.8, device=DEVICE)
    active = torch.tensor([[True, False, True], [False, True, True]], device=DEVICE)
    abc[:, 0, 2] = torch.tensor([0.0, -0.0, -0.0])
    live = active.clone()
    live[0, 2] = False
    want = run(x, ids, abc, active, temperature=own, normaliser=planes)
    x[~live], planes[:, ~live], own[~live], ids[~live] = NAN, NAN, NAN, -(10**12)
    abc[:, ~active] = NAN
    got = run(x, ids, abc, active, temperature=own, normaliser=planes, out=x if inplace else None)
    assert torch.equal(bits(got), bits(want))
    assert bits(got[~live]).eq(0).all()
    assert got[live].isfinite().all()


@on_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_is_touched_beyond_the_rows(dtype: torch.dtype) -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    size = torch.empty((), dtype=dtype).element_size()
    flat = torch.frombuffer(memory, dtype=dtype)
    flat.zero_()
    # Guarded pages around the middle one, whose first and last elements belong to rows of odd length.
    middle, vocab = flat[page // size : 2 * page // size], page // size - 13
    front, back = middle[:vocab].view(1, 1, vocab), middle[-vocab:].view(1, 1, vocab)
    outside = flat[2 * page // size :][:vocab].view(1, 1, vocab)
    ids, abc, planes = ids_for((1, 1, vocab)), torch.ones(3, 1, 1), torch.zeros(2, 1, 1)
    off = torch.zeros(1, 1, dtype=torch.bool)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guarded in (0, 2 * page):
        assert protect(ctypes.c_void_p(flat.data_ptr() + guarded), page, 0) == 0  # PROT_NONE
    apart = blank(front, lead=3)
    for x in (front, back):
        assert survives(lambda x=x: run(x, ids, abc, normaliser=planes, out=x))
        assert survives(lambda x=x: run(x, ids, abc, normaliser=planes, out=apart))
        assert survives(lambda x=x: run(apart, ids, abc, normaliser=planes, out=x))
        assert survives(lambda x=x: scale_rows(x, torch.tensor(2.0)))
    assert survives(lambda: run(outside, ids, abc, off, normaliser=planes, out=front))
    assert survives(lambda: run(outside, ids, 0 * abc, normaliser=planes, out=front))
    assert survives(lambda: scale_rows(outside, torch.tensor(1.0)))
    assert not survives(lambda: run(outside, ids, abc, normaliser=planes, out=front)), "the guard itself does not work"


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_vocabulary_and_extreme_logits_match_float64(dtype: torch.dtype) -> None:
    shape = (1, 6, 2000)
    x = rows(shape, dtype, pad=1)
    x[0, 0, 100:1500] = -INF
    x[0, 1] = -INF  # one-hot
    x[0, 1, 1999] = 4.0
    x[0, 2] = torch.finfo(dtype).min  # how some mask a vocabulary
    x[0, 2, 5:10] = 1.0
    x[0, 3, 3], x[0, 3, 1800] = -1e4, 1e4
    x[0, 4] = torch.linspace(-1e4, 1e4, 2000)
    x[0, 5] = (x[0, 5].float() + 1e4).to(dtype)
    ids = torch.tensor([[1999, 1999, 7, 3, 40, 11]], device=DEVICE)
    active, abc = torch.ones_like(ids, dtype=torch.bool), coefficients(shape)
    abc[2] = 0.5
    planes = score_rows([x], ids, active, temperature=0.9, entropy=True, normaliser=True)[0, 3:]
    got, want = run(x, ids, abc, temperature=0.9, normaliser=planes), expected(x, ids, abc, 0.9)
    assert_rows(got[:, :3], want[:, :3])
    # The interpreter rounds the product of an fma, which hardware does not: an error of the logits' size.
    assert_rows(got[:, 3:], want[:, 3:], relative=4e-6 if DEVICE == "cuda" else 2e-2)


def test_large_logits_lose_no_digits() -> None:
    shape = (1, 4, 1000)
    values = torch.randint(-256, 256, shape, generator=torch.Generator().manual_seed(0)) / 64
    x, ids, abc = place(values + 1e4, torch.float32), ids_for(shape), coefficients(shape)
    # Scaled by log2(e) / temperature = 1, so that the interpreter's fma is exact too.
    temperature = float(torch.tensor(math.log2(math.e)))
    weights = values.double().exp2()
    mass = weights.sum(-1)
    planes = torch.stack((torch.full_like(mass, 1e4), mass.log2())).float().to(DEVICE)
    p, (a, b, c) = weights / mass[..., None], abc.cpu().double()[..., None]
    want = (p * (b + c * p.log())).scatter_add(-1, ids.cpu()[..., None], a) / temperature
    assert_rows(run(x, ids, abc, temperature=temperature, normaliser=planes), want, relative=1e-6)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_logit_breaks_its_row_alone(value: float) -> None:
    shape = (1, 5, 1027)
    x, ids, abc = rows(shape, torch.bfloat16), ids_for(shape), coefficients(shape)
    for row, column in enumerate((0, 511, 1026)):
        x[0, row, column] = value
    x[0, 3] = -INF
    active = torch.ones_like(ids, dtype=torch.bool)
    planes = score_rows([x], ids, active, temperature=1.0, entropy=False, normaliser=True)[0, 3:]
    got = run(x, ids, abc, normaliser=planes)
    assert got[0, :4].isnan().all()
    assert got[0, 4].isfinite().all()


@pytest.mark.parametrize("lead", [0, 3])
def test_an_unknown_id_breaks_its_row_alone(lead: int) -> None:
    shape = (1, 6, 1600)
    x, ids, abc = rows(shape, torch.bfloat16, lead=lead), ids_for(shape), coefficients(shape)
    ids[0, :5] = torch.tensor([-1, 1600, 10**12, -(10**12), 2**32], device=DEVICE)
    out = blank(x, lead=lead)
    got = run(x, ids, abc, out=out)
    assert got[0, :5].isnan().all()
    assert got[0, 5].isfinite().all()
    assert untouched(out)


@pytest.mark.parametrize(("count", "apart"), [(2, 2**31 + 1024), (3, 2**30 + 512)], ids=["stride", "product"])
def test_rows_may_lie_more_than_two_billion_elements_apart(count: int, apart: int) -> None:
    shape, size = (count, 1, 300), (count - 1) * apart + 600
    memory = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)  # pages never touched cost nothing
    x, out = (memory[lead:].as_strided(shape, (apart, 300, 1)) for lead in (0, 300))
    x.copy_(rows(shape, torch.bfloat16))
    ids, abc = ids_for(shape), coefficients(shape)
    want = expected(x, ids, abc)
    planes = normaliser_of(x)
    assert_rows(run(x, ids, abc, normaliser=planes, out=out), want)
    assert_rows(run(x, ids, abc, normaliser=planes, out=x), want)
    scale_rows(x, torch.tensor(-2.0, device=DEVICE))
    assert torch.equal(x, -2 * out)


def test_rows_with_any_strides_are_read_in_place() -> None:
    x = rows((3, 4, 200), torch.bfloat16)[:, :-1]
    y = rows((4, 3, 200), torch.float16, seed=1).transpose(0, 1)[:, :-1]
    same = rows((1, 1, 200), torch.float32).expand(3, 3, 200)  # all strides 0
    ids, abc = ids_for((3, 3, 200)), coefficients((3, 3, 200))
    for logits in (x, y, same):
        assert_rows(run(logits, ids, abc), expected(logits, ids, abc))


def test_the_grid_has_one_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepopsd.ops.triton import gradient_kernels

    grids = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("gradient_kernel", "scale_kernel"):
        monkeypatch.setattr(gradient_kernels, name, Recorder())
    ids, planes = torch.zeros(1, 70_000, dtype=torch.int64), torch.zeros(3, 1, 70_000)
    few = torch.zeros(1, 70_000, 16)
    run(few, ids, planes, out=few, normaliser=planes[:2])
    scale_rows(few[..., :8], planes[0, 0, 0])
    assert grids == [(70_000,), (gradient.PROGRAMS,)]  # other axes end at 65,535


def test_16_byte_loads_are_promised_just_where_rows_lie_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepopsd.ops.triton import gradient_kernels

    promises = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **options: promises.append(options["MATCHED"])

    monkeypatch.setattr(gradient_kernels, "gradient_kernel", Recorder())
    for b, r in ((1, 1), (1, 3), (3, 1), (2, 2)):
        layouts = [  # outer and inner strides that differ in what matters, and place in memory
            torch.zeros(999, dtype=torch.bfloat16)[lead:].as_strided((b, r, 17), (outer, inner, 1))
            for outer in (120, 121, 128) for inner in (24, 25, 40) for lead in (0, 1, 8)
        ]  # fmt: skip
        ids, planes = torch.zeros(b, r, dtype=torch.int64), torch.zeros(3, b, r)
        for x in layouts:
            for out in layouts:
                run(x, ids, planes, ids == 0, out=out, normaliser=planes[:2])
                gaps = {(x[i, j].data_ptr() - out[i, j].data_ptr()) % 16 for i in range(b) for j in range(r)}
                assert promises.pop() == (gaps == {0}), (b, r, x.stride(), out.stride(), gaps)


def test_no_rows_and_no_vocabulary_are_fine() -> None:
    for shape in ((0, 4, 50), (2, 0, 50)):
        empty, ids = torch.empty(shape, device=DEVICE), torch.empty(shape[:2], dtype=torch.int64, device=DEVICE)
        planes = torch.empty((3, *shape[:2]), device=DEVICE)
        assert run(empty, ids, planes, out=empty, normaliser=planes[:2]).shape == shape
        scale_rows(empty, torch.tensor(2.0, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 513, 1280])
def test_rows_of_every_alignment_are_scaled(
    vocab: int, dtype: torch.dtype, short_trips: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient, "PROGRAMS", 5)
    factor = torch.tensor(1 / 3, device=DEVICE)
    for options in ({"pad": one_apart(vocab), "lead": 3}, {"lead": 1}, {}):
        x = rows((2, 4, vocab), dtype, **options)
        want = (x.float() * factor).to(dtype)
        scale_rows(x, factor)
        assert torch.equal(x, want)
        assert untouched(x)


def test_a_factor_of_one_writes_nothing_and_nan_reaches_all() -> None:
    x = torch.full((1, 2, 100), NAN, device=DEVICE)
    signalling = torch.tensor(0x7FA00001, dtype=torch.int32, device=DEVICE)
    x.view(torch.int32).fill_(signalling)  # arithmetic would change these bits
    scale_rows(x, torch.tensor(1.0, device=DEVICE))
    assert x.view(torch.int32).eq(signalling).all()
    x.fill_(1.0)
    scale_rows(x, torch.tensor(NAN, device=DEVICE))
    assert x.isnan().all()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "token_logprobs": lambda x, ids, head: token_logprobs(x, ids, backend="triton").logprobs.sum(),
    "grpo_loss": lambda x, ids, head: grpo_loss(x, ids, torch.ones_like(x[..., 0]), backend="triton").loss,
    "linear_grpo_loss": lambda x, ids, head: (
        linear_grpo_loss(x, head, ids, torch.ones_like(x[..., 0]), backend="triton").loss
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_differentiable_ops_call_these_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepopsd.ops import triton

    called = set()

    def counted(name: str) -> Callable[..., Any]:
        kernel = getattr(triton, name)

        def call(*args: Any, **options: Any) -> Any:
            called.add(name)
            return kernel(*args, **options)

        return call

    for kernel in ("gradient_rows", "scale_rows", "score_rows"):
        monkeypatch.setattr(triton, kernel, counted(kernel))
    assert dispatch.resolve_gradients("triton", DEVICE) == "triton"
    leaf = rows((1, 3, 16), torch.float32).clone().requires_grad_()
    LOSSES[name](leaf, ids_for((1, 3, 16)), torch.randn(16, 16, device=DEVICE)).backward()
    # A gradient made in the forward is scaled in the backward, else it has its scale already.
    made_in_forward = {"scale_rows"} if name != "token_logprobs" else set()
    assert called == {"score_rows", "gradient_rows"} | made_in_forward
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
