"""The vocabulary-parallel ops: two and three gloo processes against one, and the merge of slices on its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stepopsd
from stepopsd.ops import dispatch, layout, vocab_exchange, vocab_parallel
from tests.ops import vocab_ranks
from tests.ops.conftest import BackendUnderTest
from tests.ops.strategies import FILLS, make_logits
from tests.ops.vocab_ranks import LOSSES, SIZES, VOCAB, case

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6, "equal_nan": True}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
KINDS = ("normal", "offset", "holes", "broken")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of three processes found, alone in this machine's memory but for what it sent."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(
        vocab_ranks.run, (str(folder),), nprocs=vocab_ranks.WORLD, start_method="spawn"
    )
    return [torch.load(folder / f"rank{rank}") for rank in range(vocab_ranks.WORLD)]


def same_on_all(ranks: list[dict[Any, Any]], world: int, name: Any, *keys: str) -> dict[str, Tensor]:
    """The result ``name`` of rank 0, after a look that the others hold the same bits; gradients put together."""
    found = [x[world][name] for x in ranks[:world]]
    for key in keys:
        assert all(torch.equal(x[key].nan_to_num(7.0), found[0][key].nan_to_num(7.0)) for x in found)
    if "gradient" in found[0]:
        return {**found[0], "gradient": torch.cat([x["gradient"] for x in found], -1)}
    return found[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", SIZES)
def test_logprobs_and_gradients_equal_one_process(
    ranks: list[dict[Any, Any]], world: int, kind: str, dtype: torch.dtype
) -> None:
    x = case(kind, dtype)
    logits = x["student"].requires_grad_()
    scored = stepopsd.token_logprobs(
        logits, x["ids"], mask=x["mask"], temperature=x["temperatures"], entropy=True, backend="torch"
    )
    want = vocab_ranks.logprob_rows(logits, x, scored)
    got = same_on_all(ranks, world, ("logprobs", kind, dtype), "rows")
    torch.testing.assert_close(got["rows"], want["rows"], **CLOSE)
    if dtype == torch.bfloat16:  # two float32 numbers of about the same size may round to neighbours
        torch.testing.assert_close(got["gradient"], want["gradient"], atol=1e-6, rtol=2**-7, equal_nan=True)
    else:
        torch.testing.assert_close(got["gradient"], want["gradient"], **CLOSE)
    assert not got["rows"][:, ~x["mask"]].any()
    assert not got["gradient"][~x["mask"]].any()
    broken = got["rows"].isnan().any(0)
    assert broken.sum() == (4 if kind == "broken" else 0)
    assert torch.equal(got["gradient"].isnan().any(-1), broken)


@pytest.mark.parametrize("world", SIZES)
def test_the_gradient_may_overwrite_the_logits(ranks: list[dict[Any, Any]], world: int) -> None:
    x = case("normal")
    logits = x["student"].requires_grad_()
    want = vocab_ranks.logprob_rows(
        logits, x, stepopsd.token_logprobs(logits, x["ids"], mask=x["mask"], entropy=True, backend="torch")
    )
    got = same_on_all(ranks, world, "inplace", "rows")
    torch.testing.assert_close(got["gradient"], want["gradient"], **CLOSE)
    assert all(x[world]["overwritten"] for x in ranks[:world])


@pytest.mark.parametrize("number", range(len(LOSSES)))
@pytest.mark.parametrize("world", SIZES)
def test_losses_and_gradients_equal_one_process(ranks: list[dict[Any, Any]], world: int, number: int) -> None:
    x = case("normal")
    logits = x["student"].requires_grad_()
    policy = stepopsd.grpo_loss(
        logits, *vocab_ranks.loss_tensors(x), ref_logprobs=x["ref"], backend="torch", **LOSSES[number]
    )
    want = vocab_ranks.loss_rows(logits, policy)
    got = same_on_all(ranks, world, ("loss", number), "loss", "metrics")
    for name in want:
        torch.testing.assert_close(got[name], want[name], **CLOSE)


@pytest.mark.parametrize("world", SIZES)
def test_without_gradients_only_the_value_is_made(ranks: list[dict[Any, Any]], world: int) -> None:
    x = case("normal")
    want = stepopsd.grpo_loss(x["student"], *vocab_ranks.loss_tensors(x), backend="torch").loss
    for found in ranks[:world]:
        loss, needs = found[world]["no_grad"]
        torch.testing.assert_close(loss, want, **CLOSE)
        assert not needs


@pytest.mark.parametrize("world", SIZES)
def test_shaping_equals_one_process(ranks: list[dict[Any, Any]], world: int) -> None:
    x = case("normal")
    shaped = stepopsd.shape_advantages(
        x["student"], x["teacher"], x["ids"], x["advantages"], x["steps"], trajectory_ids=torch.arange(2),
        entropy=True, lambda_mix=0.5, backend="torch",
    )  # fmt: skip
    got = same_on_all(ranks, world, "shaped", "rows", "statistics")
    for name, values in vocab_ranks.shaped_rows(shaped).items():
        torch.testing.assert_close(got[name], values, **CLOSE)


@pytest.mark.parametrize("world", SIZES)
def test_every_rank_names_the_same_mistake(ranks: list[dict[Any, Any]], world: int) -> None:
    starts = [sum(SIZES[world][:rank]) + rank for rank in range(world)]
    held = ", ".join(f"[{a}, {a + n})" for a, n in zip(starts, SIZES[world], strict=True))
    for found in ranks[:world]:
        assert found[world]["bad id"] == f"IndexError: token_ids must lie in [0, {VOCAB}), got 23 at position (0, 1)"
        assert found[world]["bad start"].startswith("ValueError: vocab_start and the local vocabulary sizes")
        assert found[world]["bad start"].endswith(f"the ranks hold {held}")


def test_a_rank_outside_the_group_is_refused(ranks: list[dict[Any, Any]]) -> None:
    assert ranks[2]["outside"].startswith("ValueError: group must be a process group that this rank belongs to")


def test_a_missing_group_is_named() -> None:
    assert not dist.is_initialized()
    for op, more in ((vocab_parallel.token_logprobs, 0), (vocab_parallel.grpo_loss, 1)):
        with pytest.raises(ValueError, match="group must be a process group, but"):
            op(torch.zeros(1, 4), torch.tensor([0]), *[torch.ones(1)] * more, group=None, vocab_start=0)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The place of a single rank that holds the whole vocabulary."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield {"group": None, "vocab_start": 0}
    dist.destroy_process_group()


def test_one_rank_computes_with_every_backend(backend: BackendUnderTest, alone: dict[str, Any]) -> None:
    if backend.device != "cpu":
        pytest.skip("gloo gathers tensors of the CPU")
    x = case("holes")
    logits = x["student"].requires_grad_()
    options: dict[str, Any] = {"mask": x["mask"], "entropy": True, "backend": backend.name}
    got = vocab_ranks.logprob_rows(logits, x, vocab_parallel.token_logprobs(logits, x["ids"], **options, **alone))
    want = vocab_ranks.logprob_rows(logits, x, stepopsd.token_logprobs(logits, x["ids"], **options))
    torch.testing.assert_close(got["rows"], want["rows"], atol=4e-6, rtol=1e-6)
    torch.testing.assert_close(got["gradient"], want["gradient"], atol=4e-6, rtol=1e-6)


def test_compile_breaks_its_graph_at_the_call(alone: dict[str, Any]) -> None:
    x = case("normal")
    logits = x["student"].requires_grad_()

    def doubled(logits: Tensor) -> Tensor:
        scored = vocab_parallel.token_logprobs(logits * 2, x["ids"], mask=x["mask"], **alone)
        return scored.logprobs.sum() * 3

    want = torch.autograd.grad(doubled(logits), logits)
    got = torch.autograd.grad(torch.compile(doubled, backend="aot_eager")(logits), logits)
    torch.testing.assert_close(got, want)


def test_misuse_is_refused(alone: dict[str, Any]) -> None:
    logits, ids = torch.zeros(1, 4, requires_grad=True), torch.tensor([0])
    with pytest.raises(ValueError, match="vocab_start must be 0 or more, got -1"):
        vocab_parallel.token_logprobs(logits, ids, group=None, vocab_start=-1)
    with pytest.raises(ValueError, match="inplace_backward must be False for logits that are a leaf"):
        vocab_parallel.token_logprobs(logits, ids, inplace_backward=True, **alone)
    logprobs = vocab_parallel.token_logprobs(logits, ids, **alone).logprobs
    (slope,) = torch.autograd.grad(logprobs.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.sum().backward()


def test_an_id_that_no_rank_has_is_nan_where_values_are_not_checked(
    alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "check_ids", lambda ids, active, vocab: None)  # as on a GPU
    logits, ids = torch.zeros(3, 4, requires_grad=True), torch.tensor([0, 4, -1])
    scored = vocab_parallel.token_logprobs(logits, ids, entropy=True, **alone)
    assert scored.logprobs.isnan().tolist() == [False, True, True]
    assert scored.lse.isfinite().all()
    (slope,) = torch.autograd.grad(scored.logprobs.sum(), logits)
    assert slope.isnan().any(-1).tolist() == [False, True, True]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), fill=st.sampled_from(FILLS))
def test_merged_slices_are_the_row(data: st.DataObject, seed: int, fill: str) -> None:
    rng = torch.Generator().manual_seed(seed)
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    vocab, dtype = sum(sizes), data.draw(st.sampled_from((torch.float32, torch.float64)))
    logits = make_logits((1, 4, vocab), fill, dtype, rng)
    ids = torch.randint(vocab, (1, 4), generator=rng)
    backend = dispatch.load("torch")
    everything: dict[str, Any] = {"temperature": 0.7, "entropy": True, "normaliser": True}
    active = torch.ones_like(ids, dtype=torch.bool)
    want = backend.score_rows([logits], ids, active, **everything)

    received, start = [], 0
    for size in sizes:
        column, here = ids - start, (ids >= start) & (ids < start + size)
        part = logits[..., start : start + size]
        row = backend.score_rows([part], column.where(here, 0), active, **everything)
        logprob = row[:, 0].where(here, vocab_exchange.NOT_OWNED)
        received.append(torch.stack((logprob, row[:, 3], row[:, 4], row[:, 2]), 1))
        start += size
    got = vocab_exchange._merged(torch.stack(received).double()).to(dtype)
    close = CLOSE if dtype == torch.float32 else {"atol": 1e-11, "rtol": 1e-13, "equal_nan": True}
    torch.testing.assert_close(got[:, :3], want[:, :3], **close)
    mass, whole = (x[:, 3].double() + x[:, 4].double() for x in (got, want))
    torch.testing.assert_close(mass, whole.where(whole > -math.inf, math.nan), **{**close, "atol": 1e-5})


def test_a_row_of_minus_infinity_only_has_no_mass(backend: BackendUnderTest) -> None:
    logits = torch.full((1, 3, 40), -math.inf, device=backend.device)
    logits[0, 1, 7], logits[0, 2, 7] = math.nan, 1.0
    ids = torch.zeros((1, 3), dtype=torch.int64, device=backend.device)
    scored = scores_with_normaliser(backend, logits, ids)
    peak, mass = scored[3:, 0].cpu()
    assert mass[0] == -math.inf
    assert peak[0].isfinite()
    assert mass[1].isnan()
    assert float(peak[2] + mass[2]) == pytest.approx(math.log2(math.e) / 0.7)
    assert scored[:3, 0, :2].isnan().all()
    rows = gradient(backend, logits, ids, scored[3:], scored.new_ones((3, 1, 3)))
    assert rows[0, :2].isnan().all()  # as a whole row it is none


@pytest.mark.parametrize("kind", ["holes", "broken"])
def test_every_backend_makes_the_row_of_its_slices(backend: BackendUnderTest, kind: str) -> None:
    x = case(kind)
    logits = x["student"].where(x["mask"][..., None], 0).to(backend.device)
    ids = x["ids"].where(x["mask"], 0).to(backend.device)
    whole, slopes = scores_with_normaliser(backend, logits, ids), x["slopes"].to(backend.device)
    want = gradient(backend, logits, ids, whole[3:], slopes)
    received, parts, start = [], [], 0
    for size in SIZES[3]:
        here = (ids >= start) & (ids < start + size)
        parts.append((logits[..., start : start + size], (ids - start).where(here, 0), here))
        row = scores_with_normaliser(backend, *parts[-1][:2])
        received.append(torch.stack((row[0].where(here, vocab_exchange.NOT_OWNED), row[3], row[4], row[2])))
        start += size
    merged = vocab_exchange._merged(torch.stack(received)[:, None].double())[0].float()
    torch.testing.assert_close(merged[:3], whole[:3], atol=4e-6, rtol=2e-6, equal_nan=True)
    a, b, c = slopes
    got = [
        gradient(backend, part, column, merged[3:], torch.stack((a.where(here, 0), b, c)))
        for part, column, here in parts
    ]
    torch.testing.assert_close(torch.cat(got, -1), want, atol=4e-6, rtol=2e-6, equal_nan=True)


def scores_with_normaliser(backend: BackendUnderTest, logits: Tensor, ids: Tensor) -> Tensor:
    missing = dispatch.no_gradients(backend.name)
    if missing is not None:
        pytest.skip(missing)
    active = torch.ones_like(ids, dtype=torch.bool)
    options: dict[str, Any] = {"temperature": 0.7, "entropy": True, "normaliser": True}
    return dispatch.load(backend.name).score_rows([logits], ids, active, **options)[0]


def gradient(backend: BackendUnderTest, logits: Tensor, ids: Tensor, normaliser: Tensor, abc: Tensor) -> Tensor:
    out, active = torch.empty_like(logits), torch.ones_like(ids, dtype=torch.bool)
    module = dispatch.load(backend.name)
    module.gradient_rows(logits, ids, active, normaliser.contiguous(), abc, temperature=0.7, out=out)
    return out
