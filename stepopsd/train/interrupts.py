"""Signals that ask a run to stop: heeded at once where nothing is lost by it, else when the step is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(KeyboardInterrupt):
    """A signal asked the run to stop; ``signum`` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupts:
    """Turns SIGINT and SIGTERM into ``Stop``, not between ``hold`` and ``release``.

    Used as a context manager; the handlers of before are back afterwards. A second signal does not wait. Outside the
    main thread, where Python allows no handlers, it changes nothing.

    Args:
        waits: Other processes depend on this one: a signal waits everywhere but inside ``heeded``, also a second one,
            as launchers pass on what the terminal has sent already.

    Example:
        >>> with Interrupts() as interrupts:
        ...     interrupts.hold()       # parameters are about to change
        ...     interrupts.release()    # they are whole again: raises Stop if one was asked for
    """

    def __init__(self, *, waits: bool = False) -> None:
        self._held = False
        self._waits = waits
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._take) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def held(self) -> bool:
        """Whether something is half done right now."""
        return self._held

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Work that no other process waits for: a signal raises at once, also one that came before, unless held."""
        before, self._waits = self._waits, False
        try:
            if self._asked is not None and not self._held:
                raise Stop(self._asked)
            yield
        finally:
            self._waits = before

    def hold(self) -> None:
        """From here on a signal waits."""
        self._held = True

    def release(self) -> None:
        """Raise ``Stop`` if a signal waited."""
        self._held = False
        if self._asked is not None:
            raise Stop(self._asked)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self._waits or (self._held and self._asked is None):
            self._asked = self._asked or signum
            return
        raise Stop(signum)
