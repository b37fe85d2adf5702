"""``stepopsd train`` with every method on the bundled Search-QA world: real retrieval, an untrained model."""

from __future__ import annotations

import pytest

from stepopsd.experiments.tiny_model import TinyModelConfig, build_model, build_tokenizer, save, vocabulary
from stepopsd.train.config_io import dump_config
from tests.train.method_cases import METHODS, train_two_updates
from tests.train.search_toy import config

# So few words that chance writes a well-formed turn about once in eight; everything else is unknown to this model.
WORDS = "<search> </search> <answer> </answer> Stibrith Katrum look go"

# Nobody answers right by chance, so a teacher has no peer to tell of: it tells how the episode ended.
HINDSIGHT = {"hindsight": {"label": True, "rows_without_peer": "score"}}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    tokenizer, model = build_tokenizer(vocabulary([WORDS])), folder / "model"
    save(build_model(tokenizer, TinyModelConfig(width=32, layers=2, heads=2, mlp=64)), tokenizer, model)
    run = config(
        folder / "run", model, env={"eval_splits": [], "train_games": 2}, transcripts_every=0,
        credit={"sdar": HINDSIGHT, "opsd": HINDSIGHT}, rollout={"max_response_tokens": 16},
    )  # fmt: skip
    (folder / "run.yaml").write_text(dump_config(run))
    return folder / "run.yaml"


@pytest.mark.parametrize(("options", "evidence"), METHODS.values(), ids=METHODS)
def test_a_run_of_the_command_line_trains(preset, tmp_path, options, evidence):
    records = train_two_updates(preset, tmp_path, options)
    assert all("env/searches" in r for r in records)
    assert any(r["grad_norm"] > 0 and r[evidence] != 0 for r in records)
