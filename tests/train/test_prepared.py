"""An update's batch can be had without its step: what it holds, and that nothing is changed by it."""

from __future__ import annotations

import json

import torch

from stepopsd.train.trainer import Trainer
from tests.train.toy import config

SHAPED = {"name": "stepopsd", "lambda_mix": 1.0, "alpha_clip": 0.9}


def test_preparing_changes_neither_parameters_nor_logs_and_repeats_itself(model, tmp_path):
    trainer = Trainer(config(tmp_path / "run", model, credit=SHAPED))
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    first, again = trainer.prepare(1), trainer.prepare(1)
    trainer.episodes.close()
    assert torch.equal(first.batch.input_ids, again.batch.input_ids)
    assert torch.equal(first.batch.advantages, again.batch.advantages)
    assert (first.batch.advantages != 0).any()
    for name, value in trainer.policy.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not (trainer.run_dir / "metrics.jsonl").exists()


def test_a_run_trains_on_what_was_prepared(model, tmp_path):
    alone = Trainer(config(tmp_path / "alone", model, credit=SHAPED))
    prepared = alone.prepare(1)
    alone.episodes.close()
    Trainer(config(tmp_path / "run", model, credit=SHAPED, optim={"updates": 1})).run()
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    same = [key for key in prepared.metrics if "seconds" not in key]
    assert {"success", "advantage/std", "shaped/std", "delta/std", "tokens/student"} <= set(same)
    for key in same:
        assert record[key] == json.loads(json.dumps(prepared.metrics[key], default=float)), key
    assert record["tokens/generated"] == prepared.spent()["tokens/generated"] == prepared.conductor.generated
    assert record["train_seconds"] >= 0
    assert len(prepared.rows) == len(prepared.batch) == len(prepared.plain)


def test_every_row_names_its_trajectory(model, tmp_path):
    trainer = Trainer(config(tmp_path / "run", model))
    prepared = trainer.prepare(1)
    trainer.episodes.close()
    for row, reward in zip(prepared.rows, prepared.batch.rewards.tolist(), strict=True):
        assert prepared.trajectories[row.trajectory].reward == reward
