"""One case with gradients measured: every contender checked, then all of them and the limit timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stepopsd.experiments.bench import machine
from stepopsd.experiments.bench.check import tried
from stepopsd.experiments.bench.gradient_check import Truth, differentiate, truth, verify_gradients
from stepopsd.experiments.bench.learners import Learner, Learners
from stepopsd.experiments.bench.limits import cpu_read, cuda_read
from stepopsd.experiments.bench.memory import extra_memory, free_memory
from stepopsd.experiments.bench.problems import Problem, make_problem, required
from stepopsd.experiments.bench.rows import LINEAR_OPS, PRODUCTS, READS, Case, as_words
from stepopsd.experiments.bench.timing import Call, Clock, CpuClock, CudaClock, Settings, Staged, interleaved, paired

BYTES, MATRICES = "bytes only", "products only"


def measure_gradients(case: Case, device: str, field: Learners, settings: Settings) -> dict[str, Any]:
    """Everything about one case with gradients as plain data, like ``measure``.

    ``limit`` names the first of the results: the same bytes read and written, or the same matrix products and nothing
    else, timed in the same turns. The logits are written anew before each call, outside its time.
    """
    record: dict[str, Any] = {**case.as_dict(), "bytes": case.bytes_moved, "operations": case.operations}
    record["limit"] = MATRICES if case.op in LINEAR_OPS else BYTES
    free = free_memory(device)
    if case.input_bytes > 0.9 * free:
        record["skipped"] = f"inputs of {case.input_bytes / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
        return record
    x = make_problem(case, device)
    want = truth(x)
    results = {learner.name: _checked(learner, x, device, want) for learner in field.contenders}
    del want
    results = {record["limit"]: {"contender": record["limit"]}, **results}
    able = [learner for learner in field.contenders if "error" not in results[learner.name]]
    calls: dict[str, Call] = {record["limit"]: limit(x, device)}
    calls |= {learner.name: stages(learner, x) for learner in able}
    calls[record["limit"]](0)  # the others ran when they were checked
    x.refresh()
    clock: Clock = CudaClock() if device == "cuda" else CpuClock()
    taken = interleaved(clock, calls, settings)
    ratios = paired(taken, torch.get_num_threads()) if device == "cpu" else {}
    for name, samples in taken.items():
        results[name] |= {"seconds": samples.summary()} | ({"as_long": ratios[name]} if ratios else {})
    if device == "cuda":
        record["clocks"] = machine.clocks_under(lambda: calls[record["limit"]](0))
    for learner in able:
        call = stages(learner, x)
        call.before()
        results[learner.name]["extra_bytes"] = extra_memory(device, call.run)
        x.refresh()
    return {**record, "results": list(results.values())}


def stages(learner: Learner, x: Problem) -> Staged:
    """What is timed of a contender: forward and backward, or the backward alone."""
    if x.case.op == "backward":
        held: list[tuple[torch.Tensor, ...]] = []

        def prepare() -> None:
            x.refresh()
            held[:] = [learner.forward(x)]

        return Staged(prepare, lambda: differentiate(held.pop(), x))
    return Staged(x.refresh, lambda: differentiate(learner.forward(x), x))


def limit(x: Problem, device: str) -> Staged:
    """The bytes that the op must move, or the products that it must compute, and nothing else."""
    return Staged(x.refresh, _products(x) if x.case.op in LINEAR_OPS else _bytes(x, device))


def _bytes(x: Problem, device: str) -> Callable[[], object]:
    """The active rows read and rewritten, on a GPU copied; and as many read where the op reads twice."""
    read = cuda_read() if device == "cuda" else cpu_read()
    source = required(x.scratch)[0, : x.case.active]
    target = torch.empty_like(source) if device == "cuda" else source
    words, other = as_words(source), source if x.teacher is None else x.teacher[0, : x.case.active]

    def run() -> None:
        if READS.get(x.case.op):
            read([other])
        if target is source:  # a CPU reads what it writes elsewhere, so that a copy moves half as much again
            words.bitwise_not_()
        else:
            target.copy_(source)

    return run


@torch.no_grad()
def _products(x: Problem) -> Callable[[], object]:
    """Logits from active hidden states, and what takes their gradient to the states and to the weight."""
    hidden, weight = required(x.hidden).detach()[0, : x.case.active], required(x.weight).detach()
    logits = hidden.new_empty(x.case.active, x.case.vocab)
    if x.case.op == "linear-pair":
        return lambda: [torch.mm(hidden, weight.T, out=logits) for _ in range(PRODUCTS[x.case.op])]
    of_hidden, of_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight, out=of_hidden)
        torch.mm(logits.T, hidden, out=of_weight)

    return run


def _checked(learner: Learner, x: Problem, device: str, want: Truth) -> dict[str, Any]:
    """The contender's record with its errors against float64, or with the reason why it is not timed."""
    record: dict[str, Any] = {"contender": learner.name, "ours": learner.ours}
    try:
        need = learner.workspace * x.case.rows * x.case.vocab
        agreement = tried(lambda: verify_gradients(learner, x, want), need, device)
    finally:
        x.refresh()
    if isinstance(agreement, dict):
        return record | agreement
    found: dict[str, float | None] = {"difference": agreement.error, "allowed": agreement.allowed}
    if agreement.gradient_error is not None:
        found |= {"gradient_difference": agreement.gradient_error, "gradient_allowed": agreement.gradient_allowed}
    return {**record, **found}
