"""Methods that score, continue or branch: two updates each on the bundled games and on the bundled Search-QA world."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import yaml

from stepopsd.cli import main
from stepopsd.experiments.demo import PRESET
from stepopsd.experiments.tiny_model import TinyModelConfig, build_model, build_tokenizer, save, vocabulary
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from stepopsd.train.config_io import dump_config
from tests.extras import missing
from tests.train.search_toy import config

#: ``credit.name`` -> a metric that is not 0 where the method did something.
METHODS = {
    "appo": "branches/played",
    "oar_p": "oar/max",
    "oar_g": "oar/max",
    "rrpo": "reset/suffix_tokens",
    "srpo": "reset/suffix_tokens",
}
CREDIT = {
    "appo": {"branches": 1},
    "oar": {"stride": 4, "min_tokens": 2},
    "resets": {"n_reset": 3, "n_probes": 1, "localiser_tokens": 8},
}
# So few words that chance writes a well-formed turn now and then; the model knows no others.
WORDS = "<search> </search> <answer> </answer> look go take"


@pytest.fixture(scope="module")
def alfworld(tmp_path_factory):
    if find_spec("alfworld") is None:
        pytest.skip(missing("alfworld"))
    tree = yaml.safe_load(PRESET.read_text())
    tree["env"] |= {"train_games": 2, "eval_splits": [], "max_steps": 10, "workers": 0}
    tree["rollout"] |= {"groups": 2, "group_size": 4}
    tree["optim"] |= {"updates": 2}
    tree |= {"device": "cpu", "model": {"path": str(BUNDLED_MODEL)}, "transcripts_every": 0}
    tree["credit"] |= CREDIT
    path = tmp_path_factory.mktemp("alfworld") / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def searchqa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searchqa")
    tokenizer = build_tokenizer(vocabulary([WORDS]))
    save(build_model(tokenizer, TinyModelConfig(width=32, layers=2, heads=2, mlp=64)), tokenizer, folder / "model")
    run = config(
        folder / "run", folder / "model", env={"eval_splits": [], "train_games": 2}, transcripts_every=0,
        credit=CREDIT, rollout={"max_response_tokens": 16},
    )  # fmt: skip
    (folder / "run.yaml").write_text(dump_config(run))
    return folder / "run.yaml"


@pytest.mark.parametrize("world", ["alfworld", "searchqa"])
@pytest.mark.parametrize(("name", "evidence"), METHODS.items())
def test_two_updates_of_the_command_line(request, tmp_path, world, name, evidence):
    run = request.getfixturevalue(world)
    assert main(["train", "--config", str(run), "--run-dir", str(tmp_path), "--credit.name", name]) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["update"] for r in records] == [1, 2]
    assert any(r["grad_norm"] > 0 and r.get(evidence, 0) != 0 for r in records)
