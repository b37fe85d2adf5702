"""How fast memory can be read, by loop and page size.

    python -m benchmarks.read_loops [threads] [dtype] [file.json]

Every loop of the read probe, and the row kernel beside them, reads two tensors of 256 rows of 151,936 logits, fp32 or
bf16. With huge pages, where Linux gives them, most of what address translation costs is gone; logits lie on pages of
4 KiB unless someone asks for more.

It works on a busy machine too: each thread (a process here) has a core and makes calls of some 200 µs, all
of the same kind at a time, and only what was read while none was held up is counted.
"""

from __future__ import annotations

import itertools
import json
import mmap
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepopsd.experiments.bench import machine
from stepopsd.ops import native

ROWS, VOCAB = 256, 151_936
BYTES_OF_A_CALL = 2 * 4 * VOCAB * 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = 120.0
TURN = 0.02  # seconds that all threads spend on one kind
PAGES = {"4 KiB": mmap.MADV_NOHUGEPAGE, "huge": mmap.MADV_HUGEPAGE}
KERNEL = "the row kernel"

Work = Callable[[Sequence[Tensor]], object]


class Call(NamedTuple):
    kind: int
    begin: float
    end: float

    @property
    def rate(self) -> float:
        return BYTES_OF_A_CALL / (self.end - self.begin)


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    name = sys.argv[2] if len(sys.argv) > 2 else "fp32"
    dtype = DTYPES[name]
    rows_of_a_call = BYTES_OF_A_CALL // (2 * VOCAB * dtype.itemsize)
    torch.set_num_threads(1)
    works: dict[str, Work] = {loop: partial(_read, i) for i, loop in enumerate(native.read_loops())}
    ids = torch.zeros((1, rows_of_a_call), dtype=torch.int64)
    works[KERNEL] = partial(_score, ids, torch.ones_like(ids, dtype=torch.bool))
    memory = {pages: [_logits(advice, dtype) for _ in range(2)] for pages, advice in PAGES.items()}
    kinds = [(pages, loop) for pages in memory for loop in works]
    until = time.perf_counter() + SECONDS

    def run(number: int) -> list[Call]:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
        rows = range(number * ROWS // threads, (number + 1) * ROWS // threads - rows_of_a_call + 1, rows_of_a_call)
        log = []
        for row in itertools.cycle(rows):
            begin = time.perf_counter()
            if begin > until:
                break
            kind = int(begin / TURN) % len(kinds)
            pages, loop = kinds[kind]
            works[loop]([x[:, row : row + rows_of_a_call] for x in memory[pages]])
            log.append(Call(kind, begin, time.perf_counter()))
        return log

    logs = _in_processes(run, threads)
    report: dict[str, Any] = {**machine.describe("cpu"), "threads": threads, "dtype": name, "results": []}
    for kind, (pages, loop) in enumerate(kinds):
        rates = undisturbed([[call for call in log if call.kind == kind] for log in logs])
        line = {"pages": pages, "loop": loop, "windows": len(rates), "bytes_per_second": spread(rates)}
        report["results"].append(line)
        print(f"{pages:>6} pages, {loop:<27}", *(f"{x / 1e9:5.1f}" for x in line["bytes_per_second"].values()),
              f"GB/s: 5, 25, 50, 75, 95 % of {len(rates)} windows")  # fmt: skip
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(report, indent=1) + "\n")


def _in_processes(run: Callable[[int], list[Call]], count: int) -> list[list[Call]]:
    """Results of one process each, so that no interpreter's lock comes between them; they share the memory."""
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(count)]
    workers = [fork.Process(target=lambda n: pipes[n][1].send(run(n)), args=(n,)) for n in range(count)]
    for worker in workers:
        worker.start()
    logs = [receiver.recv() for receiver, _ in pipes]
    for worker in workers:
        worker.join()
    return logs


def undisturbed(logs: list[list[Call]]) -> list[float]:
    """Bytes per second of all threads together, during each call of the first one that nothing held up anywhere."""
    if not all(logs):
        return []
    usual = statistics.median(call.end - call.begin for log in logs for call in log)
    good = [[call for call in log if call.end - call.begin < 2 * usual] for log in logs]
    starts, rates = [0] * len(logs), []
    for call in good[0]:
        total = call.rate
        for number, other in enumerate(good[1:], start=1):
            while starts[number] < len(other) and other[starts[number]].end <= call.begin:
                starts[number] += 1
            shared, read = 0.0, 0.0
            for peer in other[starts[number] :]:
                if peer.begin >= call.end:
                    break
                overlap = min(peer.end, call.end) - max(peer.begin, call.begin)
                shared, read = shared + overlap, read + overlap * peer.rate
            length = call.end - call.begin
            total = total + read / length if shared > 0.9 * length else float("-inf")
        if total > 0:
            rates.append(total)
    return rates


def spread(rates: list[float]) -> dict[str, float]:
    ranked = sorted(rates)
    return {str(q): ranked[q * len(ranked) // 100] for q in (5, 25, 50, 75, 95)} if ranked else {}


def _logits(advice: int, dtype: torch.dtype) -> Tensor:
    pages = mmap.mmap(-1, ROWS * VOCAB * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(advice)
    return torch.frombuffer(pages, dtype=dtype).normal_(0, 3).view(1, ROWS, VOCAB)


def _read(loop: int, rows: Sequence[Tensor]) -> None:
    for x in rows:
        native.read_probe(x, loop=loop)


def _score(ids: Tensor, active: Tensor, rows: Sequence[Tensor]) -> None:
    native.score_rows(list(rows), ids, active, temperature=1.0, entropy=False)


if __name__ == "__main__":
    main()
