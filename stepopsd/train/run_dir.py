"""The run directory: what makes it that of one run, and what a run may change of itself when it continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import differences, dump_config, load_config

#: Keys that change how long, where or how closely watched a run is, but not what it computes.
RESUME_MAY_CHANGE = frozenset({
    "run_dir", "device", "checkpoint_every", "keep_checkpoints", "transcripts_every", "transcripts", "resume",
    "deadline", "optim.updates", "optim.generated_tokens", "optim.microbatch_tokens", "optim.max_skipped_steps",
    "optim.packing",
    "env.workers", "env.step_timeout_s", "env.episode_timeout_s", "env.games", "env.search.data",
    "env.search.retriever", "env.search.corpus", "env.search.encoder", "env.search.encoder_device",
    "env.search.timeout_s", "env.search.deadline_s", "env.search.max_infra_share", "model.path",
    "transcript_groups", "logging.trackers", "logging.project",
    "rollout.vllm.memory", "rollout.vllm.sleep", "rollout.vllm.url", "rollout.vllm.weights_dir",
    "rollout.vllm.timeout_s", "rollout.vllm.concurrency",
})  # fmt: skip


def open_run_dir(config: RunConfig, facts: Mapping[str, Any], *, begun: bool) -> None:
    """Write configuration and environment into ``config.run_dir``.

    Args:
        config: The run.
        facts: Of the environment, for ``environment.json``.
        begun: Whether the folder holds records of updates.

    Raises:
        ValueError: The folder holds a run that is not to be continued, or another run.
    """
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    saved = bool(checkpoints(run_dir))
    if not config.resume and (begun or saved):
        raise ValueError(f"run_dir {run_dir} already holds a run and resume is false; choose another folder")
    stored = run_dir / "config.yaml"
    if saved and stored.is_file():
        _require_same_run(load_config(stored), config)
    stored.write_text(dump_config(config))
    (run_dir / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")


def _require_same_run(earlier: RunConfig, config: RunConfig) -> None:
    changed = {k: v for k, v in differences(earlier, config).items() if k not in RESUME_MAY_CHANGE}
    if changed:
        listed = ", ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
        raise ValueError(
            f"run_dir {Path(config.run_dir)} holds another run's checkpoint: {listed}; choose another run_dir"
        )
