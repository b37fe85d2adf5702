"""What is told while a run is going: a line per update and evaluation, a bar on a terminal, and the trackers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from stepopsd.train.config import RunConfig
from stepopsd.train.logging_config import LoggingConfig
from stepopsd.train.trackers import Trackers

#: Seconds of updates that the time left is estimated from: rich's 30 would forget every update that takes longer.
ESTIMATED_FROM_S = 6 * 3600.0


class Progress:
    """Bar with the time left and log lines, lines alone where the output is no terminal; trackers hear the same.

    Nothing at all with ``shown`` False, in a process that another one speaks for.
    """

    def __init__(self, config: RunConfig, done: int, *, shown: bool = True) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=not shown)
        self.updates, self.tokens = config.optim.updates, config.optim.generated_tokens
        self.seen: list[int] = []  # sampled tokens of each update since the start of this process
        self.trackers = Trackers(config, done) if shown else Trackers(replace(config, logging=LoggingConfig()), done)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn())
        self.bar = RichProgress(*columns, console=self.console, disable=not (shown and self.console.is_terminal),
                                speed_estimate_period=ESTIMATED_FROM_S)
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
        self.seen.append(int(record["tokens/generated"]))
        self.bar.update(self.task, advance=1, total=self.expected)
        self.trackers.log(record["update"], record)

    @property
    def expected(self) -> int:
        """Updates of the whole run, where a number of sampled tokens ends it as far as can be told."""
        if not self.tokens or not sum(self.seen):
            return self.updates
        return min(self.updates, math.ceil(self.tokens * len(self.seen) / sum(self.seen)))

    def evaluation(self, update: int, name: str, by_kind: dict[str, tuple[int, int]]) -> None:
        """Show one evaluated panel."""
        won, played = by_kind["all"]
        self.console.print(f"evaluation after {update}: {name} {won}/{played} = {won / max(1, played):.2f}")
        rates = {f"evaluation/{name}/{kind}": won / max(1, played) for kind, (won, played) in by_kind.items()}
        self.trackers.log(update, rates)

    def note(self, text: str) -> None:
        """Show a sentence."""
        self.console.print(text)

    def close(self) -> None:
        """Stop the bar and end the trackers."""
        self.bar.stop()
        self.trackers.close()
