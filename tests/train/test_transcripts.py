"""What a run records for people: whole groups of bounded number, with what other methods need to be computed later."""

from __future__ import annotations

import numpy as np
import pytest

from stepopsd.envs.base import Task
from stepopsd.experiments.report.browser import groups_of
from stepopsd.experiments.report.load import load_run
from stepopsd.experiments.report.recorded import credit_of_record, options_of
from stepopsd.rollout.records import Trajectory
from stepopsd.train.trainer import Trainer
from stepopsd.train.transcripts import choose_transcripts
from tests.train.toy import config


def played(outcomes):
    """One trajectory per letter, w for won; a word is a group."""
    task = Task("t", "toy", "k", "train", "")
    return [
        Trajectory(task, "", g, m, 0, "turn", success=letter == "w")
        for g, word in enumerate(outcomes) for m, letter in enumerate(word)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "groups", "chosen"),
    [
        (4, 0, [5, 4, 9, 8]),
        (3, 0, [5, 4, 9]),
        (0, 1, [4, 5, 6, 7]),
        (6, 1, [4, 5, 6, 7, 9, 8]),
        (0, 3, [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]),
        (0, 0, []),
    ],
)
def test_whole_groups_come_first_then_a_pair_of_each_mixed_one(count, groups, chosen):
    trajectories = played(["wwww", "wlww", "wlww"])
    assert choose_transcripts(trajectories, count, range(12), groups) == chosen


def test_only_what_was_trained_on_is_chosen():
    assert choose_transcripts(played(["wl", "wl"]), 9, {0, 2, 3}, 1) == [2, 3, 0]


@pytest.mark.parametrize("name", ["stepopsd", "gigpo", "rlsd"])
@pytest.mark.parametrize("context", ["dialogue", "turn"])
def test_a_recorded_group_gives_back_what_the_trainer_made(model, tmp_path, name, context):
    options = {"name": name, "lambda_mix": 0.9, "alpha_clip": 0.5}
    run = config(
        tmp_path / "run", model, credit=options, transcripts_every=1, transcripts=0, transcript_groups=2,
        rollout={"context": context}, optim={"updates": 2}, env={"eval_splits": []}, loss={"reward_scale": 3.0},
    )  # fmt: skip
    Trainer(run).run()
    loaded = load_run(tmp_path / "run", method=name)
    groups = groups_of(loaded)
    assert [len(g.members) for g in groups] == [4, 4, 4, 4]
    assert any(g.reshaped for g in groups)
    for group in groups:
        (found,) = credit_of_record(group.members, {"again": options_of(loaded)}, loaded)
        assert not found.absent
        for member, shaped in zip(group.members, found.shaped, strict=True):
            trained = [v for turn in member["turns"] for v in turn["shaped"]]
            np.testing.assert_allclose(shaped, trained, rtol=2e-5, atol=2e-6)
