"""OPSD: divergence and gradients against autograd of the plain formula in float64, and that logits come in chunks."""

from __future__ import annotations

import math

import pytest
import torch

from stepopsd.credit import AuxiliaryInputs
from stepopsd.credit.opsd import Divergence, Opsd, divergence_rows, opsd_loss
from stepopsd.ops.linear_head import Head
from tests.credit.test_stepopsd import inputs

M, H, V = 7, 5, 23


def case(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(M, H, generator=g), torch.randn(V, H, generator=g)
    teacher_hidden, teacher_weight = torch.randn(M, H + 2, generator=g), torch.randn(V, H + 2, generator=g)
    bias, shares = torch.randn(V, generator=g), torch.rand(M, generator=g) / M
    return [x.to(dtype) for x in (hidden, weight, bias, teacher_hidden, teacher_weight, shares)]


def reference(student, teacher, beta, top_k=0, entry_clip=0.0, temperature=1.0):
    """(M,) divergences as they are written, through autograd."""
    if top_k:
        chosen = teacher.topk(top_k, -1).indices
        student, teacher = student.gather(-1, chosen), teacher.gather(-1, chosen)
    s, t = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    if beta == 0:
        terms = t * (t / s).log()
    elif beta == 1:
        terms = s * (s / t).log()
    else:
        m = beta * t + (1 - beta) * s
        terms = beta * t * (t / m).log() + (1 - beta) * s * (s / m).log()
    return (terms.clamp(max=entry_clip) if entry_clip else terms).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("entry_clip", [0.0, 0.02])
@pytest.mark.parametrize("form", ["head", "bias", "logits"])
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_loss_and_gradients_are_those_of_the_plain_formula(beta, top_k, entry_clip, form, chunk_rows):
    hidden, weight, bias, teacher_hidden, teacher_weight, shares = case()
    leaves = [hidden.requires_grad_(), weight.requires_grad_()] + ([bias.requires_grad_()] if form == "bias" else [])
    teacher = teacher_hidden @ teacher_weight.T
    logits = hidden @ weight.T + (bias if form == "bias" else 0)
    rows = reference(logits, teacher, beta, top_k, entry_clip, temperature=0.8)
    expected = (shares * rows).sum()
    wanted = torch.autograd.grad(3 * expected, leaves)

    loss, values = opsd_loss(
        hidden @ weight.T if form == "logits" else hidden, None if form == "logits" else weight,
        teacher if form == "logits" else teacher_hidden, None if form == "logits" else teacher_weight, shares,
        bias=bias if form == "bias" else None, divergence=Divergence(beta, top_k, entry_clip, temperature=0.8),
        chunk_rows=chunk_rows,
    )  # fmt: skip
    torch.testing.assert_close(values, rows.detach(), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-9)
    for got, want in zip(torch.autograd.grad(3 * loss, leaves), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-8)


def test_identical_models_diverge_by_nothing_and_pull_nowhere():
    hidden, weight, *_, shares = case()
    for beta in (0.0, 0.5, 1.0):
        loss, values = opsd_loss(hidden.requires_grad_(), weight, hidden, weight, shares, divergence=Divergence(beta))
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert float(values.abs().max()) < 1e-15
        assert float(gradient.abs().max()) < 1e-15


def test_half_is_symmetric_and_at_most_ln_2():
    student, teacher = 30 * torch.randn(2, 50, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there, _ = divergence_rows(student, teacher, Divergence(0.5))
    back, _ = divergence_rows(teacher, student, Divergence(0.5))
    torch.testing.assert_close(there, back)
    assert 0.6 < float(there.max()) <= math.log(2) + 1e-12


def test_impossible_entries_make_no_nan():
    student = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    teacher = torch.tensor([[0.5, -torch.inf, 0.0, -torch.inf]])
    values, slope = divergence_rows(student, teacher, Divergence(0.5))
    assert bool(values.isfinite().all())
    assert bool(slope.isfinite().all())
    assert float(divergence_rows(student, teacher, Divergence(0.0))[0]) == math.inf
    assert float(divergence_rows(student, teacher, Divergence(1.0, entry_clip=0.1))[0]) < math.inf


def test_no_logits_of_a_whole_batch_exist(monkeypatch):
    sizes = []
    write = Head.write_logits

    def watching(self, hidden, out):
        sizes.append(tuple(out.shape))
        return write(self, hidden, out)

    monkeypatch.setattr(Head, "write_logits", watching)
    hidden, weight, _, teacher_hidden, teacher_weight, shares = case()
    loss, _ = opsd_loss(hidden.requires_grad_(), weight, teacher_hidden, teacher_weight, shares, chunk_rows=2)
    loss.backward()
    assert max(rows for rows, _ in sizes) == 2
    assert sum(rows for rows, _ in sizes) == 2 * M  # once for each model, and not again in the backward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_types_stay_near_the_wide_ones(dtype):
    narrow = case(dtype)
    wide = [x.double() for x in narrow]
    found = []
    for hidden, weight, bias, teacher_hidden, teacher_weight, shares in (narrow, wide):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        loss, _ = opsd_loss(leaves[0], leaves[1], teacher_hidden, teacher_weight, shares, bias=leaves[2], chunk_rows=3)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    assert [g.dtype for g in found[0]] == [torch.float32, dtype, dtype, dtype]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-3 if dtype == torch.bfloat16 else 1e-6, rtol=2e-2)


def test_the_method_weighs_its_term():
    hidden, weight, _, teacher_hidden, teacher_weight, shares = case()
    term = Opsd(coefficient=0.25, beta=0.0).auxiliary(AuxiliaryInputs(
        hidden=hidden, weight=weight, bias=None, token_ids=torch.zeros(M, dtype=torch.int64), logprobs=shares,
        teacher_logprobs=shares, token_weights=shares, temperature=2.0, teacher_hidden=teacher_hidden,
        teacher_weight=teacher_weight,
    ))  # fmt: skip
    rows = reference(hidden @ weight.T, teacher_hidden @ teacher_weight.T, 0.0, temperature=2.0)
    torch.testing.assert_close(term.loss, 0.25 * (shares * rows).sum())
    torch.testing.assert_close(term.metrics["divergence"], rows.mean())
    assert not Opsd.rewarded
    assert torch.equal(Opsd().assign(inputs()).advantages, inputs().response_mask * inputs().advantages[:, None])


def test_mistakes_are_named():
    hidden, weight, _, teacher_hidden, teacher_weight, shares = case()
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\], got 1\.5"):
        Divergence(beta=1.5)
    with pytest.raises(ValueError, match="top_k must be at most the vocabulary's 23 entries, got 24"):
        opsd_loss(hidden, weight, teacher_hidden, teacher_weight, shares, divergence=Divergence(top_k=24))
    with pytest.raises(ValueError, match="one vocabulary, got 23 and 22"):
        opsd_loss(hidden, weight, teacher_hidden, teacher_weight[:-1], shares)
    with pytest.raises(ValueError, match="agree in M, got 7, 6"):
        opsd_loss(hidden, weight, teacher_hidden[:-1], teacher_weight, shares)
