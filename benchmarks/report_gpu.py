"""Measure the pair op on this machine's GPU and write results/<date>-<chip>.json and .md.

    python -m benchmarks.report_gpu --results benchmarks/results

Exits with 2, writing nothing, where there is no NVIDIA GPU. Every figure is a median of 20 samples of at least 10 ms;
inputs rotate when they would fit in the cache; each contender is first compared with float64 on the rows to be timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, Rows, backend, eager_log_softmax, eager_logsumexp, make_rows, verify

BASELINE = "eager log_softmax"
OURS = "stepopsd triton"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured and nothing was written", file=sys.stderr)
        return 2
    report = measure(options)
    stem = f"{report['date']}-{slug(report['chip'])}"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    text = render(report)
    (options.results / f"{stem}.md").write_text(text)
    print(text)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the pair op on this machine's GPU.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 512, 4096, 8192])
    parser.add_argument("--masked", type=float, nargs="+", default=[0.0, 0.5, 0.9])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def slug(chip: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import triton

    from benchmarks.timing import ceilings

    properties = torch.cuda.get_device_properties(0)
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "chip": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "triton": triton.__version__,
        },
        "command": f"python -m benchmarks.report_gpu --rows {' '.join(map(str, options.rows))} "
                   f"--masked {' '.join(map(str, options.masked))} --vocab {options.vocab}",
        "vocab": options.vocab,
        "dtype": "bfloat16",
        "ceilings": ceilings(),
        "timings": [],
    }  # fmt: skip
    for count in options.rows:
        torch.compiler.reset()
        for masked in options.masked:
            print(f"N={count} masked={masked:.0%}", file=sys.stderr, flush=True)
            report["timings"] += time_case(count, options.vocab, masked, properties.L2_cache_size)
    return report


def contenders(masked: float) -> dict[str, Contender]:
    found = {OURS: backend("triton")}
    if masked == 0:
        found[f"{OURS}, entropies"] = backend("triton", entropy=True)
    return {
        **found,
        BASELINE: eager_log_softmax,
        "eager logsumexp": eager_logsumexp,
        "torch.compile": torch.compile(eager_logsumexp, dynamic=False),
    }


def time_case(count: int, vocab: int, masked: float, cache: int) -> list[dict[str, Any]]:
    from benchmarks.timing import per_call, per_replay

    torch.cuda.empty_cache()
    pair = 2 * count * vocab * 2
    copies = max(1, math.ceil(4 * cache / pair))
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda", "masked": masked}
    inputs = [make_rows(count, vocab, **settings, seed=seed) for seed in range(copies)]
    timings = []
    for name, contender in contenders(masked).items():
        line: dict[str, Any] = {"rows": count, "masked": masked, "contender": name, "bytes": inputs[0].bytes_read}
        try:
            verify(name, contender, inputs[0])
            line["seconds"] = spread(per_call(contender, inputs))
            if name.startswith(OURS):
                line["replay_seconds"] = spread(per_replay(contender, inputs))
            line["extra_bytes"] = extra_memory(contender, inputs[0])
        except torch.OutOfMemoryError:
            line["error"] = "out of memory"
        timings.append(line)
    return timings


def spread(samples: list[float]) -> dict[str, float]:
    return {"median": statistics.median(samples), "low": samples[0], "high": samples[-1]}


def extra_memory(contender: Contender, rows: Rows) -> int:
    """Peak bytes that a call allocates beyond its inputs."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender(rows)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    copy, read = report["ceilings"]["copy"], report["ceilings"]["read"]
    lines = [
        f"# Pair op on {report['chip']}, {report['date']}",
        "",
        f"Command: `{report['command']}`  ",
        f"Versions: {versions}  ",
        f"V = {report['vocab']:,}, {report['dtype']}. Ceilings of the same run: copy {copy / 1e9:,.0f} GB/s (read plus "
        f"written), read-only kernel {read / 1e9:,.0f} GB/s.",
        "",
        "GB/s counts both logits rows of every active token once. *call*: calls queued back to back, with the host's "
        "cost where it is not hidden; *replay*: the same from a CUDA graph. Medians of 20 samples.",
        "",
        "| N | masked | what | call, µs | replay, µs | GB/s | of copy | of read | faster than eager | extra memory |",
        "|--:|--:|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    baseline = {(t["rows"], t["masked"]): t for t in report["timings"] if t["contender"] == BASELINE}
    for timing in report["timings"]:
        head = f"| {timing['rows']} | {timing['masked']:.0%} | {timing['contender']} "
        if "error" in timing:
            lines.append(f"{head}| {timing['error']} |" + " |" * 6)
            continue
        seconds = timing["seconds"]["median"]
        replay = timing.get("replay_seconds", {}).get("median")
        rate = timing["bytes"] / (replay or seconds)
        eager = baseline.get((timing["rows"], timing["masked"]), {}).get("seconds", {}).get("median")
        lines.append(
            f"{head}| {seconds * 1e6:,.1f} | {f'{replay * 1e6:,.1f}' if replay else ''} | {rate / 1e9:,.0f} "
            f"| {rate / copy:.0%} | {rate / read:.0%} | {f'{eager / seconds:.1f}×' if eager else ''} "
            f"| {timing['extra_bytes'] / 2**20:,.1f} MiB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
