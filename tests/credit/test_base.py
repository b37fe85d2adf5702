"""The protocol: methods compose by multiplying factors, and the configuration knows every one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepopsd.credit import CreditResult, compose, create, registered
from stepopsd.credit.base import broadcast_advantages
from stepopsd.options.credit import METHODS, CreditConfig
from stepopsd.train.config_io import to_tree
from tests.credit.test_stepopsd import inputs, plain


def test_the_configuration_knows_every_method_and_its_role():
    options = to_tree(CreditConfig())
    assert {name: create(name, options).role for name in registered()} == METHODS


def test_factors_multiply_in_any_order():
    base = torch.tensor([[1.0, -2.0, 0.0]])
    a, b = torch.tensor([[2.0, 0.5, 3.0]]), torch.tensor([[4.0, 1.0, 5.0]])
    first, second = CreditResult(base * a, factors=a), CreditResult(base * b, factors=b)
    neutral = CreditResult(base)
    for results in ([first, second], [second, neutral, first]):
        assert compose(base, results).tolist() == [[8.0, -1.0, 0.0]]
    assert compose(base, [first]) is first.advantages
    assert compose(base, []) is base


@pytest.mark.parametrize("name", sorted(n for n, role in METHODS.items() if role == "factor"))
def test_factors_are_what_the_advantages_were_multiplied_by(name):
    x, method = inputs(), create(name, to_tree(CreditConfig()))
    x = replace(x, extras={extra: torch.rand(x.response_mask.shape) for extra in method.needs(x.update)})
    result = method.assign(x)
    assert result.factors is not None
    torch.testing.assert_close(plain(x) * result.factors, result.advantages, atol=1e-6, rtol=1e-6)
    assert bool((result.factors > 0).all())
    assert torch.equal(result.advantages.sign(), plain(x).sign())
    assert not result.advantages.requires_grad


def test_token_advantages_pass_through_the_broadcast():
    mask = torch.tensor([[True, False, True]])
    assert broadcast_advantages(torch.tensor([2.0]), mask).tolist() == [[2.0, 0.0, 2.0]]
    assert broadcast_advantages(torch.tensor([[1.0, 2.0, 3.0]]), mask).tolist() == [[1.0, 0.0, 3.0]]


def test_selected_inputs_are_those_of_their_rows():
    x = inputs()
    rows = torch.tensor([2, 0])
    assert torch.equal(x.select(rows).old_logprobs, x.old_logprobs[rows])
    assert x.select(rows).update == x.update
