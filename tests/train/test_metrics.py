"""Logs survive a crash in the middle of a line."""

from __future__ import annotations

import json

import torch

from stepopsd.train.metrics import JsonLines


def test_tensors_become_numbers(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl")
    log.append({"update": 1, "a": torch.tensor(0.5), "b": torch.tensor([1, 2]), "c": "x"})
    assert json.loads(log.path.read_text()) == {"update": 1, "a": 0.5, "b": [1, 2], "c": "x"}


def test_cutting_drops_later_updates_and_a_torn_line(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl")
    for update in range(4):
        log.append({"update": update})
    with log.path.open("a") as file:
        file.write('{"update": 4, "los')
    log.cut_after(2)
    assert [json.loads(line)["update"] for line in log.path.read_text().splitlines()] == [0, 1, 2]


def test_cutting_a_missing_file_is_fine(tmp_path):
    JsonLines(tmp_path / "none.jsonl").cut_after(3)
