"""Credit methods on a host's batch: padded or ragged, the same numbers, and errors that name the argument."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit import registered
from stepopsd.credit.grpo import group_normalize
from stepopsd.integrations.credit import USABLE, HostCredit, credit_config
from stepopsd.options.credit import METHODS, CreditConfig

LENGTHS = [5, 3, 4, 1]
CONSTANT = {"lambda_decay_updates": 0}


def batch(seed=0):
    """Padded tensors of four rows, two episodes each of two groups; the tail of a row is not a response."""
    g = torch.Generator().manual_seed(seed)
    width = max(LENGTHS)
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    steps = torch.tensor([[0, 0, -1, 1, 1], [0, 1, 1, -1, -1], [0, 1, -1, 2, -1], [0, -1, -1, -1, -1]])
    student = -torch.rand(4, width, generator=g)
    teacher = student + torch.randn(4, width, generator=g)
    return {"response_mask": mask, "step_ids": steps, "student_logprobs": student, "teacher_logprobs": teacher}


def ragged(padded, as_list=False):
    rows = {key: [value[i, :n] for i, n in enumerate(LENGTHS)] for key, value in padded.items()}
    return {key: [r.tolist() for r in value] for key, value in rows.items()} if as_list else rows


def extras_of(name):
    one = torch.zeros(4, 1)
    turns = {
        "turn_rewards": torch.tensor([[1.0], [0.0], [0.0], [0.0]]), "turn_penalties": one,
        "turn_numbers": one.long(), "turn_anchors": one.long(),
        "turn_of_token": torch.where(batch()["response_mask"], 0, -1),
    }  # fmt: skip
    scores = {key: torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) for key in
              ("outcome_by_gradient", "outcome_by_replacement")}  # fmt: skip
    branches = {"branch_rewards": torch.tensor([[1.0, 0.0]] * 2 + [[0.0, torch.nan]] * 2)}
    return {key: value for key, value in {**turns, **scores, **branches}.items() if key in HostCredit(name).needs()}


REWARDS, GROUPS = [1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1]


def test_every_registered_method_is_usable_or_refused_with_a_reason():
    for name in registered():
        if name in USABLE:
            assert HostCredit(name).methods[name].role == METHODS[name]
        else:
            with pytest.raises(ValueError, match=f"method {name} (compares|leaves)"):
                HostCredit(name)


@pytest.mark.parametrize("name", USABLE)
def test_lists_give_the_numbers_of_padded_tensors(name):
    credit, per_row = HostCredit(name), {"rewards": REWARDS, "group_ids": GROUPS, "extras": extras_of(name)}
    padded = credit.advantages(**batch(), **per_row)
    assert padded.advantages.shape == (4, 5)
    assert padded.advantages.dtype == torch.float32
    assert not padded.advantages[~batch()["response_mask"]].any()
    assert padded.advantages.abs().sum() > 0
    per_row["extras"] = {
        key: [v[i, :n] for i, n in enumerate(LENGTHS)] if v.shape[1] == 5 else v for key, v in per_row["extras"].items()
    }
    for form in (ragged(batch()), ragged(batch(), as_list=True)):
        rows = credit.advantages(**form, **per_row).advantages
        assert [len(row) for row in rows] == LENGTHS
        for i, row in enumerate(rows):
            torch.testing.assert_close(row, padded.advantages[i, : LENGTHS[i]], rtol=1e-6, atol=1e-7)


def test_known_gap_gives_the_hand_computed_advantages():
    # w = 1 + α at Δ = 1 for A > 0; at λ = 1: step 0 has |A|·(1.2, 1.2), step 1 |A|·(1, 1); their mean is 1.1.
    out = HostCredit("stepopsd", {"lambda_mix": 1.0, **CONSTANT}).advantages(
        response_mask=[[1, 1, 0, 1, 1]], step_ids=[[0, 0, -1, 1, 1]], advantages=[2.0],
        student_logprobs=[[-2.0] * 5], teacher_logprobs=[[-1.0, -1.0, 7.0, -2.0, -2.0]],
    )  # fmt: skip
    assert torch.allclose(out.advantages[0], torch.tensor([2.2, 2.2, 0.0, 2.2, 2.2]), atol=1e-4)
    assert out.tokens["delta"][0].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert out.metrics["delta/count"] == 4


@pytest.mark.parametrize("name", ["stepopsd", "rlsd", "stepopsd+appo_future"])
def test_no_mixing_and_no_teacher_keep_the_hosts_advantages_bit_for_bit(name):
    given = torch.randn(4, 5)
    section = {"lambda_mix": 0.0}
    credit = HostCredit(name, {**section, "rlsd": section, "appo": {"b": 1e-30}})
    kept = given * batch()["response_mask"]
    assert torch.equal(credit.advantages(**batch(), advantages=given).advantages, kept)
    alone = {key: batch()[key] for key in ("response_mask", "student_logprobs")}
    assert torch.equal(HostCredit(name, {"appo": {"b": 1e-30}}).advantages(**alone, advantages=given).advantages, kept)


def test_rewards_are_normalised_in_their_groups():
    out = HostCredit("grpo").advantages(response_mask=batch()["response_mask"], rewards=REWARDS, group_ids=GROUPS)
    scalar = group_normalize(torch.tensor(REWARDS), torch.tensor(GROUPS), torch.arange(4))
    assert torch.equal(out.advantages, scalar[:, None] * batch()["response_mask"])


def test_tokens_without_finite_logprobs_keep_their_advantage_and_are_counted():
    given = batch()
    given["teacher_logprobs"][0, 0] = float("nan")
    given["student_logprobs"][1, 1] = float("-inf")
    options = {"step_norm": "none", "lambda_mix": 1.0, **CONSTANT}
    out = HostCredit("stepopsd", options).advantages(**given, advantages=[1.0, 1.0, 1.0, 1.0])
    assert out.metrics["host/unscored_tokens"] == 2
    assert out.advantages[0, 0] == out.advantages[1, 1] == 1.0
    assert out.advantages[0, 1] != 1.0
    assert bool(out.advantages.isfinite().all())


def test_rows_are_steps_of_their_trajectory_by_default():
    # Two rows of one episode: the budget is shared between them, as between two steps of one row.
    options = {"lambda_mix": 1.0, **CONSTANT}
    rows = HostCredit("stepopsd", options).advantages(
        response_mask=[[1, 1], [1]], trajectory_ids=[4, 4], advantages=[1.0, 1.0],
        student_logprobs=[[-1.0, -1.0], [-1.0]], teacher_logprobs=[[0.0, 0.0], [-1.0]],
    ).advantages  # fmt: skip
    row = HostCredit("stepopsd", options).advantages(
        response_mask=[[1, 1, 1]], step_ids=[[0, 0, 1]], advantages=[1.0],
        student_logprobs=[[-1.0] * 3], teacher_logprobs=[[0.0, 0.0, -1.0]],
    ).advantages  # fmt: skip
    assert torch.equal(torch.cat(rows), row[0])


def test_advantages_follow_a_policy_that_has_moved():
    credit, given = HostCredit("appo_future"), {**batch(), "advantages": [1.0] * 4}
    old = given["student_logprobs"]
    del given["teacher_logprobs"]
    assert credit.moves
    still = credit.advantages(**given).advantages
    same = credit.advantages(**given, current_logprobs=old).advantages
    moved = credit.advantages(**given, current_logprobs=old + 0.1).advantages
    assert torch.equal(still, same)
    assert not torch.equal(still, moved)


WRONG = {
    "advantages or rewards must be given": {"advantages": None},
    r"group_ids must be given with rewards": {"advantages": None, "rewards": REWARDS},
    r"rewards must hold one value for each of 4 rows": {"rewards": [1.0]},
    r"advantages must hold one value for each of 4 rows, got shape \(3,\)": {"advantages": [1.0] * 3},
    r"teacher_logprobs must have the shape \(4, 5\) of response_mask": {"teacher_logprobs": torch.zeros(4, 4)},
    r"step_ids must be an \(N, T\) tensor like response_mask, got list": {"step_ids": [[0] * 5] * 4},
    r"response_mask must have the axes \(N, T\)": {"response_mask": torch.ones(4)},
    r"response_mask must hold at least one row": {"response_mask": []},
    "student_logprobs must be given: teacher_logprobs": {"student_logprobs": None},
    "update must be at least 1, got 0": {"update": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_argument(message):
    with pytest.raises(ValueError, match=message):
        HostCredit("stepopsd").advantages(**{**batch(), "advantages": [1.0] * 4, **WRONG[message]})


def test_ragged_errors_name_the_row():
    rows = ragged(batch())
    rows["teacher_logprobs"][2] = rows["teacher_logprobs"][2][:-1]
    with pytest.raises(ValueError, match=r"teacher_logprobs\[2\] must hold 4 tokens like response_mask\[2\], got 3"):
        HostCredit("stepopsd").advantages(**rows, advantages=[1.0] * 4)


def test_missing_extras_and_groups_are_named():
    given = {"response_mask": batch()["response_mask"], "rewards": REWARDS}
    with pytest.raises(ValueError, match="group_ids must be given: method gigpo"):
        HostCredit("gigpo").advantages(**given, advantages=[0.0] * 4)
    with pytest.raises(ValueError, match=r"extras\['turn_anchors'\] must be given: method gigpo reads"):
        HostCredit("gigpo").advantages(**given, group_ids=GROUPS)
    with pytest.raises(ValueError, match=r"extras\['turn_anchors'\] must have the first axis 4"):
        HostCredit("gigpo").advantages(**given, group_ids=GROUPS, extras={"turn_anchors": torch.zeros(3, 1)})


def test_options_are_those_of_a_run_and_wrong_ones_are_named():
    config = credit_config("oar_g", {"oar": {"quantile": 0.5}, "alpha_clip": 0.1})
    assert (config.oar.quantile, config.alpha_clip, config.oar.beta) == (0.5, 0.1, CreditConfig().oar.beta)
    assert HostCredit("oar_g", config).config is config
    with pytest.raises(ValueError, match=r"unknown key 'alpha_clp'; did you mean alpha_clip"):
        HostCredit("stepopsd", {"alpha_clp": 0.1})
    with pytest.raises(ValueError, match=r"options\['oar'\] holds an unknown key 'x'"):
        HostCredit("oar_g", {"oar": {"x": 1}})
    with pytest.raises(ValueError, match="alpha_clip must lie in"):
        HostCredit("stepopsd", {"alpha_clip": 1.7})
    with pytest.raises(ValueError, match=r"must be one of .*'nothing'"):
        HostCredit("nothing")
    with pytest.raises(ValueError, match="options control must be none"):
        HostCredit("stepopsd", {"control": "shuffled_teacher"})
    with pytest.raises(ValueError, match="method must be the options' own name"):
        HostCredit("rlsd", CreditConfig(name="grpo"))
