"""Resets: who becomes a parent, where it is cut, what is normalised with what, and which tokens learn."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepopsd import grpo_loss
from stepopsd.credit.groups import population_normalize
from stepopsd.credit.localise import Localisation, last_boxed, localiser_prompt, parse_location
from stepopsd.credit.resets import (
    Intake,
    ResetOptions,
    plan_resets,
    reset_advantages,
    uniform_step,
)


def fill(options, outcomes, steps=3):
    """An intake of attempts, "x" being a failure; stops where it wants no more."""
    intake, outcomes = Intake(options), iter(outcomes)
    while intake.wants_more:
        intake.add(failed=next(outcomes) == "x", steps=steps)
    return intake


@pytest.mark.parametrize(("successes", "up", "down"), [(1, 3**0.5, -(3**-0.5)), (2, 1, -1), (3, 3**-0.5, -(3**0.5))])
def test_groups_of_four_have_the_known_values(successes, up, down):
    rewards = torch.tensor([1.0] * successes + [0.0] * (4 - successes))
    got = population_normalize(rewards, torch.zeros(4, dtype=torch.int64))
    assert got.tolist() == pytest.approx([up] * successes + [down] * (4 - successes))


@given(st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 1.0]), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_normalisation_knows_no_order_and_no_variance_means_zero(rewards, rng):
    values, groups = torch.tensor(rewards), torch.tensor([i % 2 for i in range(len(rewards))])
    order = list(range(len(rewards)))
    rng.shuffle(order)
    got = population_normalize(values, groups)
    assert torch.equal(population_normalize(values[order], groups[order]), got[order])
    for group in (0, 1):
        mine = values[groups == group]
        if len(mine) < 2 or bool((mine == mine[0]).all()):
            assert got[groups == group].eq(0).all()


def test_fresh_and_reset_groups_are_normalised_apart():
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0]), torch.tensor([0] * 4 + [1] * 4)
    got = reset_advantages(rewards, groups)
    assert torch.equal(got[:4], population_normalize(rewards[:4], groups[:4]))
    assert got[4:].tolist() == pytest.approx([1, 1, -1, -1])


def test_the_loss_is_a_mean_over_each_suffix_and_gradients_of_the_prefix_are_exactly_zero():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 13, generator=rng).requires_grad_()
    ids, response = torch.randint(13, (4, 9), generator=rng), torch.rand(4, 9, generator=rng) < 0.8
    starts = torch.tensor([0, 3, 6, 20])  # the last row has no suffix at all
    mask = response & (torch.arange(9) >= starts[:, None])
    advantages = torch.tensor([1.0, -0.5, 2.0, 3.0])
    own = logits.detach().clone().requires_grad_()
    per_token = advantages[:, None].expand(4, 9) * mask
    loss = grpo_loss(own, ids, per_token, None, mask=mask, loss="reinforce", aggregation="sequence_mean").loss
    loss.backward()
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    released = -sum(a * lp[m].mean() for a, lp, m in zip(advantages, logprobs, mask, strict=True) if m.any()) / 4
    released.backward()
    assert loss.item() == pytest.approx(released.item(), rel=1e-6)
    torch.testing.assert_close(own.grad, logits.grad, atol=1e-6, rtol=1e-5)
    assert own.grad[~mask].eq(0).all()
    assert own.grad[mask].abs().sum(-1).gt(0).all()


def test_iid_keeps_every_fresh_attempt_and_draws_the_parent_among_them():
    intake = fill(ResetOptions(), "oxxo")
    assert intake.fresh == [0, 1, 2, 3]
    drawn = {intake.parents(random.Random(seed))[0] for seed in range(20)}
    assert drawn == {1, 2}


def test_iid_probes_for_a_failure_and_trains_on_none_of_the_probes():
    intake = fill(ResetOptions(), "oooooox")
    assert intake.roles == ["fresh"] * 4 + ["dropped"] * 2 + ["parent"]
    assert intake.parents(random.Random(0)) == [6]
    assert len(fill(ResetOptions(), "o" * 12).roles) == 12


def test_code_takes_the_first_failure_out_of_the_fresh_group():
    intake = fill(ResetOptions(parents="code"), "oxxoo")
    assert intake.roles == ["fresh", "parent", "fresh", "fresh", "fresh"]
    assert intake.parents(random.Random(0)) == [1]
    late = fill(ResetOptions(parents="code"), "ooooox")
    assert late.roles == ["fresh"] * 4 + ["dropped", "parent"]


@pytest.mark.parametrize("parents", ["iid", "code"])
@pytest.mark.parametrize("outcomes", ["oxxooooooooooo", "o" * 20, "x" * 20, "ooooooooxx", "xxxxoooooooo"])
def test_asking_for_what_is_missing_never_samples_too_much(parents, outcomes):
    options = ResetOptions(parents=parents, n_parents=2)
    one_by_one = fill(options, outcomes)
    intake, left = Intake(options), iter(outcomes)
    while intake.wants_more:
        for _ in range(intake.missing):
            intake.add(failed=next(left) == "x", steps=3)
    assert intake.roles == one_by_one.roles
    assert intake.missing == 0


def test_an_attempt_that_broke_is_neither_fresh_nor_a_parent():
    intake = Intake(ResetOptions(n_fresh=2, n_probes=1))
    for usable in (False, True, False):
        intake.add(failed=usable is False, steps=3, usable=usable)
    assert (intake.roles, intake.parents(random.Random(0))) == (["dropped", "fresh", "dropped"], [])
    code = Intake(ResetOptions(n_fresh=2, parents="code"))
    for failed, usable in ((True, False), (True, True), (False, True), (False, True)):
        code.add(failed=failed, steps=3, usable=usable)
    assert (code.roles, code.parents(random.Random(0))) == (["dropped", "parent", "fresh", "fresh"], [1])


def test_trajectories_have_one_vote_each():
    rewards, groups = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.7]), torch.tensor([0] * 4 + [1] * 2)
    got = population_normalize(rewards, groups, torch.tensor([5, 5, 5, 2, 7, 8]))
    assert got.tolist() == pytest.approx([1, 1, 1, -1, -1, 1])


def test_an_attempt_without_steps_is_never_a_parent():
    for parents in ("iid", "code"):
        intake = fill(ResetOptions(parents=parents), "x" * 20, steps=0)
        assert len(intake.roles) == 12
        assert intake.parents(random.Random(0)) == []


def test_the_cut_lies_right_before_the_chosen_step():
    intake = fill(ResetOptions(), "oxoo")
    ends = [[5, 9, 14]] * 4
    for step, cut in ((1, 0), (2, 5), (3, 9), (99, 9), (-1, 0)):
        plan = plan_resets(intake, [1], ends, lambda attempt, n, step=step: step, first_group=6)
        (c,) = plan.continuations
        assert (c.row, c.cut, c.count, c.kind, c.group) == (1, cut, 4, "reset", 6)
        assert plan.steps == [min(max(step, 1), 3)]


def test_uniform_steps_cover_all_steps_evenly():
    choose = uniform_step(random.Random(0))
    drawn = [choose(0, 4) for _ in range(4000)]
    assert {step: 900 < drawn.count(step) < 1100 for step in range(1, 5)} == dict.fromkeys(range(1, 5), True)


def test_without_a_failure_the_fresh_group_takes_all():
    plan = plan_resets(fill(ResetOptions(), "o" * 12), [], [[3]] * 12, uniform_step(random.Random(0)))
    assert (plan.continuations, plan.top_up) == ([], 4)


def test_sizes_are_free():
    options = ResetOptions(n_fresh=0, n_reset=8, n_parents=2, parents="code")
    intake = fill(options, "oxox")
    plan = plan_resets(intake, intake.parents(random.Random(1)), [[2, 4]] * 4, uniform_step(random.Random(1)))
    assert intake.roles == ["dropped", "parent", "dropped", "parent"]
    assert [(c.row, c.count, c.group) for c in plan.continuations] == [(1, 4, 1), (3, 4, 2)]


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        (r"\boxed{3}", (3, "boxed")),
        (r"\boxed{2} no, \boxed{ 4 }", (4, "boxed")),
        (r"\boxed{5} and then \boxed{2", (5, "boxed")),  # the last is not balanced
        (r"\boxed{0}", (1, "clamped")),
        (r"Step 2 is fine, step 4 is not. \boxed{9}", (4, "prose")),
        (r"It is \boxed{\text{3}}, that is, Step 3.", (3, "prose")),
        ("step 77", (1, "default")),
        (r"\boxed{²}", (1, "default")),
        ("", (1, "default")),
        (r"\boxed{" + "9" * 5000 + "}", (1, "default")),
    ],
)
def test_replies_are_read_with_their_fallbacks(reply, want):
    assert parse_location(reply, 5) == Localisation(*want)


@given(st.text(alphabet="\\boxed{}0123 step", max_size=60), st.integers(1, 9))
def test_any_reply_names_a_step(reply, count):
    assert 1 <= parse_location(reply, count).step <= count


def test_boxes_may_hold_braces():
    assert last_boxed(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed("nothing") is None


def test_the_prompt_holds_the_attempt_but_not_an_answer():
    prompt = localiser_prompt(" What is {x}? ", ["first {", "second }"])
    assert "What is {x}?" in prompt
    assert "Step 1: first {\nStep 2: second }" in prompt
    assert "from 1\nto 2" in prompt
    assert prompt.endswith(r"\boxed{number}")
    with pytest.raises(ValueError, match="steps must hold at least one step"):
        localiser_prompt("x", [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": "all"}, "parents must be one of iid, code, got 'all'"),
        ({"n_reset": 0}, "n_reset must be at least 1, got 0"),
        ({"n_parents": 3}, "n_reset must be a multiple of n_parents 3, got 4"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ResetOptions(**options)


def test_wrong_plans_are_named():
    with pytest.raises(ValueError, match="intake must be complete"):
        plan_resets(Intake(ResetOptions()), [], [], uniform_step(random.Random(0)))
    done = fill(ResetOptions(), "xooo")
    with pytest.raises(ValueError, match="step_ends must hold 4 attempts, got 1"):
        plan_resets(done, [0], [[1]], uniform_step(random.Random(0)))
    with pytest.raises(ValueError, match="step_ends of attempt 0 must rise"):
        plan_resets(done, [0], [[3, 2]] * 4, uniform_step(random.Random(0)))
    with pytest.raises(ValueError, match="no attempt is wanted"):
        done.add(failed=True, steps=1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        parse_location("", 0)
