"""OAR: what its weights may change, and what they must leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepopsd import grpo_loss
from stepopsd.credit import create
from stepopsd.credit.oar import BY_GRADIENT, Oar, correlation, draw_agreement
from tests.credit.test_stepopsd import inputs, plain


def scored(seed=0, share=0.8):
    x = inputs()
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(x.response_mask.shape, generator=rng) ** 3
    scores[~x.response_mask | (torch.rand(scores.shape, generator=rng) > share)] = torch.nan
    return replace(x, extras={BY_GRADIENT: scores})


def test_mass_and_signs_stay():
    x = scored()
    result = Oar().assign(x)
    inside = ~x.extras[BY_GRADIENT].isnan() & x.response_mask
    torch.testing.assert_close(
        (result.advantages * inside).sum(1), (plain(x) * inside).sum(1), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(result.advantages.sign(), plain(x).sign())
    assert torch.equal(result.advantages[~inside], plain(x)[~inside])
    assert (result.advantages != plain(x))[inside].any()
    assert result.metrics["oar/rows"] == 4
    assert 0.5 < float(result.metrics["oar/ess"]) < 1


def test_equal_scores_give_the_loss_of_grpo():
    x = scored()
    same = replace(x, extras={BY_GRADIENT: torch.full_like(x.old_logprobs, 3e-7)})
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(50, x.response_mask.shape, generator=rng)
    losses, gradients = [], []
    for method, given in ((Oar(), same), (create("grpo", {}), x)):
        logits = torch.randn((*ids.shape, 50), generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = grpo_loss(logits, ids, method.assign(given).advantages, x.old_logprobs, mask=x.response_mask).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(logits.grad)
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=0)


def test_rows_without_scores_are_those_of_grpo():
    x = scored()
    x.extras[BY_GRADIENT][1:] = torch.nan
    result = Oar().assign(x)
    assert torch.equal(result.advantages[1:], plain(x)[1:])
    assert result.metrics["oar/rows"] == 1
    nothing = replace(x, extras={BY_GRADIENT: torch.full_like(x.old_logprobs, torch.nan)})
    assert Oar().assign(nothing).metrics == {"oar/rows": 0}


@pytest.mark.parametrize("preserve", [True, False])
def test_share_at_the_floor_is_that_before_the_mass_is_restored(preserve):
    """Of z = 0, 0.001, 0.9 and 1 the first two lie below a tenth of the quantile, whatever the last step does."""
    x = scored()
    wide = torch.tensor([0.0, 0.0, 0.001, 0.9, 0.95, 1.0, 1.0, 1.0]).expm1()
    scores, mask = torch.full((4, 10), torch.nan), torch.zeros(4, 10, dtype=torch.bool)
    scores[:, :8], mask[:, :8] = wide, True
    result = Oar(quantile=0.5, preserve=preserve).assign(replace(x, response_mask=mask, extras={BY_GRADIENT: scores}))
    assert float(result.metrics["oar/at_floor"]) == pytest.approx(3 / 8)
    assert (float(result.metrics["oar/min"]) == pytest.approx(0.1)) is not preserve


def test_agreement_of_draws_is_that_of_their_ranks():
    first = torch.tensor([[1.0, 2.0, 30.0, torch.nan], [3.0, 1.0, 2.0, 9.0]])
    assert float(draw_agreement(torch.stack([first, first.square()]))) == pytest.approx(1)
    assert float(draw_agreement(torch.stack([first, -first]))) == pytest.approx(-1)
    assert float(draw_agreement(torch.stack([first, -first, -first]))) == pytest.approx(0)
    one_swap = torch.tensor([[[1.0, 2.0, 3.0]], [[2.0, 1.0, 3.0]]])
    assert float(draw_agreement(one_swap)) == pytest.approx(0.5)
    assert draw_agreement(first[None]) is None, "one draw agrees with nothing"
    assert draw_agreement(torch.full((2, 3, 4), torch.nan)) is None


def test_correlation_of_something_constant_is_zero():
    x = torch.arange(5.0)
    assert float(correlation(x, 2 * x)) == pytest.approx(1.0)
    assert float(correlation(x, torch.ones(5))) == 0.0
