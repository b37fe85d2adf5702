"""verl's rows: steps, sessions and teacher scores find their tokens; the numbers are those of the op."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stepopsd
from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.verl.batch import TEACHER, sessions_of, shape_batch, step_ids
from stepopsd.integrations.verl.play import shifted

KEYS = ["a_0_0", "a_0_1", "a_1_0", "pad9_0_0"]
LENGTHS, PROMPTS = (3, 2, 4, 1), (5, 7, 5, 6)


def rows(values):
    return torch.nested.as_nested_tensor([torch.as_tensor(v) for v in values], layout=torch.jagged)


def batch(teacher=True):
    torch.manual_seed(0)
    mask = [torch.ones(n, dtype=torch.int64) for n in LENGTHS[:3]] + [torch.zeros(1, dtype=torch.int64)]
    student = [-torch.rand(n) for n in LENGTHS]
    told = [-torch.rand(n) for n in LENGTHS]
    data = {
        "uid": np.array(["a", "a", "a", "pad9"], dtype=object),
        "advantages": rows([torch.full((n,), a) for n, a in zip(LENGTHS, (1.0, 1.0, -1.0, 0.0), strict=True)]),
        "response_mask": rows(mask),
        "loss_mask": rows(mask),
        "rm_scores": rows([torch.eye(n)[-1] * r for n, r in zip(LENGTHS, (1.0, 1.0, 0.0, 0.0), strict=True)]),
        "rollout_log_probs": rows(student),
    }
    if teacher:
        data[TEACHER] = rows([torch.tensor(shifted(p, t.tolist())) for p, t in zip(PROMPTS, told, strict=True)])
    return data, student, told


def credit(**options):
    return HostCredit("stepopsd", {"lambda_decay_updates": 0, "lambda_mix": 1.0, **options})


def test_rows_of_a_session_are_one_trajectory_and_its_steps_share_a_budget():
    data, student, told = batch()
    shaped, metrics = shape_batch(data, KEYS, credit(), update=1)
    wanted = stepopsd.shape_advantages(
        None, None, None, torch.ones(5), torch.tensor([0, 0, 0, 1, 1]),
        student_logprobs=torch.cat(student[:2]), teacher_logprobs=torch.cat(told[:2]),
        trajectory_ids=torch.zeros(5, dtype=torch.int64), lambda_mix=1.0,
    ).advantages  # fmt: skip
    got = shaped.unbind()
    torch.testing.assert_close(torch.cat([got[0], got[1]]), wanted)
    assert not torch.equal(wanted, torch.ones(5))
    assert got[3].tolist() == [0.0]
    assert metrics["stepopsd/host/unscored_tokens"] == 0


def test_the_teachers_first_token_is_the_responses_first_token():
    data, _, told = batch()
    moved = [t.clone() for t in told]
    moved[2][0] += 0.05
    data[TEACHER] = rows([torch.tensor(shifted(p, t.tolist())) for p, t in zip(PROMPTS, moved, strict=True)])
    before, _ = shape_batch(batch()[0], KEYS, credit(step_norm="none", alpha_clip=1.0), update=1)
    after, _ = shape_batch(data, KEYS, credit(step_norm="none", alpha_clip=1.0), update=1)
    changed = [(b != a).nonzero().flatten().tolist() for b, a in zip(before.unbind(), after.unbind(), strict=True)]
    assert changed == [[], [], [0], []]


def test_without_a_teacher_the_advantages_come_back_bit_for_bit():
    data, *_ = batch(teacher=False)
    shaped, _ = shape_batch(data, KEYS, credit(), update=1)
    for got, given in zip(shaped.unbind(), data["advantages"].unbind(), strict=True):
        assert torch.equal(got, given)


def test_rejected_tokens_cut_no_step_in_two():
    data, *_ = batch()
    kept = [row.clone() for row in data["response_mask"].unbind()]
    kept[2][1] = 0
    data["response_mask"] = rows(kept)
    shaped, metrics = shape_batch(data, KEYS, credit(), update=1)
    assert shaped.unbind()[2][1] == 0.0
    assert metrics["stepopsd/delta/steps"] == 3


def test_a_dialogue_has_one_step_per_sampled_stretch():
    mask = torch.tensor([True, True, False, False, True])
    assert step_ids([mask, mask], [0, 0], [1, 0])[0].tolist() == [2, 2, -1, -1, 3]


@pytest.mark.parametrize("key", ["a", "a_0", "a_0_x"])
def test_a_key_of_another_form_is_named(key):
    with pytest.raises(ValueError, match=r"keys must have the form <uid>_<session>_<index>, got 'a"):
        sessions_of([key])
