"""What the bench_*.py files share: who takes part on this machine, and one timed case."""

from __future__ import annotations

from typing import Any

import torch

from stepopsd.experiments.bench.check import verify
from stepopsd.experiments.bench.contenders import field
from stepopsd.experiments.bench.gradient_check import truth, verify_gradients
from stepopsd.experiments.bench.gradient_measure import stages
from stepopsd.experiments.bench.learners import learners
from stepopsd.experiments.bench.problems import make_problem
from stepopsd.experiments.bench.rows import LINEAR_OPS, Case, make_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = 1024 if DEVICE == "cuda" else 16
NAMES = [contender.name for contender in field(Case("pair", 1, 8, "fp32"), DEVICE).contenders]


def run(benchmark: Any, name: str, case: Case, device: str) -> None:
    """Check one contender against float64, then let pytest-benchmark time it."""
    contender = next(c for c in field(case, device).contenders if c.name == name)
    rows = make_rows(case, device)
    verify(contender, case, rows)
    masked = f" masked={case.masked:.0%}" if case.masked else ""
    benchmark.group = f"{device} {case.op} {case.dtype} V={case.vocab} N={case.rows}{masked}"
    benchmark.extra_info["bytes"] = case.bytes_read

    def call() -> None:
        contender.run(rows)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=7, warmup_rounds=2)


def learner_names(op: str) -> list[str]:
    """Who can compute an op with gradients here."""
    case = Case(op, 1, 8, "fp32", hidden=8 if op in LINEAR_OPS else 0)
    return [learner.name for learner in learners(case, DEVICE).contenders]


def learn(benchmark: Any, name: str, case: Case, device: str) -> None:
    """The same for an op with gradients: before each call the logits are written anew, outside its time."""
    learner = next(c for c in learners(case, device).contenders if c.name == name)
    problem = make_problem(case, device)
    verify_gradients(learner, problem, truth(problem))
    width = f" H={case.hidden}" if case.hidden else ""
    benchmark.group = f"{device} {case.op} {case.dtype} V={case.vocab} N={case.rows}{width}"
    benchmark.extra_info |= {"bytes": case.bytes_moved, "operations": case.operations}
    stage = stages(learner, problem)

    def call() -> None:
        stage.run()
        if device == "cuda":
            torch.cuda.synchronize()

    def prepare() -> None:
        stage.before()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, setup=prepare, rounds=7, warmup_rounds=2)
