"""The demo: one warm start, GRPO and StepOPSD with the same seeds on a real environment, one report."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from stepopsd.experiments.report import write_report
from stepopsd.experiments.search_demo import SEARCH_PRESET, demo_world, search_in
from stepopsd.experiments.search_warmstart import BUNDLED_SEARCH_MODEL, search_warm_start
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
    "method is better; one seed cannot. The teacher does read its hindsight: which thing a successful peer took is "
    "likelier to it, elsewhere Δ is mostly noise. `stepopsd study run cpu` compares methods over seeds."
)
SEARCH_TITLE = "StepOPSD demo: GRPO and StepOPSD on Search-QA's closed world"
SEARCH_VERDICT = (
    "What this shows: the whole path works with real searches in a closed world, and training lifts the warm start on "
    "questions about entities it was never asked about. world_bamboogle, combinations of relations that no training "
    "question has, stays hard for a model of this size. What it does not show: which method is better (one seed "
    "cannot), nor anything about real questions."
)
Environment = Literal["alfworld", "searchqa"]


def run_demo(
    *, env: Environment = "alfworld", out: Path | None = None, from_scratch: bool = False, seed: int = 0
) -> Path:
    """Train both methods from the same start and write the report; a second call continues or only reports.

    Args:
        env: ALFWorld's text engine over bundled games, or questions about a closed world with searches.
        out: Folder of the demo's runs; runs/demo or runs/demo-searchqa if not given.
        from_scratch: Make the warm start here (several minutes) instead of taking the bundled checkpoint.
        seed: Seed of both runs.

    Returns:
        Path of ``report.html``.
    """
    started = time.perf_counter()
    search = env == "searchqa"
    out = out or Path("runs/demo-searchqa" if search else "runs/demo")
    model = _start_model(out, from_scratch, env)
    base = _setting(load_config(SEARCH_PRESET if search else PRESET), gpu=torch.cuda.is_available())
    if search:
        base = search_in(base, demo_world(out / "world"))
    runs: dict[str, list[Path]] = {}
    for label, method in METHODS.items():
        print(f"\n{label}", flush=True)
        config = replace(
            base, run_dir=str(out / method), seed=seed,
            model=replace(base.model, path=str(model)), credit=replace(base.credit, name=method),
        )  # fmt: skip
        runs[label] = [Trainer(config).run()]
    title, verdict = (SEARCH_TITLE, SEARCH_VERDICT) if search else (TITLE, VERDICT)
    report = write_report(runs, out, title=title, notes=[verdict])
    print(f"\nreport: {report}  ({(time.perf_counter() - started) / 60:.1f} minutes)\n{verdict}")
    return report


def _start_model(out: Path, from_scratch: bool, env: Environment) -> Path:
    bundled, make = (BUNDLED_MODEL, warm_start) if env == "alfworld" else (BUNDLED_SEARCH_MODEL, search_warm_start)
    if not from_scratch:
        return bundled
    made = out / "warm_start"
    if not (made / "config.json").is_file():
        partial = out / "warm_start.partial"
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
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
