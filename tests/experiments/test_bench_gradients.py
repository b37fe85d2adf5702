"""The ops with gradients: wrong values and wrong gradients are refused, and everything that runs here is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stepopsd import cli
from stepopsd.experiments.bench import learner_peers, sweep
from stepopsd.experiments.bench.check import WrongResult
from stepopsd.experiments.bench.contenders import EAGER
from stepopsd.experiments.bench.gradient_check import truth, verify_gradients
from stepopsd.experiments.bench.gradient_measure import BYTES, MATRICES, limit, measure_gradients, stages
from stepopsd.experiments.bench.learners import Learner, Learners, compiled_logsumexp, learners, plain
from stepopsd.experiments.bench.policy_terms import score_logsumexp
from stepopsd.experiments.bench.problems import Problem, make_problem, required
from stepopsd.experiments.bench.report import render
from stepopsd.experiments.bench.rows import GRADIENT_OPS, LINEAR_OPS, Case
from stepopsd.experiments.bench.timing import CpuClock, Settings, Staged, interleaved
from stepopsd.ops import dispatch

FAST = Settings(rounds=3, sample_seconds=0.0, seconds=0.0)


def tiny(op: str, dtype: str = "fp32", masked: float = 0.4) -> Case:
    return Case(op, 7, 331, dtype, masked, 24 if op in LINEAR_OPS else 0)


def eager(case: Case) -> Learner:
    return plain("eager", case, score_logsumexp)


@pytest.mark.parametrize("masked", [0.0, 0.4])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("op", GRADIENT_OPS)
def test_everything_on_this_machine_agrees_with_float64(op: str, dtype: str, masked: float) -> None:
    case = tiny(op, dtype, masked)
    x = make_problem(case, "cpu")
    want = truth(x)
    entrants = learners(case, "cpu", compiled=False).contenders
    assert {"stepopsd torch", *EAGER} <= {c.name for c in entrants}
    for learner in entrants:
        agreement = verify_gradients(learner, x, want)
        assert agreement.error <= agreement.allowed
        assert (agreement.gradient_error is None) == (op == "linear-pair")
        if dtype == "fp32" and agreement.gradient_error is not None:
            assert agreement.gradient_error < 1e-4


@pytest.mark.parametrize("op", ["loss", "linear-loss"])
def test_torch_compile_agrees_with_float64(op: str) -> None:
    case = tiny(op)
    x = make_problem(case, "cpu")
    verify_gradients(compiled_logsumexp(case), x, truth(x))


def through(case: Case, change: Callable[[Problem, tuple[Tensor, ...]], tuple[Tensor, ...]]) -> Learner:
    """Eager PyTorch with its result changed."""
    return Learner("changed", lambda x: change(x, eager(case).forward(x)))


@pytest.mark.parametrize("op", [op for op in GRADIENT_OPS if op != "linear-pair"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_right_value_with_a_wrong_gradient_is_refused(op: str, dtype: str) -> None:
    case = tiny(op, dtype)
    x = make_problem(case, "cpu")
    want = truth(x)

    def twice(_: Problem, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return 2 * found[0] - found[0].detach(), *found[1:]

    verify_gradients(eager(case), x, want)
    with pytest.raises(WrongResult, match=r"the gradient of the .* is off by"):
        verify_gradients(through(case, twice), x, want)


def test_a_gradient_without_the_softmax_is_refused() -> None:
    case = tiny("logprobs", "bf16")
    x = make_problem(case, "cpu")

    def constant_normaliser(x: Problem) -> tuple[Tensor, ...]:
        logits = x.logits()
        picked = logits.gather(-1, x.ids[..., None])[..., 0].float() - logits.detach().float().logsumexp(-1)
        return (picked.where(x.active, 0),)

    with pytest.raises(WrongResult, match="the gradient of the logits is off by"):
        verify_gradients(Learner("no softmax", constant_normaliser, rounds=True), x, truth(x))


@pytest.mark.parametrize("op", GRADIENT_OPS)
def test_a_wrong_value_is_refused(op: str) -> None:
    case = tiny(op)
    x = make_problem(case, "cpu")
    with pytest.raises(WrongResult, match=r"off by 0\.0003"):
        verify_gradients(through(case, lambda _, found: (found[0] + 3e-4, *found[1:])), x, truth(x))


def test_a_wrong_weight_gradient_is_refused() -> None:
    case = tiny("linear-logprobs")
    x = make_problem(case, "cpu")

    def frozen_in_part(x: Problem) -> tuple[Tensor, ...]:
        weight = required(x.weight)
        logits = required(x.hidden) @ torch.cat((weight[:1].detach(), weight[1:])).T
        return (score_logsumexp(logits, x.ids, "none")[0].where(x.active, 0),)

    with pytest.raises(WrongResult, match="the gradient of the weight is off by"):
        verify_gradients(Learner("partly", frozen_in_part), x, truth(x))


def test_calls_that_overwrite_the_logits_find_them_fresh() -> None:
    case = tiny("loss")
    x = make_problem(case, "cpu")
    inplace = next(c for c in learners(case, "cpu", peers=False, compiled=False).contenders if "in place" in c.name)
    found = []
    for _ in range(2):
        call = stages(inplace, x)
        call.before()
        assert torch.equal(required(x.scratch), required(x.pristine))
        call.run()
        found.append(required(x.gradient).clone())
        assert not torch.equal(required(x.scratch), required(x.pristine))
        assert required(x.gradient).untyped_storage().data_ptr() == required(x.scratch).untyped_storage().data_ptr()
    assert torch.equal(*found)


def test_ratios_keep_off_the_edges_of_the_clip() -> None:
    x = make_problem(Case("loss", 64, 101, "fp32"), "cpu")
    logits = required(x.pristine)[:, :-1].double()
    logprobs = logits.gather(-1, x.ids[..., None])[..., 0] - logits.logsumexp(-1)
    jumps = (x.old - logprobs).abs()
    assert bool(((jumps - 0.1).abs().minimum((jumps - 0.6).abs()) < 1e-5).all())
    assert 0 < int((jumps > 0.5).sum()) < 64


def test_work_before_a_call_is_not_timed() -> None:
    order: list[str] = []
    slow = Staged(lambda: [order.append("before"), torch.ones(1 << 22).exp_().sum()], lambda: order.append("run"))
    samples = interleaved(CpuClock(), {"a": slow}, FAST)["a"]
    assert order == ["before", "run"] * 6  # once to know how long it takes, three samples, two short calls before one
    assert max(samples.seconds) < 5e-4


def test_the_least_bytes_and_operations_of_a_case() -> None:
    case = Case("loss", 4, 10, "bf16", 0.5)
    assert [replace(case, op=op).bytes_moved for op in ("loss", "backward", "logprobs", "shape-loss")] == [
        80, 80, 120, 120,
    ]  # fmt: skip
    linear = Case("linear-loss", 4, 10, "bf16", 0.5, 8)
    assert linear.operations == 3 * 2 * 2 * 10 * 8
    assert replace(linear, op="linear-pair").operations == 2 * 2 * 2 * 10 * 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"op": "loss", "hidden": 4}, "hidden must be"),
        ({"op": "linear-loss"}, "hidden must be"),
        ({"op": "loss", "dtype": "fp16"}, "needs? a loss scale"),
    ],
)
def test_a_case_out_of_range_is_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(**{"op": "loss", "rows": 2, "vocab": 8, "dtype": "fp32", **words})


@pytest.mark.parametrize("op", ["logprobs", "backward", "shape-loss", "linear-pair", "linear-loss"])
def test_a_measured_case_has_limit_times_and_memory(op: str) -> None:
    case = tiny(op)
    wrong = through(case, lambda _, found: (found[0] * 2 + 1, *found[1:]))
    big = Learner("big", eager(case).forward, workspace=1 << 50)
    record = measure_gradients(case, "cpu", Learners((eager(case), wrong, big), {}), FAST)
    results = {r["contender"]: r for r in record["results"]}
    assert record["limit"] == (MATRICES if op in LINEAR_OPS else BYTES)
    assert next(iter(results)) == record["limit"]
    assert results[record["limit"]]["seconds"]["min"] > 0
    assert results["eager"]["seconds"]["samples"] == 3
    assert results["eager"]["extra_bytes"] >= (0 if op == "linear-pair" else case.rows * case.vocab * 4)
    assert results["changed"]["wrong"]
    assert "GiB beyond the inputs" in results["big"]["error"]
    assert json.loads(json.dumps(record)) == record


def test_the_limit_computes_what_an_op_cannot_do_without() -> None:
    for op in GRADIENT_OPS:
        x = make_problem(tiny(op, masked=0.0), "cpu")
        limit(x, "cpu")(0)
    record = measure_gradients(Case("loss", 1 << 40, 4096, "fp32"), "cpu", Learners((), {}), FAST)
    assert "GiB are free" in record["skipped"]


def test_a_backend_without_a_gradient_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "no_gradients", lambda name: "none" if name == "torch" else None)
    for op in GRADIENT_OPS:
        field = learners(tiny(op), "cpu", peers=False, compiled=False)
        there = "stepopsd torch" in {learner.name for learner in field.contenders}
        assert there == (op == "linear-pair")
        assert field.absent.get("stepopsd torch") == (None if there else "none")


def test_missing_peers_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trl.trainer.utils", None)
    found, absent = learner_peers.find_learner_peers(tiny("loss"), "cpu")
    assert found == []
    assert "pip install trl" in absent["TRL functions"]
    assert absent["Liger GRPO loss, no entropies"] == "computes cuda tensors only"


def test_the_grids_have_every_op_and_begin_with_the_pair() -> None:
    gpu = sweep.gpu_cases()
    first = [next(i for i, case in enumerate(gpu) if case.op == op) for op in ("pair", "score", "loss", "linear-pair")]
    assert first == sorted(first)
    assert {case.op for case in gpu[12:20]} == set(GRADIENT_OPS)
    assert set(GRADIENT_OPS) <= {case.op for case in sweep.cpu_cases()}
    assert all(case.rows == 8192 for case in gpu[12:20])


def test_a_report_of_chosen_ops_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [tiny("loss", masked=0.0), tiny("linear-pair", "bf16", 0.0), Case("pair", 2, 64, "bf16")]
    monkeypatch.setattr(sweep, "cpu_cases", lambda: cases)
    monkeypatch.setattr(sweep, "CPU", FAST)
    monkeypatch.setattr(sweep, "ceilings", lambda device: {"copy": 1e10, "read": 2e10})
    monkeypatch.setattr(sweep, "overheads", lambda device: [])
    words = ["--device", "cpu", "--results", str(tmp_path), "--name", "x", "--ops", "loss", "linear-pair"]
    assert sweep.main(words) == 0
    report = json.loads((tmp_path / "x.json").read_text())
    assert [case["op"] for case in report["cases"]] == ["loss", "linear-pair"]
    assert report["command"].endswith("--ops loss linear-pair")
    text = (tmp_path / "x.md").read_text()
    assert text == render(report)
    assert "### linear-pair, N = 7, V = 331, bf16, H = 24" in text
    assert "| what | time | ± | rate | of limit | speed-up |" in text
    assert "stepopsd torch, in place" in text
    done = len(report["cases"])
    assert sweep.main([*words, "--resume"]) == 0
    assert len(json.loads((tmp_path / "x.json").read_text())["cases"]) == done


def test_the_command_takes_ops_with_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = ["--rows", "3", "--vocab", "301", "--threads", "1", "--no-compile", "--json", str(out), "--device", "cpu"]
    assert cli.main(["bench", "--op", "linear-loss", "--hidden", "16", *words]) == 0
    printed = capsys.readouterr().out
    assert "linear-loss, N = 3, V = 301, bf16, H = 16" in printed
    assert "products only" in printed
    assert json.loads(out.read_text())["cases"][0]["hidden"] == 16
    assert cli.main(["bench", "--op", "loss", "--dtype", "fp16", *words]) == 1
    assert "loss scale" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", GRADIENT_OPS)
def test_a_case_on_the_gpu_is_measured(op: str) -> None:
    case = Case(op, 64, 4099, "bf16", 0.5, 64 if op in LINEAR_OPS else 0)
    record = measure_gradients(case, "cuda", learners(case, "cuda", compiled=False), FAST)
    assert not [r["error"] for r in record["results"] if r.get("ours") and "error" in r]
    assert all(r["seconds"]["median"] > 0 for r in record["results"] if "error" not in r)
