"""``stepopsd train`` with every method on the bundled games: the real engine, the bundled tiny model, two updates."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml

from stepopsd.experiments.demo import PRESET
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from tests.extras import missing
from tests.train.method_cases import METHODS, train_two_updates

# Not importorskip: importing alfworld sets ALFWORLD_DATA for the whole test run.
pytestmark = pytest.mark.skipif(find_spec("alfworld") is None, reason=missing("alfworld"))

JOINED = {
    "rlsd+sdar": ("--credit.name rlsd+sdar", "rlsd/weight/std"),
    "grpo+opsd": ("--credit.name grpo+opsd", "shaped/std"),
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The demo's configuration on fewer and shorter episodes."""
    tree = yaml.safe_load(PRESET.read_text())
    tree["env"] |= {"train_games": 2, "eval_splits": [], "max_steps": 12, "workers": 0}
    tree["rollout"] |= {"groups": 2, "group_size": 4}
    tree["optim"] |= {"updates": 2, "old_logprobs": "recompute"}
    tree["eval"] |= {"every": 0, "games": 1, "samples": 1}
    path = tmp_path_factory.mktemp("preset") / "run.yaml"
    path.write_text(yaml.safe_dump({**tree, "device": "cpu", "model": {"path": str(BUNDLED_MODEL)}}))
    return path


@pytest.mark.parametrize(("options", "evidence"), (METHODS | JOINED).values(), ids=METHODS | JOINED)
def test_a_run_of_the_command_line_trains(preset, tmp_path, options, evidence):
    records = train_two_updates(preset, tmp_path, options)
    assert any(r["mixed_groups"] > 0 and r["grad_norm"] > 0 and r[evidence] != 0 for r in records)
