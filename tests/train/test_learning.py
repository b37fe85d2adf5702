"""Does training on the real engine learn, and does it stop learning when the signal is destroyed?"""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import mean

import pytest

from stepopsd.experiments.demo import PRESET
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from stepopsd.train.config_io import load_config
from stepopsd.train.trainer import Trainer

SEEDS = (0, 1, 2)
MARGIN = 0.2  # of three-seed means over 3 x 128 episodes, whose standard error is about 0.025


def success(run_dir, update):
    records = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    return mean(r["success"] for r in records if r["update"] == update)


def train(tmp_path, seed, control):
    base = load_config(PRESET)
    run = replace(
        base, run_dir=str(tmp_path / f"{control}-{seed}"), seed=seed, device="cpu",
        model=replace(base.model, path=str(BUNDLED_MODEL)),
        env=replace(base.env, eval_splits=("train",)),
        eval=replace(base.eval, every=0, games=0, samples=8, seed=1000 * (seed + 1)),
        optim=replace(base.optim, updates=12), checkpoint_every=0, transcripts_every=0,
        credit=replace(base.credit, name="stepopsd", control=control),
    )  # fmt: skip
    run_dir = Trainer(run).run()
    return success(run_dir, 0), success(run_dir, run.optim.updates)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_training_beats_the_warm_start_and_a_shuffled_control(tmp_path):
    learned = [train(tmp_path, seed, "none") for seed in SEEDS]
    control = [train(tmp_path, seed, "shuffled_advantages") for seed in SEEDS]
    start, end, shuffled = (
        mean(before for before, _ in learned), mean(after for _, after in learned), mean(after for _, after in control)
    )  # fmt: skip
    print(f"\nwarm start {start:.3f}  trained {end:.3f}  shuffled advantages {shuffled:.3f}  ({len(SEEDS)} seeds)")
    assert end >= start + MARGIN
    assert end >= shuffled + MARGIN
