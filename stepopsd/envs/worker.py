"""One worker process that holds several environments: the parent's handle and the child's loop.

A plain child process rather than ``multiprocessing``: its start methods import the parent's main module, which in a
training run brings torch into every worker, and need an import guard in every user's script.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stepopsd.envs.base import Env, EnvError, Observation, Task

_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from stepopsd.envs.worker import serve; serve({fd})"
Key = tuple[Task, int]  #: what an episode starts from


class WorkerError(RuntimeError):
    """The worker process died or could not be started."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The first environment stands."""


@dataclass(frozen=True, slots=True)
class Preparing:
    """Sent before (key) and after (None) an episode is prepared, which nobody waits for."""

    key: Key | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an environment returned, its ``EnvError``, or in words what else it raised.

    With the seconds that it took and the worker's resident bytes afterwards.
    """

    ok: bool
    value: Any
    seconds: float = 0.0
    resident_bytes: int = 0


class Worker:
    """The parent's end of one worker process; it has begun to start when this returns.

    Args:
        factory: Makes one environment; picklable by name (a class, or a ``functools.partial`` of one) and not defined
            in ``__main__``.
        memory_bytes: Private memory beyond which the process's allocations fail; 0 for no limit.
    """

    def __init__(self, factory: Callable[[], Env], memory_bytes: int = 0) -> None:
        ours, theirs = socket.socketpair()
        # Its own folder for temporary files, so that those of a killed process are found and deleted.
        self._folder = tempfile.TemporaryDirectory(prefix="stepopsd-worker-", ignore_cleanup_errors=True)
        with theirs:
            path = [str(entry) for entry in sys.path]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP.format(path=path, fd=theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": self._folder.name},
            )
        self.connection = Connection(ours.detach())
        self.started = time.monotonic()
        with suppress(OSError):  # a child that died already: receive says so
            self.connection.send_bytes(pickle.dumps((factory, memory_bytes)))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: tuple[Any, ...]) -> None:
        with suppress(OSError):  # a dead child: the next receive says so
            self.connection.send(message)

    def receive(self) -> Ready | Preparing | Answer:
        """The next message.

        Raises:
            WorkerError: The process is gone.
        """
        try:
            message: Ready | Preparing | Answer = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process.kill()  # one that only closed its end would be waited for in vain
            self._process.wait()
            raise WorkerError(f"the worker process died with exit status {self._process.returncode}") from None
        return message

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._folder.cleanup()

    def hang_up(self) -> None:
        """Tell the process to close its environments and leave."""
        self.connection.close()

    def left(self) -> bool:
        """Whether a process that was told to leave is gone; frees what it held."""
        if self._process.poll() is None:
            return False
        self._folder.cleanup()
        return True

    def finish(self, grace_s: float) -> None:
        """Wait for a process that was told to leave; kill it if it does not."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class _Host:
    """The child's environments: one per running episode, prepared ones, and spare ones."""

    def __init__(self, factory: Callable[[], Env]) -> None:
        self._factory = factory
        self._spare: list[Env] = [factory()]
        self._playing: dict[int, Env] = {}
        self._prepared: list[tuple[Key, Env, tuple[str, Observation]]] = []
        self.wishes: deque[Key] = deque()

    def answer(self, kind: str, slot: int, *arguments: Any) -> Any:
        if kind == "reset":
            for index, (key, env, opening) in enumerate(self._prepared):
                if key == arguments:
                    self.release(slot)
                    self._playing[slot] = env
                    del self._prepared[index]
                    return opening
            if arguments in self.wishes:  # its turn has come before it was prepared
                self.wishes.remove(arguments)
        if slot not in self._playing:
            self._playing[slot] = self._idle()
        return play(self._playing[slot], kind, *arguments)

    def release(self, slot: int) -> None:
        if slot in self._playing:
            self._spare.append(self._playing.pop(slot))

    def wish(self, keys: list[Key]) -> None:
        """Keep what is prepared and still wanted, and want the rest."""
        wanted, kept = list(keys), []
        for item in self._prepared:
            if item[0] in wanted:
                wanted.remove(item[0])
                kept.append(item)
            else:
                self._spare.append(item[1])
        self._prepared, self.wishes = kept, deque(wanted)

    def prepare(self) -> None:
        """Start the next wished episode; one that cannot be started is left to say so when it is asked for."""
        key = self.wishes.popleft()
        env = self._idle()
        try:
            self._prepared.append((key, env, play(env, "reset", *key)))
        except Exception:
            self._spare.append(env)

    def close(self) -> None:
        for env in [*self._playing.values(), *self._spare, *(env for _, env, _ in self._prepared)]:
            env.close()

    def _idle(self) -> Env:
        return self._spare.pop() if self._spare else self._factory()


def serve(fd: int) -> None:
    """The child's loop: answer messages until the parent closes the connection or dies; prepare when there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    connection = Connection(fd)
    try:
        factory, memory_bytes = pickle.loads(connection.recv_bytes())
        _limit_memory(memory_bytes)
        host = _Host(factory)
    except Exception as error:
        connection.send(Answer(False, describe(error)))
        return
    with suppress(EOFError, OSError):  # the parent has closed the connection or is gone
        connection.send(Ready())
        while True:
            if host.wishes and not connection.poll():
                connection.send(Preparing(host.wishes[0]))
                host.prepare()
                connection.send(Preparing(None))
                continue
            kind, *arguments = connection.recv()
            if kind == "prefetch":
                host.wish(*arguments)
            elif kind == "release":
                host.release(*arguments)
            else:
                connection.send(_timed(host, kind, *arguments))
    host.close()


def _timed(host: _Host, kind: str, *arguments: Any) -> Answer:
    started = time.monotonic()
    try:
        ok, value = True, host.answer(kind, *arguments)
    except Exception as error:
        ok, value = False, error if isinstance(error, EnvError) else describe(error)
    return Answer(ok, value, time.monotonic() - started, resident_bytes())


def play(env: Env, kind: str, *arguments: Any) -> Any:
    """``reset`` answers (goal, observation), ``step`` a StepResult."""
    if kind == "reset":
        observation = env.reset(*arguments)
        return env.goal, observation
    return env.step(*arguments)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a cgroup's share of the machine where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))  # "max" is no number
    return max(cores, 1)


def _limit_memory(limit: int) -> None:
    if limit:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
