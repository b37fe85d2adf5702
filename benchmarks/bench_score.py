"""Scoring one tensor on this machine: logits to the log-probs of the sampled tokens.

    pytest benchmarks/bench_score.py --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import DEVICE, NAMES, ROWS, run
from stepopsd.experiments.bench.rows import Case


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocab", [32_000, 50_257, 151_936])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_score(benchmark: Any, name: str, dtype: str, vocab: int) -> None:
    run(benchmark, name, Case("score", ROWS, vocab, dtype), DEVICE)
