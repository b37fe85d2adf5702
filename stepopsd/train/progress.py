"""What a person sees while a run is going: one line per update and evaluation, a bar on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from stepopsd.train.config import RunConfig


class Progress:
    """Bar plus log lines; plain lines where the output is not a terminal."""

    def __init__(self, config: RunConfig, done: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.updates = config.optim.updates
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn())
        self.bar = RichProgress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task(config.credit.name, total=self.updates, completed=done)
        if done:
            self.note(f"continuing after update {done}")

    def update(self, record: dict[str, Any]) -> None:
        """Show one finished update."""
        parts = [
            f"update {record['update']:>4}/{self.updates}",
            f"success {record['success']:.2f}",
            f"invalid {record['invalid_share']:.2f}",
            f"mixed groups {record['mixed_groups']:.2f}",
        ]
        if "delta/std" in record:
            parts.append(f"std(Δ) {float(record['delta/std']):.3f}")
        parts.append(f"sampler gap {record['sampler_gap_max']:.1e}")
        parts.append(f"{record['seconds']:.1f} s")
        self.console.print("  ".join(parts))
        self.bar.advance(self.task)

    def evaluation(self, update: int, name: str, by_kind: dict[str, tuple[int, int]]) -> None:
        """Show one evaluated panel."""
        won, played = by_kind["all"]
        self.console.print(f"evaluation after {update}: {name} {won}/{played} = {won / max(1, played):.2f}")

    def note(self, text: str) -> None:
        """Show a sentence."""
        self.console.print(text)

    def close(self) -> None:
        """Stop the bar."""
        self.bar.stop()
