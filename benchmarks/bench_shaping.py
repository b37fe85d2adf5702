"""The pair op on this machine: every backend, eager PyTorch and torch.compile.

    pytest benchmarks/bench_shaping.py --benchmark-columns=median,iqr,rounds

On a CPU the shapes are small; on a GPU `make gpu` measures more and writes a report.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.contenders import contenders, make_rows, verify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = 1024 if DEVICE == "cuda" else 16
CONTENDERS = contenders(DEVICE)


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("masked", [0.0, 0.9], ids=["all", "tenth"])
@pytest.mark.parametrize("vocab", [32_000, 151_936])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_pair(benchmark: Any, name: str, dtype: torch.dtype, vocab: int, masked: float) -> None:
    rows = make_rows(ROWS, vocab, dtype=dtype, device=DEVICE, masked=masked)
    contender = CONTENDERS[name]
    verify(name, contender, rows)
    benchmark.group = f"{DEVICE} {str(dtype).removeprefix('torch.')} V={vocab} N={ROWS} masked={masked:.0%}"
    benchmark.extra_info["bytes"] = rows.bytes_read

    def call() -> None:
        contender(rows)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=7, warmup_rounds=2)
