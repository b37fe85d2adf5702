"""The ``logging`` section: who else is told a run's numbers, beside its files; no torch here."""

from __future__ import annotations

from dataclasses import dataclass

from stepopsd.options.checks import choice

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """``metrics.jsonl`` and ``evaluations.jsonl`` are always written; trackers come on top.

    Attributes:
        trackers: Any of tensorboard (event files in ``run_dir/tensorboard``), wandb and trackio, each an extra of the
            package. A run that continues goes on in the same tracked run.
        project: Name that wandb and trackio file the run under.
    """

    trackers: tuple[str, ...] = ()
    project: str = "stepopsd"

    def __post_init__(self) -> None:
        for name in self.trackers:
            choice("logging.trackers", name, TRACKERS)
        if len(set(self.trackers)) != len(self.trackers):
            raise ValueError(f"logging.trackers must name each tracker once, got {', '.join(self.trackers)}")
        if not self.project:
            raise ValueError("logging.project must not be empty")
