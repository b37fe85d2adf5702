"""A study's raw records in five small files, from which every figure of its table and page comes."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import yaml

from stepopsd.experiments.evaluate import arrow, read_episodes, write_episodes
from stepopsd.experiments.report.browser import Group, groups_of
from stepopsd.experiments.report.load import Record, Run, load_run
from stepopsd.experiments.study.plan import BUNDLED, Study
from stepopsd.experiments.study.work import DONE
from stepopsd.experiments.warmstart import BUNDLED_MODEL

STUDY, EPISODES, METRICS, RUNS = "study.yaml", "episodes.parquet", "metrics.parquet", "runs.json"
#: May be absent: what no trainer stored, or what was gathered before there was this file.
TRANSCRIPTS = "transcripts.jsonl.xz"
_KEY = ("environment", "method", "run_seed")
#: environment -> method -> its finished runs
Runs = dict[str, dict[str, list[Run]]]


def write_records(study: Study, root: Path, out: Path) -> Path:
    """Gather the finished cells under ``root`` into ``out``.

    Returns:
        ``out``, with the study file, one row per evaluation episode, one per update, configuration and machine of
        every run, and one recorded group of the first finished seed of every method.

    Raises:
        ValueError: No cell is finished, or a run's file is broken.
        ImportError: pyarrow is missing.
    """
    pa, parquet = arrow()
    episodes, metrics, facts, transcripts = [], [], [], dict[tuple[str, str], list[Record]]()
    for cell in study.cells:
        folder = root / "cells" / cell.name
        if not (folder / DONE).is_file():
            continue
        run = load_run(folder, method=cell.method)
        key = dict(zip(_KEY, (cell.environment, cell.method, cell.seed), strict=True))
        episodes += [{**key, "decoding": "sample", "temperature": None, **episode} for episode in run.episodes]
        metrics += [{**key, **{name: _number(value) for name, value in row.items()}} for row in run.metrics]
        shown = transcripts.setdefault((cell.environment, cell.method), [])
        shown += [] if shown else [{**key, **record} for record in _telling(run)]
        facts.append({**key, "config": _portable(run.config), "machine": _portable_machine(run.environment)})
    if not facts:
        raise ValueError(f"no cell of the study is finished in {root}")
    out.mkdir(parents=True, exist_ok=True)
    (out / STUDY).write_text(study.source, encoding="utf-8")
    write_episodes(out / EPISODES, episodes)
    parquet.write_table(pa.Table.from_pylist(_rectangular(metrics)), out / METRICS, compression="zstd")
    (out / RUNS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    stored = "".join(json.dumps(record, ensure_ascii=False) + "\n" for own in transcripts.values() for record in own)
    (out / TRANSCRIPTS).write_bytes(lzma.compress(stored.encode(), preset=9))
    return out


def _portable(config: Record) -> Record:
    """A run's configuration without the places where it happened to lie."""
    model = dict(config.get("model", {}))
    if model.get("path") == str(BUNDLED_MODEL):
        model["path"] = BUNDLED
    return {**config, "run_dir": "", "model": model}


def _portable_machine(facts: Record) -> Record:
    """The machine without the command, which names nothing but the cell's file."""
    return {name: value for name, value in facts.items() if name != "command"}


def read_records(folder: Path) -> Runs:
    """The runs of ``write_records``; of their transcripts those that were kept, of their episodes those that were
    played: one that lost its infrastructure (a retriever, an engine) is neither won nor failed.

    Raises:
        FileNotFoundError: ``folder`` holds no such records.
        ImportError: pyarrow is missing.
    """
    _, parquet = arrow()
    for name in (STUDY, EPISODES, METRICS, RUNS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"records of a study: no such file: {folder / name}")
    episodes = _by_run([e for e in read_episodes(folder / EPISODES) if e.get("status") != "infra_error"])
    metrics = _by_run(parquet.read_table(folder / METRICS).to_pylist())
    transcripts = _by_run(_transcripts(folder))
    runs: Runs = {}
    for facts in json.loads((folder / RUNS).read_text(encoding="utf-8")):
        key = _key(facts)
        run = Run(
            method=key[1], path=folder, seed=key[2], config=facts["config"], environment=facts["machine"],
            metrics=[{k: v for k, v in row.items() if v is not None} for row in metrics.get(key, [])],
            episodes=episodes.get(key, []), transcripts=transcripts.get(key, []),
        )  # fmt: skip
        runs.setdefault(key[0], {}).setdefault(key[1], []).append(run)
    return runs


def baseline_of(folder: Path) -> str:
    """The method that the study of these records compares with."""
    return str(_study(folder)["baseline"])


def title_of(folder: Path) -> str:
    """The title of the study of these records."""
    return str(_study(folder).get("title", folder.name))


def _telling(run: Run) -> tuple[Record, ...]:
    """The newest recorded group, one that was reshaped and has both outcomes if there is one."""
    groups = groups_of(run)
    return max(groups, key=_worth).members if groups else ()


def _worth(group: Group) -> tuple[bool, bool, int, int]:
    return group.mixed, group.reshaped, group.members[0]["update"], len(group.members)


def _transcripts(folder: Path) -> list[Record]:
    path = folder / TRANSCRIPTS
    return [json.loads(line) for line in lzma.open(path, "rt", encoding="utf-8")] if path.is_file() else []


def _study(folder: Path) -> dict[str, Any]:
    tree = yaml.safe_load((folder / STUDY).read_text(encoding="utf-8"))
    return dict(tree)


def _by_run(rows: list[Record]) -> dict[tuple[str, str, int], list[Record]]:
    runs: dict[tuple[str, str, int], list[Record]] = {}
    for row in rows:
        runs.setdefault(_key(row), []).append(row)
    return runs


def _key(row: Record) -> tuple[str, str, int]:
    environment, method, seed = (row.pop(name) for name in _KEY)
    return environment, method, seed


def _rectangular(rows: list[Record]) -> list[Record]:
    """All rows with all keys: Arrow takes the columns from the first."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

