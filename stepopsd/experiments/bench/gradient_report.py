"""The sections of a report on the ops with gradients: one line per case, then every contender."""

from __future__ import annotations

from functools import partial
from typing import Any

from stepopsd.experiments.bench.contenders import COMPILED, EAGER
from stepopsd.experiments.bench.layout import as_long, digits, duration, size, table, timed, times, title

SUMMARY = (
    "op", "N", "H", "dtype", "masked", "ours", "time", "rate", "of limit", "memory", "eager", "torch.compile",
    "best of others", "their memory",
)  # fmt: skip
DETAILS = ("what", "time", "±", "rate", "of limit", "speed-up", "value off by", "gradient off by", "memory")


def gradient_sections(report: dict[str, Any], cases: list[dict[str, Any]]) -> list[str]:
    """Nothing where no case has gradients."""
    if not cases:
        return []
    blocks = ["## With gradients", NOTE, table(SUMMARY, (gradient_summary_row(case, report) for case in cases))]
    for case in cases:
        blocks += [f"### {title(case)}", table(DETAILS, gradient_detail_rows(case, report))]
    return blocks


def gradient_summary_row(case: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """Our fastest way beside the limit and the others; memory beyond the inputs, of ours and of the best other."""
    found, memory = timed(case, report), {r["contender"]: r.get("extra_bytes") for r in case["results"]}
    ours = {r["contender"] for r in case["results"] if r.get("ours")}
    width = f"{case['hidden']:,}" if case.get("hidden") else ""
    shape = [case["op"], f"{case['rows']:,}", width, case["dtype"], f"{case['masked']:.0%}"]
    own = {name: seconds for name, seconds in found.items() if name in ours}
    if not own:
        return [*shape, *[""] * (len(SUMMARY) - len(shape))]
    name, seconds = min(own.items(), key=lambda item: item[1])
    eager = min((n for n in EAGER if n in found), key=found.__getitem__, default=None)
    compiled = min((n for n in found if n.startswith(COMPILED)), key=found.__getitem__, default=None)
    known = (case["limit"], *EAGER)
    others = {n: s for n, s in found.items() if n not in ours and n not in known and not n.startswith(COMPILED)}
    best = min(others, key=others.__getitem__, default=None)
    longer = partial(as_long, case, report, than=name)
    return [
        *shape, name.removeprefix("stepopsd "), duration(seconds), rate(case, seconds),
        f"{longer(case['limit']):.0%}", size(memory[name]), times(longer(eager)), times(longer(compiled)),
        f"{times(longer(best))} {best}" if best else "", size(memory[best]) if best else "",
    ]  # fmt: skip


def gradient_detail_rows(case: dict[str, Any], report: dict[str, Any]) -> list[list[str]]:
    """One line per contender, fastest first; errors at the end."""
    found = timed(case, report)
    rows = []
    for result in sorted(case["results"], key=lambda r: found.get(r["contender"], float("inf"))):
        name = result["contender"]
        if name not in found:
            rows.append([name, result.get("error", "not timed"), *[""] * (len(DETAILS) - 2)])
            continue
        spread, longer = result["seconds"], partial(as_long, case, report, than=name)
        wide = (spread["q3"] - spread["q1"]) / 2 / spread["median"]
        rows.append([
            name, duration(found[name]), f"{wide:.1%}", rate(case, found[name]), f"{longer(case['limit']):.0%}",
            times(longer(EAGER[0])), digits(result.get("difference")), digits(result.get("gradient_difference")),
            size(result.get("extra_bytes")),
        ])  # fmt: skip
    return rows


def rate(case: dict[str, Any], seconds: float) -> str:
    """Bytes or operations per second, of those that cannot be done without."""
    if case["operations"]:
        return f"{case['operations'] / seconds / 1e12:,.3g} TFLOP/s"
    return f"{case['bytes'] / seconds / 1e9:,.1f} GB/s"


NOTE = (
    "Forward and backward, of `backward` the backward alone, of `linear-pair` the forward, which is all it has. The "
    "logits are written anew before each call, outside its time. *of limit*: of the speed of moving the bytes that the "
    "op must move and nothing else (`loss` and `backward`: one read and one write, over the same memory on a CPU and "
    "as a copy on a GPU; `logprobs` and `entropies`: one read more; `shape-loss`: the teacher's read more), or of the "
    "matrix products that it must compute (one, and two more where there is a gradient; per model), timed in the same "
    "turns; *rate* counts these too. *memory*: peak beyond the inputs, gradients included. eager: the faster of two "
    "forms; torch.compile: with or without the entropies, whichever is faster. *off by*: from float64, of values, and "
    "of up to 64 rows of each gradient relative to their sum; beyond 1e-4 (entropies 5e-4) and 1e-3, or the rounding "
    "of the dtypes, nothing is timed."
)
