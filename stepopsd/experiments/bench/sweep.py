"""The sweep: cases in order of importance until the time is up, each written as soon as it is measured."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepopsd.experiments.bench import machine
from stepopsd.experiments.bench.contenders import field
from stepopsd.experiments.bench.gradient_measure import measure_gradients
from stepopsd.experiments.bench.learners import learners
from stepopsd.experiments.bench.limits import ceilings
from stepopsd.experiments.bench.measure import measure
from stepopsd.experiments.bench.overhead import overheads
from stepopsd.experiments.bench.report import progress, render
from stepopsd.experiments.bench.rows import DTYPES, GRADIENT_OPS, LINEAR_OPS, OPS, ROW_OPS, Case
from stepopsd.experiments.bench.timing import Settings

ROWS = (1, 32, 128, 512, 1024, 4096, 8192, 32768)
VOCABS = (32_000, 50_257, 128_256, 151_936, 262_144)
MASKED = (0.0, 0.5, 0.9)
HEADLINE = 151_936
KEY = ("op", "rows", "vocab", "dtype", "masked", "hidden")
GPU = Settings(rounds=11, sample_seconds=0.005, seconds=4.0)
CPU = Settings(rounds=15, sample_seconds=0.02, seconds=20.0)


def gpu_cases() -> list[Case]:
    """The whole grid, most important first: what a budget cuts off is the end."""
    headline = [Case("pair", n, HEADLINE, "bf16") for n in (8192, 1, 1024, 128, 4096, 32, 512, 32768)]
    single = [Case("score", n, HEADLINE, "bf16") for n in (8192, 1, 1024, 128)]
    learning = gradient_cases((8192, 1024), ("bf16",), width=2048)
    more = gradient_cases((8192, 1024), ("fp32",), width=2048)
    half = [replace(case, masked=0.5) for case in gradient_cases((8192,), ("bf16",), width=2048)]
    masks = [Case("pair", n, HEADLINE, "bf16", masked) for n in (8192, 1024) for masked in (0.5, 0.9)]
    dtypes = [Case("pair", n, HEADLINE, dtype) for dtype in ("fp32", "fp16") for n in (8192, 1024, 1)]
    vocabs = [Case("pair", n, vocab, "bf16") for n in (8192, 128) for vocab in VOCABS if vocab != HEADLINE]
    rest = [
        Case(op, n, vocab, dtype, masked)
        for masked in MASKED for op in OPS for dtype in DTYPES for vocab in VOCABS for n in ROWS
    ]  # fmt: skip
    order = [*headline, *single, *learning, *masks, *dtypes, *vocabs, *half, *more, *rest]
    return list(dict.fromkeys(order))


def gradient_cases(rows: Sequence[int], dtypes: Sequence[str], *, width: int) -> list[Case]:
    """The ops with gradients: from logits, the loss first, then from hidden states of ``width`` numbers."""
    order = ("loss", "backward", "logprobs", "linear-pair", "linear-loss", "shape-loss", "entropies", "linear-logprobs")
    return [
        Case(op, n, HEADLINE, dtype, hidden=width if op in LINEAR_OPS else 0)
        for n in rows for dtype in dtypes for op in order
    ]  # fmt: skip


def cpu_cases() -> list[Case]:
    """A small grid: the headline shape, with gradients too, its masks, one odd and one small vocabulary, few rows."""
    headline = [Case(op, 256, HEADLINE, dtype) for op in OPS for dtype in ("bf16", "fp32")]
    masks = [Case("pair", 256, HEADLINE, "bf16", masked) for masked in (0.25, 0.5, 0.75, 0.9)]
    others = [Case("pair", 256, HEADLINE, "fp16"), *(Case("pair", n, HEADLINE, "bf16") for n in (1, 8, 32, 1024))]
    vocabs = [Case("pair", 512, vocab, "bf16") for vocab in (32_000, 50_257)]
    learning = [case for case in gradient_cases((256,), ("bf16", "fp32"), width=1) if case.op in ROW_OPS]
    learning += [case for case in gradient_cases((64,), ("bf16", "fp32"), width=896) if case.op in LINEAR_OPS]
    return [*headline, *masks, *learning, *others, *vocabs]


def sweep(
    device: str,
    cases: Sequence[Case],
    *,
    budget: float,
    settings: Settings,
    command: str,
    report: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure cases until ``budget`` seconds are over and yield the report as it grows.

    Args:
        device: ``cpu`` or ``cuda``.
        cases: In order of importance.
        budget: Seconds after which no further case begins; the remaining ones are counted, not measured.
        settings: How long to measure each case.
        command: What the reader can type to repeat it.
        report: An unfinished report to go on with.

    Yields:
        The same growing report, plain data: after the limits, after the overheads and after every case.

    Raises:
        ValueError: ``report`` is of another machine, other versions or another number of threads.
    """
    end = time.perf_counter() + budget
    report = _begin(report, device, command)
    report["limits"] = report.get("limits") or ceilings(device)
    yield report
    report["overheads"] = report.get("overheads") or overheads(device)
    yield report
    done = {tuple(record.get(key, 0) for key in KEY) for record in report["cases"]}
    left = [case for case in cases if tuple(getattr(case, key) for key in KEY) not in done]
    report["not_measured"] = len(left)
    for case in left:
        if time.perf_counter() > end:
            break
        compiled = case.vocab == HEADLINE and not (case.masked and case.dtype != "bf16")
        begin = time.perf_counter()
        record, absent = measured(case, device, compiled, settings)
        report["absent"] |= absent
        report["cases"].append({**record, "took": time.perf_counter() - begin})
        report["not_measured"] -= 1
        yield report
    report["limits_at_end"] = ceilings(device)
    yield report


def measured(case: Case, device: str, compiled: bool, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """One case with all who can compute it, and why the others cannot."""
    if case.op in GRADIENT_OPS:
        able = learners(case, device, compiled=compiled)
        return measure_gradients(case, device, able, settings), able.absent
    entrants = field(case, device, compiled=compiled)
    return measure(case, device, entrants, settings), entrants.absent


def _begin(report: dict[str, Any] | None, device: str, command: str) -> dict[str, Any]:
    about = machine.describe(device)
    if report is None:
        return {**about, "command": command, "cases": [], "absent": {}}
    for key in ("chip", "versions", "threads"):
        if report.get(key) != about.get(key):
            raise ValueError(f"cannot resume: {key} was {report.get(key)}, and is {about.get(key)} here")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep and keep ``<chip>-<date>.json``, ``.md`` and ``.png`` up to date in the results folder.

    Returns:
        0; 1 where a contender was wrong or one of this package's backends failed; 2 without the device asked for.
    """
    options = parse(arguments)
    if options.render:
        write(json.loads(options.render.read_text()), options.render.with_suffix(""))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured and nothing was written", file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    cases = gpu_cases() if options.device == "cuda" else cpu_cases()
    cases = [case for case in cases if case.op in (options.ops or (*OPS, *GRADIENT_OPS))][: options.cases or None]
    settings = GPU if options.device == "cuda" else CPU
    if options.rounds:
        more = options.rounds / settings.rounds
        settings = replace(settings, rounds=options.rounds, seconds=settings.seconds * more)
    about = machine.describe(options.device)
    threads = f"-{about['threads']}-threads" if about.get("threads", 1) > 1 else ""
    stem = options.results / (options.name or f"{machine.slug(about['chip'])}-{about['date']}{threads}")
    earlier = _file(stem, "json")
    unfinished = json.loads(earlier.read_text()) if options.resume and earlier.exists() else None
    command = f"python -m stepopsd.experiments.bench.sweep --device {options.device} --budget {options.budget:g}"
    for name in ("threads", "rounds", "cases"):
        command += f" --{name} {getattr(options, name)}" if getattr(options, name) else ""
    command += f" --ops {' '.join(options.ops)}" if options.ops else ""
    options.results.mkdir(parents=True, exist_ok=True)
    told, report = 0, {}
    for report in sweep(
        options.device, cases, budget=options.budget, settings=settings, command=command, report=unfinished
    ):
        write(report, stem)
        for case in report["cases"][told:]:
            print(progress(case), flush=True)
        told = len(report["cases"])
    print(f"{len(report['cases'])} cases measured, {report['not_measured']} left out for time: {stem}.json, .md, .png")
    return int(bool(failures(report)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the ops over many shapes, most important first.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds after which no further case begins")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    parser.add_argument("--rounds", type=int, default=0, help="samples per contender, more on a busy machine")
    parser.add_argument("--cases", type=int, default=0, help="only so many, the most important ones")
    parser.add_argument("--ops", nargs="+", choices=(*OPS, *GRADIENT_OPS), default=(), help="cases of these ops only")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="", help="file name without ending instead of <chip>-<date>")
    parser.add_argument("--resume", action="store_true", help="go on with the report of this name, if there is one")
    parser.add_argument("--render", type=Path, help="only write .md and .png again, from this .json")
    return parser.parse_args(arguments)


def write(report: dict[str, Any], stem: Path) -> None:
    """The report as data, as text and as a picture; the data replace the old file in one step."""
    partial = _file(stem, "json.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(_file(stem, "json"))
    _file(stem, "md").write_text(render(report))
    try:
        from stepopsd.experiments.bench.plot import draw_roofline
    except ImportError:
        return  # a bare GPU box may have no matplotlib; the picture can be drawn from the data elsewhere
    draw_roofline(report, _file(stem, "png"))


def _file(stem: Path, ending: str) -> Path:
    return stem.with_name(f"{stem.name}.{ending}")


def failures(report: dict[str, Any]) -> list[str]:
    """What makes a sweep fail: any contender that is wrong, and any error of this package's own backends."""
    found = []
    for case in report["cases"]:
        for result in case.get("results", []):
            if result.get("wrong") or (result.get("ours") and "error" in result and "GiB" not in result["error"]):
                found.append(f"{result['contender']}: {result['error']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
