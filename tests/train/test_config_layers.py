"""Files over files: what wins, where it came from, and whose mistake it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import load_config
from stepopsd.train.config_layers import dump_with_sources, read_layers


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return [folder / f"{name}.yaml" for name in files]


def test_later_files_win_key_by_key(tmp_path):
    base, over = write(
        tmp_path,
        base="env: {eval_splits: [seen, unseen], history: 4}\ncredit:\n  name: stepopsd\n  hindsight: {label: false}\n",
        over="env: {eval_splits: [seen]}\ncredit: {hindsight: {max_tokens: 64}}\n",
    )
    config = read_layers([base, over]).config
    assert (config.env.eval_splits, config.env.history) == (("seen",), 4)
    assert (config.credit.hindsight.label, config.credit.hindsight.max_tokens) == (False, 64)
    assert read_layers([]).config == RunConfig()


def test_extended_files_come_under_the_file(tmp_path):
    write(tmp_path, deep="seed: 1\noptim: {lr: 1e-3, updates: 7}\n", middle="extends: [deep.yaml]\nseed: 2\n",
          other="seed: 3\ndevice: cpu\n", top="extends: [middle.yaml, other.yaml]\noptim: {updates: 9}\n")  # fmt: skip
    config = load_config(tmp_path / "top.yaml")
    assert (config.seed, config.device, config.optim.lr, config.optim.updates) == (3, "cpu", 1e-3, 9)


def test_every_value_names_its_source(tmp_path):
    preset, own = write(
        tmp_path,
        preset="seed: 4  # why not\noptim:\n  lr: 1e-3  # tuned\n  updates: 5\n"
        "env:\n  eval_splits:\n    - seen\n  workers: 1 # one\n",
        own="optim: {updates: 6}\n",
    )  # fmt: skip
    resolved = read_layers([preset, own], presets=tmp_path)
    changed = replace(resolved.config, optim=replace(resolved.config.optim, epochs=2))
    text = dump_with_sources(resolved.over(changed))
    # eval has a seed, too, behind the run's own
    sources = {line.split(":")[0].strip(): line.partition("# ")[2] for line in reversed(text.splitlines())}
    assert sources["seed"] == "preset preset: why not"
    assert sources["lr"] == "preset preset: tuned"
    assert sources["eval_splits"] == "preset preset"
    assert sources["workers"] == "preset preset: one"
    assert sources["updates"] == "preset own"
    assert sources["epochs"] == "command line"
    assert sources["resume"] == "default"
    (tmp_path / "resolved.yaml").write_text(text)
    assert load_config(tmp_path / "resolved.yaml") == changed


def test_mistakes_name_file_and_key(tmp_path):
    wrong, cycle, word, broken = write(
        tmp_path, wrong="env: {hystory: 2}\n", cycle="extends: [cycle.yaml]\n", word="extends: common.yaml\n",
        broken="env: {history: [\n",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"wrong\.yaml: unknown config key env\.hystory; did you mean history\?"):
        read_layers([wrong])
    with pytest.raises(ValueError, match="must not extend itself"):
        read_layers([cycle])
    with pytest.raises(ValueError, match=r"extends must be a list of files, got 'common\.yaml'"):
        read_layers([word])
    with pytest.raises(ValueError, match="is not YAML"):
        read_layers([broken])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_layers([tmp_path / "nowhere.yaml"])
