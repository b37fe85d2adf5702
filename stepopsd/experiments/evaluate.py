"""Measures a policy on whole panels: every game, several samples and a greedy episode each, raw records as Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from stepopsd.experiments.search_table import SEARCH_TABLE, format_search_table, search_table
from stepopsd.experiments.statistics import Interval, panel_interval
from stepopsd.rollout.records import Trajectory
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import dump_config

EPISODES = "episodes.parquet"
SUMMARY = "summary.json"
UPDATE = 0  # an evaluation by itself is the one before the first update
#: Columns without which episodes cannot be compared.
NEEDED = {"panel", "task_id", "kind", "decoding", "temperature", "sample", "seed", "success", "steps"}
Record = dict[str, Any]


def evaluate(config: RunConfig, *, say: Callable[[str], None] = print) -> Path:
    """Play the panels of ``env.eval_splits`` with ``model.path`` and write what happened to ``run_dir``.

    Every game of a panel is played ``eval.samples`` times at ``eval.temperature``, and once greedily with
    ``eval.greedy``. An episode that the environment broke counts as lost; how many did is in the summary.

    Args:
        config: The run; its ``eval`` section says what is played.
        say: Receives the tables.

    Returns:
        ``run_dir`` with ``episodes.parquet`` (one row per episode with all its turns), ``summary.json``,
        ``config.yaml`` and ``environment.json``, for Search-QA also ``search_table.json``. An earlier evaluation in
        it is replaced.

    Raises:
        ImportError: pyarrow is missing; found before anything is played.
        FileNotFoundError: Games of a split are missing.
        ValueError: ``run_dir`` holds a training run, a game cannot be read or won, or prompts exceed the context.

    Example:
        >>> evaluate(replace(config, run_dir="runs/eval"))     # doctest: +SKIP
    """
    arrow()
    from stepopsd.train.episodes import tasks_of
    from stepopsd.train.evaluation import panel_of_update, play_panel
    from stepopsd.train.provenance import provenance
    from stepopsd.train.search import retriever_facts

    out = Path(config.run_dir)
    if (out / "metrics.jsonl").exists() or (out / "checkpoints").exists():
        raise ValueError(f"run_dir {out} holds a training run; give the evaluation a folder of its own")
    panels = {
        split: panel_of_update(tasks_of(config.env, split), config.eval, UPDATE) for split in config.env.eval_splits
    }
    episodes, model = _player(config)
    episodes.require_window([task for tasks in panels.values() for task in tasks])
    out.mkdir(parents=True, exist_ok=True)
    for stale in (EPISODES, SUMMARY, SEARCH_TABLE):
        (out / stale).unlink(missing_ok=True)
    (out / "config.yaml").write_text(dump_config(config))
    (out / "environment.json").write_text(
        json.dumps(provenance(model) | retriever_facts(episodes.retriever), indent=2) + "\n"
    )
    records: list[Record] = []
    try:
        for name, tasks in panels.items():
            told = _tenths(name, say)
            played, trajectories = play_panel(episodes, tasks, config.eval, name, UPDATE, progress=told)
            records += [{**r, "turns": _turns(t)} for r, t in zip(played, trajectories, strict=True)]
            write_episodes(out / EPISODES, records)
            say(format_summary(summarise(r for r in records if r["panel"] == name)))
    finally:
        episodes.close()
    (out / SUMMARY).write_text(json.dumps(summarise(records), indent=2) + "\n")
    if config.env.name == "searchqa":
        table = search_table(records)
        (out / SEARCH_TABLE).write_text(json.dumps(table, indent=2) + "\n")
        say(format_search_table(table))
    return out


def _player(config: RunConfig) -> tuple[Any, Any]:
    from stepopsd.train.device import device_of
    from stepopsd.train.episodes import Episodes
    from stepopsd.train.policy import load_policy
    from stepopsd.train.search import search_retriever

    retriever = search_retriever(config.env)
    policy = load_policy(config.model, device_of(config.device))
    policy.model.eval()
    return Episodes(config, policy, retriever), policy.model


def _tenths(name: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """A progress callback that says each tenth once."""
    said = 0

    def tell(finished: int, total: int) -> None:
        nonlocal said
        tenth = 10 * finished // total
        if tenth != said:
            said = tenth
            say(f"{name}: {finished}/{total} episodes")

    return tell


def _turns(trajectory: Trajectory) -> list[Record]:
    return [
        {
            "observation": turn.observation, "response": turn.response, "action": turn.action,
            "is_valid": turn.is_valid, "prompt_tokens": len(turn.prompt_ids),
            "response_tokens": len(turn.response_ids),
        }
        for turn in trajectory.turns
    ]  # fmt: skip


def summarise(records: Iterable[Record]) -> list[Record]:
    """One object per panel, decoding and task type (``all`` first), from records of any environment.

    Returns:
        Success with its interval (``panel_interval``; ``macro`` is the plain mean over task types), mean steps of all
        and of won episodes, the share of valid actions, counts of invalid actions and of every status, and the mean
        of every score that the environment gave. Episodes that lost their infrastructure are counted
        (``infra_errors``) and otherwise left out.
    """
    sets: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        sets.setdefault((record["panel"], record["decoding"]), []).append(record)
    rows = []
    for (name, decoding), members in sets.items():
        lost = sum(r["status"] == "infra_error" for r in members)  # not played, so neither won nor failed
        members = [r for r in members if r["status"] != "infra_error"] or members
        kinds = {kind: [r for r in members if r["kind"] == kind] for kind in sorted({r["kind"] for r in members})}
        head = {"panel": name, "decoding": decoding, "temperature": members[0]["temperature"]}
        macro = fmean(fmean(r["success"] for r in part) for part in kinds.values())
        rows.append({**head, "kind": "all", **_figures(members), "macro": macro, "infra_errors": lost})
        rows += [{**head, "kind": kind, **_figures(part)} for kind, part in kinds.items()]
    return rows


def _figures(records: Sequence[Record]) -> Record:
    games: dict[str, list[bool]] = {}
    for record in records:
        games.setdefault(record["task_id"], []).append(bool(record["success"]))
    success = panel_interval(list(games.values()))
    actions = sum(r["steps"] for r in records)
    invalid = sum(r["invalid_actions"] for r in records)
    won = [r["steps"] for r in records if r["success"]]
    statuses = sorted({r["status"] for r in records})
    scores = sorted({name for r in records for name in r.get("scores") or {}})
    return {
        "games": len(games),
        "episodes": len(records),
        "success": success.estimate,
        "success_low": success.low,
        "success_high": success.high,
        "steps_mean": actions / len(records),
        "steps_won_mean": fmean(won) if won else None,
        "valid_action_rate": 1 - invalid / actions if actions else None,
        "invalid_actions": invalid,
        "timeouts": sum(r["status"] == "time_limit" for r in records),
        "status": {status: sum(r["status"] == status for r in records) for status in statuses},
        "scores": {name: fmean(s[name] for r in records if name in (s := r.get("scores") or {})) for name in scores},
    }


def format_summary(rows: Sequence[Record]) -> str:
    """The summary as text: one line per task type, and a line of what went wrong where something did."""
    lines = []
    for row in rows:
        if row["kind"] == "all":
            at = "greedy" if row["decoding"] == "greedy" else f"T = {row['temperature']:g}"
            lines += ["", f"{row['panel']}, {at}: {row['games']} games, {row['episodes']} episodes"]
            lines.append(f"  {'task type':32} {'episodes':>8}  {'success (95 %)':21} {'steps':>6} {'valid':>6}  scores")
        rate = format_rate(Interval(row["success"], row["success_low"], row["success_high"], row["episodes"]))
        valid = "–" if row["valid_action_rate"] is None else f"{row['valid_action_rate']:.3f}"
        scores = "  ".join(f"{name} {value:.3f}" for name, value in row["scores"].items())
        lines.append(
            f"  {row['kind']:32} {row['episodes']:8}  {rate:21} {row['steps_mean']:6.1f} {valid:>6}  {scores}".rstrip()
        )
    for row in rows:
        ends = {k: v for k, v in row["status"].items() if k not in ("success", "failure")}
        if row["kind"] == "all":
            counts = [f"{row['invalid_actions']} invalid actions", f"{row['timeouts']} timeouts"]
            counts += [f"{row['infra_errors']} lost to infrastructure"] if row["infra_errors"] else []
            counts += [f"{count} {status}" for status, count in ends.items() if status != "time_limit"]
            lines.append(f"  {row['panel']} {row['decoding']}: macro mean {row['macro']:.3f}, {', '.join(counts)}")
    return "\n".join(lines)


def format_rate(interval: Interval) -> str:
    """A rate with its limits, three digits each."""
    return f"{interval.estimate:.3f} ({interval.low:.3f}–{interval.high:.3f})"


def write_episodes(path: Path, records: Sequence[Record]) -> None:
    """Write records as Parquet, complete or not at all; ``scores`` become columns ``score/NAME``."""
    pa, parquet = arrow()
    names = sorted({name for r in records for name in r.get("scores") or {}})
    rows = [
        {
            **{key: value for key, value in record.items() if key != "scores"},
            **{f"score/{name}": (record.get("scores") or {}).get(name) for name in names},
        }
        for record in records
    ]
    partial = path.with_name(f".{path.name}.partial")
    parquet.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    partial.replace(path)


def read_episodes(path: Path, *, turns: bool = False) -> list[Record]:
    """The records of ``episodes.parquet``, with ``scores`` as a mapping again.

    Args:
        path: The file.
        turns: Also read what was said and done in each episode.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not Parquet or lacks a column.
    """
    pa, parquet = arrow()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; `stepopsd eval` writes it")
    try:
        columns = parquet.read_schema(path).names
        wanted = [name for name in columns if turns or name != "turns"]
        rows = parquet.read_table(path, columns=wanted).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    absent = NEEDED - set(columns)
    if absent:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(absent))}; it holds {', '.join(columns)}")
    for row in rows:
        scores = {key.removeprefix("score/"): row.pop(key) for key in list(row) if key.startswith("score/")}
        row["scores"] = {name: value for name, value in scores.items() if value is not None}
    return rows


def arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet; ImportError that names the extra where they are missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("episode records are Parquet and need pyarrow: pip install 'stepopsd[train]'") from error
    return pyarrow, parquet
