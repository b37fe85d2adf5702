"""One measurement per process, so that memory is that of one engine; results are JSON on standard output."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.retrieval.corpus import Query, write_corpus
from benchmarks.retrieval.engines import ENGINES

BUDGET_S = 10.0  # CPU seconds for one figure; slow engines answer fewer queries
LEAST = 10
TOP = 3


def main(action: str, name: str, corpus: str, folder: str) -> None:
    """What the child process does."""
    measured = {"corpus": make, "build": build, "query": query, "http": http, "exact": exact}[action](
        name, Path(corpus), Path(folder)
    )
    print(json.dumps(measured))


def run(action: str, name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """Measure in a child process. Raises RuntimeError with its last words."""
    command = [sys.executable, "-m", "benchmarks.retrieval.measure", action, name, str(corpus), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{action} of {name} failed: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make(name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """Write the corpus of ``name`` passages and its queries."""
    found = write_corpus(corpus, int(name))
    corpus.with_suffix(".queries.json").write_text(json.dumps([vars(query) for query in found]))
    return {"bytes": corpus.stat().st_size}


def build(name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """Time, CPU time and peak memory of a build, and what it leaves on disk."""
    started, cpu = time.perf_counter(), time.process_time()
    ENGINES[name].build(corpus, folder)
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mb": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
    }


def query(name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """CPU-ms per query one by one and in batches of 256, memory afterwards, and what was found."""
    queries = load_queries(corpus)
    engine = ENGINES[name](folder)
    raw, stopped = [query.raw for query in queries], [query.stopped for query in queries]
    engine.search(raw[-8:], TOP)  # opens files, compiles
    measured: dict[str, Any] = {}
    found: dict[str, list[list[str]]] = {}
    for kind, asked in (("raw", raw), ("stopped", stopped)):
        measured[f"{kind}_single"], found[kind] = timed(engine.search, asked, 1)
        measured[f"{kind}_batch"], _ = timed(engine.search, asked, 256)
    answered = found["raw"]
    hits = sum(query.target in ids for query, ids in zip(queries, answered, strict=False))
    measured |= {"target_in_top3": hits / len(answered), "found": answered[:200], **memory()}
    return measured


def http(name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """Our server and client on this machine: the CPU time of both per query, and queries a second of wall clock."""
    from stepopsd.retrieval.client import HttpRetriever

    queries = load_queries(corpus)
    raw = [query.raw for query in queries]
    command = [sys.executable, "-m", "stepopsd.cli", "retriever", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        measured: dict[str, Any] = {}
        for kind, chunk in (("batch", 128), ("single", 1)):
            client = HttpRetriever([url], chunk=chunk, connections=8 if chunk > 1 else 32, remember=0)
            client.search(raw[-256:], TOP)
            best: dict[str, float] = {}
            for _ in range(3):  # others can only add to a time
                cpu, mine, started = cpu_seconds(server.pid), time.process_time(), time.perf_counter()
                client.search(raw, TOP)
                wall = time.perf_counter() - started
                now = {
                    "queries_per_s": len(raw) / wall,
                    "server_cpu_ms": (cpu_seconds(server.pid) - cpu) / len(raw) * 1e3,
                    "client_cpu_ms": (time.process_time() - mine) / len(raw) * 1e3,
                }
                best = now if not best or now["queries_per_s"] > best["queries_per_s"] else best
            measured[kind] = best | {"queries": len(raw)}
            client.close()
        return measured | memory(server.pid)
    finally:
        server.terminate()
        server.wait()


def exact(name: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """What BM25 by its formula finds for the first 200 raw queries."""
    from stepopsd.retrieval import exact as module

    module.MOST_PASSAGES = 10**9
    index = module.ExactIndex.from_file(corpus)
    queries = [query.raw for query in load_queries(corpus)[:200]]
    return {"found": [[passage.id for passage in found] for found in index.search(queries, TOP)]}


def timed(
    search: Callable[[Sequence[str], int], list[list[str]]], queries: Sequence[str], batch: int
) -> tuple[dict[str, float], list[list[str]]]:
    """CPU-ms and wall-ms per query until the budget is used up, at least ten queries."""
    found: list[list[str]] = []
    started, cpu = time.perf_counter(), time.process_time()
    while len(found) < len(queries) and (len(found) < LEAST or time.process_time() - cpu < BUDGET_S):
        found += search(queries[len(found) : len(found) + batch], TOP)
    cpu_ms = (time.process_time() - cpu) / len(found) * 1e3
    wall_ms = (time.perf_counter() - started) / len(found) * 1e3
    return {"cpu_ms": cpu_ms, "wall_ms": wall_ms, "queries": len(found)}, found


def load_queries(corpus: Path) -> list[Query]:
    """The queries that were written with the corpus."""
    return [Query(**row) for row in json.loads(corpus.with_suffix(".queries.json").read_text())]


def memory(pid: int | None = None) -> dict[str, float]:
    """Resident and anonymous memory of a process in MB; the difference is mapped files, shared among processes."""
    lines = Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return {"rss_mb": sizes["Rss"], "anonymous_mb": sizes["Anonymous"]}


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(*sys.argv[1:])
