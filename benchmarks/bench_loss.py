"""The ops with gradients on this machine, from logits: log-probs, GRPO loss, shaped advantages with their loss.

    pytest benchmarks/bench_loss.py --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import DEVICE, ROWS, learn, learner_names
from stepopsd.experiments.bench.rows import ROW_OPS, Case


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in ROW_OPS for name in learner_names(op)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_from_logits(benchmark: Any, op: str, name: str, dtype: str) -> None:
    learn(benchmark, name, Case(op, ROWS, 151_936, dtype), DEVICE)
