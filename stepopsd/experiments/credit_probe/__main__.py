"""Command line of the credit probe: python -m stepopsd.experiments.credit_probe --out DIR."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import tyro

from stepopsd.experiments.credit_probe.plot import draw_probe
from stepopsd.experiments.credit_probe.policy import Teacher, make_policy
from stepopsd.experiments.credit_probe.probe import Finding, Truth, probe
from stepopsd.experiments.credit_probe.setting import METHODS, Kind, consults, methods_of
from stepopsd.experiments.statistics import Interval
from stepopsd.options.checks import closed, positive


def main(
    *,
    out: Path = Path("runs/credit_probe"),
    teachers: tuple[Kind, ...] = get_args(Kind),
    length: int = 5,
    groups: int = 60,
    group_size: int = 8,
    probed: int = 1,
    rolls: int = 8,
    methods: tuple[str, ...] = tuple(METHODS),
    seed: int = 0,
) -> Path:
    """Where does each method put its credit in episodes of which exactly one known turn decides?

    Prints and writes, per method, the share of |advantage| on that turn and the correlation of its advantages with
    Monte-Carlo advantages (re-rolled from the state before and behind every token), with 95 % bootstrap intervals over
    games. The policy takes doors at random; the teacher is the same model with hindsight, which copies a peer's doors
    or understands which one mattered, or an oracle that knows the posterior: an upper bound.

    Args:
        out: Folder for ``credit_probe.json``, ``credit_probe.md`` and ``credit_probe.png``.
        teachers: What the policy was taught to do with a peer's episode; the first one's batch also serves the methods
            without a teacher, the oracle's policy is the one that copies.
        length: Turns of an episode.
        groups: Games of the batch; a multiple of ``length`` weighs all turns alike.
        group_size: Episodes per game.
        probed: Training rows per game with Monte-Carlo advantages.
        rolls: Episodes per state.
        methods: Labels, see ``setting.METHODS``; grpo is always among them, for comparison.
        seed: Of policy and batch.

    Returns:
        Path of the JSON file.

    Raises:
        ValueError: An unknown method or a number out of range.
    """
    if not teachers:
        raise ValueError(f"teachers must be some of {', '.join(get_args(Kind))}, got none")
    methods = ("grpo", *(name for name in methods if name != "grpo"))
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"methods must be some of {'; '.join(METHODS)}, got {'; '.join(unknown)}")
    closed("length", length, 2, 50)
    closed("group_size", group_size, 2, 4096)
    for name, value in (("groups", groups), ("probed", probed), ("rolls", rolls)):
        positive(name, value)
    out.mkdir(parents=True, exist_ok=True)
    findings: dict[Kind, list[Finding]] = {}
    known: dict[Teacher, tuple[Path, Truth]] = {}
    for kind in teachers:
        taught: Teacher = "copies" if kind == "oracle" else kind
        if taught not in known:
            print(f"\nteaching a policy that {taught}", flush=True)
            made = make_policy(out / f"policy-{taught}", length=length, teacher=taught, seed=seed)
            known[taught] = made, Truth(rolls)
        model, truth = known[taught]
        print(f"\nteacher: {kind}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            findings[kind] = probe(
                methods_of(kind, methods, first=kind == teachers[0]), model, Path(scratch), truth, length=length,
                groups=groups, group_size=group_size, probed=probed, oracle=kind == "oracle", seed=seed,
            )  # fmt: skip
    table = markdown(findings, length)
    (out / "credit_probe.md").write_text(table, encoding="utf-8")
    draw_probe(findings, length, out / "credit_probe.png")
    path = out / "credit_probe.json"
    plain = {kind: [finding.plain() for finding in found] for kind, found in findings.items()}
    setting = {
        "length": length,
        "groups": groups,
        "group_size": group_size,
        "probed": probed,
        "rolls": rolls,
        "seed": seed,
    }
    path.write_text(json.dumps({"setting": setting, "findings": plain}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table}\nwritten to {out}")
    return path


def markdown(findings: Mapping[Kind, Sequence[Finding]], length: int) -> str:
    """The table, with what an even spread would give."""
    head = ("teacher", "method", "on the deciding turn", "correlation", "minus grpo's", "measured", "rows", "tokens")
    rows = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---|---:|---:|"]
    for kind, found in findings.items():
        for f in found:
            name = kind if consults(METHODS[f.method]) else "none"
            gain = "" if f.gain is None else _interval(f.gain)
            cells = [name, f.method, _interval(f.share, percent=True), _interval(f.agreement), gain, f.measured,
                     str(f.rows), f"{f.generated:,}"]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    even = f"An even spread over the {length} turns puts {100 / length:.1f} % on the deciding one."
    return "\n".join([*rows, "", f"{even} 95 % bootstrap intervals over games."]) + "\n"


def _interval(value: Interval, *, percent: bool = False) -> str:
    """Estimate and bounds; percents with one digit behind the point, else three."""
    if math.isnan(value.estimate):
        return "none"
    scale, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    middle, low, high = (f"{scale * v:.{digits}f}" for v in (value.estimate, value.low, value.high))
    return f"{middle}{unit} ({low} to {high})"


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m stepopsd.experiments.credit_probe")
    except ValueError as error:
        sys.exit(f"credit_probe: {error}")
