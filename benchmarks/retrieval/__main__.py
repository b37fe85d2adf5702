"""Build, ask and compare: python -m benchmarks.retrieval --passages 10000 100000 1000000 --work DIR"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sqlite3
import sys
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.retrieval.engines import ENGINES, FILES_OF
from benchmarks.retrieval.measure import run
from benchmarks.retrieval.report import render
from stepopsd.retrieval.manifest import write_json

PACKAGES = ("stepopsd", "tantivy", "bm25s", "faiss-cpu", "numpy", "starlette", "uvicorn", "httpx")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--work", type=Path, required=True, help="folder for corpora and indexes (5 GB per million)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrieval.json"))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"about": about(), "sizes": {}}
    for passages in args.passages:
        results["sizes"][str(passages)] = size = {"engines": {}}
        corpus = args.work / f"{passages}.jsonl"
        if not corpus.with_suffix(".queries.json").exists():
            run("corpus", str(passages), corpus, args.work)
        size["corpus_mb"] = corpus.stat().st_size / 1e6
        for name in args.engines:
            folder = args.work / f"{passages}-{FILES_OF.get(name, name)}".replace(" ", "-")
            measured = size["engines"][name] = measure(name, corpus, folder)
            print(passages, name, {k: v for k, v in measured.items() if k != "found"}, file=sys.stderr, flush=True)
        if "stepopsd" in args.engines:
            size["http"] = run("http", "stepopsd", corpus, args.work / f"{passages}-stepopsd")
            print(passages, "HTTP", size["http"], file=sys.stderr, flush=True)
        size["same_as_exact"] = agreement(run("exact", "", corpus, args.work)["found"], size["engines"])
        size["load"] = os.getloadavg()[0]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, results)  # after every size: a long run may be cut short
        args.out.with_suffix(".md").write_text(render(results))


def measure(name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """Build where there is no folder yet (its figures lie beside it then), and ask."""
    noted = folder.with_suffix(".build.json")
    if not noted.exists():
        folder.mkdir()
        write_json(noted, run("build", name, corpus, folder))
    return {"build": json.loads(noted.read_text()), **run("query", name, corpus, folder)}


def agreement(exact: list[list[str]], engines: dict[str, Any]) -> dict[str, float]:
    """Of the passages that exact BM25 has among its three best, the share that an engine has too."""
    shares = {}
    for name, measured in engines.items():
        pairs = list(zip(exact, measured.pop("found"), strict=False))
        shares[name] = sum(len({*a} & {*b}) for a, b in pairs) / max(1, sum(len(a) for a, _ in pairs))
    return shares


def about() -> dict[str, Any]:
    """Chip, day, versions, command."""
    chip = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            chip = value.strip()
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "chip": chip,
        "cores": os.cpu_count(),
        "versions": versions,
        "command": shlex.join(["python", "-m", "benchmarks.retrieval", *sys.argv[1:]]),
        "nice": os.nice(0),
    }


if __name__ == "__main__":
    main()
