"""shape_and_loss: the bits of the two separate calls, a gradient for the student alone, errors for bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stepopsd
from stepopsd.ops import dispatch
from stepopsd.ops.losses import LOSSES
from stepopsd.ops.policy_loss import PolicyLoss, grpo_loss
from stepopsd.ops.results import ShapedAdvantages
from stepopsd.ops.shape_and_loss import shape_and_loss
from stepopsd.ops.shaping import shape_advantages
from tests.ops.conftest import BackendUnderTest

SHAPING = ("trajectory_ids", "segments", "alpha_clip", "lambda_mix", "weight_fn", "step_norm")


def batch(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """A batch with a token of a step outside the loss, a token of the loss outside the steps, and one of neither."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = ((torch.randn(2, 5, 90, generator=rng) * 2).to(dtype) for _ in range(2))
    steps = torch.tensor([[-1, 0, 0, 1, -1], [0, 0, 1, 1, -1]])
    mask = torch.tensor([[True, True, True, True, False], [False, True, True, True, False]])
    ids = torch.randint(90, (2, 5), generator=rng)
    for x in (student, teacher):
        x[(steps < 0) & ~mask] = float("nan")
    teacher[steps < 0] = float("nan")
    tensors = {"student_logits": student, "teacher_logits": teacher, "token_ids": ids, "step_ids": steps, "mask": mask,
               "advantages": torch.randn(2, 5, generator=rng), "trajectory_ids": torch.tensor([0, 0])}  # fmt: skip
    return {name: x.to(device) for name, x in tensors.items()}


def separately(arguments: dict[str, Any]) -> tuple[ShapedAdvantages, PolicyLoss]:
    options = dict(arguments)
    shaping = {name: options.pop(name) for name in SHAPING if name in options}
    student, teacher, steps = (options.pop(x) for x in ("student_logits", "teacher_logits", "step_ids"))
    shaped = shape_advantages(
        student, teacher, options["token_ids"], options.pop("advantages"), steps, **shaping,
        temperature=options.get("temperature", 1.0), backend=options["backend"],
    )  # fmt: skip
    return shaped, grpo_loss(student, advantages=shaped.advantages, **options)


def assert_same_bits(got: tuple[ShapedAdvantages, PolicyLoss], want: tuple[ShapedAdvantages, PolicyLoss]) -> None:
    for name in ("advantages", "weights", "delta", "student_logprobs", "teacher_logprobs", "step_scale"):
        assert torch.equal(getattr(got[0], name), getattr(want[0], name)), name
    assert torch.equal(got[0].stats.packed, want[0].stats.packed)
    for name in ("loss", "logprobs", "entropy"):
        assert torch.equal(getattr(got[1], name), getattr(want[1], name)), name
    assert torch.equal(got[1].metrics.packed, want[1].metrics.packed)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("inplace", [False, True])
def test_equals_the_separate_calls_bit_for_bit(backend: BackendUnderTest, loss: str, inplace: bool) -> None:
    if backend.name == "triton" and backend.device == "cpu" and loss not in ("grpo", "gspo"):
        pytest.skip("the loss is computed outside the kernels, and the interpreter is slow")
    tensors = batch(backend.device)
    options: dict[str, Any] = {
        "loss": loss, "entropy_coef": 0.1, "kl_coef": 0.05, "ref_logprobs": torch.full((2, 5), -6.0).to(backend.device),
        "temperature": 0.8, "budget": 7 if loss == "dr_grpo" else 0, "lambda_mix": 0.6, "weight_fn": "exp",
        "backend": backend.name,
    }  # fmt: skip
    results, gradients = [], []
    for call in (shape_and_loss, lambda **x: separately(x)):
        leaf = tensors["student_logits"].clone().requires_grad_()
        results.append(call(**{**tensors, "student_logits": leaf * 1}, **options, inplace=inplace))
        gradients.append(torch.autograd.grad(results[-1][1].loss, leaf)[0])
    if dispatch.no_gradients(backend.name) is None:  # else torch scores for the loss, and not for the shaping
        assert_same_bits(*results)
        assert torch.equal(*gradients)
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()
    assert not gradients[0][~tensors["mask"]].any()


def test_a_teacher_that_was_scored_before_gives_the_same_bits(backend: BackendUnderTest) -> None:
    tensors = {**batch(backend.device), "backend": backend.name}
    want = shape_and_loss(**tensors)
    scored = stepopsd.token_logprobs(
        tensors.pop("teacher_logits"), tensors["token_ids"], mask=tensors["step_ids"] >= 0, backend=backend.name
    )
    assert_same_bits(shape_and_loss(teacher_logits=None, teacher_logprobs=scored.logprobs, **tensors), want)


def test_without_steps_and_mask_every_token_counts(backend: BackendUnderTest) -> None:
    tensors = batch(backend.device)
    plain = {name: tensors[name].nan_to_num(0) for name in ("student_logits", "teacher_logits")}
    shaped, policy = shape_and_loss(
        **plain, token_ids=tensors["token_ids"], advantages=tensors["advantages"], backend=backend.name
    )
    assert shaped.stats.count == 10
    assert policy.metrics.tokens == 10
    assert policy.metrics.ratio_min == policy.metrics.ratio_max == 1
    assert shaped.entropies is None


def test_only_the_loss_has_a_gradient_and_only_for_the_student() -> None:
    tensors = batch(dtype=torch.float32)
    student, teacher = (tensors[x].clone().requires_grad_() for x in ("student_logits", "teacher_logits"))
    advantages = tensors["advantages"].requires_grad_()
    shaped, policy = shape_and_loss(**{**tensors, "student_logits": student, "teacher_logits": teacher})
    for detached in (shaped.advantages, shaped.weights, shaped.delta, policy.logprobs, policy.entropy):
        with pytest.raises(RuntimeError, match="does not require grad"):
            detached.sum().backward()
    policy.loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("function", ["shape_advantages", "shape_and_loss"])
def test_advantages_that_require_a_gradient_are_constants(function: str) -> None:
    tensors = batch()
    del tensors["mask"]
    tensors["advantages"].requires_grad_()
    result = getattr(stepopsd, function)(**tensors)
    shaped = result if function == "shape_advantages" else result[0]
    assert not shaped.advantages.requires_grad


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher_logits": None}, ValueError, "give either teacher_logits or teacher_logprobs, got neither"),
        ({"teacher_logprobs": torch.zeros(2, 5)}, ValueError, "teacher_logits or teacher_logprobs, got both"),
        ({"teacher_logits": torch.zeros(2, 5, 7)}, TypeError, "teacher_logits must have the dtype"),
        ({"teacher_logits": torch.zeros(2, 4, 90).bfloat16()}, ValueError, "must have the shape of student_logits"),
        (
            {"teacher_logits": None, "teacher_logprobs": torch.zeros(5)},
            ValueError,
            "teacher_logprobs must have the shape",
        ),
        ({"trajectory_ids": None}, ValueError, "trajectory_ids must be given with step_ids"),
        ({"alpha_clip": 2.0}, ValueError, r"alpha_clip must lie in \(0, 1\]"),
        ({"step_ids": torch.zeros(2, 5)}, TypeError, "step_ids must be torch.int64"),
        ({"mask": torch.ones(5).bool()}, ValueError, r"mask must have shape \(2, 5\)"),
        ({"loss": "ppo"}, ValueError, "loss must be one of grpo"),
        ({"kl_coef": 0.1}, ValueError, "ref_logprobs must be given with kl_coef 0.1"),
        ({"inplace": True}, ValueError, "inplace must be False for logits that are a leaf"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and greater than 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_overwritten(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    tensors = batch()
    student = tensors["student_logits"].requires_grad_()
    before = student.detach().clone()
    with pytest.raises(error, match=message):
        shape_and_loss(**{**tensors, **changes})
    assert torch.equal(student.detach().nan_to_num(0), before.nan_to_num(0))


def test_compiles_into_one_graph() -> None:
    tensors = batch(dtype=torch.float32)
    scale = torch.ones(90, requires_grad=True)

    def total(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = tensors["student_logits"].nan_to_num(0) * w
        shaped, policy = shape_and_loss(**{**tensors, "student_logits": scaled}, inplace=True, backend="torch")
        return policy.loss, shaped.advantages

    want, want_shaped = total(scale)
    got, shaped = torch.compile(total, fullgraph=True, backend="aot_eager")(scale)
    torch.testing.assert_close(shaped, want_shaped)
    torch.testing.assert_close(torch.autograd.grad(got, scale), torch.autograd.grad(want, scale))
    torch._dynamo.reset()


def test_the_package_offers_it() -> None:
    assert stepopsd.shape_and_loss is shape_and_loss
