"""linear_grpo_loss: equal to grpo_loss on the logits, in three products and the memory of one chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stepopsd
from stepopsd.ops import linear_loss
from stepopsd.ops.linear_loss import linear_grpo_loss
from stepopsd.ops.losses import LOSSES
from stepopsd.ops.policy_loss import PolicyLoss, grpo_loss
from tests.ops.conftest import BackendUnderTest
from tests.ops.linear_cases import errors, leaves, memory, products, tensors


def targets(shape: tuple[int, ...], seed: int = 5) -> dict[str, Tensor]:
    """Advantages and log-probs of the old and the reference policy, one per token."""
    rng = torch.Generator().manual_seed(seed)
    names = ("advantages", "old_logprobs", "ref_logprobs")
    return {name: torch.randn(shape, generator=rng) - (0 if name == "advantages" else 3) for name in names}


def gradients(policy: PolicyLoss, parts: list[Tensor], upstream: float = 1.0) -> tuple[Tensor, ...]:
    return torch.autograd.grad(upstream * policy.loss, parts)


def assert_same(got: PolicyLoss, want: PolicyLoss, **close: Any) -> None:
    for name in ("loss", "logprobs", "entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), **close)
    torch.testing.assert_close(got.metrics.packed, want.metrics.packed, **close)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[Tensor], dict[str, Any], dict[str, Any]]:
    """Hidden states, weight and bias in float64; what both forms of the loss take; what the hidden-state form takes."""
    seed = draw(st.integers(0, 2**31))
    hidden, weight, bias, ids, mask = tensors(
        seed, draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 20)),
        torch.float64,
    )  # fmt: skip
    loss = draw(st.sampled_from(LOSSES))
    common: dict[str, Any] = {
        "token_ids": ids, **targets(ids.shape, seed), "loss": loss, "budget": 7 if loss == "dr_grpo" else 0,
        "kl_coef": draw(st.sampled_from((0.0, 0.1))), "entropy_coef": draw(st.sampled_from((0.0, 0.3))),
        "dual_clip": draw(st.sampled_from((0.0, 2.0))) if loss not in ("cispo", "reinforce") else 0.0,
        "temperature": draw(st.sampled_from((1.0, torch.linspace(0.5, 2.0, ids.numel()).view(ids.shape)))),
    }  # fmt: skip
    if draw(st.booleans()):
        common["old_logprobs"] = None
    more: dict[str, Any] = {"chunk_rows": draw(st.sampled_from((None, 1, 3)))}
    if draw(st.booleans()):
        common["mask"] = mask
        hidden[~mask], ids[~mask] = float("nan"), -5
        common["advantages"][~mask] = float("nan")
        more["max_active"] = draw(st.sampled_from((None, int(mask.sum()), int(mask.sum()) + 1)))
    return [hidden, weight, *([bias] if draw(st.booleans()) else [])], common, more


@settings(max_examples=80, deadline=None)
@given(call=calls())
def test_equals_the_loss_on_logits(call: tuple[list[Tensor], dict[str, Any], dict[str, Any]]) -> None:
    parts, common, more = call
    ours, theirs = leaves(*parts), leaves(*parts)
    got = linear_grpo_loss(ours[0], ours[1], bias=ours[2] if len(ours) > 2 else None, **common, **more)
    clean = theirs[0] if "mask" not in common else theirs[0].where(common["mask"][..., None], 0)
    want = grpo_loss(torch.nn.functional.linear(clean, *theirs[1:]), **common)
    assert_same(got, want)
    for x, y in zip(gradients(got, ours, 2.5), gradients(want, theirs, 2.5), strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-7)


def test_every_backend_computes_it(backend: BackendUnderTest) -> None:
    hidden, weight, _, ids, mask = (x.to(backend.device) for x in tensors())
    terms = {name: x.to(backend.device) for name, x in targets(ids.shape).items()}
    for loss in ("grpo", "gspo"):
        ours, theirs = leaves(hidden, weight), leaves(hidden, weight)
        options: dict[str, Any] = {**terms, "mask": mask, "loss": loss, "entropy_coef": 0.1, "backend": backend.name}
        got = linear_grpo_loss(*ours, ids, chunk_rows=2, **options)
        want = grpo_loss(theirs[0] @ theirs[1].t(), ids, **options)
        assert_same(got, want, atol=1e-4, rtol=1e-4)
        for x, y in zip(gradients(got, ours), gradients(want, theirs), strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_passes_gradcheck(loss: str) -> None:
    hidden, weight, bias, ids, mask = tensors(t=3, h=4, v=7, dtype=torch.float64)
    old = stepopsd.linear_token_logprobs(hidden, weight, ids, bias=bias).logprobs  # inside every clip
    advantages = targets(ids.shape)["advantages"]
    if loss == "gspo":  # with several advantages in a sequence its gradient is not that of its value
        advantages = advantages[:, :1].expand(ids.shape)

    def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        policy = linear_grpo_loss(
            hidden, weight, ids, advantages, old, mask, bias=bias, loss=loss, entropy_coef=0.2, clip_low=0.5,
            clip_high=0.5, chunk_rows=2,
        )  # fmt: skip
        return policy.loss

    torch.autograd.gradcheck(value, leaves(hidden, weight, bias))


@pytest.mark.parametrize(
    ("loss", "wanted", "count"),
    [("grpo", "hidden weight", 3), ("grpo", "hidden", 2), ("grpo", "weight", 2), ("gspo", "hidden weight", 4)],
)
def test_no_product_is_computed_in_vain(loss: str, wanted: str, count: int) -> None:
    hidden, weight, _, ids, _ = tensors()
    parts = {"hidden": hidden, "weight": weight}
    for name in wanted.split():
        parts[name].requires_grad_()

    def step() -> None:
        linear_grpo_loss(**parts, token_ids=ids, advantages=torch.ones(ids.shape), loss=loss).loss.backward()

    assert products(step) == count
    assert [name for name, x in parts.items() if x.grad is not None] == wanted.split()


N, H, V, ROWS = 512, 32, 8192, 16
CHUNK = ROWS * V * 4


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_needs_one_chunk_and_the_gradients(loss: str) -> None:
    hidden, weight, _, ids, mask = tensors(n=1, t=N, h=H, v=V)
    hidden, weight = leaves(hidden, weight)
    advantages = torch.ones(ids.shape)

    def step() -> None:
        linear_grpo_loss(hidden, weight, ids, advantages, None, mask, loss=loss, chunk_rows=ROWS).loss.backward()

    peak, largest = memory(step)
    assert largest <= max(CHUNK, weight.nbytes)
    assert peak <= hidden.nbytes + weight.nbytes + 5 * CHUNK + 400 * N < N * V * 4


def test_bf16_gradients_are_no_worse_than_eager_bf16() -> None:
    hidden, weight, _, ids, _ = tensors(n=4, t=8, h=64, v=300, dtype=torch.bfloat16)
    advantages = targets(ids.shape)["advantages"]
    ours, eager = leaves(hidden, weight), leaves(hidden, weight)
    exact = leaves(hidden.double(), weight.double())
    want = gradients(grpo_loss(exact[0] @ exact[1].t(), ids, advantages), exact)
    logits = (eager[0] @ eager[1].t()).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    naive = torch.autograd.grad(-(advantages * (logits - logits.detach()).exp()).mean(1).mean(), eager)
    got = gradients(linear_grpo_loss(*ours, ids, advantages, chunk_rows=8), ours)
    assert [x.dtype for x in got] == [torch.bfloat16] * 2
    assert all(mine <= 1.1 * theirs for mine, theirs in zip(errors(got, want), errors(naive, want), strict=True))


def test_a_loss_scale_saves_fp16_gradients() -> None:
    hidden, weight, _, ids, _ = tensors(n=4, t=8, h=64, v=300)
    parts = leaves(hidden.half(), (weight / 8).half())
    advantages = 1e-5 * targets(ids.shape)["advantages"]
    got = gradients(linear_grpo_loss(*parts, ids, advantages), parts, 2.0**16)
    exact = leaves(hidden.half().double(), (weight / 8).half().double())
    want = gradients(grpo_loss(exact[0] @ exact[1].t(), ids, advantages), exact, 2.0**16)
    for x, y in zip(got, want, strict=True):
        assert float((x.double() - y).norm() / y.norm()) < 3e-3


def test_autocast_converts_the_head() -> None:
    hidden, weight, bias, ids, mask = tensors(h=64, v=200)
    ours, halves = leaves(hidden, weight, bias), leaves(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())
    options: dict[str, Any] = {"mask": mask, **targets(ids.shape)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_grpo_loss(ours[0], ours[1], ids, bias=ours[2], **options)
    want = linear_grpo_loss(halves[0], halves[1], ids, bias=halves[2], **options)
    assert_same(got, want, atol=0, rtol=0)
    for x, y in zip(gradients(got, ours), gradients(want, halves), strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y.float(), rtol=2**-7, atol=1e-6)


def test_the_backward_may_run_twice_where_the_graph_is_kept() -> None:
    hidden, weight, _, ids, _ = tensors()
    parts = leaves(hidden, weight)
    loss = linear_grpo_loss(*parts, ids, torch.ones(ids.shape)).loss
    first = torch.autograd.grad(3 * loss, parts, retain_graph=True)
    for x, y in zip(first, torch.autograd.grad(3 * loss, parts), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_a_second_derivative_is_refused(loss: str) -> None:
    hidden, weight, _, ids, _ = tensors()
    parts = leaves(hidden, weight)
    value = linear_grpo_loss(*parts, ids, torch.ones(ids.shape), loss=loss).loss
    (slope,) = torch.autograd.grad(value, parts[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        slope.square().sum().backward()


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, weight, _, ids, mask = tensors()
    with torch.no_grad():
        plain = linear_grpo_loss(*leaves(hidden, weight), ids, mask=mask, **targets(ids.shape))
    assert plain.loss.grad_fn is None
    trained = linear_grpo_loss(*leaves(hidden, weight), ids, mask=mask, **targets(ids.shape))
    assert_same(trained, plain, atol=1e-5, rtol=1e-5)  # a backend without gradients scores the plain one


@pytest.mark.parametrize("loss", ["dapo", "gspo"])
@pytest.mark.parametrize("lead", [(0, 3), (2, 0), (2, 3)])
def test_no_token_gives_zero_gradients(lead: tuple[int, int], loss: str) -> None:
    parts = leaves(torch.randn(*lead, 4), torch.randn(6, 4))
    ids, mask = torch.zeros(lead, dtype=torch.int64), torch.zeros(lead, dtype=torch.bool)
    policy = linear_grpo_loss(*parts, ids, torch.ones(lead), None, mask, loss=loss)
    assert not policy.loss.detach().any()
    assert not any(x.any() for x in gradients(policy, parts))


def test_one_token_without_batch() -> None:
    hidden, weight = leaves(torch.randn(4), torch.randn(6, 4))
    policy = linear_grpo_loss(hidden, weight, torch.tensor(2), torch.tensor(1.0), loss="reinforce")
    policy.loss.backward()
    assert policy.logprobs.shape == ()
    want = -(weight @ hidden).log_softmax(-1)[2]
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(want, hidden)[0])


def value(hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, loss: str, terms: dict[str, Tensor]) -> Tensor:
    return linear_grpo_loss(hidden, weight, ids, mask=mask, loss=loss, **terms).loss * 2


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_compiles_into_one_graph(loss: str) -> None:
    hidden, weight, _, ids, mask = tensors()
    ours, eager = leaves(hidden, weight), leaves(hidden, weight)
    compiled, terms = torch.compile(value, fullgraph=True, backend="aot_eager"), targets(ids.shape)
    got = torch.autograd.grad(compiled(*ours, ids, mask, loss, terms), ours)
    for x, y in zip(got, torch.autograd.grad(value(*eager, ids, mask, loss, terms), eager), strict=True):
        torch.testing.assert_close(x, y)


def test_the_op_passes_opcheck() -> None:
    hidden, weight, bias, ids, mask = tensors()
    terms = targets(ids.shape)
    for wanted in ([True, True, True], [False, True, False]):
        arguments = (
            hidden, weight, bias, ids, mask, None, None, terms["old_logprobs"], None, terms["advantages"],
            torch.rand(ids.shape), "grpo", [0.2, 0.2, 0.0, 0.0, 0.1], 0.7, None, wanted, None, False, 2, "torch",
        )  # fmt: skip
        torch.library.opcheck(linear_loss._loss_op, arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": "ppo"}, ValueError, "loss must be one of grpo"),
        ({"loss": "dr_grpo"}, ValueError, "budget must be greater than 0"),
        ({"kl_coef": 0.1}, ValueError, "ref_logprobs must be given with kl_coef"),
        ({"advantages": torch.ones(2)}, ValueError, r"advantages must have shape \(2, 3\)"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must be torch.bool"),
        ({"weight": torch.zeros(7, 5)}, ValueError, r"weight must have shape \(V, 4\)"),
        ({"token_ids": torch.full((2, 3), 9)}, IndexError, r"token_ids must lie in \[0, 7\), got 9"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(2, 3, 4), "weight": torch.zeros(7, 4), "token_ids": torch.zeros(2, 3).long(),
        "advantages": torch.ones(2, 3), **changes,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        linear_grpo_loss(**arguments)


def test_transforms_are_refused() -> None:
    hidden, weight, _, ids, _ = tensors()
    with pytest.raises(RuntimeError, match="no rule for"):
        torch.func.grad(lambda w: linear_grpo_loss(hidden, w, ids, torch.ones(ids.shape)).loss)(weight)
    with pytest.raises(RuntimeError, match="no rule for"):
        torch.func.grad(lambda w: stepopsd.linear_token_logprobs(hidden, w, ids).logprobs.sum())(weight)


def test_the_package_offers_it() -> None:
    assert stepopsd.linear_grpo_loss is linear_grpo_loss
