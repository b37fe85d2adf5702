"""Trains one cell; runs as a process of its own that ends with the worker that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

PATIENCE_S = 60.0


def main() -> int:
    """Train the run of the YAML file that is the only argument, while standard input stays open."""
    end_with_worker()
    from stepopsd.train.config_io import load_config
    from stepopsd.train.trainer import Trainer

    try:
        Trainer(load_config(Path(sys.argv[1]))).run()
    except KeyboardInterrupt:
        return 130
    return 0


def end_with_worker() -> None:
    """Stop at a checkpoint when the worker is gone, however it went: two processes must never train one run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the worker was started in the background
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 1024):
        continue
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(PATIENCE_S)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
