"""One worker process that holds several environments: the parent's handle and the child's loop.

A plain child process rather than ``multiprocessing``: its start methods import the parent's main module, which in a
training run brings torch into every worker, and need an import guard in every user's script.
"""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from stepopsd.envs.base import Env

_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from stepopsd.envs.worker import serve; serve({fd})"


class WorkerError(RuntimeError):
    """The worker process died or could not be started."""


class Worker:
    """The parent's end of one worker process. One message at a time: ``send``, then ``receive``.

    Args:
        factory: Makes one environment; picklable by name (a class, or a ``functools.partial`` of one) and not defined
            in ``__main__``.
    """

    def __init__(self, factory: Callable[[], Env]) -> None:
        self._factory = pickle.dumps(factory)
        self._launch()

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path = [str(entry) for entry in sys.path]
            code = _BOOTSTRAP.format(path=path, fd=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self.connection = Connection(ours.detach())
        with suppress(OSError):  # a child that died already: await_ready says so
            self.connection.send_bytes(self._factory)

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_ready(self, timeout_s: float) -> None:
        """Block until the child has made its first environment; WorkerError with the child's words if it cannot."""
        if not self.connection.poll(timeout_s):
            self.kill()
            raise WorkerError(f"an environment worker did not start within {timeout_s:g} s")
        ok, reason, _ = self.receive()
        if not ok:
            self.kill()
            raise WorkerError(f"an environment worker could not make its environment: {reason}")

    def send(self, message: tuple[Any, ...]) -> None:
        with suppress(OSError):  # a dead child: the next receive says so
            self.connection.send(message)

    def receive(self) -> tuple[bool, Any, float]:
        """(True, result, seconds) or (False, what the environment raised, seconds).

        Raises:
            WorkerError: The process is gone.
        """
        try:
            answer: tuple[bool, Any, float] = self.connection.recv()
        except (EOFError, OSError):
            self._process.wait()
            raise WorkerError(f"the worker process died with exit status {self._process.returncode}") from None
        return answer

    def replace(self, timeout_s: float) -> None:
        """Kill the process and start a fresh one, without any episode."""
        self.kill()
        self._launch()
        self.await_ready(timeout_s)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def hang_up(self) -> None:
        """Tell the process to close its environments and leave."""
        self.connection.close()

    def finish(self, grace_s: float = 2.0) -> None:
        """Wait for a process that was told to leave; kill it if it does not."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(fd: int) -> None:
    """The child's loop: answer messages until the parent closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    connection = Connection(fd)
    try:
        factory: Callable[[], Env] = pickle.loads(connection.recv_bytes())
        spare: list[Env] = [factory()]
    except Exception as error:
        connection.send((False, describe(error), 0.0))
        return
    connection.send((True, None, 0.0))
    envs: dict[int, Env] = {}
    while True:
        try:
            kind, slot, *arguments = connection.recv()
        except (EOFError, OSError):
            break
        started = time.monotonic()
        try:
            if slot not in envs:
                envs[slot] = spare.pop() if spare else factory()
            ok, answer = True, play(envs[slot], kind, *arguments)
        except Exception as error:
            ok, answer = False, describe(error)
        try:
            connection.send((ok, answer, time.monotonic() - started))
        except OSError:
            break
    for env in [*envs.values(), *spare]:
        env.close()


def play(env: Env, kind: str, *arguments: Any) -> Any:
    """``reset`` answers (goal, observation), ``step`` a StepResult."""
    if kind == "reset":
        observation = env.reset(*arguments)
        return env.goal, observation
    return env.step(*arguments)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
