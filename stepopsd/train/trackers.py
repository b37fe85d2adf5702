"""Trackers beside the run's own files: TensorBoard, Weights & Biases, trackio, through accelerate's adapters."""

from __future__ import annotations

import importlib.util
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import dump_config, to_tree
from stepopsd.train.metrics import plain

RUN_ID = "tracker_id"


def require_trackers(config: RunConfig) -> None:
    """Raise ImportError, before any work starts, where a tracker of ``logging.trackers`` is not installed."""
    for name in config.logging.trackers:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"logging.trackers: {name} is not installed: pip install 'stepopsd[{name}]'")


class Trackers:
    """The trackers of a run, started; does nothing where there are none.

    Args:
        config: The run.
        done: Updates that a checkpoint holds: what was tracked after them is superseded.

    Raises:
        ImportError: A tracker is not installed; the message names the extra.
    """

    def __init__(self, config: RunConfig, done: int) -> None:
        require_trackers(config)
        self._started = [_START[name](config, done) for name in config.logging.trackers]
        for tracker in self._started:
            tracker.start()
            if tracker.name == "tensorboard":
                tracker.writer.add_text("config", f"```yaml\n{dump_config(config)}```", done)

    def log(self, update: int, record: Mapping[str, Any]) -> None:
        """Everything in the record that is a finite number, as of this update."""
        values = {key: plain(value) for key, value in record.items() if key != "update"}
        values = {key: float(v) for key, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        for tracker in self._started:
            tracker.log(values, step=update)

    def close(self) -> None:
        """Flush and end; the run may go on later."""
        for tracker in self._started:
            tracker.finish()


def _tensorboard(config: RunConfig, done: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # Readers drop what an interrupted run wrote from that step on.
    return TensorBoardTracker("tensorboard", logging_dir=config.run_dir, purge_step=done + 1 if done else 0)


def _wandb(config: RunConfig, done: int) -> Any:
    from accelerate.tracking import WandBTracker

    options = {"name": _name(config), "id": _run_id(config), "resume": "allow", "dir": config.run_dir}
    return WandBTracker(config.logging.project, config=to_tree(config), **options)


def _trackio(config: RunConfig, done: int) -> Any:
    from accelerate.tracking import TrackioTracker

    name = f"{_name(config)}-{_run_id(config)}"
    return TrackioTracker(config.logging.project, name=name, resume="allow", config=to_tree(config))


_START: dict[str, Callable[[RunConfig, int], Any]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio,
}  # fmt: skip


def _name(config: RunConfig) -> str:
    return f"{config.credit.name}-{Path(config.run_dir).name}-seed-{config.seed}"


def _run_id(config: RunConfig) -> str:
    """Made once per run directory, so that a run that continues is one run to its trackers."""
    path = Path(config.run_dir) / RUN_ID
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{uuid.uuid4().hex[:8]}\n")
    return path.read_text().strip()
