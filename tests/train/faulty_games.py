"""The word game with a fault in it; light, as every environment worker imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.train.toy import WordGame

FLAG = "STEPOPSD_FAULT_FLAG"  # names a file that exists once the fault has happened


def once() -> bool:
    """Whether this is the first time, in whichever process."""
    try:
        Path(os.environ[FLAG]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Crashing(WordGame):
    def step(self, action):
        if self.said == 0 and once():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Hanging(WordGame):
    def step(self, action):
        if once():
            time.sleep(3600)
        return super().step(action)


class Terminating(WordGame):
    """The machine's owner ends the run in the middle of the second update's rollout."""

    calls = 0

    def step(self, action):
        type(self).calls += 1
        if type(self).calls == 70:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)
