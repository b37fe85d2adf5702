"""The study of an update: phases add up, only StepOPSD asks a teacher, and the table says what was not measured."""

from __future__ import annotations

import json

import torch

from benchmarks import throughput
from benchmarks.throughput import Size, main, measure


def test_a_small_update_is_split_into_its_phases(monkeypatch, tmp_path, capsys):
    tiny = Size(2, 2, 1, (20, 30), (4, 8), 64)
    monkeypatch.setitem(throughput.SIZES, "cpu", tiny)
    monkeypatch.setitem(throughput.SMALL, "num_hidden_layers", 1)
    assert main(["--device", "cpu", "--rounds", "1", "--mixed", "0.5", "--results", str(tmp_path)]) == 0
    [case] = json.loads((tmp_path / "throughput-cpu.json").read_text())["cases"]
    grpo, ours = case["phases"]["grpo"], case["phases"]["stepopsd"]
    for phase in ("generation", "student log-probs", "loss and backward", "optimiser"):
        assert grpo[phase]["seconds"] > 0
        assert ours[phase]["seconds"] > 0
    assert grpo["teacher log-probs"]["seconds"] == 0 < ours["teacher log-probs"]["seconds"]
    assert 0 < case["shaping_share"] < case["surcharge"] < 1
    assert case["rows"] == 4
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "throughput-cpu.md").read_text()
    assert "| qwen3-1.7b | not measured |" in shown
    assert "50% of the groups mixed" in shown


def test_only_mixed_groups_are_shown_to_the_teacher(monkeypatch):
    monkeypatch.setitem(throughput.SMALL, "num_hidden_layers", 1)
    asked = []
    real = throughput.Credit.assign

    def assign(self, base, played, update):
        asked.append(int((base.advantages != 0).any(1).sum()))
        return real(self, base, played, update)

    monkeypatch.setattr(throughput.Credit, "assign", assign)
    measure(
        "small", Size(2, 2, 1, (10, 12), (4, 6), 64), torch.device("cpu"), rounds=1, mixed=0.5, dtype="float32",
        checkpointing=False, generate=False,
    )  # fmt: skip
    assert set(asked) == {2}  # of four rows
