"""A policy that walks corridors of two rooms at random, taught in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepopsd.experiments.credit_probe import policy
from stepopsd.experiments.credit_probe.setting import probe_config
from stepopsd.train.trainer import Trainer

LENGTH = 2


@pytest.fixture(scope="package")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "EPISODES", {"copies": 1500, "understands": 0})
        torch.set_num_threads(1)
        return policy.make_policy(
            tmp_path_factory.mktemp("walker") / "policy", length=LENGTH, teacher="copies", say=lambda line: None
        )


@pytest.fixture
def prepared(walker, tmp_path):
    """Name and options of a method -> (trainer, its prepared update)."""
    trainers = []

    def prepare(groups: int = 8, **credit):
        config = probe_config(walker, tmp_path / "run", credit, length=LENGTH, groups=groups, group_size=4, seed=0)
        trainer = Trainer(config)
        trainers.append(trainer)
        return trainer, trainer.prepare(1)

    yield prepare
    for trainer in trainers:
        trainer.episodes.close()
