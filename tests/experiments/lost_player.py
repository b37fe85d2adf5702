"""A player that is killed in its process; a module of its own, so that the process need not import torch."""

from __future__ import annotations

import os
import signal
from typing import Any


def dies(task: Any, **settings: Any) -> None:
    """Ends the process as the system would when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
