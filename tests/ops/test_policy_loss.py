"""grpo_loss: its gradient against autograd of the float64 reference, in place, masked, in parts; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import stepopsd
from stepopsd.ops import dispatch, gradient_ops, gradients, losses, policy_loss
from stepopsd.ops.policy_loss import grpo_loss
from stepopsd.ops.reference_loss import policy_loss_reference
from tests.ops.conftest import BackendUnderTest
from tests.ops.derivatives import NAN, Scored, assert_gradient, non_leaf, reference_scores, scored
from tests.ops.strategies import lay_out

# A row costs milliseconds in the Triton interpreter.
EXAMPLES = {"torch": 80, "cuda": 80, "cpu": 80, "triton": 15}
CLIPPED = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def batch(shape: tuple[int, ...] = (3, 4, 31), dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Logits and everything per token, with NaN outside the mask."""
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=rng) * 2).to(dtype)
    ids = torch.randint(shape[-1], shape[:-1], generator=rng)
    current = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    old, ref = (current + 0.3 * torch.randn(shape[:-1], generator=rng) for _ in range(2))
    advantages = torch.randn(shape[:-1], generator=rng)
    mask = torch.rand(shape[:-1], generator=rng) < 0.7
    logits[~mask], ids[~mask] = NAN, -(10**12)
    garbage = torch.where(mask, 0.0, NAN)
    rest = {"advantages": advantages + garbage, "old_logprobs": old + garbage, "ref_logprobs": ref + garbage}
    return {"logits": logits, "token_ids": ids, "mask": mask, **rest}


def moved(tensors: dict[str, torch.Tensor], backend: BackendUnderTest) -> dict[str, Any]:
    return {**{name: x.to(backend.device) for name, x in tensors.items()}, "backend": backend.name}


def gradient(tensors: dict[str, Any], factor: float = 1.0, **options: Any) -> tuple[torch.Tensor, Any]:
    leaf, logits = non_leaf(tensors["logits"])
    result = grpo_loss(**{**tensors, "logits": logits}, **options)
    return torch.autograd.grad(result.loss * factor, leaf)[0], result


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Options of ``grpo_loss``."""
    loss = draw(st.sampled_from(losses.LOSSES))
    aggregation = draw(st.sampled_from((None, *losses.AGGREGATIONS)))
    options: dict[str, Any] = {"loss": loss, "aggregation": aggregation}
    if aggregation == "dr_grpo" or (aggregation is None and loss == "dr_grpo"):
        options["budget"] = 13
    if loss in CLIPPED:
        options["dual_clip"] = draw(st.sampled_from((0.0, 1.5, 3.0)))
    if loss != "reinforce":
        options["clip_low"], options["clip_high"] = draw(st.sampled_from(((None, None), (0.1, 0.3))))
    options["kl_coef"] = draw(st.sampled_from((0.0, 0.1)))
    options["entropy_coef"] = draw(st.sampled_from((0.0, 0.05)))
    return options


def per_token(case: Scored, seed: int) -> dict[str, torch.Tensor]:
    """Old and reference log-probs near the current ones, and advantages; NaN outside the mask."""
    rng = torch.Generator().manual_seed(seed)
    current = reference_scores(case.logits, case.ids, case.mask, case.temperature)[0].clamp(min=-3e4)
    garbage = torch.where(case.mask, 0.0, NAN)
    names = ("old_logprobs", "ref_logprobs")
    near = {x: (current + 0.4 * torch.randn(current.shape, generator=rng)).float() + garbage for x in names}
    return {**near, "advantages": torch.randn(current.shape, generator=rng) + garbage}


def expected(
    case: Scored, tensors: dict[str, torch.Tensor], options: dict[str, Any], leaf: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Loss and gradient in float64, the size of each row's coefficients, and how far ratios stay from the clips."""
    planes = reference_scores(leaf, case.ids, case.mask, case.temperature)
    logprobs, entropy = planes[0].detach().requires_grad_(), planes[2].detach().requires_grad_()
    made = losses.loss_options(
        options["loss"], options.get("clip_low"), options.get("clip_high"), options.get("dual_clip", 0.0), 0.0, 0.0
    )
    total = policy_loss_reference(
        logprobs, mask=case.mask, **tensors, entropy=entropy, loss=options["loss"], clip_low=made.clip_low,
        clip_high=made.clip_high, dual_clip=made.dual_clip, kl_coef=options["kl_coef"],
        entropy_coef=options["entropy_coef"], budget=options.get("budget", 0),
        aggregation=options["aggregation"] or DEFAULT[options["loss"]],
    )  # fmt: skip
    slopes = torch.autograd.grad(total, (logprobs, entropy))
    (want,) = torch.autograd.grad((planes[0], planes[2]), leaf, slopes)
    t = case.temperature.where(case.mask, 1) if isinstance(case.temperature, torch.Tensor) else case.temperature
    size = (slopes[0].abs() + slopes[1].abs() * (2 + planes[2].detach())) / t

    gap = (planes[0].detach() - tensors["old_logprobs"]).where(case.mask, 0).clamp(-20, 20)
    if options["loss"] == "gspo":
        gap = (gap.sum(1, keepdim=True) / case.mask.sum(1, keepdim=True).clamp(min=1)).expand(gap.shape)
    edges = torch.tensor((1 - made.clip_low, 1 + made.clip_high, made.dual_clip), dtype=torch.float64)
    near = (gap.exp()[case.mask][:, None] - edges).abs().flatten().tolist()
    return total.detach(), want, size, min(near, default=1.0) if options["loss"] != "reinforce" else 1.0


DEFAULT = {
    "grpo": "sequence_mean", "dr_grpo": "dr_grpo", "dapo": "token_mean", "bnpo": "token_mean", "gspo": "sequence_mean",
    "cispo": "token_mean", "reinforce": "token_mean",
}  # fmt: skip


def test_gradients_match_autograd_of_the_float64_reference(backend: BackendUnderTest, poisoned_memory: None) -> None:
    seen = []

    @settings(
        max_examples=EXAMPLES[backend.name], deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(
        case=scored(max_rows=6 if backend.name == "triton" else 20).filter(lambda c: c.logits.ndim == 3),
        options=calls(), seed=st.integers(0, 2**16), inplace=st.booleans(), factor=st.sampled_from((1.0, 0.3)),
    )  # fmt: skip
    def check(case: Scored, options: dict[str, Any], seed: int, inplace: bool, factor: float) -> None:
        tensors = per_token(case, seed)
        total, want, size, distance = expected(case, tensors, options, case.logits.detach().double().requires_grad_())
        # A log-prob of -1e4 has an error of 1e-3 in float32, and so has the ratio.
        doubt = 2 + 0.5 * float(tensors["old_logprobs"].nan_to_num(0).abs().max())
        if distance < 1e-6 * doubt:  # the other side of a clip's edge is as good
            return
        leaf, logits = non_leaf(case.logits.to(backend.device))
        others = {name: x.to(backend.device) for name, x in tensors.items()}
        result = grpo_loss(
            logits, **case.on(backend.device), **others, **options, inplace=inplace, backend=backend.name
        )
        (got,) = torch.autograd.grad(result.loss * factor, leaf)
        # Rounded to the dtype twice where the upstream gradient is not 1.
        assert_gradient(got, want * factor, size * factor * doubt, backend, case.logits, roundings=1 + (factor != 1))
        torch.testing.assert_close(result.loss.double().cpu(), total, rtol=4e-6 * doubt, atol=4e-6 * doubt)
        assert not got.cpu()[~case.mask].any()
        seen.append(options["loss"])

    check()
    assert len(seen) > EXAMPLES[backend.name] // 2


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("layout", ["contiguous", "shifted"])
def test_in_place_gives_the_same_bits_in_the_memory_of_the_logits(
    backend: BackendUnderTest, loss: str, layout: str
) -> None:
    tensors = batch(dtype=torch.bfloat16)
    options = {"loss": loss, "kl_coef": 0.1, "entropy_coef": 0.1, "budget": 9 if loss == "dr_grpo" else 0}
    tensors["logits"] = lay_out(tensors["logits"], "contiguous")
    found = []
    for inplace in (False, True):
        leaf = torch.nn.functional.pad(tensors["logits"], (0, 0, 0, 1)).to(backend.device).requires_grad_()
        whole = leaf * 1
        logits = whole[:, :-1] if layout == "shifted" else whole[:, :-1].contiguous()
        places = [logits.data_ptr()]
        logits.register_hook(lambda gradient, places=places: places.append(gradient.data_ptr()))
        result = grpo_loss(**{**moved(tensors, backend), "logits": logits}, **options, inplace=inplace)
        found.append(torch.autograd.grad(result.loss * 0.5, leaf)[0])
        assert (places[0] == places[1]) == inplace
        assert found[-1].any()
        assert not found[-1][:, -1].any()
    assert torch.equal(*found)


def test_the_upstream_gradient_multiplies(backend: BackendUnderTest) -> None:
    tensors = moved(batch(), backend)
    (one, _), (half, _) = gradient(tensors), gradient(tensors, factor=-0.5)
    torch.testing.assert_close(half, -0.5 * one)
    narrow = {**tensors, "logits": tensors["logits"].bfloat16()}
    (one, _), (third, _) = gradient(narrow), gradient(narrow, factor=1 / 3)
    assert torch.equal(third, (one.float() * torch.tensor(1 / 3, device=one.device)).bfloat16())


def test_a_bf16_gradient_is_at_least_as_exact_as_eager_bf16(backend: BackendUnderTest) -> None:
    tensors = batch((2, 5, 2001), torch.bfloat16)
    tensors["mask"][:] = True
    tensors = {name: torch.where(x.isnan(), 0.1, x) if x.is_floating_point() else x for name, x in tensors.items()}
    tensors["token_ids"] = tensors["token_ids"].clamp(min=0)
    options = {"loss": "dapo", "kl_coef": 0.05, "ref_logprobs": tensors["ref_logprobs"]}

    def plain(logits: torch.Tensor) -> torch.Tensor:
        logprobs = logits.log_softmax(-1).gather(-1, tensors["token_ids"][..., None])[..., 0]
        total = policy_loss_reference(
            logprobs, tensors["old_logprobs"], tensors["advantages"], tensors["mask"],
            entropy=torch.zeros_like(logprobs), clip_low=0.2, clip_high=0.28, **options,
        )  # fmt: skip
        return torch.autograd.grad(total, logits)[0]

    want = plain(tensors["logits"].double().requires_grad_())
    naive = plain(tensors["logits"].clone().requires_grad_())
    got, _ = gradient({**moved(tensors, backend)}, loss="dapo", kl_coef=0.05)
    errors = [(x.cpu().double() - want).abs() for x in (got, naive)]
    assert errors[0].max() <= errors[1].max()
    assert errors[0].mean() <= errors[1].mean()


@pytest.mark.parametrize("loss", [*CLIPPED, "reinforce"])
def test_gradcheck_in_float64(loss: str) -> None:
    # CISPO, and GSPO with advantages that differ within a sequence, are no derivatives of their values by definition.
    tensors = {name: x.double() if x.is_floating_point() else x for name, x in batch((2, 3, 7)).items()}
    tensors["advantages"] = torch.tensor([[0.7], [-1.3]]).double().expand(2, 3)
    logits = tensors.pop("logits").nan_to_num(0).requires_grad_()
    options = {"loss": loss, "budget": 5 if loss == "dr_grpo" else 0, "kl_coef": 0.1, "entropy_coef": 0.1}
    assert torch.autograd.gradcheck(lambda x: grpo_loss(x, **tensors, **options).loss, logits)


def test_without_old_logprobs_the_policy_is_its_own_sampler(backend: BackendUnderTest) -> None:
    tensors = moved(batch(), backend)
    own = stepopsd.token_logprobs(
        tensors["logits"].clone().nan_to_num(0).requires_grad_(), tensors["token_ids"], mask=tensors["mask"],
        backend=backend.name,
    ).logprobs  # fmt: skip
    got, on_policy = gradient({**tensors, "old_logprobs": None})
    want, given_them = gradient({**tensors, "old_logprobs": own})
    assert torch.equal(got, want)
    assert torch.equal(on_policy.loss, given_them.loss)
    metrics = on_policy.metrics.as_dict()
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["old_gap_max"] == metrics["kl_old"] == 0


def test_token_level_losses_take_any_shape_and_parts_add_up(backend: BackendUnderTest) -> None:
    tensors = moved(batch(), backend)
    whole, result = gradient(tensors, loss="grpo", kl_coef=0.1)
    weights = stepopsd.aggregation_weights(tensors["mask"], "sequence_mean")
    parts = []
    for row in range(3):
        part = {x: y[row] if isinstance(y, torch.Tensor) else y for x, y in tensors.items()}
        parts.append(gradient(part, loss="grpo", kl_coef=0.1, token_weights=weights[row]))
    torch.testing.assert_close(torch.stack([x for x, _ in parts]), whole)
    torch.testing.assert_close(sum(x.loss for _, x in parts), result.loss)


def test_invalid_tokens_are_nan_in_their_row_alone(backend: BackendUnderTest) -> None:
    tensors = batch()
    tensors["mask"][:] = True
    clean = {x: y.nan_to_num(0.5) if y.is_floating_point() else y.clamp(min=0) for x, y in tensors.items()}
    clean["logits"][0, 1, 2], clean["advantages"][2, 3] = NAN, NAN
    clean["mask"] = tensors["mask"]
    got, result = gradient(moved(clean, backend))
    broken = got.isnan().all(-1).cpu()
    assert broken.nonzero().tolist() == [[0, 1], [2, 3]]
    assert got.isnan().any(-1).sum() == 2
    assert result.loss.isnan()
    assert result.metrics.nonfinite == 1  # an advantage is not a measured quantity
    sequences, _ = gradient(moved(clean, backend), loss="gspo", clip_low=0.9, clip_high=9.0)
    assert sequences.isnan().any(-1).cpu().nonzero()[:, 0].tolist() == [0, 0, 0, 0, 2]


def test_the_same_call_gives_the_same_bits(backend: BackendUnderTest) -> None:
    tensors = moved(batch(dtype=torch.bfloat16), backend)
    (first, a), (second, b) = (gradient(tensors, loss="gspo", entropy_coef=0.1) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(a.metrics.packed, b.metrics.packed)


def test_autocast_changes_nothing(backend: BackendUnderTest) -> None:
    tensors = moved(batch(dtype=torch.bfloat16), backend)
    want, plain = gradient(tensors, entropy_coef=0.1)
    with torch.autocast(backend.device, torch.bfloat16):
        got, result = gradient(tensors, entropy_coef=0.1)
    assert torch.equal(got, want)
    assert torch.equal(result.loss, plain.loss)


@pytest.mark.parametrize("inplace", [False, True])
def test_without_need_no_gradient_is_made_and_logits_stay(backend: BackendUnderTest, inplace: bool) -> None:
    tensors = moved(batch(), backend)
    before = tensors["logits"].clone()
    constant = grpo_loss(**tensors, inplace=inplace)
    with torch.no_grad():
        disabled = grpo_loss(**{**tensors, "logits": before.clone().requires_grad_()}, inplace=inplace)
    assert not constant.loss.requires_grad
    assert not disabled.loss.requires_grad
    assert torch.equal(tensors["logits"].nan_to_num(7), before.nan_to_num(7))
    _, carried = gradient(tensors)
    torch.testing.assert_close(carried.loss, constant.loss)
    assert not carried.logprobs.requires_grad
    assert not carried.entropy.requires_grad


def test_everything_but_the_logits_is_a_constant() -> None:
    tensors = batch()
    names = ("advantages", "old_logprobs", "ref_logprobs")
    constants = {name: tensors[name].clone().requires_grad_() for name in names}
    want, _ = gradient(tensors, kl_coef=0.1)
    got, result = gradient({**tensors, **constants}, kl_coef=0.1)
    assert torch.equal(got, want)
    found = torch.autograd.grad(
        grpo_loss(**{**tensors, **constants, "logits": tensors["logits"].clone().requires_grad_()}).loss,
        list(constants.values()), allow_unused=True,
    )  # fmt: skip
    assert found == (None, None, None)
    assert not result.metrics.packed.requires_grad


def test_a_kept_graph_gives_the_same_gradient_again() -> None:
    tensors = batch()
    for inplace in (False, True):
        leaf, logits = non_leaf(tensors["logits"])
        total = grpo_loss(**{**tensors, "logits": logits}, inplace=inplace).loss * 0.5
        first = torch.autograd.grad(total, leaf, retain_graph=True)[0]
        assert torch.equal(first, torch.autograd.grad(total, leaf)[0])
        with pytest.raises(RuntimeError, match="a second time"):
            total.backward()


def test_a_gradient_that_was_handed_out_is_not_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older PyTorch does not tell a backward that its graph is kept."""
    monkeypatch.setattr(gradients, "_graph_is_kept", lambda: False)
    total = grpo_loss(**{**batch(), "logits": batch()["logits"].requires_grad_()}).loss
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a backward through the loss has handed it out already"):
        total.backward()


def test_memory_of_the_gradient_that_was_changed_raises() -> None:
    tensors = batch()
    logits = tensors["logits"].requires_grad_() * 1
    result = grpo_loss(**{**tensors, "logits": logits}, inplace=True)
    logits.mul_(2)
    with pytest.raises(RuntimeError, match="the gradient of this loss is gone: the logits that held it"):
        result.loss.backward()


def test_overwritten_logits_that_another_op_needs_raise() -> None:
    tensors = batch()
    logits = tensors["logits"].requires_grad_() * 1
    other = logits.nan_to_num(0).square().sum() + logits.square().nansum()
    result = grpo_loss(**{**tensors, "logits": logits}, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (result.loss + other).backward()


def test_a_second_derivative_is_refused() -> None:
    tensors = batch()
    leaf = tensors["logits"].requires_grad_()
    (slope,) = torch.autograd.grad(grpo_loss(**tensors).loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(slope.sum(), leaf, allow_unused=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(3, 4).int()}, TypeError, "logits must be torch.bfloat16"),
        ({"token_ids": torch.zeros(3, 3).long()}, ValueError, r"token_ids must have shape \(3, 4\)"),
        ({"token_ids": torch.full((3, 4), 31)}, IndexError, r"token_ids must lie in \[0, 31\), got 31"),
        ({"advantages": torch.zeros(3)}, ValueError, r"advantages must have shape \(3, 4\)"),
        ({"advantages": torch.zeros(3, 4).bfloat16()}, TypeError, "advantages must be torch.float32"),
        ({"old_logprobs": torch.zeros(3, 4).int()}, TypeError, "old_logprobs must be torch.bfloat16"),
        ({"old_logprobs": torch.zeros(4, 3)}, ValueError, r"old_logprobs must have shape \(3, 4\)"),
        ({"ref_logprobs": None, "kl_coef": 0.1}, ValueError, "ref_logprobs must be given with kl_coef 0.1, got None"),
        ({"token_weights": torch.zeros(3)}, ValueError, r"token_weights must have shape \(3, 4\)"),
        ({"mask": torch.ones(3, 4)}, TypeError, "mask must be torch.bool"),
        ({"loss": "ppo"}, ValueError, "loss must be one of grpo"),
        ({"loss": "dr_grpo"}, ValueError, "budget must be greater than 0"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0"),
        ({"temperature": torch.ones(3, 4, requires_grad=True)}, ValueError, "temperature must not require a gradient"),
        ({"inplace": True}, ValueError, "inplace must be False for logits that are a leaf"),
        ({"backend": "fast"}, ValueError, "backend must be one of auto"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    tensors: dict[str, Any] = batch()
    tensors["logits"].requires_grad_()
    with pytest.raises(error, match=message):
        grpo_loss(**{**tensors, **changes})


def test_transforms_are_refused() -> None:
    tensors = batch()
    logits = tensors.pop("logits")
    with pytest.raises(RuntimeError, match=r"a policy loss has no rule for torch\.func transforms"):
        torch.func.grad(lambda x: grpo_loss(x, **tensors).loss)(logits)


def test_the_custom_op_of_losses_in_one_visit_passes_opcheck() -> None:
    if not dispatch.fuses_losses("auto", "cpu", torch.float32):
        pytest.skip(str(dispatch.unavailable("cpu", "cpu")))
    x = {name: y.nan_to_num(0.1) if y.is_floating_point() else y for name, y in batch().items()}
    ids, mask, old, advantages = (x[name] for name in ("token_ids", "mask", "old_logprobs", "advantages"))
    weights, numbers = torch.ones_like(advantages), [0.2, 0.2, 0.0, 0.1, 0.1]
    for temperatures in (None, torch.full(ids.shape, 0.7)):
        arguments = (x["logits"], ids, mask, old, old, advantages, weights, "grpo", numbers, 0.9, temperatures, "cpu")
        torch.library.opcheck(gradient_ops.loss_op, arguments)


@pytest.mark.parametrize("engine", ["aot_eager", "inductor"])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_compiles_into_one_graph(engine: str, backend: str) -> None:
    tensors = {name: x.nan_to_num(0.1) if x.is_floating_point() else x for name, x in batch().items()}
    hidden = tensors.pop("logits")
    weight = torch.eye(31).requires_grad_()

    def total(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = grpo_loss(hidden @ w, **tensors, kl_coef=0.1, entropy_coef=0.1, inplace=True, backend=backend)
        return result.loss * 3, result.metrics.packed

    want, want_metrics = total(weight)
    compiled = torch.compile(total, fullgraph=True, backend=engine)
    got, got_metrics = compiled(weight)
    torch.testing.assert_close(torch.autograd.grad(got, weight), torch.autograd.grad(want, weight))
    torch.testing.assert_close(got_metrics, want_metrics)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("inplace", [False, True])
def test_forward_and_backward_do_not_wait_for_the_gpu(inplace: bool) -> None:
    name = dispatch.resolve_gradients("auto", "cuda")
    if name == "torch":
        pytest.skip("the PyTorch backend waits once for the number of rows")
    tensors = {x: y.cuda() for x, y in batch(dtype=torch.bfloat16).items()}
    gradient(tensors, loss="gspo", kl_coef=0.1, entropy_coef=0.1)  # compiles
    leaf, logits = non_leaf(tensors["logits"])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = grpo_loss(
            **{**tensors, "logits": logits}, loss="gspo", kl_coef=0.1, entropy_coef=0.1, dual_clip=3.0, inplace=inplace
        )
        (result.loss * 0.5).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert leaf.grad is not None
    assert leaf.grad[tensors["mask"]].isfinite().all()


def test_the_package_offers_it() -> None:
    assert stepopsd.grpo_loss is grpo_loss
    assert stepopsd.PolicyLoss is policy_loss.PolicyLoss
    with pytest.raises(AttributeError, match="no attribute 'ratio_median'"):
        _ = grpo_loss(**batch()).metrics.ratio_median
