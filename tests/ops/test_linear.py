"""The ops from hidden states: equal to those from logits, forward and backward, in the memory of one chunk."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stepopsd
from stepopsd.ops import linear, linear_head, linear_loss, linear_ops
from stepopsd.ops.linear import linear_shape_advantages, linear_token_logprobs
from stepopsd.ops.linear_head import Head, default_chunk_rows
from stepopsd.ops.linear_rows import Tokens
from stepopsd.ops.logprobs import token_logprobs
from tests.ops.conftest import BackendUnderTest
from tests.ops.linear_cases import CHUNK, ROWS, H, N, V, errors, leaves, memory, products, reference, tensors
from tests.ops.strategies import lay_out

LAYOUTS = ("contiguous", "shifted", "padded", "transposed", "three_strides", "flat")


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    hidden, weight, bias, ids, mask = tensors(
        draw(st.integers(0, 2**31)), draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 9)),
        draw(st.integers(1, 50)), draw(st.sampled_from((torch.float32, torch.float64))),
    )  # fmt: skip
    mask = draw(st.sampled_from((None, mask, torch.ones_like(mask), torch.zeros_like(mask))))
    bound = None
    if mask is not None:
        hidden[~mask], ids[~mask] = float("nan"), 2**60
        bound = draw(st.sampled_from((None, int(mask.sum()), int(mask.sum()) + 2)))
    layout = draw(st.sampled_from(LAYOUTS))
    hidden = lay_out(hidden, layout)
    if layout == "three_strides":
        ids, mask = (x if x is None else x[:, None].expand(len(x), 2, -1) for x in (ids, mask))
        bound = None if bound is None else 2 * bound
    elif layout == "flat":
        ids, mask = (x if x is None else x.flatten() for x in (ids, mask))
    temperature: float | Tensor = draw(st.sampled_from((1.0, 0.7)))
    if draw(st.booleans()):
        temperature = torch.linspace(0.5, 2.0, ids.numel()).view(ids.shape)
    return {
        "hidden": hidden, "weight": weight, "token_ids": ids, "bias": draw(st.sampled_from((None, bias))), "mask": mask,
        "temperature": temperature, "entropy": draw(st.booleans()), "max_active": bound,
        "chunk_rows": draw(st.sampled_from((None, 1, 2, 7))), "fp32_logits": draw(st.booleans()),
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(call=calls(), seed=st.integers(0, 99))
def test_values_and_gradients_are_those_of_float64(call: dict[str, Any], seed: int) -> None:
    given = [x for x in (call["hidden"], call["weight"], call["bias"]) if x is not None]
    ours = [x.detach().requires_grad_() for x in given]  # detach keeps the strides
    call = {**call, **dict(zip(("hidden", "weight", "bias"), ours, strict=False))}
    got = linear_token_logprobs(**call)
    mask = torch.ones_like(got.logprobs, dtype=torch.bool) if call["mask"] is None else call["mask"]
    found = [got.logprobs, got.lse, *([] if got.entropy is None else [got.entropy])]
    rng = torch.Generator().manual_seed(seed)
    slopes = [torch.randn(mask.shape, generator=rng).to(x.dtype) for x in found]
    gradients = torch.autograd.grad([(x * g).sum() for x, g in zip(found, slopes, strict=True)], ours)

    exact = leaves(given[0].double().where(mask[..., None], 0), *given[1:])
    ids = call["token_ids"].where(mask, 0)
    want = reference(exact[0], exact[1], exact[2] if len(exact) > 2 else None, ids, call["temperature"])[: len(found)]
    total = sum((x * g).where(mask, 0).sum() for x, g in zip(want, slopes, strict=True))
    tolerance = {"atol": 2e-5, "rtol": 1e-5} if found[0].dtype == torch.float32 else {"atol": 1e-9, "rtol": 1e-9}
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x, y.where(mask, 0).to(x.dtype), **tolerance)
    for x, y in zip(gradients, torch.autograd.grad(total, exact), strict=True):
        torch.testing.assert_close(x, y.to(x.dtype), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_op_on_logits(backend: BackendUnderTest, dtype: torch.dtype) -> None:
    hidden, weight, _, ids, mask = (x.to(backend.device) for x in tensors(dtype=dtype))
    options: dict[str, Any] = {"mask": mask, "temperature": 0.7, "entropy": True, "backend": backend.name}
    got = linear_token_logprobs(hidden, weight, ids, chunk_rows=3, **options)
    want = token_logprobs(hidden @ weight.t(), ids, **options)
    # Two products of other shapes may round their sums differently, by a unit of the logits.
    torch.testing.assert_close(got.logprobs, want.logprobs, atol=1e-5 if dtype == torch.float32 else 0.06, rtol=0)
    torch.testing.assert_close(got.entropy, want.entropy, atol=1e-5 if dtype == torch.float32 else 0.06, rtol=0)


@pytest.mark.parametrize("chunk_rows", [1, 32, None])
@pytest.mark.parametrize("fp32_logits", [False, True])
def test_bf16_gradients_are_no_worse_than_eager_bf16(fp32_logits: bool, chunk_rows: int | None) -> None:
    hidden, weight, bias, ids, _ = tensors(n=4, t=64, h=64, v=300, dtype=torch.bfloat16)
    slope = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    exact, eager, ours = (leaves(hidden, weight, bias) for _ in range(3))
    exact = [x.detach().double().requires_grad_() for x in exact]
    want = torch.autograd.grad((reference(*exact, ids, 0.7)[0] * slope).sum(), exact)
    logits = torch.nn.functional.linear(*eager) / 0.7
    eager_logprobs = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    naive = torch.autograd.grad((eager_logprobs * slope).sum(), eager)
    scored = linear_token_logprobs(
        ours[0], ours[1], ids, bias=ours[2], temperature=0.7, fp32_logits=fp32_logits, chunk_rows=chunk_rows
    )
    got = torch.autograd.grad((scored.logprobs * slope).sum(), ours)
    assert [x.dtype for x in got] == [torch.bfloat16] * 3
    assert all(mine <= 1.1 * theirs for mine, theirs in zip(errors(got, want), errors(naive, want), strict=True))


def test_passes_gradcheck() -> None:
    hidden, weight, bias, ids, mask = tensors(t=3, h=4, v=7, dtype=torch.float64)

    def rows(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        scored = linear_token_logprobs(
            hidden, weight, ids, bias=bias, mask=mask, temperature=0.7, entropy=True, chunk_rows=2
        )
        assert scored.entropy is not None
        return torch.stack((scored.logprobs, scored.lse, scored.entropy))

    torch.autograd.gradcheck(rows, leaves(hidden, weight, bias))


def test_fp32_logits_of_bf16_states_are_exact_to_fp32() -> None:
    hidden, weight, bias, ids, _ = tensors(n=3, t=7, h=64, v=500, dtype=torch.bfloat16)
    want = reference(hidden, weight, bias, ids, 1.0)[0]
    got = linear_token_logprobs(hidden, weight, ids, bias=bias, fp32_logits=True).logprobs
    torch.testing.assert_close(got.double(), want, atol=3e-5, rtol=0)
    assert (linear_token_logprobs(hidden, weight, ids, bias=bias).logprobs - want).abs().max() > 1e-3


def test_a_float32_head_on_bf16_states() -> None:
    hidden, _, _, ids, mask = tensors(dtype=torch.bfloat16)
    _, weight, bias, _, _ = tensors(seed=1)
    ours, exact = leaves(hidden, weight, bias), leaves(hidden.double(), weight.double(), bias.double())
    got = linear_token_logprobs(ours[0], ours[1], ids, bias=ours[2], mask=mask, fp32_logits=True, chunk_rows=2).logprobs
    want = reference(*exact, ids, 1.0)[0].where(mask, 0)
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=0)
    for x, y in zip(torch.autograd.grad(got.sum(), ours), torch.autograd.grad(want.sum(), exact), strict=True):
        torch.testing.assert_close(x, y.to(x.dtype))


@pytest.mark.parametrize("masked", [False, True])
def test_forward_needs_the_memory_of_one_chunk(masked: bool) -> None:
    hidden, weight, _, ids, mask = tensors(n=1, t=N, h=H, v=V)
    mask = mask if masked else None
    with torch.no_grad():
        peak, largest = memory(
            lambda: linear_token_logprobs(hidden, weight, ids, mask=mask, entropy=True, chunk_rows=ROWS)
        )
        logits = memory(lambda: hidden @ weight.t())[0]
    assert logits >= N * V * 4
    assert largest <= CHUNK
    # The torch backend computes in copies of a chunk; 100 bytes per token hold its results.
    copies = 0 if stepopsd.ops.dispatch.resolve("auto", "cpu") == "cpu" else 4
    assert peak <= CHUNK * (1 + copies) + 100 * N


def test_backward_needs_one_chunk_and_the_gradients() -> None:
    hidden, weight, _, ids, mask = tensors(n=1, t=N, h=H, v=V)
    hidden, weight = leaves(hidden, weight)
    loss = linear_token_logprobs(hidden, weight, ids, mask=mask, chunk_rows=ROWS).logprobs.sum()
    peak, largest = memory(lambda: torch.autograd.grad(loss, (hidden, weight)))
    gradients = hidden.nbytes + weight.nbytes
    assert largest <= max(CHUNK, weight.nbytes)
    assert peak <= gradients + 5 * CHUNK + 200 * N < N * V * 4


def test_narrow_logits_are_never_widened_as_a_whole() -> None:
    hidden, weight, bias, ids, _ = tensors(n=1, t=64, h=H, v=3 * 2**16, dtype=torch.bfloat16)
    hidden, weight, bias = leaves(hidden, weight, bias)
    scored = linear_token_logprobs(hidden, weight, ids, bias=bias, fp32_logits=True, chunk_rows=32, backend="torch")
    _, largest = memory(lambda: torch.autograd.grad(scored.logprobs.sum(), (hidden, weight, bias)))
    assert largest <= max(32 * len(weight) * 4, 4 * weight.numel())


@pytest.mark.parametrize(("wanted", "count"), [("hidden", 2), ("weight", 2), ("bias", 1), ("hidden weight", 3)])
def test_only_the_gradients_asked_for_are_computed(wanted: str, count: int) -> None:
    hidden, weight, bias, ids, _ = tensors()
    parts = {"hidden": hidden, "weight": weight, "bias": bias}
    for name in wanted.split():
        parts[name] = parts[name].requires_grad_()
    scored = linear_token_logprobs(parts["hidden"], parts["weight"], ids, bias=parts["bias"])
    assert products(lambda: scored.logprobs.sum().backward()) == count
    assert [name for name, x in parts.items() if x.grad is not None] == wanted.split()


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, _, ids, _ = tensors()
    assert linear_token_logprobs(hidden, weight, ids).logprobs.grad_fn is None
    with torch.no_grad():
        assert linear_token_logprobs(*leaves(hidden, weight), ids).logprobs.grad_fn is None


@pytest.mark.parametrize("bound", [False, True])
def test_masked_tokens_are_not_read(backend: BackendUnderTest, bound: bool) -> None:
    hidden, weight, _, ids, mask = (x.to(backend.device) for x in tensors())
    hidden[~mask], ids[~mask] = float("nan"), 2**62
    hidden, weight = leaves(hidden, weight)
    got = linear_token_logprobs(
        hidden, weight, ids, mask=mask, entropy=True, backend=backend.name, chunk_rows=2,
        max_active=int(mask.sum()) + 2 if bound else None,
    )  # fmt: skip
    assert got.entropy is not None
    (got.logprobs.sum() + got.entropy.sum()).backward()
    for x in (got.logprobs, got.lse, got.entropy):
        assert not x[~mask].any()
        assert x[mask].isfinite().all()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad[~mask].any()
    assert hidden.grad[mask].any(-1).all()
    assert weight.grad.isfinite().all()


def test_tokens_beyond_the_bound_become_nan_where_values_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "check", lambda self, vocab: None)  # as on a GPU
    hidden, weight, _, ids, mask = tensors()
    got = linear_token_logprobs(hidden, weight, ids, mask=mask, max_active=int(mask.sum()) - 1).logprobs
    last = mask.flatten().nonzero()[-1]
    assert got.flatten()[last].isnan()
    got.flatten()[last] = 0
    assert got[mask].isfinite().all()
    assert not got[~mask].any()


def widening(monkeypatch: pytest.MonkeyPatch, *, add: bool) -> None:
    """Products with ``out_dtype``, as CUDA builds of PyTorch have them (``add``: also addmm), computed in float32."""
    plain_mm, plain_addmm = torch.mm, torch.addmm

    def mm(a: Tensor, b: Tensor, *, out_dtype: Any = None, out: Tensor | None = None) -> Tensor:
        if out_dtype is None:
            return plain_mm(a, b, out=out)
        assert a.dtype == b.dtype == torch.bfloat16
        return plain_mm(a.float(), b.float(), out=out)

    def addmm(x: Tensor, a: Tensor, b: Tensor, *, out_dtype: Any = None, out: Tensor, **scale: Any) -> Tensor:
        if out_dtype is None:
            return plain_addmm(x, a, b, out=out, **scale)
        assert add
        assert a.dtype == b.dtype == torch.bfloat16
        return plain_addmm(x, a.float(), b.float(), out=out)

    wanted = add
    monkeypatch.setattr(linear_head, "_widens", lambda kind, *, add: wanted or not add)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setitem(linear_head._TILE_ELEMENTS, "cpu", 2**11)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("logits", [torch.bfloat16, torch.float32])
def test_products_of_bf16_factors_may_be_added_in_float32(
    monkeypatch: pytest.MonkeyPatch, logits: torch.dtype, add: bool
) -> None:
    widening(monkeypatch, add=add)
    hidden, weight, bias, _, _ = tensors(n=1, t=32, h=64, v=100, dtype=torch.bfloat16)
    head = Head(weight, bias, logits, operand=torch.bfloat16)
    assert len(head._tiles(hidden[0])) > 2
    out = torch.empty(32, 100, dtype=logits)
    head.write_logits(hidden[0], out)
    exact = hidden[0].double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-4 if logits == torch.float32 else 2**-6)

    total = torch.empty(100, 64)
    for first in (True, False):
        head.add_weight_gradient(out, hidden[0], total, first=first)
    narrow = out.bfloat16().double()  # the gradient of float32 logits is rounded for the product
    exactly, roughly = {"rtol": 1e-5, "atol": 1e-3}, {"rtol": 2**-7, "atol": 0.5}
    want = 2 * narrow.t() @ hidden[0].double()
    torch.testing.assert_close(total.double(), want, **(exactly if add else roughly))
    states = head.hidden_gradient(out)
    assert states.dtype == logits
    want = narrow @ weight.double()
    torch.testing.assert_close(states.double(), want, **(exactly if add and logits == torch.float32 else roughly))


def test_gradients_of_many_chunks_are_added_up_in_float32() -> None:
    weight = torch.zeros(7, 5, dtype=torch.bfloat16)
    head = Head.build(weight, weight[:, 0], torch.bfloat16, fp32_logits=False)
    assert head.new_weight_gradient(1, torch.bfloat16).dtype == torch.bfloat16
    states, gradient = torch.full((1, 5), 3.0).bfloat16(), torch.full((1, 7), 0.001).bfloat16()
    total, bias = head.new_weight_gradient(1000, torch.bfloat16), head.new_bias_gradient()
    for chunk in range(1000):
        head.add_weight_gradient(gradient, states, total, first=chunk == 0)
        head.add_bias_gradient(gradient, bias)
    exact = 1000 * gradient[0].float()
    torch.testing.assert_close(bias, exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(total, 3 * exact[:, None].expand(7, 5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("lead", [(0,), (2, 0), (3,)])
def test_no_token_gives_zero_gradients(lead: tuple[int, ...]) -> None:
    hidden, weight, bias = leaves(torch.randn(*lead, 4), torch.randn(6, 4), torch.randn(6))
    ids, mask = torch.zeros(lead, dtype=torch.int64), torch.zeros(lead, dtype=torch.bool)
    got = linear_token_logprobs(hidden, weight, ids, bias=bias, mask=mask)
    assert got.logprobs.shape == lead
    assert not any(x.any() for x in torch.autograd.grad(got.logprobs.sum(), (hidden, weight, bias)))


def test_a_broken_row_stays_alone() -> None:
    hidden, weight, _, ids, _ = tensors()
    hidden[0, 1] = float("inf")
    got = linear_token_logprobs(hidden, weight, ids, chunk_rows=4).logprobs
    assert got.isnan().sum() == 1
    assert got[0, 1].isnan()


def test_the_same_call_gives_the_same_bits() -> None:
    hidden, weight, _, ids, mask = tensors(n=4, t=16, h=64, v=1000)

    def run() -> list[Tensor]:
        parts = leaves(hidden, weight)
        rows = linear_token_logprobs(*parts, ids, mask=mask, chunk_rows=8)
        return [rows.logprobs, *torch.autograd.grad(rows.logprobs.sum(), parts)]

    assert all(torch.equal(x, y) for x, y in zip(run(), run(), strict=True))


def test_double_backward_is_refused() -> None:
    hidden, weight, _, ids, _ = tensors()
    hidden, weight = leaves(hidden, weight)
    logprobs = linear_token_logprobs(hidden, weight, ids).logprobs
    (slope,) = torch.autograd.grad(logprobs.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.square().sum().backward()


def test_changed_hidden_states_are_noticed() -> None:
    hidden, weight, _, ids, _ = tensors()
    hidden, weight = leaves(hidden, weight)
    loss = linear_token_logprobs(hidden, weight, ids).logprobs.sum()
    with torch.no_grad():
        hidden.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_converts_as_linear_does() -> None:
    hidden, weight, bias, ids, mask = tensors(h=64, v=200)
    ours, theirs = leaves(hidden, weight, bias), leaves(hidden, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_token_logprobs(ours[0], ours[1], ids, bias=ours[2], mask=mask, chunk_rows=2)
        logits = torch.nn.functional.linear(*theirs)
    assert logits.dtype == torch.bfloat16
    want = token_logprobs(logits.detach(), ids, mask=mask)
    torch.testing.assert_close(got.logprobs, want.logprobs, atol=0.05, rtol=0)
    got.logprobs.sum().backward()
    eager = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    (eager * mask).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        assert x.grad is not None
        assert x.grad.dtype == torch.float32
        torch.testing.assert_close(x.grad, y.grad, atol=0.06, rtol=0.02)


def scores(hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    scored = linear_token_logprobs(hidden, weight, ids, mask=mask, entropy=True)
    assert scored.entropy is not None
    return (scored.logprobs - 0.1 * scored.entropy).sum()


def test_compiles_into_one_graph() -> None:
    hidden, weight, _, ids, mask = tensors()
    ours, eager = leaves(hidden, weight), leaves(hidden, weight)
    compiled = torch.compile(scores, fullgraph=True, dynamic=True)
    for rows in (2, 1):
        got = torch.autograd.grad(compiled(ours[0][:rows], ours[1], ids[:rows], mask[:rows]), ours)
        want = torch.autograd.grad(scores(eager[0][:rows], eager[1], ids[:rows], mask[:rows]), eager)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y)


def test_the_ops_pass_opcheck() -> None:
    hidden, weight, bias, ids, mask = tensors()
    hidden, weight, bias = leaves(hidden, weight, bias)
    index = mask.flatten().nonzero()[:, 0]
    how = (None, False, 2, "torch")
    for places in ((None, None), (index, None), (index, torch.ones_like(index, dtype=torch.bool))):
        arguments = (hidden, weight, bias, ids, mask, *places, 0.7, None, True, True, *how)
        torch.library.opcheck(linear_ops._score_op, arguments)
    rows = torch.rand(3, *ids.shape)
    arguments = (
        hidden.detach(), weight.detach(), None, ids, mask, None, None, rows[:2], rows, 0.7, None, [True, False, False],
        *how,
    )  # fmt: skip
    torch.library.opcheck(linear_ops._score_backward_op, arguments)


def test_the_default_chunk_fits_the_machine() -> None:
    vocab = 151_936
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
        assert 300e6 < default_chunk_rows(vocab, dtype, "cuda") * vocab * size < 600e6
        assert default_chunk_rows(vocab, dtype, "cpu") == 128
    assert default_chunk_rows(2**24, torch.float32, "cuda") == 8
    assert default_chunk_rows(32_000, torch.float32, "cpu") == 256
    assert default_chunk_rows(500_000, torch.float32, "cpu") == (128 << 20) // 2_000_000 == 67
    assert default_chunk_rows(2**40, torch.float32, "cpu") == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.zeros(7, 5)}, ValueError, r"weight must have shape \(V, 4\) with V >= 1, got \(7, 5\)"),
        ({"weight": torch.zeros(7)}, ValueError, r"weight must have shape \(V, 4\)"),
        ({"weight": torch.zeros(7, 4).half()}, TypeError, "weight must have the dtype of hidden torch.float32"),
        (
            {"weight": torch.zeros(7, 4).double(), "fp32_logits": True},
            TypeError,
            "weight must have the dtype of hidden",
        ),
        ({"weight": torch.zeros(7, 4).int()}, TypeError, "weight must be torch.bfloat16"),
        ({"hidden": torch.zeros(())}, ValueError, r"hidden must have shape \(..., H\) with H >= 1, got \(\)"),
        ({"bias": torch.zeros(6)}, ValueError, r"bias must have shape \(7,\) and dtype torch.float32, got \(6,\)"),
        ({"bias": torch.zeros(7).half()}, ValueError, "bias must have shape .* torch.float32, got .* torch.float16"),
        ({"token_ids": torch.zeros(3, dtype=torch.int64)}, ValueError, r"token_ids must have shape \(2, 3\)"),
        (
            {"token_ids": torch.full((2, 3), 7)},
            IndexError,
            r"token_ids must lie in \[0, 7\), got 7 at position \(0, 0\)",
        ),
        ({"mask": torch.zeros(2, 3)}, TypeError, "mask must be torch.bool"),
        ({"mask": torch.ones(2, 3).bool(), "max_active": 5}, ValueError, "max_active must be at least .* 6, got 5"),
        ({"max_active": -1}, ValueError, "max_active must be 0 or more, got -1"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be at least 1, got 0"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0"),
        ({"backend": "fast"}, ValueError, "backend must be one of auto"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(2, 3, 4), "weight": torch.zeros(7, 4), "token_ids": torch.zeros(2, 3).long(), **changes
    }  # fmt: skip
    with pytest.raises(error, match=message):
        linear_token_logprobs(**arguments)


def test_examples_run() -> None:
    page = Path(__file__).parents[2] / "docs" / "linear.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    for module in (linear, linear_loss):
        assert doctest.testmod(module).failed == 0


def test_the_package_offers_them() -> None:
    assert stepopsd.linear_token_logprobs is linear_token_logprobs
    assert stepopsd.linear_shape_advantages is linear_shape_advantages
