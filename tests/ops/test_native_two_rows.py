"""The CPU kernel takes two rows at a time where there are enough: their bits are those of each row alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from stepopsd.ops import native

MISSING = native.availability("cpu")
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"needs the native module: {MISSING}")
ISAS = [] if MISSING else native.isas()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ("usual", "offset", "low", "rising", "some -inf", "late -inf", "all -inf", "nan", "+inf")


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPOPSD_CPU_ISA", request.param)


def score(logits: list[Tensor], ids: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    active = torch.ones(ids.shape, dtype=torch.bool)
    return native.score_rows(logits, ids, active, temperature=temperature, entropy=False, normaliser=True)


def alone(logits: list[Tensor], ids: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Every row of every tensor in a call of its own."""
    out = torch.empty((len(logits), 5, *ids.shape))
    for k, i in itertools.product(range(len(logits)), range(ids.shape[1])):
        row = slice(i, i + 1)
        how = temperature[:, row].contiguous() if isinstance(temperature, Tensor) else temperature
        out[k, :, :, row] = score([logits[k][:, row]], ids[:, row].contiguous(), how)[0]
    return out


def same_bits(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.view(torch.int32), y.view(torch.int32))


def row_of(kind: str, vocab: int, generator: torch.Generator) -> Tensor:
    row = torch.randn(vocab, generator=generator) * 4
    if kind == "offset":
        row += 9000
    if kind == "low":
        row -= 200
    if kind == "rising":
        row += torch.linspace(0, 300, vocab)
    if kind == "some -inf":
        row[::3] = -torch.inf
    if kind == "late -inf":
        row[-1] = -torch.inf
    if kind == "all -inf":
        row[:] = -torch.inf
    if kind in ("nan", "+inf"):
        row[vocab // 2] = float(kind)
    return row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "count"), [(1, 8), (63, 9), (128, 8), (1000, 17), (9000, 9), (140_000, 8)])
def test_rows_side_by_side_have_the_bits_of_each_alone(dtype: torch.dtype, vocab: int, count: int) -> None:
    g = torch.Generator().manual_seed(vocab)
    pair = [(torch.randn((1, count, vocab), generator=g) * 4).to(dtype) for _ in range(2)]
    ids = torch.randint(vocab, (1, count), generator=g)
    assert same_bits(score(pair[:1], ids), alone(pair[:1], ids))
    assert same_bits(score(pair, ids), alone(pair, ids))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [300, 9000])
def test_a_row_is_not_changed_by_the_kind_of_row_beside_it(dtype: torch.dtype, vocab: int) -> None:
    g = torch.Generator().manual_seed(0)
    rows = [row_of(kind, vocab, g).to(dtype) for kind in KINDS]
    beside = list(itertools.product(rows, rows))  # every kind with every kind, as student and teacher of a token
    pair = [torch.stack(side)[None] for side in zip(*beside, strict=True)]
    ids = torch.randint(vocab, (1, len(beside)), generator=g)
    assert same_bits(score(pair, ids), alone(pair, ids))


def test_rows_of_two_dtypes_and_of_many_temperatures() -> None:
    g = torch.Generator().manual_seed(0)
    pair = [torch.randn((1, 20, 3000), generator=g).bfloat16(), torch.randn((1, 20, 3000), generator=g)]
    ids, temperatures = torch.randint(3000, (1, 20), generator=g), torch.rand((1, 20), generator=g) + 0.5
    for logits in (pair, pair[:1], pair[1:]):
        assert same_bits(score(logits, ids, temperatures), alone(logits, ids, temperatures))


def test_masked_rows_leave_the_others_side_by_side() -> None:
    g = torch.Generator().manual_seed(0)
    pair = [torch.randn((1, 40, 2000), generator=g) for _ in range(2)]
    ids, active = torch.randint(2000, (1, 40), generator=g), torch.rand((1, 40), generator=g) > 0.4
    for x in pair:
        x[~active] = torch.nan
    got = native.score_rows(pair, ids, active, temperature=1.0, entropy=False, normaliser=True)
    assert same_bits(got[..., active], alone(pair, ids)[..., active])
    assert not got[..., ~active].any()


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_more_threads_than_pairs_of_rows_change_nothing(threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    pair = [torch.randn((1, 9, 150_000), generator=g).bfloat16() for _ in range(2)]
    ids = torch.randint(150_000, (1, 9), generator=g)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert same_bits(score(pair, ids), alone(pair, ids))
    finally:
        torch.set_num_threads(before)
