"""A worker: takes free cells of a study until none is left, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stepopsd.experiments.study import claims
from stepopsd.experiments.study.inputs import require_inputs
from stepopsd.experiments.study.plan import Cell, Study
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import differences, dump_config, load_config

DONE = "done.json"
LOG = "train.log"
#: Keys that may differ between a finished cell and the study file: they do not change what was computed.
MAY_CHANGE = frozenset({
    "run_dir", "device", "keep_checkpoints", "env.workers", "env.games", "model.path", "logging.trackers",
    "logging.project",
})  # fmt: skip
_TAIL = 12


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one worker did: cells that it finished, cells that failed, and cells that others were at."""

    finished: tuple[str, ...]
    failed: tuple[str, ...]
    elsewhere: tuple[str, ...]


def work(study: Study, root: Path, *, stale_after_s: float = 600.0, at_most: int = 0) -> Outcome:
    """Train every cell that is not finished and that no other worker is at.

    Args:
        study: What to train.
        root: The study's directory, shared by all workers.
        stale_after_s: A worker without heartbeat for so long is taken for dead.
        at_most: Cells to finish at most; 0 means all.

    Returns:
        What was done. A failed cell keeps its log and its checkpoints: the next call tries it again from there.

    Raises:
        ValueError: A finished cell was trained with other settings than the study has now, or a cell's games,
            retriever or model are not there (also FileNotFoundError); nothing has been trained then.
        KeyboardInterrupt: The cell under way has stopped at a checkpoint and is released.
    """
    check_finished(study, root)
    require_inputs(cell for cell in study.cells if not (root / "cells" / cell.name / DONE).is_file())
    finished: list[str] = []
    failed: list[str] = []
    for cell in study.cells:
        if at_most and len(finished) >= at_most:
            break
        folder = root / "cells" / cell.name
        if (folder / DONE).is_file():
            continue
        claim = claims.take(folder, stale_after_s=stale_after_s)
        if claim is None:
            continue
        try:
            if not (folder / DONE).is_file():  # else its worker ended between the look and the claim
                (finished if _train(cell, root, claim) else failed).append(cell.name)
        finally:
            claim.release()
    left = [c.name for c in study.cells if not (root / "cells" / c.name / DONE).is_file() and c.name not in failed]
    return Outcome(tuple(finished), tuple(failed), tuple(left))


def check_finished(study: Study, root: Path) -> None:
    """Raise ValueError where a cell in ``root`` was trained with other settings than the study has now."""
    for cell in study.cells:
        stored = root / "cells" / cell.name / "config.yaml"
        if not stored.is_file():
            continue
        changed = {k: v for k, v in differences(load_config(stored), cell.config).items() if k not in MAY_CHANGE}
        if changed:
            listed = ", ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
            raise ValueError(f"{root} holds {cell.name} of another study: {listed}; choose another directory")


def _train(cell: Cell, root: Path, claim: claims.Claim) -> bool:
    config = cell.config_in(root)
    folder = Path(config.run_dir)
    started = time.time()
    print(f"{cell.name}: training", flush=True)
    code = _run(config, folder, claim)
    seconds = time.time() - started
    if code != 0:
        tail = (folder / LOG).read_text(errors="replace").splitlines()[-_TAIL:]
        print(f"{cell.name}: failed with exit code {code} after {seconds:.0f} s; end of {folder / LOG}:")
        print("\n".join(f"    {line}" for line in tail), flush=True)
        return False
    partial = folder / f"{DONE}.partial"
    partial.write_text(json.dumps({"seconds_of_last_worker": round(seconds, 1)}) + "\n")
    partial.replace(folder / DONE)
    print(f"{cell.name}: done in {seconds / 60:.1f} min", flush=True)
    return True


def _run(config: RunConfig, folder: Path, claim: claims.Claim) -> int:
    """Train in a process of its own, which stops when its standard input is closed; its exit code."""
    asked = folder / "asked.yaml"
    asked.write_text(dump_config(config))
    command = [sys.executable, "-m", "stepopsd.experiments.study.cell", str(asked)]
    with (folder / LOG).open("ab") as log:
        # A session of its own: Ctrl-C reaches the worker alone, which then closes the pipe.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                try:
                    return process.wait(timeout=claims.HEARTBEAT_S)
                except subprocess.TimeoutExpired:
                    if claim.lost():
                        return 1
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
