"""What every backend's row kernels promise, on random shapes, strides and dtypes: values, bits, what is not read."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import stepopsd
from stepopsd.ops import dispatch
from stepopsd.ops.reference import row_distribution, shape_reference
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import sort_steps
from tests.ops import emulated_cuda
from tests.ops.strategies import DTYPES, FILLS, LAYOUTS, lay_out, make_logits

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # the interpreter's NumPy
NAN, INF = float("nan"), float("inf")
PLAIN_LAYOUTS = LAYOUTS[:5]  # those of a (B, R, V) block
SHAPE = {"alpha_clip": 0.2, "lambda_mix": 0.5, "weight_fn": "sigmoid", "step_norm": "equal_step_mean_abs"}


@dataclasses.dataclass(frozen=True)
class Kernels:
    """One backend's module on one device, for the CPU with one instruction set."""

    name: str
    device: str
    rows: dispatch.Backend

    @property
    def interpreted(self) -> bool:
        return self.name == "triton" and self.device == "cpu"

    def examples(self, count: int) -> int:
        return max(1, count // 4) if self.interpreted else count

    def score(self, logits: list[torch.Tensor], ids: torch.Tensor, active: torch.Tensor | None = None, *,
              temperature: float | torch.Tensor = 1.0, entropy: bool = True) -> torch.Tensor:  # fmt: skip
        """``score_rows`` of tensors on any device, strides kept; (K, 3, B, R) on the CPU."""
        active = torch.ones(ids.shape, dtype=torch.bool) if active is None else active
        warm = temperature.to(self.device) if isinstance(temperature, torch.Tensor) else temperature
        moved = [x if x.device.type == self.device else lay_like(x.to(self.device), x) for x in logits]
        return self.rows.score_rows(
            moved, ids.to(self.device), active.to(self.device), temperature=warm, entropy=entropy
        ).cpu()

    def shape(self, x: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """``shape_rows`` of the columns, with their segments where ``step_norm`` is not "none"; on the CPU."""
        merged = {**SHAPE, **options}
        columns = {name: column.to(self.device) for name, column in x.items()}
        steps, keys = columns["steps"], columns["keys"]
        segments = None if merged["step_norm"] == "none" or merged["lambda_mix"] == 0 else sort_steps(steps, keys)
        tensors = (columns["student"], columns["teacher"], columns["advantages"], steps >= 0)
        planes, statistics = self.rows.shape_rows(*tensors, segments, **merged)
        return planes.cpu(), statistics.cpu()


def lay_like(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values`` with the strides and the alignment of ``like``."""
    lead = like.data_ptr() % 16 // like.element_size()
    size = sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) + 1
    memory = torch.empty(lead + size, dtype=values.dtype, device=values.device)
    return memory.as_strided(like.shape, like.stride(), lead).copy_(values)


def variants() -> list[tuple[str, str]]:
    """Backends, the CPU once per instruction set of this machine."""
    if dispatch.unavailable("cpu", "cpu") is not None:
        return [(name, "") for name in dispatch.BACKENDS]
    from stepopsd.ops import native

    return [(name, isa) for name in dispatch.BACKENDS for isa in (native.isas() if name == "cpu" else [""])]


@pytest.fixture(params=variants(), ids=lambda variant: "-".join(filter(None, variant)))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    name, isa = request.param
    device = "cuda" if name in ("cuda", "triton") and torch.cuda.is_available() else "cpu"
    if name == "cuda" and device == "cpu":
        emulated_cuda.install(monkeypatch)
    reason = dispatch.unavailable(name, device)
    if reason is not None:
        pytest.skip(reason)
    if isa:
        monkeypatch.setenv("STEPOPSD_CPU_ISA", isa)
    return Kernels(name, device, dispatch.load(name))


@pytest.fixture
def own_kernels(kernels: Kernels) -> Kernels:
    """The backends that promise bits; PyTorch sums a row in an order that depends on the batch."""
    if kernels.name == "torch":
        pytest.skip("plain PyTorch promises no bits")
    return kernels


def sweep(kernels: Kernels, count: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run the decorated check at once, over ``count`` random examples (fewer where a row costs milliseconds)."""

    def decorate(check: Callable[..., None]) -> None:
        settings(
            max_examples=kernels.examples(count),
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # tensors are made from a seed, there is little to shrink
            suppress_health_check=list(HealthCheck),
        )(given(*strategies)(check))()

    return decorate


@dataclasses.dataclass(frozen=True)
class Rows:
    """K tensors of logits (B, R, V), ids, which rows are active, and a temperature."""

    logits: list[torch.Tensor]
    ids: torch.Tensor
    active: torch.Tensor
    temperature: float | torch.Tensor

    def __repr__(self) -> str:
        parts = [f"{tuple(x.shape)} {x.dtype} {x.stride()} at {x.data_ptr() % 16}" for x in self.logits]
        return f"Rows({'; '.join(parts)}, active={self.active.tolist()}, temperature={self.temperature})"

    def temperature_at(self, b: int, r: int) -> float:
        return float(self.temperature[b, r]) if isinstance(self.temperature, torch.Tensor) else self.temperature


@st.composite
def row_batches(draw: st.DrawFn, fills: tuple[str, ...] = FILLS, models: int | None = None) -> Rows:
    """Rows whose inactive members hold NaN logits, wild ids and NaN temperatures."""
    b, r = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    v = draw(st.one_of(st.integers(1, 40), st.integers(41, 1500)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    active = torch.rand((b, r), generator=rng) < draw(st.sampled_from((1.0, 0.7)))
    ids = torch.randint(v, (b, r), generator=rng)
    ids[~active] = draw(st.sampled_from((-(10**12), 2**62)))
    logits = []
    for _ in range(models or draw(st.integers(1, 2))):
        values = make_logits((b, r, v), draw(st.sampled_from(fills)), draw(st.sampled_from(DTYPES)), rng)
        values[~active] = NAN
        logits.append(lay_out(values, draw(st.sampled_from(PLAIN_LAYOUTS))))
    temperature: float | torch.Tensor = draw(st.sampled_from((1.0, 0.7, 2.5)))
    if draw(st.booleans()):
        temperature = torch.rand((b, r), generator=rng) * 2 + 0.3
        temperature[~active] = NAN
    return Rows(logits, ids, active, temperature)


def expected_row(row: torch.Tensor, token: int, temperature: float) -> torch.Tensor:
    """Log-prob, log-sum-exp and entropy of one row (V,) in float64; NaN where nothing is defined."""
    z = row.double() / temperature
    logprob, entropy = row_distribution(z, token)
    lse = z.max() + (z - z.max()).exp().sum().log()
    return torch.stack((logprob, lse, entropy))


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: object) -> None:
    """Equal NaN and infinities, and within ``tolerance`` plus fp32 rounding elsewhere."""
    torch.testing.assert_close(
        got.double(), want, atol=tolerance, rtol=3e-7, equal_nan=True, msg=lambda text: f"{what}\n{text}"
    )


def rounding(kernels: Kernels, logits: torch.Tensor, temperature: float = 1.0) -> float:
    """The Triton interpreter rounds the product of an fma, which hardware does not: an error of the logits' size."""
    if not kernels.interpreted:
        return 0.0
    return 2.5e-7 * float(logits.float().nan_to_num(0, 0, 0).abs().clamp(max=2e4).max()) / temperature


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit but for the payload of NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_scores_are_those_of_float64(kernels: Kernels) -> None:
    @sweep(kernels, 60, row_batches(), st.booleans())
    def check(x: Rows, entropy: bool) -> None:
        got = kernels.score(x.logits, x.ids, x.active, temperature=x.temperature, entropy=entropy)
        assert got.shape == (len(x.logits), 3, *x.ids.shape)
        assert got[:, :, ~x.active].eq(0).all(), "rows that are not active"
        for k, logits in enumerate(x.logits):
            for b, r in x.active.nonzero().tolist():
                temperature = x.temperature_at(b, r)
                want = expected_row(logits[b, r], int(x.ids[b, r]), temperature)
                if not entropy:
                    assert got[k, 2, b, r] == 0
                    want[2] = 0
                close = 5e-6 + 2 * rounding(kernels, logits[b, r], temperature)
                assert_close(got[k, :2, b, r], want[:2], close, x)
                assert_close(got[k, 2, b, r], want[2], 2 * close + 5 * rounding(kernels, logits[b, r], temperature), x)
                assert not got[k, 0, b, r] > 0


def test_a_row_s_bits_follow_from_its_values_alone(own_kernels: Kernels) -> None:
    """Alone or in a batch, at any place, alignment and stride, first, second or only tensor."""

    @sweep(own_kernels, 60, row_batches(models=2), st.data())
    def check(x: Rows, data: st.DataObject) -> None:
        together = own_kernels.score(x.logits, x.ids, x.active, temperature=x.temperature)
        b, r = data.draw(st.sampled_from([(b, r) for b in range(x.ids.shape[0]) for r in range(x.ids.shape[1])]))
        k, lead, swap = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 9)), data.draw(st.booleans())
        row = x.logits[k][b, r]
        moved = torch.full((lead + len(row),), NAN, dtype=row.dtype)[lead:].copy_(row).view(1, 1, -1)
        one = x.active[b : b + 1, r : r + 1].contiguous()
        heat = x.temperature[b, r].view(1, 1) if isinstance(x.temperature, torch.Tensor) else x.temperature
        others = [x.logits[1 - k][b : b + 1, r : r + 1]] if data.draw(st.booleans()) else []
        tensors = [*others, moved] if swap else [moved, *others]
        alone = own_kernels.score(tensors, x.ids[b, r].view(1, 1), one, temperature=heat)
        assert same(alone[len(tensors) - 1 if swap else 0, :, 0, 0], together[k, :, b, r])


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_keep_their_bits_and_their_digits(own_kernels: Kernels, dtype: torch.dtype) -> None:
    vocab = 33_003  # split in four on a GPU
    rng = torch.Generator().manual_seed(0)
    x = make_logits((1, 2, vocab), "normal", dtype, rng)
    x[0, 1, 9_000:28_000] = -INF  # whole parts without a finite logit
    ids = torch.tensor([[vocab - 1, 5]])
    whole = own_kernels.score([lay_out(x, "padded")], ids)
    for r in (0, 1):
        assert_close(whole[0, :, 0, r], expected_row(x[0, r], int(ids[0, r]), 1.0), 1e-5, r)
        moved = torch.empty(vocab + 3, dtype=dtype)[3:].copy_(x[0, r]).view(1, 1, -1)
        assert same(own_kernels.score([moved], ids[:, r : r + 1])[0, :, 0, 0], whole[0, :, 0, r])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_common_shift_of_the_logits_costs_no_digits(kernels: Kernels, dtype: torch.dtype) -> None:
    """Logits and shift are multiples of 1/8 that every dtype holds exactly."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(-32, 33, (2, 2, 700), generator=rng).float() / 8
    ids = torch.randint(700, (2, 2), generator=rng)
    for shift in (16.0, -16.0) if dtype == torch.bfloat16 else (64.0, -64.0) if dtype == torch.float16 else (4096.0,):
        assert torch.equal((x + shift).to(dtype).float(), x + shift)
        near, far = (kernels.score([y.to(dtype)], ids, temperature=0.8)[0].double() for y in (x, x + shift))
        close = 4e-6 + 2 * rounding(kernels, x + shift, 0.8)
        assert_close(far[0], near[0], close, "log-prob")
        assert_close(far[1] - shift / 0.8, near[1], close + 2e-7 * abs(shift), "log-sum-exp")
        assert_close(far[2], near[2], 3 * close, "entropy")


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(kernels: Kernels, dtype: torch.dtype) -> None:
    x = torch.zeros(1, 7, 300, dtype=dtype)
    x[0, 0, 7], x[0, 0, 9] = 1e4, -1e4
    x[0, 1] = torch.linspace(-1e4, 1e4, 300)
    x[0, 2], x[0, 2, 40] = -1e4, -1e4 + 8
    x[0, 3], x[0, 3, 299] = -INF, -1e4
    x[0, 4, 1:] = -INF
    x[0, 5], x[0, 5, 5:9] = torch.finfo(dtype).min, 1.0  # how some mask a vocabulary
    x[0, 6, ::2] = -INF
    ids = torch.tensor([[9, 0, 40, 299, 0, 6, 3]])
    got = kernels.score([x], ids)
    assert got.isfinite().all()
    for r in range(7):
        want = expected_row(x[0, r], int(ids[0, r]), 1.0)
        close = 2e-6 + 2 * rounding(kernels, x[0, r])
        assert_close(got[0, :, 0, r], want, close, f"row {r}")
    impossible = kernels.score([x], torch.full((1, 7), 2))[0, 0, 0]
    assert impossible[[3, 4, 6]].eq(-INF).all()
    assert impossible[:3].isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 600, 2**31, 10**12, -(10**12)])
def test_an_unknown_id_is_refused_or_breaks_its_log_prob_alone(kernels: Kernels, wrong: int) -> None:
    x = make_logits((1, 3, 600), "normal", torch.bfloat16, torch.Generator().manual_seed(2))
    ids = torch.tensor([[1, wrong, 599]])
    if kernels.name == "cpu":
        with pytest.raises(IndexError, match=str(wrong)):
            kernels.score([x], ids)
        return
    got = kernels.score([x], ids)[0, :, 0]
    assert got.isnan().tolist() == [[False, True, False], [False] * 3, [False] * 3]
    assert same(got[1:], kernels.score([x], ids.clamp(0, 599))[0, 1:, 0])


@pytest.mark.parametrize("place", [0, 511, 512, 1026])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_logit_breaks_its_row_of_its_tensor_alone(kernels: Kernels, value: float, place: int) -> None:
    rng = torch.Generator().manual_seed(3)
    x, y = (make_logits((1, 3, 1027), "normal", torch.bfloat16, rng) for _ in range(2))
    x[0, 1, place] = value
    got = kernels.score([x, y], torch.tensor([[5, 700, 1026]]))
    assert got[0].isnan().tolist() == [[[False, True, False]]] * 3
    assert got[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_less_than_in_eager_pytorch(kernels: Kernels, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(4)
    x = (torch.randn(4, 16, 1000, generator=rng) * 4).to(dtype)
    ids = x.float().softmax(-1).flatten(0, 1).multinomial(1, generator=rng).view(4, 16)  # tokens as they are sampled
    want = (z := x.double().log_softmax(-1)).gather(-1, ids[..., None])[..., 0], -(z.exp() * z).sum(-1)
    eager = (z := x.log_softmax(-1)).gather(-1, ids[..., None])[..., 0], -(z.exp() * z).sum(-1)
    got = kernels.score([x], ids)[0]
    for mine, theirs, exact in ((got[0], eager[0], want[0]), (got[2], eager[1], want[1])):
        error, naive = (mine.double() - exact).abs(), (theirs.double() - exact).abs()
        assert error.max() <= naive.max()
        assert error.mean() <= naive.mean()
        assert error.max() < 1e-5


def test_rows_may_lie_more_than_two_billion_elements_apart(kernels: Kernels) -> None:
    apart, vocab = 2**30 + 512, 300  # the third row begins beyond 2^31 elements
    memory = torch.empty(2 * apart + vocab, dtype=torch.bfloat16, device=kernels.device)  # untouched pages are free
    values = make_logits((3, 1, vocab), "normal", torch.bfloat16, torch.Generator().manual_seed(5))
    x = memory.as_strided((3, 1, vocab), (apart, vocab, 1)).copy_(values)
    ids = torch.tensor([[1], [2], [299]])
    assert torch.equal(kernels.score([x], ids), kernels.score([values], ids))


def test_more_rows_and_logits_than_32_bits_count(kernels: Kernels) -> None:
    if kernels.interpreted:
        pytest.skip("the interpreter takes a minute for so many programs")
    rows, vocab = 70_000, 32_003  # 2.2e9 logits, most of them one row again and again
    values = make_logits((1, 1, vocab), "normal", torch.bfloat16, torch.Generator().manual_seed(6)).to(kernels.device)
    x = values.expand(1, rows, vocab)
    ids, active = torch.full((1, rows), 7), torch.zeros((1, rows), dtype=torch.bool)
    active[0, [0, 65_535, 65_536, rows - 1]] = True
    got = kernels.score([x, x], ids, active)
    want = kernels.score([values], ids[:, :1])[0, :, 0, 0]
    assert got[:, :, ~active].eq(0).all()
    torch.testing.assert_close(got[:, :, active], want[None, :, None].expand(2, 3, 4), atol=2e-6, rtol=1e-6)
    if kernels.name != "torch":
        assert got[:, :, active].eq(want[None, :, None]).all()


def token_columns(tokens: int, seed: int, trajectories: int = 5, spread: float = 1.0) -> dict[str, torch.Tensor]:
    """Columns of ``shape_rows``, with broken and extreme tokens, and NaN log-probs in no step."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher, advantages = (torch.randn(tokens, generator=rng) * spread for _ in range(3))
    steps = torch.randint(-1, 7, (tokens,), generator=rng)
    for column, values in ((student, (NAN, -INF)), (teacher, (NAN, -INF, 1e4)), (advantages, (0.0, -0.0, NAN))):
        for value in values:
            column[torch.rand(tokens, generator=rng) < 0.03] = value
    student[steps < 0] = teacher[steps < 0] = NAN
    keys = torch.randint(trajectories, (tokens,), generator=rng)
    return {"student": student, "teacher": teacher, "advantages": advantages, "steps": steps, "keys": keys}


SHAPE_OPTIONS = st.fixed_dictionaries(
    {
        "alpha_clip": st.sampled_from((0.05, 0.2, 0.9)),
        "lambda_mix": st.sampled_from((0.0, 0.2, 0.9)),  # 1 and 1 may shape to 0, which has no relative error
        "weight_fn": st.sampled_from(("sigmoid", "exp")),
        "step_norm": st.sampled_from(("equal_step_mean_abs", "equal_step_ratio", "none")),
    }
)
COLUMNS = st.builds(
    token_columns, st.integers(0, 90), st.integers(0, 2**32), st.integers(1, 9), st.sampled_from((0.03, 1.0, 30.0))
)


def test_shaping_is_that_of_float64(kernels: Kernels) -> None:
    @sweep(kernels, 100, COLUMNS, SHAPE_OPTIONS)
    def check(x: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
        planes, statistics = kernels.shape(x, **options)
        gap = x["teacher"] - x["student"]  # rounded once, by every backend alike
        want = shape_reference(
            None, None, None, x["advantages"], x["steps"], trajectory_ids=x["keys"],
            student_logprobs=torch.zeros_like(gap), teacher_logprobs=gap, **options,
        )  # fmt: skip
        expected = (want.advantages, want.weights, want.step_scale)
        for plane, values in zip(planes[[0, 1, 3]], expected, strict=True):
            torch.testing.assert_close(plane.double(), values, atol=1e-12, rtol=3e-6, equal_nan=True)
        assert same(planes[2].double(), want.delta)
        for name, mine, theirs in zip(STATISTICS, statistics.tolist(), want.stats.packed.tolist(), strict=True):
            # A value beside an edge may fall on either side of it.
            slack = 1.0 / max(1, len(x["steps"])) if name in ("at_low", "at_high", "scale_clamped") else 3e-6
            assert mine == pytest.approx(theirs, rel=3e-6, abs=slack), name
        kept = x["steps"] < 0 if options["lambda_mix"] > 0 else torch.ones_like(x["steps"], dtype=torch.bool)
        assert torch.equal(planes[0].view(torch.int32)[kept], x["advantages"].view(torch.int32)[kept])
        low, high = 1 - options["alpha_clip"], 1 + options["alpha_clip"]
        weights = planes[1][~planes[1].isnan()]
        assert ((weights >= low - 1e-7) & (weights <= high + 2e-7)).all()


def test_statistics_are_those_of_the_planes(kernels: Kernels) -> None:
    """To the last digits of float64: no backend sums in less."""

    @sweep(kernels, 40, st.builds(token_columns, st.integers(1, 3000), st.integers(0, 2**32), st.just(9)))
    def check(x: dict[str, torch.Tensor]) -> None:
        planes, statistics = kernels.shape(x)
        weight, delta = planes[1].double(), planes[2].double()
        counted = (x["steps"] >= 0) & delta.isfinite() & weight.isfinite()
        got = dict(zip(STATISTICS, statistics.tolist(), strict=True))
        d, w = delta[counted], weight[counted]
        assert got["count"] == len(d)
        assert got["nonfinite"] == int((x["steps"] >= 0).sum()) - len(d)
        if not len(d):
            return
        exact = {
            "delta_mean": d.mean(), "delta_std": d.std(correction=0), "delta_min": d.min(), "delta_max": d.max(),
            "delta_abs_mean": d.abs().mean(), "weight_mean": w.mean(), "weight_std": w.std(correction=0),
            "weight_min": w.min(), "weight_max": w.max(),
        }  # fmt: skip
        for name, value in exact.items():
            assert got[name] == pytest.approx(float(value), rel=1e-12, abs=1e-12), name
        assert got["at_low"] * len(d) == pytest.approx(float((w <= 0.8 + 1e-6).sum()), abs=1e-9)
        assert got["at_high"] * len(d) == pytest.approx(float((w >= 1.2 - 1e-6).sum()), abs=1e-9)
        budgeted = planes[3][x["steps"] >= 0]
        if got["steps"]:
            assert float(budgeted.min()) <= got["scale_min"] + 1e-7
            assert float(budgeted.max()) >= got["scale_max"] - 1e-7


def test_a_trajectory_s_bits_follow_from_its_own_tokens(own_kernels: Kernels) -> None:
    @sweep(own_kernels, 40, st.builds(token_columns, st.integers(1, 900), st.integers(0, 2**32)), SHAPE_OPTIONS)
    def check(x: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
        planes, _ = own_kernels.shape(x, **options)
        for key in x["keys"].unique()[:2]:
            mine = x["keys"] == key
            alone, _ = own_kernels.shape({name: column[mine] for name, column in x.items()}, **options)
            assert same(alone, planes[:, mine])


def test_the_same_call_gives_the_same_bits(kernels: Kernels) -> None:
    x = token_columns(2000, 0)
    first, second = kernels.shape(x), kernels.shape(x)
    assert same(first[0], second[0])
    assert torch.equal(first[1], second[1])
    logits = make_logits((2, 3, 900), "holes", torch.float16, torch.Generator().manual_seed(0))
    scores = [kernels.score([logits], torch.ones(2, 3, dtype=torch.int64)) for _ in range(2)]
    assert same(*scores)


def test_public_calls_take_any_leading_shape_and_stride(kernels: Kernels) -> None:
    """The same bits from (N, T, V), its flattened rows, and views that are not contiguous."""
    rng = torch.Generator().manual_seed(7)
    student, teacher = (make_logits((2, 6, 130), "normal", torch.bfloat16, rng) for _ in range(2))
    columns = (
        torch.randint(130, (2, 6), generator=rng),
        torch.randn((2, 6), generator=rng),
        torch.randint(-1, 3, (2, 6), generator=rng),
        torch.tensor([4, 9])[:, None].expand(2, 6),
    )

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        s, t, ids, advantages, steps, keys = (x.to(kernels.device) for x in tensors)
        got = stepopsd.shape_advantages(s, t, ids, advantages, steps, trajectory_ids=keys, backend=kernels.name)
        alone = stepopsd.token_logprobs(t, ids, mask=steps >= 0, backend=kernels.name).logprobs
        if kernels.name != "torch":
            assert torch.equal(alone, got.teacher_logprobs)
        return torch.stack((got.advantages, got.delta, got.step_scale, alone)).cpu()

    plain = call(student, teacher, *columns)
    flat = call(*(x.reshape(12, *x.shape[2:]) for x in (student, teacher, *columns)))
    tall = call(*(x.unflatten(1, (3, 2)) for x in (lay_out(student, "shifted"), lay_out(teacher, "padded"), *columns)))
    if kernels.name == "torch":
        torch.testing.assert_close(flat.view(plain.shape), plain)
        torch.testing.assert_close(tall.view(plain.shape), plain)
    else:
        assert same(flat.view(plain.shape), plain)
        assert same(tall.view(plain.shape), plain)


def test_memory_that_a_launcher_allocates_starts_as_nan(kernels: Kernels) -> None:
    """What the checks of this suite rest on: an element that a kernel leaves out shows."""
    for function in (kernels.rows.score_rows, kernels.rows.shape_rows):
        scope = vars(sys.modules[function.__module__])
        for allocate in ("torch.empty((2, 3))", "torch.zeros(2).new_empty((2, 3))", "torch.empty_like(torch.zeros(2))"):
            assert eval(allocate, {**scope, "torch": torch}).isnan().all(), (function.__module__, allocate)
    assert not math.isnan(float(torch.zeros(1)))
