"""The pair op on this machine: logits of student and teacher to shaped advantages.

    pytest benchmarks/bench_shaping.py --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import DEVICE, NAMES, ROWS, run
from stepopsd.experiments.bench.rows import Case


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [0.0, 0.9], ids=["all", "tenth"])
@pytest.mark.parametrize("vocab", [32_000, 151_936])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_pair(benchmark: Any, name: str, dtype: str, vocab: int, masked: float) -> None:
    run(benchmark, name, Case("pair", ROWS, vocab, dtype, masked), DEVICE)
