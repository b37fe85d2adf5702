"""Policy losses on ready log-probs: derivatives by hand against autograd, aggregations, metrics, options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stepopsd
from stepopsd.ops.losses import (
    AGGREGATIONS,
    LOSS_METRICS,
    LOSSES,
    PolicyTerms,
    aggregation_weights,
    loss_options,
    loss_weights,
    policy_terms,
)
from stepopsd.ops.reference_loss import policy_loss_reference

CLIPPED = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo")
NAN = float("nan")


@dataclass(frozen=True)
class Tokens:
    """Per-token tensors (N, T) float64; garbage outside the mask."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor


def tokens(seed: int = 0, shape: tuple[int, int] = (4, 9), masked: float = 0.3, spread: float = 0.4) -> Tokens:
    rng = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    logprobs = -noise().abs() - 0.1
    old, ref = logprobs + spread * noise(), logprobs + spread * noise()
    advantages = noise() * torch.randint(2, (shape[0], 1), generator=rng)
    mask = torch.rand(shape, generator=rng) >= masked
    garbage = torch.where(mask, 0.0, NAN)
    return Tokens(logprobs.where(mask, 0), noise().abs().where(mask, 0), old + garbage, ref + garbage,
                  advantages + garbage, mask)  # fmt: skip


def terms(t: Tokens, loss: str, aggregation: str = "token_mean", **options: Any) -> PolicyTerms:
    made = loss_options(loss, *(options.get(x) for x in ("clip_low", "clip_high")), *(
        options.get(x, 0.0) for x in ("dual_clip", "kl_coef", "entropy_coef")
    ))  # fmt: skip
    weights = loss_weights(loss, t.mask, aggregation, 7 if aggregation == "dr_grpo" else 0, None, torch.float64)
    return policy_terms(t.logprobs, t.entropy, t.old, t.ref, t.advantages, weights, t.mask, made)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    loss=st.sampled_from(LOSSES),
    aggregation=st.sampled_from(AGGREGATIONS),
    clip=st.sampled_from(((None, None), (0.0, 0.0), (0.3, 0.5), (1.5, math.inf))),
    dual_clip=st.sampled_from((0.0, 1.2, 3.0)),
    kl_coef=st.sampled_from((0.0, 0.1)),
    entropy_coef=st.sampled_from((0.0, 0.05, -0.05)),
    seed=st.integers(0, 1000),
    masked=st.sampled_from((0.0, 0.3, 1.0)),
    spread=st.sampled_from((1e-4, 0.4, 40.0)),
    weighted=st.booleans(),
    with_ref=st.booleans(),
    old=st.booleans(),
)
def test_derivatives_by_hand_equal_autograd_of_the_reference(
    loss: str, aggregation: str, clip: tuple[float | None, float | None], dual_clip: float, kl_coef: float,
    entropy_coef: float, seed: int, masked: float, spread: float, weighted: bool, with_ref: bool, old: bool,
) -> None:  # fmt: skip
    t = tokens(seed, (1 + seed % 4, 1 + seed % 7), masked, spread)
    clip, dual_clip = ((None, None) if loss == "reinforce" else clip), (dual_clip if loss in CLIPPED else 0.0)
    options = loss_options(loss, *clip, dual_clip, kl_coef, entropy_coef)
    weighted = weighted and loss != "bnpo"
    budget = 11 if aggregation == "dr_grpo" and not weighted else 0
    token_weights = (torch.rand(t.mask.shape).double() + torch.where(t.mask, 0.0, NAN)) if weighted else None
    weights = loss_weights(loss, t.mask, None if weighted else aggregation, budget, token_weights, torch.float64)
    ref = t.ref if with_ref or kl_coef else None
    behind = t.old if old else None
    got = policy_terms(t.logprobs, t.entropy, behind, ref, t.advantages, weights, t.mask, options)

    logprobs, entropy = t.logprobs.clone().requires_grad_(), t.entropy.clone().requires_grad_()
    want = policy_loss_reference(
        logprobs, t.logprobs if behind is None else behind, t.advantages, t.mask, entropy=entropy, loss=loss,
        clip_low=options.clip_low, clip_high=options.clip_high, dual_clip=dual_clip, ref_logprobs=ref, kl_coef=kl_coef,
        entropy_coef=entropy_coef, aggregation=aggregation, budget=budget, token_weights=token_weights,
    )  # fmt: skip
    slopes = torch.autograd.grad(want, (logprobs, entropy), allow_unused=True)
    torch.testing.assert_close(got.loss, want.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.logprob_slope, slopes[0], rtol=1e-9, atol=1e-12)
    if entropy_coef:
        torch.testing.assert_close(got.entropy_slope, slopes[1], rtol=1e-12, atol=0)
    else:
        assert got.entropy_slope is None
    assert not got.logprob_slope[~t.mask].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_terms_are_as_exact_as_float32(loss: str) -> None:
    t = tokens(spread=1e-3)
    narrow = Tokens(*(x.float() if x.is_floating_point() else x for x in vars(t).values()))
    clip = {} if loss == "reinforce" else {"clip_low": 0.2, "clip_high": 0.2}
    got, want = (terms(x, loss, kl_coef=1.0, entropy_coef=0.1, **clip) for x in (narrow, t))
    torch.testing.assert_close(got.logprob_slope.double(), want.logprob_slope, rtol=1e-5, atol=1e-8)
    # exp(d) - d - 1 of small gaps would lose every digit if it were computed as written
    kl = LOSS_METRICS.index("kl_ref")
    assert got.metrics[kl].item() == pytest.approx(want.metrics[kl].item(), rel=1e-3)


def test_constant_advantages_make_gspo_the_sequence_loss_of_its_paper() -> None:
    t = tokens(masked=0.3, spread=0.2)
    advantages = torch.tensor([[1.0], [-1.0], [0.5], [-2.0]], dtype=torch.float64).expand_as(t.mask)
    logprobs = t.logprobs.clone().requires_grad_()
    length = t.mask.sum(1)
    s = (((logprobs - t.old).where(t.mask, 0)).sum(1) / length).exp()  # the sequence ratio, equation 7
    a = advantages[:, 0]
    want = -torch.minimum(s * a, s.clamp(1 - 0.05, 1 + 0.1) * a).mean()  # equation 5
    (slope,) = torch.autograd.grad(want, logprobs)
    fixed = Tokens(t.logprobs, t.entropy, t.old, t.ref, advantages, t.mask)
    got = terms(fixed, "gspo", "sequence_mean", clip_low=0.05, clip_high=0.1)
    torch.testing.assert_close(got.loss, want.detach())
    torch.testing.assert_close(got.logprob_slope, slope)


def test_cispo_weighs_logprobs_by_a_constant_clipped_ratio() -> None:
    t = tokens()
    ratio = (t.logprobs - t.old).exp().clamp(0, 5)
    want = -(ratio * t.advantages * t.logprobs)[t.mask].mean()  # MiniMax-M1, equation 4
    got = terms(t, "cispo")
    torch.testing.assert_close(got.loss, want)
    torch.testing.assert_close(got.logprob_slope[t.mask], -(ratio * t.advantages)[t.mask] / t.mask.sum())


def test_dual_clip_is_a_bound_for_negative_advantages_only() -> None:
    two = torch.ones(1, 2, dtype=torch.float64)
    t = Tokens(two * 0, two * 0, two * -2, two, torch.tensor([[-1.0, 1.0]]).double(), two.bool())
    free, bounded = terms(t, "grpo"), terms(t, "grpo", dual_clip=3.0)
    assert free.loss.item() == pytest.approx((math.exp(2) - 1.2) / 2)
    assert bounded.loss.item() == pytest.approx((3.0 - 1.2) / 2)
    assert free.logprob_slope.tolist() == [pytest.approx([math.exp(2) / 2, 0.0])]
    assert not bounded.logprob_slope.any()
    assert bounded.metrics[LOSS_METRICS.index("clip_dual")] == 0.5


def test_metrics_by_hand() -> None:
    current = torch.tensor([[-1.0, -2.0, -3.0, -0.5, 0.0]], dtype=torch.float64)
    delta = torch.tensor([[math.log(0.5), math.log(2), 0.0, math.log(4), NAN]], dtype=torch.float64)
    advantages = torch.tensor([[-1.0, 1.0, 1.0, -1.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    entropy = torch.tensor([[1.0, 2.0, 3.0, 6.0, 0.0]], dtype=torch.float64)
    t = Tokens(current, entropy, current - delta, current + math.log(2), advantages, mask)
    got = dict(zip(LOSS_METRICS, terms(t, "grpo", dual_clip=3.0).metrics.tolist(), strict=True))
    want = {
        "tokens": 4, "nonfinite": 0, "ratio_mean": 7.5 / 4, "ratio_min": 0.5, "ratio_max": 4, "clip_low": 0.25,
        "clip_high": 0.25, "clip_dual": 0.25, "entropy_mean": 3, "old_gap_max": math.log(4),
        "kl_ref": 1 - math.log(2), "kl_old": (7.5 - 4 - math.log(4)) / 4,
    }  # fmt: skip
    assert got == pytest.approx(want)


def test_metrics_leave_broken_tokens_out_and_count_them() -> None:
    t = tokens(masked=0.0)
    broken = t.logprobs.clone()
    broken[0, 0], broken[1, 1] = NAN, -math.inf
    got = terms(Tokens(broken, t.entropy, t.old, t.ref, t.advantages, t.mask), "grpo")
    counted = t.mask.clone()
    counted[0, 0], counted[1, 1] = False, False
    whole = Tokens(t.logprobs.where(counted, 0), t.entropy.where(counted, 0), t.old, t.ref, t.advantages, counted)
    want = terms(whole, "grpo")
    assert got.loss.isnan()
    assert got.metrics[:2].tolist() == [34, 2]
    torch.testing.assert_close(got.metrics[2:], want.metrics[2:])
    rest = counted.nonzero()
    assert got.logprob_slope[rest[:, 0], rest[:, 1]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_tokens_give_zeros(shape: tuple[int, int]) -> None:
    got = terms(tokens(shape=shape), "gspo", "sequence_mean")
    assert got.loss == 0
    assert not got.metrics.any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations(aggregation: str) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    values = torch.tensor([[1.0, 3.0, 99.0, 99.0], [0.0, 0.0, 0.0, 4.0]])
    got = (aggregation_weights(mask, aggregation, budget=8) * values).sum()
    want = {"token_mean": 8 / 6, "sequence_mean": (2 + 1) / 2, "sequence_sum": 8 / 2, "dr_grpo": 8 / 16}
    assert float(got) == pytest.approx(want[aggregation])


def test_token_mean_takes_any_shape() -> None:
    assert aggregation_weights(torch.ones(2, 3, 2, dtype=torch.bool), "token_mean").sum() == pytest.approx(1)
    assert stepopsd.aggregation_weights is aggregation_weights


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: aggregation_weights(m, "mean"), "aggregation must be one of token_mean, .* got 'mean'"),
        (lambda m: aggregation_weights(m, "dr_grpo"), "budget must be greater than 0 for aggregation 'dr_grpo', got 0"),
        (lambda m: aggregation_weights(m[0], "sequence_sum"), r"mask must have shape \(N, T\) for aggregation"),
        (lambda m: loss_weights("gspo", m[0], None, 0, None, m.dtype), r"logits must have shape \(N, T, V\) with loss"),
        (lambda m: loss_weights("bnpo", m, None, 0, m, m.dtype), "token_weights must be None with loss 'bnpo'"),
        (lambda m: loss_weights("grpo", m, "token_mean", 0, m, m.dtype), "token_weights stand for an aggregation"),
        (lambda _: loss_options("ppo", None, None, 0, 0, 0), "loss must be one of grpo, .* got 'ppo'"),
        (lambda _: loss_options("grpo", -0.1, None, 0, 0, 0), "clip_low must be at least 0, got -0.1"),
        (lambda _: loss_options("grpo", None, NAN, 0, 0, 0), "clip_high must be at least 0, got nan"),
        (lambda _: loss_options("reinforce", 0.2, None, 0, 0, 0), "clip_low must be None with loss 'reinforce'"),
        (lambda _: loss_options("grpo", None, None, 0.5, 0, 0), r"dual_clip must be 0 \(off\) or greater than 1"),
        (lambda _: loss_options("cispo", None, None, 3, 0, 0), "dual_clip must be 0 with loss 'cispo'"),
        (lambda _: loss_options("grpo", None, None, 0, -1, 0), "kl_coef must be finite and at least 0, got -1"),
        (lambda _: loss_options("grpo", None, None, 0, 0, math.inf), "entropy_coef must be finite, got inf"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("loss", "aggregation", "clip_low", "clip_high"),
    [
        ("grpo", "sequence_mean", 0.2, 0.2),
        ("dr_grpo", "dr_grpo", 0.2, 0.2),
        ("dapo", "token_mean", 0.2, 0.28),
        ("bnpo", "token_mean", 0.2, 0.2),
        ("gspo", "sequence_mean", 3e-4, 4e-4),
        ("cispo", "token_mean", 1.0, 4.0),
        ("reinforce", "token_mean", 0.0, 0.0),
    ],
)
def test_what_a_loss_leaves_open_comes_from_its_source(
    loss: str, aggregation: str, clip_low: float, clip_high: float
) -> None:
    options = loss_options(loss, None, None, 0.0, 0.0, 0.0)
    assert (options.clip_low, options.clip_high) == (clip_low, clip_high)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    budget = 5 if loss == "dr_grpo" else 0
    got = loss_weights(loss, mask, None, budget, None, torch.float64)
    assert torch.equal(got, aggregation_weights(mask, aggregation, budget=budget, dtype=torch.float64))
