"""The ops from hidden states and an LM head on this machine.

    pytest benchmarks/bench_linear.py --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import DEVICE, ROWS, learn, learner_names
from stepopsd.experiments.bench.rows import LINEAR_OPS, Case

WIDTH = 2048 if DEVICE == "cuda" else 256


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in LINEAR_OPS for name in learner_names(op)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_from_hidden_states(benchmark: Any, op: str, name: str, dtype: str) -> None:
    learn(benchmark, name, Case(op, ROWS, 32_000, dtype, hidden=WIDTH), DEVICE)
