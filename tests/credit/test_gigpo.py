"""GiGPO against its formulas step by step in float64, and what must hold for any steps."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.credit import CreditInputs
from stepopsd.credit.gigpo import TURNS, Gigpo, discounted_returns, gigpo_advantages, step_advantages
from stepopsd.credit.grpo import group_normalize

ARGUMENTS = ("rewards", "trajectory_ids", "turn_ids", "group_ids", "anchor_ids")


@st.composite
def steps(draw):
    """Steps of several groups of trajectories, dense or sparse pay, in a random order."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    columns = [[], [], [], [], []]
    sparse = draw(st.booleans())
    trajectory = 7
    for group in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 4))):
            length = draw(st.integers(1, 6))
            pay = torch.randn(length, generator=g)
            if sparse:
                pay = pay * 0
                pay[-1] = float(torch.rand((), generator=g) < 0.5)
            columns[0] += pay.tolist()
            columns[1] += [trajectory] * length
            columns[2] += [2 * k for k in range(length)]
            columns[3] += [group * 3] * length
            columns[4] += torch.randint(3, (length,), generator=g).tolist()
            trajectory += 5
    order = torch.randperm(len(columns[0]), generator=g)
    tensors = [torch.tensor(c)[order] for c in columns]
    return dict(zip(ARGUMENTS, [tensors[0].float(), *tensors[1:]], strict=True))


def plain_formula(case, gamma, weight, norm):
    """One step at a time, in Python's own arithmetic."""
    rows = list(zip(*(case[name].tolist() for name in ARGUMENTS), strict=True))
    returns, totals = [], {}
    for _, trajectory, turn, _, _ in rows:
        rest = sorted((u, pay) for pay, t, u, _, _ in rows if t == trajectory and u >= turn)
        returns.append(sum(gamma**k * pay for k, (_, pay) in enumerate(rest)))
        totals[trajectory] = sum(pay for pay, t, *_ in rows if t == trajectory)

    def relative(value, others):
        if max(others) - min(others) < 1e-9:
            return 0.0
        spread = statistics.stdev(others) + 1e-6 if norm == "mean_std_norm" else 1.0
        return (value - statistics.fmean(others)) / spread

    out = []
    for i, (_, trajectory, _, group, anchor) in enumerate(rows):
        peers = {t for _, t, _, g, _ in rows if g == group}
        same = [returns[j] for j, (*_, g, a) in enumerate(rows) if (g, a) == (group, anchor)]
        episode = relative(totals[trajectory], [totals[t] for t in peers])
        out.append(episode + weight * relative(returns[i], same))
    return out


@settings(max_examples=60, deadline=None)
@given(case=steps(), gamma=st.sampled_from((0.0, 0.5, 0.95, 1.0)), weight=st.sampled_from((0.0, 0.3, 1.0)),
       norm=st.sampled_from(("mean_std_norm", "mean_norm")))  # fmt: skip
def test_it_is_the_formula(case, gamma, weight, norm):
    got = gigpo_advantages(**case, gamma=gamma, step_advantage_w=weight, norm=norm)
    assert got.tolist() == pytest.approx(plain_formula(case, gamma, weight, norm), rel=1e-4, abs=1e-4)
    assert got.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(case=steps(), seed=st.integers(0, 99))
def test_the_order_of_the_steps_does_not_matter(case, seed):
    order = torch.randperm(len(case["rewards"]), generator=torch.Generator().manual_seed(seed))
    shuffled = gigpo_advantages(**{name: column[order] for name, column in case.items()})
    torch.testing.assert_close(shuffled, gigpo_advantages(**case)[order], atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(case=steps())
def test_groups_do_not_see_each_other(case):
    whole = gigpo_advantages(**case)
    for group in case["group_ids"].unique():
        own = case["group_ids"] == group
        alone = gigpo_advantages(**{name: column[own] for name, column in case.items()})
        torch.testing.assert_close(whole[own], alone, atol=1e-6, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(case=steps(), norm=st.sampled_from(("mean_std_norm", "mean_norm")))
def test_step_advantages_of_an_anchor_cancel(case, norm):
    returns = discounted_returns(*(case[name] for name in ARGUMENTS[:3]))
    got = step_advantages(returns, case["group_ids"], case["anchor_ids"], norm=norm)
    places = list(zip(case["group_ids"].tolist(), case["anchor_ids"].tolist(), strict=True))
    for place in set(places):
        here = torch.tensor([p == place for p in places])
        assert abs(float(got[here].sum())) < 1e-4
        if int(here.sum()) == 1:
            assert float(got[here]) == 0.0


@settings(max_examples=40, deadline=None)
@given(case=steps())
def test_without_its_step_part_it_is_grpo(case):
    total = {t: case["rewards"][case["trajectory_ids"] == t].double().sum() for t in case["trajectory_ids"].tolist()}
    returns = torch.stack([total[t] for t in case["trajectory_ids"].tolist()])
    grpo = group_normalize(returns, case["group_ids"], case["trajectory_ids"])
    assert torch.allclose(gigpo_advantages(**case, step_advantage_w=0.0), grpo, atol=1e-6)


@pytest.mark.parametrize("pay", [0.0, 1.0, 0.1])
def test_equal_pay_gives_exactly_zero(pay):
    many = torch.arange(7)
    same = torch.zeros(7, dtype=torch.int64)
    assert gigpo_advantages(torch.full((7,), pay), many, same, same, same).tolist() == [0.0] * 7


def test_two_ways_from_one_door():
    """Two members stand before the same door; one opens it at once, the other after a detour through the door again."""
    got = step_advantages(
        discounted_returns(
            torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2]), gamma=0.5
        ),
        torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 0]), norm="mean_norm",
    )  # fmt: skip
    mean = (1 + 0.25 + 1) / 3
    torch.testing.assert_close(got, torch.tensor([1 - mean, 0.25 - mean, 0.0, 1 - mean]))


def test_nothing_carries_a_gradient():
    rewards = torch.randn(4, requires_grad=True)
    ids, same = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    assert not discounted_returns(rewards, ids, same).requires_grad
    assert not step_advantages(rewards, same, same).requires_grad
    assert not gigpo_advantages(rewards, ids, same, same, same).requires_grad


def test_no_steps_are_no_advantages():
    none = torch.zeros(0, dtype=torch.int64)
    assert gigpo_advantages(none.float(), none, none, none, none).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.5}, "gamma must lie in"),
        ({"step_advantage_w": -1.0}, "step_advantage_w must be at least 0, got -1.0"),
        ({"norm": "std"}, "norm must be one of mean_std_norm, mean_norm, got 'std'"),
        ({"statistics": "token"}, "statistics must be one of"),
        ({"turn_ids": torch.tensor([3, 3, 0])}, "turn_ids must differ within a trajectory, 3 is there twice"),
        ({"turn_ids": torch.tensor([0])}, "must have one shape"),
        ({"anchor_ids": torch.zeros(3, 1)}, r"one shape \(S,\)"),
    ],
)
def test_mistakes_are_named(change, message):
    same = torch.zeros(3, dtype=torch.int64)
    case = {"rewards": torch.ones(3), "trajectory_ids": torch.tensor([0, 0, 1]), "turn_ids": torch.tensor([0, 1, 0]),
            "group_ids": same, "anchor_ids": same}  # fmt: skip
    gigpo_advantages(**case)
    with pytest.raises(ValueError, match=message):
        gigpo_advantages(**{**case, **change})


def batch(penalty=0.0):
    """Two dialogues of two turns and one of one turn, in one group; the first turns start from one state."""
    rewards = torch.tensor([[0.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    anchors = torch.tensor([[0, 1], [0, 1], [0, -1]])
    place = torch.tensor([[-1, 0, 0, -1, 1], [-1, 0, 0, -1, 1], [-1, 0, 0, -1, -1]])
    extras = dict(zip(TURNS, (
        rewards, torch.tensor([[0.0, 0.0], [penalty, 0.0], [0.0, 0.0]]), torch.tensor([[0, 1], [0, 1], [0, -1]]),
        anchors, place,
    ), strict=True))  # fmt: skip
    ids = torch.arange(3)
    plain = group_normalize(rewards.sum(1), torch.zeros(3, dtype=torch.int64), ids)
    mask = place >= 0
    return CreditInputs(
        advantages=plain, response_mask=mask, step_ids=torch.full((3, 5), -1, dtype=torch.int32), trajectory_ids=ids,
        old_logprobs=torch.zeros(3, 5), teacher_logprobs=None, update=1, group_ids=torch.zeros(3, dtype=torch.int64),
        extras=extras,
    ), mask


def test_tokens_get_what_their_turn_earned():
    x, mask = batch()
    result = Gigpo().assign(x)
    flat = gigpo_advantages(
        torch.tensor([0.0, 4.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 0]),
        torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 0, 1, 0]),
    )  # fmt: skip
    expected = torch.tensor([[0, 1, 1, 0, 2], [0, 3, 3, 0, 4], [0, 5, 5, 0, 0]])
    torch.testing.assert_close(result.advantages, torch.cat([torch.zeros(1), flat])[expected])
    assert (result.advantages[~mask] == 0).all()
    assert result.metrics["anchor/groups"] == 2
    assert float(result.metrics["anchor/size_mean"]) == 2.5
    assert float(result.metrics["anchor/alone"]) == 0.0


def test_a_penalty_is_its_step_s_own():
    (x, _), (y, _) = batch(), batch(penalty=0.5)
    before, after = (Gigpo(norm="mean_norm").assign(z).tokens["step_advantages"] for z in (x, y))
    # three first turns: the penalised one loses 0.5 - 0.5/3, the others gain 0.5/3; second turns stay
    third = 0.5 / 3
    assert (after - before)[:, 1].tolist() == pytest.approx([third, -2 * third, third], abs=1e-6)
    assert torch.equal(after[:, 4], before[:, 4])


def test_copies_of_rows_change_no_step():
    x, _ = batch(penalty=0.5)
    copied = x.select(torch.tensor([0, 1, 2, 1, 1]))
    alone, together = Gigpo().assign(x), Gigpo().assign(copied)
    assert torch.equal(together.tokens["step_advantages"], alone.tokens["step_advantages"][[0, 1, 2, 1, 1]])
    assert together.metrics["anchor/groups"] == alone.metrics["anchor/groups"] == 2


def test_shuffled_steps_keep_their_sizes():
    x, _ = batch()
    real, control = Gigpo().assign(x), Gigpo(shuffle_steps=True).assign(x)
    assert float(control.metrics["step_advantage/std"]) == pytest.approx(float(real.metrics["step_advantage/std"]))
    seen = {tuple(Gigpo(shuffle_steps=True).assign(
        CreditInputs(**{**{f: getattr(x, f) for f in x.__slots__}, "update": u})
    ).tokens["step_advantages"][:, 1].tolist()) for u in range(9)}  # fmt: skip
    assert len(seen) > 1


def test_flips_are_counted():
    x, _ = batch()
    # the trajectory's own advantage against a huge step part: members 1 and 2 lost alike, member 0 won
    result = Gigpo(step_advantage_w=100.0, norm="mean_norm").assign(x)
    live = (x.advantages[:, None] != 0) & x.response_mask
    flipped = live & (x.advantages[:, None] * result.advantages < 0)
    assert float(result.metrics["step_advantage/flips"]) == pytest.approx(float(flipped.sum() / live.sum()))
    assert math.isclose(float(Gigpo(step_advantage_w=0.0).assign(x).metrics["step_advantage/flips"]), 0.0)
