"""A report as Markdown: the head, one line per case, then every contender of every case."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from stepopsd.experiments.bench.contenders import COMPILED, EAGER
from stepopsd.experiments.bench.gradient_report import gradient_sections
from stepopsd.experiments.bench.layout import as_long, digits, duration, size, table, timed, times, title
from stepopsd.experiments.bench.limits import READ
from stepopsd.experiments.bench.rows import OPS

DETAILS = ("what", "time", "±", "GB/s", "of read", "speed-up", "off by", "memory")
SUMMARY = (
    "op", "N", "V", "dtype", "masked", "ours", "time", "GB/s", "of read", "of copy", "eager", "torch.compile",
    "best of others",
)  # fmt: skip


def render(report: dict[str, Any]) -> str:
    """The whole report; sections without data are left out."""
    every = [case for case in report["cases"] if "results" in case]
    cases = [case for case in every if case["op"] in OPS]
    blocks = [_head(report), _noise(report, every)]
    if cases:
        blocks += ["## Summary", _summary_note(report), table(SUMMARY, (summary_row(c, report) for c in cases))]
    blocks += gradient_sections(report, [case for case in every if case["op"] not in OPS])
    blocks += _overheads(report)
    blocks += _left_out(report)
    if cases:
        blocks += ["## Every contender", _detail_note(report)]
    for case in cases:
        columns = (*DETAILS, "host") if _on_gpu(report) else DETAILS
        blocks += [f"### {title(case)}", table(columns, detail_rows(case, report)), _clocks(case)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def progress(case: dict[str, Any]) -> str:
    """One line on a case that was just measured."""
    if "skipped" in case:
        return f"{title(case)}: skipped, {case['skipped']}"
    errors = [f"{r['contender']}: {r['error']}" for r in case["results"] if "error" in r]
    found = [r["contender"] for r in case["results"] if "seconds" in r]
    return "\n  ".join([f"{title(case)}: {len(found)} timed in {case.get('took', 0):.1f} s", *errors])


def summary_row(case: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """One line of the summary: our fastest backend beside the limits and the others."""
    found = timed(case, report)
    ours = {r["contender"] for r in case["results"] if r.get("ours")}
    shape = [case["op"], f"{case['rows']:,}", f"{case['vocab']:,}", case["dtype"], f"{case['masked']:.0%}"]
    entrants = {name: s for name, s in found.items() if name in ours and not name.endswith("entropies")}
    if not entrants:
        return [*shape, *[""] * 8]
    name, seconds = min(entrants.items(), key=lambda item: item[1])
    rate = case["bytes"] / seconds
    eager = min((n for n in EAGER if n in found), key=found.__getitem__, default=None)
    others = {n: s for n, s in found.items() if n not in ours and n not in (READ, COMPILED, *EAGER)}
    best = min(others, key=others.__getitem__, default=None)
    longer = partial(as_long, case, report, than=name)
    return [
        *shape, name.removeprefix("stepopsd "), duration(seconds), f"{rate / 1e9:,.1f}",
        f"{longer(READ):.0%}", f"{rate / report['limits']['copy']:.0%}",
        times(longer(eager)), times(longer(COMPILED)), f"{times(longer(best))} {best}" if best else "",
    ]  # fmt: skip


def detail_rows(case: dict[str, Any], report: dict[str, Any]) -> list[list[str]]:
    """One line per contender, fastest first, the read on top; errors at the end."""
    device, found = report["device"], timed(case, report)
    rows = []
    for result in sorted(case["results"], key=lambda r: found.get(r["contender"], float("inf"))):
        name = result["contender"]
        if name not in found:
            rows.append([name, result.get("error", "not timed"), *[""] * (len(DETAILS) - 2 + (device == "cuda"))])
            continue
        spread, longer = result.get("replay_seconds", result["seconds"]), partial(as_long, case, report, than=name)
        launched = device == "cuda" and "replay_seconds" not in result and "host_seconds" in result
        wide = (spread["q3"] - spread["q1"]) / 2 / spread["median"]
        line = [
            name, duration(found[name]) + (" (call)" if launched else ""), f"{wide:.1%}",
            f"{case['bytes'] / found[name] / 1e9:,.1f}", f"{longer(READ):.0%}",
            times(longer(EAGER[0])), digits(result.get("difference")), size(result.get("extra_bytes")),
        ]  # fmt: skip
        if device == "cuda":
            host = result.get("host_seconds", 0.0)  # not measured where calls are long
            line.append("waits" if host is None else duration(host) if host else "")
        rows.append(line)
    return rows


def _on_gpu(report: dict[str, Any]) -> bool:
    return bool(report["device"] == "cuda")


def _head(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    where = (
        f"{report.get('multiprocessors')} multiprocessors, driver {report.get('driver')}"
        if _on_gpu(report)
        else f"{report.get('cores')} cores, {report.get('threads')} threads used, {report.get('instruction_set')}"
    )
    limits = _limits("Limits of the same run", report.get("limits"))
    again = _limits("; at its end", report.get("limits_at_end"))
    return "\n".join([
        f"# {report['chip']}, {report['date']}", "", f"Command: `{report['command']}`  ",
        f"Machine: {where}, last-level cache {report['cache_bytes'] / 2**20:.0f} MiB  ", f"Versions: {versions}  ",
        f"{limits}{again}.",
    ])  # fmt: skip


def _limits(label: str, limits: dict[str, float] | None) -> str:
    if not limits:
        return ""
    return f"{label}: copy {limits['copy'] / 1e9:,.1f} GB/s (read plus written), read {limits['read'] / 1e9:,.1f} GB/s"


def _noise(report: dict[str, Any], cases: list[dict[str, Any]]) -> str:
    spreads = [r["seconds"] for case in cases for r in case["results"] if "seconds" in r]
    if not spreads:
        return ""
    width = statistics.median((s["q3"] - s["q1"]) / s["median"] for s in spreads)
    text = f"Noise: half of all quartile ranges are wider than {width:.1%} of their median"
    if _on_gpu(report):
        return f"{text}."
    above = statistics.median(s["median"] / s["min"] for s in spreads) - 1
    return f"{text}; medians lie {above:.1%} above minima; load {report.get('load', 0):.1f} at the start."


def _summary_note(report: dict[str, Any]) -> str:
    figure, ratios = "minima of interleaved samples (with one thread, of CPU time)", ""
    if any("as_long" in r for case in report["cases"] for r in case.get("results", ())):
        ratios = " Ratios, *of copy* aside, are medians over rounds of samples of the ratio within the round."
    if _on_gpu(report):
        figure = "medians, of replayed graphs where calls are short"
    return (
        f"Times are {figure}. GB/s counts every logit of active tokens once. *of read*: share of the bandwidth of a "
        "kernel that only reads the same bytes, timed in the same turns; *of copy*: of a large copy. Last columns: "
        "how many times longer the others take (eager: the faster of two forms; others: other packages)." + ratios
    )


def _detail_note(report: dict[str, Any]) -> str:
    note = (
        "*off by*: largest difference from float64 on up to 64 of the timed rows, of shaped advantages (α = λ = 1, no "
        "step budget) or log-probs; beyond 1e-4, or beyond the rounding of the logits' dtype for those that round to "
        "it, nothing is timed. *±*: half the quartile range of the samples. *speed-up*: over eager log_softmax. "
        "*memory*: peak beyond the inputs."
    )
    if not _on_gpu(report):
        return note
    return (
        f"{note} *host*: time of the call itself while the device is busy. *(call)*: calls back to back, where the "
        "others' figures are graph replays."
    )


def _clocks(case: dict[str, Any]) -> str:
    clocks = case.get("clocks")
    if not clocks:
        return ""
    return (
        f"Under load: SM {clocks['sm_mhz']:.0f} MHz, memory {clocks['memory_mhz']:.0f} MHz, {clocks['power_w']:.0f} W, "
        f"{clocks['temperature_c']:.0f} °C."
    )


def _overheads(report: dict[str, Any]) -> list[str]:
    records = report.get("overheads")
    if not records:
        return []
    kinds = ("seconds", "replay_seconds", "host_seconds") if _on_gpu(report) else ("seconds",)
    names = {"seconds": "call", "replay_seconds": "replay", "host_seconds": "host"}
    rows = [
        [r["backend"], r["stage"], f"{r['tokens']:,}", *(duration(r[k]) if r.get(k) else "" for k in kinds)]
        for r in records
    ]
    note = "Rows of 64 logits, so that it is the calls that are timed; steps of 32 tokens, 8 to a trajectory."
    return ["## Cost of a call", note, table(("backend", "stage", "tokens", *(names[k] for k in kinds)), rows)]


def _left_out(report: dict[str, Any]) -> list[str]:
    lines = [f"- {title(case)}: {case['skipped']}" for case in report["cases"] if "skipped" in case]
    if report.get("not_measured"):
        lines.append(f"- {report['not_measured']} further cases: the time was up")
    lines += [f"- {name}: {reason}" for name, reason in report["absent"].items()]
    return ["## Left out", "\n".join(lines)] if lines else []
