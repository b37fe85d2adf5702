"""SDAR: value and gradient of the gated term against autograd of the plain formula, in float64."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit import AuxiliaryInputs
from stepopsd.credit.sdar import Sdar, sdar_loss
from tests.credit.test_stepopsd import inputs, plain


def case(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    hidden, head = torch.randn(9, 5, generator=g, dtype=dtype), torch.randn(13, 5, generator=g, dtype=dtype)
    ids = torch.randint(13, (9,), generator=g)
    teacher = -3 * torch.rand(9, generator=g, dtype=dtype)
    weights = torch.rand(9, generator=g, dtype=dtype) / 9
    weights[2] = 0.0
    return hidden.requires_grad_(), head.requires_grad_(), ids, teacher, weights


def reference(logits, ids, teacher, weights, coefficient, beta):
    """coefficient·Σ w·sg[σ(β·(log p_T - log p))]·(log p_T - log p), through autograd."""
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    gate = 1 / (1 + torch.exp(-beta * (teacher - logprobs)))
    return coefficient * (weights * gate.detach() * (teacher - logprobs)).sum()


@pytest.mark.parametrize("beta", [0.0, 5.0])
@pytest.mark.parametrize("form", ["head", "bias", "logits"])
def test_loss_and_gradients_are_those_of_the_plain_formula(beta, form):
    hidden, head, ids, teacher, weights = case()
    bias = torch.linspace(-1, 1, 13, dtype=torch.float64).requires_grad_() if form == "bias" else None
    logits = hidden @ head.T / 0.7 if bias is None else (hidden @ head.T + bias) / 0.7
    expected = reference(logits, ids, teacher, weights, 0.3, beta)
    leaves = [hidden, head] + ([bias] if bias is not None else [])
    wanted = torch.autograd.grad(expected, leaves)

    made = hidden @ head.T if form == "logits" else hidden
    term = Sdar(coefficient=0.3, beta=beta).auxiliary(AuxiliaryInputs(
        hidden=made, weight=None if form == "logits" else head, bias=bias, token_ids=ids, logprobs=teacher,
        teacher_logprobs=teacher, token_weights=weights, temperature=0.7,
    ))  # fmt: skip
    torch.testing.assert_close(term.loss, expected, atol=1e-12, rtol=1e-10)
    for got, want in zip(torch.autograd.grad(term.loss, leaves), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


def test_the_gate_is_a_constant():
    logprobs = torch.tensor([-2.0, -1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-1.0, -3.0], dtype=torch.float64)
    term = sdar_loss(logprobs, teacher, torch.tensor([0.5, 0.5]).double(), coefficient=0.01, beta=5.0)
    term.loss.backward()
    gate = torch.sigmoid(5 * (teacher - logprobs.detach()))
    torch.testing.assert_close(logprobs.grad, -0.01 * 0.5 * gate)
    assert float(term.metrics["gate_active"]) == 0.5
    assert float(term.metrics["gap_mean"]) == pytest.approx(-0.5)


def test_beta_zero_pulls_every_token_alike():
    logprobs = torch.tensor([-2.0, -1.0, -9.0], requires_grad=True)
    teacher = torch.tensor([-1.0, -3.0, -0.1])
    sdar_loss(logprobs, teacher, torch.full((3,), 1 / 3), coefficient=1.0, beta=0.0).loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.full((3,), -1 / 6))


def test_tokens_without_weight_may_hold_anything():
    logprobs = torch.tensor([-2.0, torch.nan], requires_grad=True)
    term = sdar_loss(logprobs, torch.tensor([-1.0, torch.nan]), torch.tensor([1.0, 0.0]))
    term.loss.backward()
    assert bool(term.loss.isfinite())
    assert float(logprobs.grad[1]) == 0.0
    assert float(term.metrics["gap_mean"]) == 1.0


def test_advantages_pass_unchanged():
    x = inputs()
    assert torch.equal(Sdar().assign(x).advantages, plain(x))
