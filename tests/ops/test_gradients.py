"""token_logprobs as autograd sees it: against float64, in place, masked, refused where it would be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from stepopsd.ops import gradient_ops, torch_backend
from stepopsd.ops.logprobs import TokenLogprobs, token_logprobs
from tests.ops.conftest import BackendUnderTest
from tests.ops.derivatives import NAN, Scored, assert_gradient, non_leaf, reference_scores, scored
from tests.ops.strategies import lay_out

# A row costs milliseconds in the Triton interpreter.
EXAMPLES = {"torch": 60, "cuda": 60, "cpu": 60, "triton": 15}


def rows(shape: tuple[int, ...] = (2, 3, 37), dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=rng) * 3).to(dtype), torch.randint(shape[-1], shape[:-1], generator=rng)


def weighted(result: TokenLogprobs, weights: torch.Tensor) -> torch.Tensor:
    planes = (result.logprobs, result.lse) if result.entropy is None else (result.logprobs, result.lse, result.entropy)
    return sum((w * x).sum() for w, x in zip(weights, planes, strict=False))  # type: ignore[return-value]


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_gradients_match_the_float64_reference(backend: BackendUnderTest, poisoned_memory: None) -> None:
    @settings(
        max_examples=EXAMPLES[backend.name], deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(
        case=scored(max_rows=6 if backend.name == "triton" else 20),
        parts=st.sampled_from(((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))),
        inplace=st.booleans(),
    )
    def check(case: Scored, parts: tuple[int, ...], inplace: bool) -> None:
        leaf = case.logits.detach().requires_grad_()
        want_rows = reference_scores(leaf, case.ids, case.mask, case.temperature)
        weights = torch.randn(3, *case.ids.shape, dtype=torch.float64) * torch.tensor(parts).view(
            3, *[1] * case.ids.ndim
        )
        (want,) = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, want_rows, strict=True)), leaf)

        mine, logits = non_leaf(case.logits.to(backend.device))
        arguments = case.on(backend.device)
        result = token_logprobs(logits, **arguments, entropy=True, inplace_backward=inplace, backend=backend.name)
        (got,) = torch.autograd.grad(weighted(result, weights.float().to(backend.device)), mine)
        weights, spread = weights.abs(), want_rows[2].detach()
        t = case.temperature.where(case.mask, 1) if isinstance(case.temperature, torch.Tensor) else case.temperature
        assert_gradient(
            got, want.double(), (weights[0] + weights[1] + weights[2] * (2 + spread)) / t, backend, case.logits
        )
        assert not got.cpu()[~case.mask].any()

    torch.manual_seed(0)
    check()


@pytest.mark.parametrize("layout", ["contiguous", "shifted", "three_strides"])
@pytest.mark.parametrize("entropy", [False, True])
def test_in_place_gives_the_same_bits_in_the_memory_of_the_logits(
    backend: BackendUnderTest, layout: str, entropy: bool
) -> None:
    values, ids = rows(dtype=torch.bfloat16)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    weights = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1))
    if layout == "three_strides":
        ids, mask, weights = ids[:, None].expand(2, 2, 3), mask[:, None].expand(2, 2, 3), weights[:, :, None]
    arguments = [x.to(backend.device) for x in (lay_out(values, layout), ids, mask, weights)]
    gradients, places = [], []
    for inplace in (False, True):
        leaf, logits = non_leaf(arguments[0])
        logits.register_hook(lambda gradient: places.append(gradient.data_ptr()))
        result = token_logprobs(
            logits, arguments[1], mask=arguments[2], entropy=entropy, inplace_backward=inplace, backend=backend.name
        )
        gradients.append(torch.autograd.grad(weighted(result, arguments[3]), leaf)[0])
        places.append(logits.data_ptr())
    assert torch.equal(*gradients)
    assert places[0] != places[1]
    assert places[2] == places[3]


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_invalid_rows_give_nan_in_that_row_alone(backend: BackendUnderTest, bad: float) -> None:
    values, ids = rows()
    values[0, 1, 5], values[1, 2] = bad, float("-inf")
    leaf, logits = non_leaf(values.to(backend.device))
    result = token_logprobs(logits, ids.to(backend.device), entropy=True, backend=backend.name)
    (gradient,) = torch.autograd.grad(weighted(result, torch.ones(3, 1, 1, device=backend.device)), leaf)
    broken = gradient.isnan().cpu()
    assert broken[0, 1].all()
    assert broken[1, 2].all()
    assert broken.sum() == 2 * values.shape[-1]


def test_a_bf16_gradient_is_at_least_as_exact_as_eager_bf16(backend: BackendUnderTest) -> None:
    values, ids = rows((6, 3001), torch.bfloat16)
    wide = values.double().requires_grad_()
    reference = wide.log_softmax(-1).gather(-1, ids[:, None])
    (want,) = torch.autograd.grad(reference.sum(), wide)

    eager = values.clone().requires_grad_()
    eager.log_softmax(-1).gather(-1, ids[:, None]).sum().backward()
    mine = values.to(backend.device).requires_grad_()
    token_logprobs(mine, ids.to(backend.device), backend=backend.name).logprobs.sum().backward()
    assert mine.grad is not None
    assert eager.grad is not None
    error, naive = ((x.cpu().double() - want).abs() for x in (mine.grad, eager.grad))
    assert error.max() <= naive.max()
    assert error.mean() <= naive.mean()


@pytest.mark.parametrize("per_token", [False, True])
def test_gradcheck_in_float64(per_token: bool) -> None:
    values, ids = rows((2, 3, 9), torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    temperature = torch.linspace(0.5, 2, 6).view(2, 3) if per_token else 0.7

    def planes(x: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result = token_logprobs(x, ids, mask=mask, temperature=temperature, entropy=True, backend="torch")
        return result.logprobs, result.lse, result.entropy

    assert torch.autograd.gradcheck(planes, values.requires_grad_())


def test_the_same_call_gives_the_same_bits(backend: BackendUnderTest) -> None:
    values, ids = rows((5, 700), torch.bfloat16)
    gradients = []
    for _ in range(2):
        leaf = values.to(backend.device).requires_grad_()
        result = token_logprobs(leaf, ids.to(backend.device), entropy=True, backend=backend.name)
        gradients += torch.autograd.grad(weighted(result, torch.full((3, 1), 0.3, device=backend.device)), leaf)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("count", "apart"), [(2, 2**31 + 1024), (3, 2**30 + 512)], ids=["stride", "product"])
def test_rows_may_lie_more_than_two_billion_elements_apart(backend: BackendUnderTest, count: int, apart: int) -> None:
    values, ids = rows((count, 1, 300), torch.bfloat16)
    size = (count - 1) * apart + 300
    memory = torch.empty(size, dtype=torch.bfloat16, device=backend.device)  # pages never touched cost nothing
    far = memory.as_strided((count, 1, 300), (apart, 300, 1)).copy_(values)
    gradients = []
    for logits in (far, values.to(backend.device)):
        ids, live = ids.to(backend.device), torch.ones_like(ids, dtype=torch.bool).to(backend.device)
        scored_rows = gradient_ops.scores_op(logits, ids, live, 1.0, None, True, backend.name)
        abc = torch.randn(3, count, 1, generator=torch.Generator().manual_seed(0)).to(backend.device)
        gradients.append(
            gradient_ops.compute_gradient(logits, ids, live, scored_rows[3:], abc, 1.0, backend.name, inplace=True)
        )
    assert gradients[0].data_ptr() == far.data_ptr()
    assert torch.equal(*gradients)


def test_more_rows_than_a_grid_dimension_holds(backend: BackendUnderTest) -> None:
    if backend.name == "triton" and backend.device == "cpu":
        pytest.skip("70,000 programs take minutes in the interpreter")
    count = 70_000
    values, ids = rows((count, 3))
    leaf = values.to(backend.device).requires_grad_()
    token_logprobs(leaf, ids.to(backend.device), backend=backend.name).logprobs.sum().backward()
    want = torch.nn.functional.one_hot(ids, 3) - values.softmax(-1)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.cpu(), want, atol=1e-6, rtol=0)


def test_no_gradient_is_kept_where_none_is_needed(backend: BackendUnderTest) -> None:
    values, ids = (x.to(backend.device) for x in rows())
    without = token_logprobs(values, ids, entropy=True, inplace_backward=True, backend=backend.name)
    with torch.no_grad():
        disabled = token_logprobs(values.clone().requires_grad_(), ids, entropy=True, backend=backend.name)
    for result in (without, disabled):
        assert not result.logprobs.requires_grad
        assert result.entropy is not None
        assert not result.entropy.requires_grad
    carried = token_logprobs(values.clone().requires_grad_(), ids, entropy=True, backend=backend.name)
    torch.testing.assert_close(carried.logprobs, without.logprobs, atol=4e-6, rtol=0)
    assert carried.lse.requires_grad


def test_autocast_changes_nothing(backend: BackendUnderTest) -> None:
    values, ids = rows(dtype=torch.bfloat16)
    gradients = []
    for enabled in (False, True):
        leaf = values.to(backend.device).requires_grad_()
        with torch.autocast(backend.device, torch.bfloat16, enabled=enabled):
            result = token_logprobs(leaf, ids.to(backend.device), entropy=True, backend=backend.name)
        assert result.logprobs.dtype == torch.float32
        gradients += torch.autograd.grad(weighted(result, torch.ones(3, 1, 1, device=backend.device)), leaf)
    assert torch.equal(*gradients)


def score(logits: torch.Tensor, **options: Any) -> torch.Tensor:
    return token_logprobs(logits, rows()[1], backend="torch", **options).logprobs.sum()


@pytest.mark.parametrize("view", [False, True])
def test_a_leaf_is_not_overwritten(view: bool) -> None:
    leaf = rows()[0].requires_grad_()
    with pytest.raises(ValueError, match="inplace_backward must be False for logits that are a leaf"):
        score(leaf[:] if view else leaf, inplace_backward=True)


def test_overlapping_logits_are_not_overwritten() -> None:
    _, logits = non_leaf(rows()[0])
    with pytest.raises(ValueError, match="inplace_backward must be False for logits that overlap in memory"):
        score(logits[:1].expand(2, 3, 37), inplace_backward=True)


def test_logits_changed_before_the_backward_raise() -> None:
    logits = rows()[0].requires_grad_() * 1
    total = score(logits)
    logits.mul_(2)
    with pytest.raises(RuntimeError, match="token_logprobs: the logits were changed in place after the forward"):
        total.backward()


def test_overwritten_logits_that_another_op_needs_raise() -> None:
    logits = rows()[0].requires_grad_() * 1
    total = score(logits, inplace_backward=True)
    other = logits.square().sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    with pytest.raises(RuntimeError, match="has overwritten them with their gradient"):
        total.backward()


def test_kernels_that_write_by_address_move_the_version_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, scale = torch_backend.gradient_rows, torch_backend.scale_rows

    def write(*args: torch.Tensor, out: torch.Tensor, **options: Any) -> None:
        compute(*args, out=out.data, **options)  # .data has a counter of its own

    monkeypatch.setattr(torch_backend, "gradient_rows", write)
    monkeypatch.setattr(torch_backend, "scale_rows", lambda rows, factor: scale(rows.data, factor))
    logits = rows()[0].requires_grad_() * 1
    score(logits, inplace_backward=True).backward()
    assert logits._version == 1
    gradient = torch.ones(2, 3, 37)
    gradient_ops.scale_in_place(gradient, torch.tensor(0.5), "torch")
    assert gradient._version == 1
    assert (gradient == 0.5).all()


def test_a_second_backward_gives_the_same_gradient_out_of_place() -> None:
    leaf = rows()[0].requires_grad_()
    total = score(leaf)
    (first,) = torch.autograd.grad(total, leaf, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(total, leaf)[0])


def test_a_second_derivative_is_refused() -> None:
    leaf = rows()[0].requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="token_logprobs and the policy losses have no second derivative"):
        torch.autograd.grad(gradient.square().sum(), leaf, allow_unused=True)


def test_transforms_and_forward_mode_are_refused() -> None:
    values, ids = rows()
    with pytest.raises(RuntimeError, match=r"token_logprobs has no rule for torch\.func transforms"):
        torch.func.grad(score)(values)
    with pytest.raises(RuntimeError, match=r"token_logprobs has no rule for torch\.func transforms"):
        torch.vmap(lambda x, i: token_logprobs(x, i, backend="torch").logprobs)(values, ids)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode derivatives"):
        score(forward_ad.make_dual(values, values))


def test_a_temperature_gets_no_gradient() -> None:
    with pytest.raises(ValueError, match="temperature must not require a gradient"):
        score(rows()[0].requires_grad_(), temperature=torch.ones(2, 3, requires_grad=True))


def test_custom_ops_pass_opcheck(backend: BackendUnderTest) -> None:
    values, ids = (x.to(backend.device) for x in rows((2, 3, 19)))
    active = torch.tensor([[True, True, False], [True, False, True]], device=backend.device)
    temperatures = torch.full(ids.shape, 0.7, device=backend.device)
    for per_row, entropy in ((None, True), (temperatures, False)):
        how = (0.9, per_row, entropy, backend.name)
        torch.library.opcheck(gradient_ops.scores_op, (values.clone().requires_grad_(), ids, active, *how))
    planes = gradient_ops.scores_op(values, ids, active, 0.9, None, True, backend.name)
    abc = torch.randn(3, 2, 3, device=backend.device)
    torch.library.opcheck(gradient_ops.gradient_op, (values, ids, active, planes[3:], abc, 0.9, None, backend.name))
    value, factor = torch.tensor(1.0, device=backend.device), torch.tensor(0.5, device=backend.device)
    gradient = torch.randn_like(values)
    torch.library.opcheck(gradient_ops.value_op, (values.clone().requires_grad_(), value, gradient, backend.name))
    torch.library.opcheck(gradient_ops.scale_op, (gradient, factor, backend.name))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_into_one_graph(inplace: bool) -> None:
    values, ids = rows()
    weight = torch.eye(37).requires_grad_()

    def total(w: torch.Tensor) -> torch.Tensor:
        result = token_logprobs(values @ w, ids, entropy=True, inplace_backward=inplace, backend="torch")
        return weighted(result, torch.full((3, 1, 1), 0.5))

    (want,) = torch.autograd.grad(total(weight), weight)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(weight), weight)[0], want)
    torch._dynamo.reset()
