"""``stepopsd train`` with every method on the bundled games: the real engine, the bundled tiny model, two updates."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import yaml

from stepopsd.cli import main
from stepopsd.experiments.demo import PRESET
from stepopsd.experiments.warmstart import BUNDLED_MODEL

# Not importorskip: importing alfworld sets ALFWORLD_DATA for the whole test run.
pytestmark = pytest.mark.skipif(find_spec("alfworld") is None, reason="the engine is not installed")

#: ``credit.name`` -> a metric that is there, and not 0, where the method did something.
METHODS = {
    "grpo": "advantage/std",
    "rlsd": "weight/std",
    "sdar": "sdar/gate_mean",
    "opsd": "opsd/divergence",
    "rlsd+sdar": "rlsd/weight/std",
    "grpo+opsd": "shaped/std",
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The demo's configuration on fewer and shorter episodes."""
    tree = yaml.safe_load(PRESET.read_text())
    tree["env"] |= {"train_games": 3, "eval_splits": ["seen"], "max_steps": 12, "workers": 0}
    tree["rollout"] |= {"groups": 3, "group_size": 4}
    tree["optim"] |= {"updates": 2, "old_logprobs": "recompute"}
    tree["eval"] |= {"every": 0, "games": 1, "samples": 1}
    path = tmp_path_factory.mktemp("preset") / "run.yaml"
    path.write_text(yaml.safe_dump({**tree, "device": "cpu", "model": {"path": str(BUNDLED_MODEL)}}))
    return path


@pytest.mark.parametrize(("name", "evidence"), METHODS.items())
def test_a_run_of_the_command_line_trains(preset, tmp_path, name, evidence):
    assert main(["train", "--config", str(preset), "--run-dir", str(tmp_path), "--credit.name", name]) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["update"] for r in records] == [1, 2]
    assert any(r["mixed_groups"] > 0 and r["grad_norm"] > 0 and r[evidence] != 0 for r in records)
