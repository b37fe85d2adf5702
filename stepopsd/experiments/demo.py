"""The demo: one warm start, GRPO and StepOPSD with the same seeds on the real ALFWorld engine, one report."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from stepopsd.experiments.report import write_report
from stepopsd.experiments.warmstart import BUNDLED_MODEL, warm_start
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import load_config
from stepopsd.train.trainer import Trainer

PRESET = Path(__file__).with_name("presets") / "demo.yaml"
METHODS: dict[str, Literal["grpo", "stepopsd"]] = {"GRPO": "grpo", "StepOPSD": "stepopsd"}
TITLE = "StepOPSD demo: GRPO and StepOPSD on ALFWorld's text engine"
VERDICT = (
    "What this shows: the whole path works on the real engine, and training lifts the warm start on the games it "
    "trains on (train); seen and unseen say how much of that carries over to other games. What it does not show: which "
    "method is better. One seed cannot, and this tiny teacher hardly makes use of its hindsight, so that Δ is mostly "
    "noise here."
)


def run_demo(*, out: Path = Path("runs/demo"), from_scratch: bool = False, seed: int = 0) -> Path:
    """Train both methods from the same start and write the report; a second call continues or only reports.

    Args:
        out: Folder of the demo's runs.
        from_scratch: Make the warm start here (several minutes) instead of taking the bundled checkpoint.
        seed: Seed of both runs.

    Returns:
        Path of ``report.html``.
    """
    started = time.perf_counter()
    model = _start_model(out, from_scratch)
    base = _setting(load_config(PRESET), gpu=torch.cuda.is_available())
    runs: dict[str, list[Path]] = {}
    for label, method in METHODS.items():
        print(f"\n{label}", flush=True)
        config = replace(
            base, run_dir=str(out / method), seed=seed,
            model=replace(base.model, path=str(model)), credit=replace(base.credit, name=method),
        )  # fmt: skip
        runs[label] = [Trainer(config).run()]
    report = write_report(runs, out, title=TITLE, notes=[VERDICT])
    print(f"\nreport: {report}  ({(time.perf_counter() - started) / 60:.1f} minutes)\n{VERDICT}")
    return report


def _start_model(out: Path, from_scratch: bool) -> Path:
    if not from_scratch:
        return BUNDLED_MODEL
    made = out / "warm_start"
    if not (made / "config.json").is_file():
        partial = out / "warm_start.partial"
        shutil.rmtree(partial, ignore_errors=True)
        warm_start(partial)
        partial.rename(made)
    return made


def _setting(base: RunConfig, *, gpu: bool) -> RunConfig:
    """The preset is sized for two CPU cores; a GPU plays four times the episodes for three times the updates."""
    if not gpu:
        return base
    return replace(
        base,
        rollout=replace(base.rollout, groups=4 * base.rollout.groups),
        optim=replace(base.optim, updates=3 * base.optim.updates),
        eval=replace(base.eval, samples=4 * base.eval.samples),
        env=replace(base.env, workers=8),
    )
