"""The ``stepopsd bench`` command: one problem on the user's machine, in under a minute."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import arg

from stepopsd.experiments.bench import machine
from stepopsd.experiments.bench.gradient_report import DETAILS as GRADIENT_DETAILS
from stepopsd.experiments.bench.gradient_report import gradient_detail_rows
from stepopsd.experiments.bench.layout import title
from stepopsd.experiments.bench.limits import READ, ceilings
from stepopsd.experiments.bench.report import DETAILS, detail_rows
from stepopsd.experiments.bench.rows import LINEAR_OPS, OPS, Case
from stepopsd.experiments.bench.sweep import measured
from stepopsd.experiments.bench.timing import Settings

QUICK = Settings(rounds=9, sample_seconds=0.01, seconds=6.0)


Op = Literal[
    "pair", "score", "both", "logprobs", "entropies", "backward", "loss", "shape-loss",
    "linear-pair", "linear-logprobs", "linear-loss",
]  # fmt: skip


def bench(
    *,
    rows: int | None = None,
    vocab: int = 151_936,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    masked: float = 0.0,
    op: Op = "both",
    hidden: int = 896,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    compiled: Annotated[bool, arg(name="compile")] = True,
    json_out: Annotated[Path | None, arg(name="json")] = None,
) -> dict[str, Any]:
    """Time the op on this machine beside plain PyTorch, torch.compile, other packages' kernels and a mere read.

    Every contender is first compared with float64; a wrong one is not timed.

    Args:
        rows: Tokens N; 64 on a CPU and 4096 on a GPU where not given.
        vocab: Logits per token.
        dtype: Of the logits.
        masked: Share of the tokens outside steps, whose logits need not be read.
        op: ``pair``: two tensors to shaped advantages; ``score``: one tensor to log-probs; ``both``. With gradients:
            ``logprobs``, ``entropies`` (and log-probs), ``backward`` (of log-probs, by itself), ``loss`` (GRPO),
            ``shape-loss``, and from hidden states ``linear-pair`` (forward), ``linear-logprobs``, ``linear-loss``.
        hidden: Width of the hidden states, for the linear ops.
        threads: CPU threads; torch's own choice where not given.
        device: ``auto`` takes the GPU where there is one.
        compiled: Whether torch.compile takes part; its compilation takes most of the command's time.
        json_out: Also write all figures to this file.

    Returns:
        The report as plain data.

    Raises:
        ValueError: An argument out of range, a device that is not there, or inputs that do not fit the memory.
    """
    where = _device(device)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    count = rows if rows is not None else 4096 if where == "cuda" else 64
    first = Case("pair" if op == "both" else op, count, vocab, dtype, masked, hidden if op in LINEAR_OPS else 0)
    cases = [first, replace(first, op="score")] if op == "both" else [first]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        report = _measured(cases, where, compiled)
    finally:
        torch.set_num_threads(before)
    if json_out is not None:
        json_out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _measured(cases: list[Case], device: str, compiled: bool) -> dict[str, Any]:
    report: dict[str, Any] = {**machine.describe(device), "cases": [], "absent": {}}
    report["limits"] = ceilings(device)
    for case in cases:
        record, absent = measured(case, device, compiled, QUICK)
        if "skipped" in record:
            raise ValueError(f"rows {case.rows} and vocab {case.vocab} do not fit the memory: {record['skipped']}")
        report["absent"] |= absent
        report["cases"].append(record)
        show(record, report)
    print(footer(report))
    return report


def show(case: dict[str, Any], report: dict[str, Any]) -> None:
    """Print one case as a table; plain where rich is not installed."""
    if case["op"] in OPS:
        columns = (*DETAILS, "host") if report["device"] == "cuda" else DETAILS
        rows, limit = detail_rows(case, report), READ
    else:
        columns, rows, limit = GRADIENT_DETAILS, gradient_detail_rows(case, report), case["limit"]
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title(case))
        print("\n".join("  ".join(cell.ljust(14) for cell in line) for line in [list(columns), *rows]))
        return
    shown = Table(title=title(case), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        shown.add_column(name.replace(" ", "\n"), justify="left" if name == "what" else "right", no_wrap=True)
    ours = {r["contender"] for r in case["results"] if r.get("ours")}
    for line in rows:
        style = "bold" if line[0] in ours else "dim" if line[0] == limit else ""
        shown.add_row(*line, style=style)
    Console().print(shown)


def footer(report: dict[str, Any]) -> str:
    """The limits, what the columns mean, and who did not take part."""
    limits, figure = report["limits"], "median" if report["device"] == "cuda" else "minimum"
    if report.get("threads") == 1:
        figure = "minimum (CPU time)"
    where = f"{report['chip']}" + (f", threads: {report['threads']}" if report["device"] == "cpu" else "")
    busy = report.get("load", 0) > 0.5
    lines = [
        *([f"The machine was busy (load {report['load']:.1f}): times may be too long."] if busy else []),
        f"{where}: a large copy moves {limits['copy'] / 1e9:,.1f} GB/s, a large read {limits['read'] / 1e9:,.1f} GB/s.",
        f"time: {figure} of interleaved samples, ±: half their quartile range. of read: share of the speed of reading",
        "the same bytes and nothing else. speed-up: over eager log_softmax. On a CPU both are medians of the ratio in",
        "one round of samples. off by: largest difference from float64.",
        "of limit: of the bytes or matrix products that an op with gradients cannot do without.",
        "memory: peak beyond the inputs, gradients included.",
        *(text for case in report["cases"] if (text := _read_loops(case))),
        *(f"not here: {name}: {reason}" for name, reason in report["absent"].items()),
    ]
    return "\n".join(lines)


def _read_loops(case: dict[str, Any]) -> str:
    """GB/s of every way to read, of which the fastest is the limit, and the share of it that the op comes to."""
    loops: dict[str, float] = next((r["loops"] for r in case["results"] if "loops" in r), {})
    shares: dict[str, float] = next((r["as_long"] for r in case["results"] if r.get("ours") and "as_long" in r), {})
    rates = (
        f"{case['bytes'] / seconds / 1e9:.1f} ({name.removeprefix(f'{READ}: ')}; {shares.get(name, math.nan):.0%})"
        for name, seconds in loops.items()
    )
    return f"{case['op']}, ways to read, GB/s and our share: {', '.join(rates)}." if loops else ""


def _device(device: str) -> str:
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError("device cuda: torch sees no CUDA device here; try --device cpu")
    return ("cuda" if there else "cpu") if device == "auto" else device
