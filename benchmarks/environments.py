"""ALFWorld environments side by side: resets, steps and memory of the pool, against other ways to run them.

    python -m benchmarks.environments --games $ALFWORLD_DATA
    python -m benchmarks.environments --games $ALFWORLD_DATA --only memory

Every contender plays the same games with the same actions, and what it says is compared with the others word for word:
a run in which one differs ends with an error. Figures are per second of CPU time of all processes together, which other
load on the machine changes least; the wall clock stands in the JSON. Results are kept after every measurement, and
``--resume`` goes on where a run ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environment_contenders import CONTENDERS, Contender, Pool, Seen
from benchmarks.environment_report import write
from stepopsd.envs.alfworld import list_tasks
from stepopsd.envs.base import Task
from stepopsd.envs.worker import usable_cores
from stepopsd.experiments.bench.machine import cpu_name

SIZES = (1, 8, 64, 128)
GROUP = 8
#: Every size plays at least so many episodes, so that one game does not decide.
EPISODES = 8
FLAT_SIZE, FLAT_GROUP, FLAT_STEPS = 64, 8, 4


@dataclass
class Clock:
    """CPU seconds of this process and its children, and wall seconds, over calls; without what reading them takes."""

    children: list[int]
    cpu: float = 0.0
    wall: float = 0.0

    def __call__(self, call: Callable[[], Any]) -> Any:
        theirs, ours, wall = self._children_s(), time.process_time(), time.perf_counter()
        result = call()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - ours
        self.cpu += self._children_s() - theirs
        return result

    def _children_s(self) -> float:
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.children) / 1e9


def _children() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]


def _memory_bytes() -> int:
    """Memory of the children, shared pages divided among those that share them; without any, of this process."""
    processes = psutil.Process().children(recursive=True) or [psutil.Process()]
    return sum(process.memory_full_info().pss for process in processes)


@dataclass
class Walk:
    """One environment's episode: actions at random, the same for all that offer the same."""

    seen: Seen
    rng: random.Random
    words: Any = field(default_factory=hashlib.sha256)

    def act(self) -> str:
        return self.rng.choice([*self.seen.commands, "open sesame"])

    def take(self, seen: Seen) -> None:
        self.seen = seen
        self.words.update(repr((seen.text, seen.commands, seen.won)).encode())


def play(
    contender: Contender, tasks: Sequence[Task], steps: int, seed: int, clocks: dict[str, Clock], reset: str
) -> Any:
    """One episode per environment. Returns the steps taken and a digest of all words."""
    walks = []
    for slot, seen in enumerate(clocks[reset](partial(contender.reset, tasks))):
        walks.append(Walk(seen, random.Random(f"{seed} {slot}")))
        walks[-1].take(seen)
    taken = 0
    for _ in range(steps):
        actions = {slot: walk.act() for slot, walk in enumerate(walks) if not walk.seen.won}
        for slot, seen in clocks["step"](partial(contender.step, actions)).items():
            walks[slot].take(seen)
        taken += len(actions)
    return taken, hashlib.sha256("".join(walk.words.hexdigest() for walk in walks).encode()).hexdigest()


def measure(name: str, size: int, tasks: Sequence[Task], steps: int) -> dict[str, Any]:
    """One contender at one size, in a process of its own."""
    rounds = max(1, EPISODES // size)
    distinct = -(-size // GROUP)
    games = [[tasks[r * distinct + slot // GROUP] for slot in range(size)] for r in range(rounds)]
    used = [task for batch in games for task in batch[::GROUP]]
    before = _memory_bytes()
    contender = CONTENDERS[name](size, used)
    clocks = {name: Clock(_children()) for name in ("new", "again", "step")}
    taken, words = 0, []
    for seed, batch in enumerate(games):
        count, digest = play(contender, batch, steps, seed, clocks, "new")
        taken, words = taken + count, [*words, digest]
    memory = _memory_bytes() - (0 if _children() else before)
    result = {
        "contender": name,
        "size": size,
        "episodes": rounds * size,
        "steps": taken,
        "words": words,
        "memory_mb": memory / size / 2**20,
        "new_resets_per_cpu_s": rounds * size / clocks["new"].cpu,
        "steps_per_cpu_s": taken / clocks["step"].cpu,
        "new_resets_per_s": rounds * size / clocks["new"].wall,
        "steps_per_s": taken / clocks["step"].wall,
    }
    if name != "alfworld":  # it keeps nothing about a game: again is as new
        for seed, batch in enumerate(games):
            play(contender, batch, 0, seed, clocks, "again")
        result["again_resets_per_cpu_s"] = rounds * size / clocks["again"].cpu
        result["again_resets_per_s"] = rounds * size / clocks["again"].wall
    return result


def flat_memory(tasks: Sequence[Task], episodes: int) -> dict[str, Any]:
    """Memory of the pool's workers while it plays, workers never replaced."""
    pool = Pool(FLAT_SIZE)
    clocks = {name: Clock(_children()) for name in ("new", "step")}
    distinct = FLAT_SIZE // FLAT_GROUP
    series = []
    for number in range(episodes // FLAT_SIZE):
        chosen = [tasks[(number * distinct + slot // FLAT_GROUP) % len(tasks)] for slot in range(FLAT_SIZE)]
        play(pool, chosen, FLAT_STEPS, number, clocks, "new")
        series.append([FLAT_SIZE * (number + 1), _memory_bytes() / 2**20])
        print(f"{series[-1][0]} episodes, {series[-1][1]:.0f} MB", flush=True)
    return {"environments": FLAT_SIZE, "group": FLAT_GROUP, "games": distinct * len(series), "megabytes": series}


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process; what it leaves running is ended with it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, function, arguments))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        child.join()


def _answer(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(function(*arguments))
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)  # AsyncBatchEnv waits for its processes when it is deleted


def check_words(results: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError where contenders of one size were told different things."""
    told: dict[int, dict[str, Any]] = {}
    for result in results:
        told.setdefault(result["size"], {})[result["contender"]] = result["words"]
    for size, words in told.items():
        if len({tuple(each) for each in words.values()}) > 1:
            raise ValueError(f"contenders said different words at {size} environments: {words}")


def about(tasks: Sequence[Task], steps: int) -> dict[str, Any]:
    packages = ("textworld", "alfworld", "fast-downward-textworld")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "chip": cpu_name(),
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
        "games": f"{len(tasks)} of split {tasks[0].split}",
        "group": GROUP,
        "steps_per_episode": steps,
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__.splitlines()[0])
    parser.add_argument("--games", default=os.environ.get("ALFWORLD_DATA"), help="folder with the splits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="environments")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, default=10, help="steps per episode")
    parser.add_argument("--episodes", type=int, default=2048, help="of the memory run")
    parser.add_argument("--only", choices=("speed", "memory"), help="leave the other out")
    parser.add_argument("--resume", action="store_true", help="keep what the file has, measure what it lacks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/alfworld-environments.json"))
    options = parser.parse_args()
    if not options.games:
        parser.error("--games is not given and ALFWORLD_DATA is not set")
    every = list_tasks(options.games, options.split)
    random.Random(0).shuffle(every)  # a folder's neighbours are variants of one another
    report: dict[str, Any] = {"about": about(every, options.steps), "speed": [], "memory": None}
    if options.resume and options.out.exists():
        report = json.loads(options.out.read_text())
    known = {(result["contender"], result["size"]) for result in report["speed"]}
    if options.only != "memory":
        for size in options.sizes:
            for name in options.contenders:
                if (name, size) in known:
                    continue
                result = in_process(measure, name, size, every, report["about"]["steps_per_episode"])
                report["speed"].append({**result, "load": os.getloadavg()[0]})
                check_words(report["speed"])
                write(report, options.out)
                print(f"{name}, {size}: {result['steps_per_cpu_s']:.1f} steps/s per core", flush=True)
    if options.only != "speed" and report["memory"] is None:
        report["memory"] = in_process(flat_memory, every, options.episodes)
        write(report, options.out)
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
