"""The ``stepopsd study`` commands: run | status | table."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from stepopsd.experiments.study import claims
from stepopsd.experiments.study.plan import Study, read_study, study_path
from stepopsd.experiments.study.records import STUDY, baseline_of, read_records, title_of, write_records
from stepopsd.experiments.study.table import lines, markdown
from stepopsd.experiments.study.work import DONE, work


def run(
    study: Positional[str],
    *,
    out: Path | None = None,
    stale_minutes: float = 10.0,
    at_most: Annotated[int, arg(name="cells")] = 0,
    cells_like: str = "*",
) -> int:
    """Train every cell that is not finished; any number of these commands may share the directory.

    Args:
        study: A study file, or the name of one that comes with the package.
        out: The study's directory; ``runs/studies/NAME`` where not given.
        stale_minutes: A worker on another machine that gave no sign for so long is taken for dead.
        at_most: End after so many cells; 0 goes on to the last.
        cells_like: Only cells whose name ENVIRONMENT/METHOD/seed-N has this pattern, e.g. ``alfworld/*/seed-0``.

    Returns:
        0 when every cell is finished or another worker is at it, 1 when some failed.
    """
    whole, root = _open(study, out)
    plan = _like(whole, cells_like)
    print(f"{plan.title}: {len(plan.cells)} cells in {root}", flush=True)
    outcome = work(plan, root, stale_after_s=60 * stale_minutes, at_most=at_most)
    for name in outcome.failed:
        print(f"{name}: failed; the same command tries it again from its last checkpoint")
    if outcome.elsewhere:
        print(f"{len(outcome.elsewhere)} cells are left to other workers or to the next call")
    if not outcome.failed and not outcome.elsewhere:
        write_table(write_records(whole, root, root / "records"))
    return int(bool(outcome.failed))


def status(
    study: Positional[str], *, out: Path | None = None, stale_minutes: float = 10.0, cells_like: str = "*"
) -> None:
    """Print which cells are done, running, begun or waiting.

    Args:
        study: A study file or the name of one.
        out: The study's directory.
        stale_minutes: As for run.
        cells_like: As for run.
    """
    plan, root = _open(study, out)
    states = []
    for cell in _like(plan, cells_like).cells:
        folder = root / "cells" / cell.name
        states.append(_state(folder, stale_minutes))
        print(f"{cell.name:44} {states[-1]}")
    print(f"{states.count('done')} of {len(states)} done")


def table(study: Positional[str], *, out: Path | None = None) -> None:
    """Write records, table and curves of the finished cells, or table and curves of a folder of records.

    Args:
        study: A study file, the name of one, or a folder with records (study.yaml, episodes.parquet, ...).
        out: The study's directory; for a folder of records where to write, the folder itself where not given.
    """
    folder = Path(study)
    if (folder / STUDY).is_file():
        write_table(folder, out)
        return
    plan, root = _open(study, out)
    write_table(write_records(plan, root, root / "records"))


def write_table(records: Path, out: Path | None = None) -> Path:
    """``table.md``, ``table.json`` and ``curves-ENVIRONMENT.png`` from a folder of records; the table's path."""
    from stepopsd.experiments.study.plot import draw_curves

    out = out or records
    out.mkdir(parents=True, exist_ok=True)
    runs, baseline = read_records(records), baseline_of(records)
    page = markdown(runs, baseline, title_of(records))
    (out / "table.md").write_text(page, encoding="utf-8")
    plain = [line.plain() for line in lines(runs, baseline)]
    (out / "table.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    for environment, methods in runs.items():
        draw_curves(methods, out / f"curves-{environment}.png", baseline=baseline)
    print(f"{page}\nwritten to {out}")
    return out / "table.md"


def _open(study: str, out: Path | None) -> tuple[Study, Path]:
    file = study_path(study)
    return read_study(file), out or Path("runs/studies") / file.stem


def _like(plan: Study, pattern: str) -> Study:
    """The study with those of its cells whose name has the pattern."""
    cells = tuple(cell for cell in plan.cells if fnmatchcase(cell.name, pattern))
    if not cells:
        raise ValueError(f"--cells-like must match a cell such as {plan.cells[0].name}, got {pattern!r}")
    return replace(plan, cells=cells)


def _state(folder: Path, stale_minutes: float) -> str:
    if (folder / DONE).is_file():
        return "done"
    at = claims.holder(folder, stale_after_s=60 * stale_minutes)
    metrics = folder / "metrics.jsonl"
    updates = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    if at:
        return f"at update {updates + 1} on {at}"
    return f"stopped after update {updates}" if updates else "waiting"
