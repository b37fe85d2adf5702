"""A study whose cells take no time: the process that trains is replaced by one that writes a made-up run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepopsd.experiments.study import plan

SOURCE = """
title: A made-up study
baseline: grpo
seeds: [0, 1, 2]
generated_tokens: 1000
environments:
  toy: {preset: demo, set: {model: {path: bundled}, optim: {updates: 4}}}
methods:
  grpo: {}
  stepopsd: {credit: {name: stepopsd, lambda_mix: 0.1}}
"""


@pytest.fixture
def study(tmp_path: Path) -> plan.Study:
    return read(tmp_path, SOURCE)


def read(folder: Path, source: str) -> plan.Study:
    file = folder / "made-up.yaml"
    file.write_text(source)
    return plan.read_study(file)
