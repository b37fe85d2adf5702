"""Signals stop a run where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from stepopsd.train.interrupts import Interrupts, Stop


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_where_nothing_is_held(signum):
    before = signal.getsignal(signum)
    with pytest.raises(Stop) as stopped, Interrupts():
        os.kill(os.getpid(), signum)
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) is before


def test_a_signal_waits_for_the_step():
    done = []
    with pytest.raises(Stop):
        _step([signal.SIGTERM], done)
    assert done == ["step"]


def _step(signals, done):
    with Interrupts() as interrupts:
        interrupts.hold()
        for signum in signals:
            os.kill(os.getpid(), signum)
        done.append("step")
        interrupts.release()
        done.append("never")


def test_a_second_signal_does_not_wait():
    done = []
    with pytest.raises(Stop) as stopped:
        _step([signal.SIGTERM, signal.SIGINT], done)
    assert done == []
    assert stopped.value.signum == signal.SIGINT


def test_without_a_signal_nothing_happens():
    with Interrupts() as interrupts:
        interrupts.hold()
        interrupts.release()


def test_in_another_thread_it_changes_nothing():
    failed = []

    def enter():
        try:
            with Interrupts() as interrupts:
                interrupts.hold()
                interrupts.release()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failed
