"""APPO as a method: which cuts it asks for, and what it makes of the rewards that branches lend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepopsd.credit import create
from stepopsd.credit.appo import dual_group_advantage
from stepopsd.credit.base import BRANCH_REWARDS, REWARDS, BranchTokens
from stepopsd.options.credit import CreditConfig
from stepopsd.train.config_io import to_tree
from tests.credit.test_stepopsd import inputs


def method(**changes):
    options = to_tree(CreditConfig())
    return create("appo", {**options, "appo": options["appo"] | changes})


def tokens(*, drift=True):
    rng = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 30, generator=rng)
    return BranchTokens(
        attempts=(3, 5, 6, 9), mask=torch.rand(4, 30, generator=rng) < 0.6,
        entropies=torch.rand(4, 30, generator=rng),
        logprobs=old + 0.03 * torch.randn(4, 30, generator=rng) if drift else None,
        reference_logprobs=old if drift else None, group_ids=torch.tensor([0, 0, 2, 2]),
    )  # fmt: skip


def test_cuts_count_sampled_tokens_and_land_on_one():
    x = tokens(drift=False)
    plan = method(when="rollout", branches=3).branch(x).continuations
    assert [c.row for c in plan] == [3] * 3 + [5] * 3 + [6] * 3 + [9] * 3
    assert [c.group for c in plan] == [0] * 6 + [2] * 6
    for row, attempt in enumerate(x.attempts):
        own = x.entropies[row][x.mask[row]]  # what was sampled, in order: positions here are cuts
        assert {c.cut for c in plan if c.row == attempt} == set(own.topk(3).indices.tolist())
    assert {(c.kind, c.count) for c in plan} == {("branch", 1)}


def test_drift_moves_the_cuts_where_there_is_some():
    x = tokens()
    by_entropy = method(when="rollout").branch(replace(x, logprobs=None, reference_logprobs=None)).continuations
    assert method(when="minibatch").branch(replace(x, reference_logprobs=x.logprobs)).continuations == by_entropy
    assert method(when="minibatch").branch(x).continuations != by_entropy
    assert method(when="lagged").branch(x).continuations == method(when="minibatch").branch(x).continuations


def test_what_a_round_logs():
    x = tokens()
    few = method(when="minibatch", branches=2).branch(x).metrics
    assert 0 < few["branches/candidates"] < float(x.mask.sum(1).double().mean()), "the gate leaves some out"
    assert few["branches/filled_up"] == 0
    many = method(when="minibatch", branches=30).branch(x).metrics
    assert many["branches/candidates"] == few["branches/candidates"]
    total = float(x.mask.sum())
    assert many["branches/filled_up"] == pytest.approx(1 - 4 * many["branches/candidates"] / total)


def test_keeping_the_token_never_keeps_the_whole_attempt():
    x = tokens(drift=False)
    last = x.mask.sum(1).tolist()
    x.entropies[:] = 0.0
    for row in range(4):
        x.entropies[row, x.mask[row].nonzero()[-1, 0]] = 1.0  # the last sampled token scores best
    assert [c.cut for c in method(when="rollout", branches=1).branch(x).continuations] == [n - 1 for n in last]
    assert method(when="rollout", branches=1, resample=False).branch(x).continuations == []


def test_positions_may_be_pooled_per_prompt():
    plan = method(when="rollout", branches=2, per="prompt").branch(tokens(drift=False)).continuations
    assert [c.group for c in plan] == [0] * 4 + [2] * 4


def given(lent, current=None):
    x = inputs()
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    return replace(
        x, group_ids=torch.zeros(4, dtype=torch.int64), trajectory_ids=torch.arange(4), current_logprobs=current,
        extras={REWARDS: rewards, BRANCH_REWARDS: torch.tensor(lent).expand(4, -1)},
    )  # fmt: skip


def test_rewards_of_branches_make_the_second_group():
    nan = float("nan")
    x = given([1.0, 1.0, 0.0, nan])
    every = dual_group_advantage(
        torch.tensor([1.0, 0, 0, 1, 1, 1, 0]), torch.arange(7) >= 4, torch.zeros(7, dtype=torch.int64)
    )
    result = method().assign(x)
    torch.testing.assert_close(result.advantages, every[:4, None] * 1.5 * x.response_mask)
    centred = method(center=True).assign(x).advantages
    torch.testing.assert_close(centred, every[:4, None] * x.response_mask)
    assert result.factors is None, "it makes advantages, it multiplies nobody's"


def test_without_branches_the_attempts_alone_count():
    x = given([float("nan")])
    want = torch.tensor([1.0, -1, -1, 1])[:, None] * 1.5 * x.response_mask
    torch.testing.assert_close(method().assign(x).advantages, want)
    torch.testing.assert_close(method(mode="own").assign(given([1.0, 0.0])).advantages, want)


def test_every_trajectory_has_one_vote():
    x = replace(given([float("nan")]), trajectory_ids=torch.tensor([0, 1, 1, 1]))
    x.extras[REWARDS][:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    got = method(center=True).assign(x).advantages
    torch.testing.assert_close(got, torch.tensor([1.0, -1, -1, -1])[:, None] * x.response_mask)


def test_a_policy_that_moved_scales_each_token():
    x = inputs()
    moved = method().assign(given([1.0, 0.0], x.old_logprobs + 0.05 * torch.randn(4, 10)))
    still = method().assign(given([1.0, 0.0]))
    ratio = (moved.advantages / still.advantages)[x.response_mask]
    assert 1 <= float(ratio.min()) < float(ratio.max()) <= 1.6 / 1.5 + 1e-6


def test_groups_must_be_known():
    with pytest.raises(ValueError, match="group_ids must be given"):
        method().assign(replace(given([1.0]), group_ids=None))
