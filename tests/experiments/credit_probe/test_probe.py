"""The probe from end to end, and the oracle that it lends to methods."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from stepopsd.envs.chain import crossing_of, doors_of, right_door
from stepopsd.experiments.credit_probe.__main__ import main, markdown
from stepopsd.experiments.credit_probe.oracle import SLIP, OracleTeacher
from stepopsd.experiments.credit_probe.plot import draw_probe
from stepopsd.experiments.credit_probe.probe import Truth, probe
from stepopsd.experiments.credit_probe.setting import METHODS, methods_of
from tests.experiments.credit_probe.conftest import LENGTH

STRONG = "stepopsd, strong, no step norm"


@pytest.fixture(scope="module")
def findings(walker, tmp_path_factory):
    truth, scratch = Truth(4), tmp_path_factory.mktemp("scratch")
    options = {"length": LENGTH, "groups": 20, "group_size": 4, "probed": 2, "say": lambda line: None}
    names = ("grpo", "grpo, shuffled", "gigpo", "rrpo")
    own = probe({name: METHODS[name] for name in names}, walker, scratch / "own", truth, **options)
    best = {"grpo": METHODS["grpo"], STRONG: METHODS[STRONG]}
    return {"copies": own, "oracle": probe(best, walker, scratch / "oracle", truth, oracle=True, **options)}


def test_grpo_spreads_its_credit_and_shuffling_takes_its_sign(findings):
    grpo, shuffled, gigpo, _ = findings["copies"]
    assert grpo.share.contains(1 / LENGTH)
    assert grpo.gain is None
    assert grpo.agreement.low > 0
    assert shuffled.share.contains(1 / LENGTH)
    assert shuffled.agreement.low < grpo.agreement.low
    assert gigpo.agreement.estimate == pytest.approx(grpo.agreement.estimate, abs=1e-3), "rooms tell nothing"


def test_an_oracle_improves_what_reads_its_log_probs(findings):
    grpo, strong = findings["oracle"]
    # The same episodes, so estimates may be compared although either is uncertain.
    assert strong.share.estimate > grpo.share.estimate + 0.005
    assert strong.gain.estimate > 0.01


def test_resets_sample_more(findings):
    grpo, *_, rrpo = findings["copies"]
    assert rrpo.rows > grpo.rows
    assert rrpo.generated > grpo.generated


def test_what_is_written(findings, tmp_path):
    table = markdown(findings, LENGTH)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:8]] == ["| none"] * 5 + ["| oracle"]
    assert "50.0 %" in table
    assert draw_probe(findings, LENGTH, tmp_path / "probe.png").stat().st_size > 10_000
    json.dumps([finding.plain() for found in findings.values() for finding in found])


def test_the_oracle_is_the_posterior_given_success(prepared):
    trainer, update = prepared(name="stepopsd")
    oracle = OracleTeacher(trainer.policy, trainer.credit.parts[0].teacher)
    scores = oracle.score(
        update.rows,
        update.trajectories,
        torch.ones(len(update.rows), dtype=torch.bool),
        update.batch.input_ids.shape[1],
    )
    surprises, wins = [], 0
    for i, row in enumerate(update.rows):
        trajectory = update.trajectories[row.trajectory]
        gap = scores.logprobs[i, : len(row.input_ids)].double().numpy() - np.array(row.old_logprobs)
        found = np.flatnonzero(np.abs(np.nan_to_num(gap)) > 1e-6)
        if trajectory.turns[crossing_of(trajectory.task)].action not in doors_of(crossing_of(trajectory.task) + 1):
            continue  # it named no door
        (moved,) = found
        turn = row.turn_ids[int(np.searchsorted(row.turn_starts, moved, side="right")) - 1]
        assert turn == crossing_of(trajectory.task)
        assert trainer.policy.tokenizer.decode([row.input_ids[moved]]).strip() in trajectory.turns[turn].action
        won = trajectory.turns[turn].action == right_door(trajectory.task, trajectory.seed)
        assert won == trajectory.success
        assert scores.logprobs[i, moved].item() == pytest.approx(math.log(1 - SLIP if won else SLIP))
        surprises.append(gap[moved])
        wins += won
    assert 0 < wins < len(surprises)
    with pytest.raises(ValueError, match="no states to read"):
        oracle.score(update.rows, update.trajectories, torch.ones(len(update.rows), dtype=torch.bool), 1, keep=True)


def test_teachers_are_asked_of_methods_that_have_one():
    every = tuple(METHODS)
    assert set(methods_of("copies", every, first=True)) == set(every)
    later = set(methods_of("understands", every, first=False))
    assert {"grpo", "stepopsd"} <= later
    assert not later & {"gigpo", "oar_g", "oar_p", "appo", "rrpo", "srpo"}
    assert set(methods_of("oracle", every, first=False)) == later - {"opsd", "grpo+opsd"}, "it has no states"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("ppo",)}, "methods must be some of"), ({"teachers": ()}, "teachers must be some of"),
        ({"length": 1}, "length"), ({"rolls": 0}, "rolls"), ({"probed": 0}, "probed"),
        ({"group_size": 1}, "group_size"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_anything_is_trained(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        main(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
