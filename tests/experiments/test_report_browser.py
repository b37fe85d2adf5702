"""The transcript browser's data: which groups, which numbers, and what other methods would have made of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stepopsd.credit.rlsd import rlsd_advantages
from stepopsd.experiments.report import browser
from stepopsd.experiments.report.browser import TRAINED, groups_of, transcripts_html
from stepopsd.experiments.report.load import load_run, load_runs
from stepopsd.experiments.report.recorded import credit_of_record, methods_of, options_of
from stepopsd.ops.shaping import shape_advantages
from tests.experiments.pages import browser_data
from tests.experiments.synthetic_runs import write_lines, write_run

TURN = {
    "observation": "x", "action": "go", "is_valid": True, "reward": 0.0, "tokens": ["a", "b", "c"],
    "logprobs": [-1.0, -2.0, -0.5], "advantages": [0.5, 0.5, 0.5], "shaped": [0.5, 0.6, 0.4],
    "delta": [0.0, 0.2, -0.3], "weights": [1.0, 1.2, 0.8], "in_span": [False, True, True],
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", updates=4, every=2, games=2)


def rewrite(run, change):
    """Replace the transcripts by what ``change`` makes of each."""
    records = [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()]
    write_lines(run / "transcripts.jsonl", [changed for record in records for changed in change(record)])
    return load_run(run, method="StepOPSD")


def test_page_opens_with_a_won_and_a_lost_member_of_a_reshaped_group(run, tmp_path):
    plain = write_run(tmp_path / "plain", method="grpo", updates=4, every=2, games=2)
    data = browser_data(transcripts_html(load_runs({"GRPO": [plain], "StepOPSD": [run]})))
    assert [r["name"] for r in data["runs"]] == ["GRPO, seed 0", "StepOPSD, seed 0"]
    start = data["start"]
    group = data["runs"][start["run"]]["groups"][start["group"]]
    assert (start["run"], group["update"], start["mode"]) == (1, 1, "change")
    assert [group["members"][pane["member"]]["won"] for pane in start["panes"]] == [True, False]
    assert {g["update"] for g in data["runs"][1]["groups"]} == {1, 2, 4}


def test_tokens_carry_their_numbers_and_spans(run):
    loaded = rewrite(run, lambda record: [{**record, "turns": [TURN]}])
    turn = browser_data(transcripts_html({"S": [loaded]}))["runs"][0]["groups"][0]["members"][0]["turns"][0]
    assert (turn["t"], turn["n"], turn["A"], turn["l"]) == (["a", "b", "c"], "011", 0.5, [-1, -2, -0.5])
    assert (turn["s"][0], turn["w"][0], turn["d"]) == ([0.5, 0.6, 0.4], [1, 1.2, 0.8], [0, 0.2, -0.3])


def test_other_methods_are_computed_with_their_own_code(run):
    loaded = load_run(run, method="StepOPSD")
    group = groups_of(loaded)[0]
    found = {c.method: c for c in credit_of_record(group.members, methods_of(loaded), loaded)}
    for index, member in enumerate(group.members):
        columns = {
            key: torch.tensor([[v for turn in member["turns"] for v in turn[key]]])
            for key in ("advantages", "logprobs", "delta", "in_span")
        }
        steps = torch.tensor([[k for k, turn in enumerate(member["turns"]) for _ in turn["tokens"]]])
        inside = columns["in_span"].bool()
        teacher = columns["logprobs"] + columns["delta"]
        expected = shape_advantages(
            None, None, None, columns["advantages"], torch.where(inside, steps, -1).int(),
            trajectory_ids=torch.tensor([0]), student_logprobs=columns["logprobs"], teacher_logprobs=teacher,
            alpha_clip=0.2, lambda_mix=0.2 * (1 - 1 / 50),
        )  # fmt: skip
        np.testing.assert_allclose(found["stepopsd"].shaped[index], expected.advantages[0], rtol=1e-6)
        expected = rlsd_advantages(
            columns["advantages"], columns["logprobs"], teacher, torch.ones_like(inside),
            clip=0.2, lambda_mix=0.5 * (1 - 1 / 100),
        )  # fmt: skip
        np.testing.assert_allclose(found["rlsd"].shaped[index], expected.advantages[0], rtol=1e-6)
        np.testing.assert_allclose(found["grpo"].shaped[index], columns["advantages"][0], rtol=1e-6)
    assert not found["gigpo"].absent


def test_what_a_record_cannot_tell_is_said_and_not_shown(run):
    loaded = load_run(run, method="StepOPSD")
    members = groups_of(loaded)[0].members
    absent = {c.method: c.absent for c in credit_of_record(members, methods_of(loaded), loaded)}
    assert "passes of the model" in absent["oar_g"]
    assert "plays other rollouts" in absent["appo"]
    assert "follows the policy" in absent["appo_future"]
    assert "adds a loss term" in absent["sdar"]
    shuffled = {"control": options_of(loaded, name="stepopsd", control="shuffled_teacher")}
    assert "control" in credit_of_record(members, shuffled, loaded)[0].absent
    group = browser_data(transcripts_html({"S": [loaded]}))["runs"][0]["groups"][0]
    assert group["credits"] == [TRAINED, "gigpo", "grpo", "rlsd", "stepopsd"]
    assert dict(group["absent"]).keys() == absent.keys() - set(group["credits"])


def test_part_of_a_group_and_a_run_without_teacher_tell_less(run, tmp_path):
    part = rewrite(run, lambda record: [record] if record["success"] else [])
    found = {c.method: c.absent for c in credit_of_record(groups_of(part)[0].members, methods_of(part), part)}
    assert "1 of 2 members" in found["gigpo"]
    plain = load_run(write_run(tmp_path / "g", method="grpo", updates=2, every=1, games=2), method="grpo")
    found = {c.method: c.absent for c in credit_of_record(groups_of(plain)[0].members, methods_of(plain), plain)}
    assert "asked none" in found["stepopsd"]
    assert not found["gigpo"]


def test_page_stays_small_and_says_what_it_left_out(run):
    loaded = rewrite(run, lambda r: [{**r, "group": g, "member": r["member"] + 2 * m, "members": 6}
                                     for g in range(3) for m in range(3)])  # fmt: skip
    whole = transcripts_html({"S": [loaded]})
    assert "All 54 recorded trajectories are here." in whole
    budget = len(whole) // 4
    part = transcripts_html({"S": [loaded]}, budget=budget)
    assert len(part) < budget + 5000
    shown = sum(len(g["members"]) for r in browser_data(part)["runs"] for g in r["groups"])
    assert 0 < shown < 54
    assert f"{shown} of 54 recorded trajectories are here" in part
    assert "alone takes more than" in transcripts_html({"S": [loaded]}, budget=10)


def test_a_group_too_large_for_the_page_shows_one_of_each_outcome(run):
    loaded = rewrite(run, lambda r: [{**r, "member": r["member"] + 2 * m} for m in range(10)] * (r["update"] == 1))
    one = len(json.dumps(browser._group_data(groups_of(loaded)[0], loaded.transcripts[:2], methods_of)))
    members = browser_data(transcripts_html({"S": [loaded]}, budget=2 * one))["runs"][0]["groups"][0]["members"]
    assert sorted(m["won"] for m in members) == [False, True]
