"""Every method of the command line, and what shows that it did something."""

from __future__ import annotations

import json
from pathlib import Path

from stepopsd.cli import main

#: Label -> (options, a metric that is there, and not 0, where the method did something).
METHODS: dict[str, tuple[str, str]] = {
    "grpo": ("--credit.name grpo", "advantage/std"),
    "grpo-rows-without-std": (
        "--credit.name grpo --credit.statistics row --credit.no-divide-by-std --loss.name dr_grpo", "shaped/std",
    ),
    "dapo-dropping-groups": ("--credit.name grpo --credit.dynamic-sampling drop --loss.name dapo", "shaped/std"),
    "gspo": ("--credit.name grpo --loss.name gspo", "shaped/std"),
    "cispo": ("--credit.name grpo --loss.name cispo --loss.dual-clip 0", "shaped/std"),
    "gigpo": ("--credit.name gigpo", "step_advantage/std"),
    "rlsd": ("--credit.name rlsd", "weight/std"),
    "sdar": ("--credit.name sdar", "sdar/gate_mean"),
    "opsd": ("--credit.name opsd", "opsd/divergence"),
    "stepopsd": ("--credit.name stepopsd", "weight/std"),
}  # fmt: skip


def train_two_updates(config: Path, run_dir: Path, options: str) -> list[dict[str, float]]:
    """The metrics of ``stepopsd train`` with these options."""
    assert main(["train", "--config", str(config), "--run-dir", str(run_dir), *options.split()]) == 0
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["update"] for r in records] == [1, 2]
    return records
