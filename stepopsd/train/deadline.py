"""A wall-clock limit on a run: it stops, saved, before an update that would not end in time."""

from __future__ import annotations

import time

#: How much longer than the longest so far the next update is allowed for.
MARGIN = 1.25


class DeadlineReached(RuntimeError):
    """The run stopped early and is saved; the same command continues it."""


class Deadline:
    """Counts from its creation.

    Args:
        hours: Limit; 0 for none.
    """

    def __init__(self, hours: float) -> None:
        self.hours = hours
        self._started = self._noted = time.monotonic()
        self._longest = 0.0

    def note(self) -> None:
        """One update, with all that belongs to it, has ended."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._noted)
        self._noted = now

    def require_time(self) -> None:
        """Raise ``DeadlineReached`` when an update as long as the longest so far, and a quarter, would end too late."""
        spent = time.monotonic() - self._started
        if self.hours and spent + MARGIN * self._longest > 3600 * self.hours:
            raise DeadlineReached(
                f"deadline: {spent / 60:.1f} of {60 * self.hours:.1f} minutes are spent and an update takes up to "
                f"{self._longest / 60:.1f}"
            )
