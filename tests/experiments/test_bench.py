"""The benchmark refuses to time what is wrong, and measures what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from stepopsd import cli
from stepopsd.experiments.bench import contenders, peers
from stepopsd.experiments.bench.check import WrongResult, verify
from stepopsd.experiments.bench.contenders import Contender, Field, field, from_scorer
from stepopsd.experiments.bench.limits import READ, ceilings
from stepopsd.experiments.bench.measure import measure
from stepopsd.experiments.bench.memory import cache_bytes, extra_memory, free_memory
from stepopsd.experiments.bench.rows import Case, Rows, make_rows
from stepopsd.experiments.bench.timing import CpuClock, Settings, interleaved

FAST = Settings(rounds=3, sample_seconds=0.0, seconds=0.0)
TINY = Case("pair", 5, 97, "bf16", 0.5)


def eager(case: Case) -> Contender:
    return from_scorer("eager", case, contenders.score_logsumexp)


def test_a_case_knows_what_must_be_read() -> None:
    assert TINY.active == 3
    assert TINY.bytes_read == 3 * 2 * 97 * 2
    assert Case("score", 5, 97, "fp32").bytes_read == 5 * 97 * 4
    assert Case("score", 4, 10, "fp32", 1.0).active == 1
    x = make_rows(TINY, "cpu")
    assert x.student.shape == (1, 5, 97)
    assert x.active.sum() == 3


@pytest.mark.parametrize(
    "arguments", [("pairs", 1, 1, "bf16"), ("pair", 0, 1, "bf16"), ("pair", 1, 1, "int8"), ("pair", 1, 1, "bf16", 1.5)]
)
def test_a_case_out_of_range_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        Case(*arguments)


@pytest.mark.parametrize("masked", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("op", ["pair", "score"])
def test_everything_on_this_machine_agrees_with_float64(op: str, dtype: str, masked: float) -> None:
    case = Case(op, 9, 1031, dtype, masked)
    entrants = field(case, "cpu", compiled=False).contenders
    assert {"stepopsd torch", *contenders.EAGER} <= {c.name for c in entrants}
    for contender in entrants:
        agreement = verify(contender, case, make_rows(case, "cpu"))
        assert agreement.error <= agreement.allowed
        assert contender.rounds or agreement.allowed < 1.01e-4


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("op", ["pair", "score"])
@pytest.mark.parametrize("name", contenders.dispatch.BACKENDS)
def test_backends_agree_with_float64_as_the_benchmark_calls_them(name: str, op: str, entropy: bool) -> None:
    device = "cuda" if torch.cuda.is_available() and name != "cpu" else "cpu"
    reason = contenders.dispatch.unavailable(name, device)
    if reason is not None:
        pytest.skip(reason)
    case = Case(op, 3, 523, "bf16", 0.4)
    verify(contenders.backend(name, case, entropy=entropy), case, make_rows(case, device))


def test_torch_compile_agrees_with_float64() -> None:
    case = Case("pair", 3, 65, "fp32", 0.5)
    verify(contenders.compiled_logsumexp(case), case, make_rows(case, "cpu"))


def test_an_interpreted_kernel_is_no_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(contenders.dispatch, "unavailable", lambda name, device: None if name == "triton" else "no")
    entrants = field(TINY, "cpu", peers=False, compiled=False)
    assert not any(c.ours for c in entrants.contenders)
    assert "interpreter" in entrants.absent["stepopsd triton"]


def test_a_wrong_contender_is_refused() -> None:
    case = Case("pair", 5, 97, "fp32")
    x = make_rows(case, "cpu")
    right = eager(case).run
    verify(Contender("right", right), case, x)
    with pytest.raises(WrongResult, match=r"nan is off by nan"):
        verify(Contender("nan", lambda x: x.advantages * float("nan")), case, x)
    with pytest.raises(WrongResult, match=r"lazy is off by"):
        verify(Contender("lazy", lambda x: x.advantages), case, x)
    with pytest.raises(WrongResult, match=r"nearly is off by 0\.0002.*\(allowed 0\.0001\)"):
        verify(Contender("nearly", lambda x: right(x) + 2e-4), case, x)


def test_rounding_to_16_bits_is_allowed_only_to_those_that_round() -> None:
    case = Case("score", 40, 4001, "bf16")
    x = make_rows(case, "cpu")

    def in_bf16(x: Rows) -> torch.Tensor:
        return x.student.log_softmax(-1).gather(-1, x.ids[..., None])[..., 0]

    with pytest.raises(WrongResult, match="off by"):
        verify(Contender("bf16", in_bf16), case, x)
    agreement = verify(Contender("bf16", in_bf16, rounds=True), case, x)
    assert 1e-3 < agreement.error <= agreement.allowed < 0.3
    with pytest.raises(WrongResult, match="off by"):
        verify(Contender("worse", lambda x: in_bf16(x) * 1.05, rounds=True), case, x)


@pytest.mark.parametrize("op", ["pair", "score"])
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_installed_peers_agree_with_float64(peer: peers.Peer, op: str) -> None:
    if "cpu" not in peer.devices and (torch.cuda.is_available() or peer.name.startswith(("flash", "QuACK"))):
        pytest.skip("runs on a GPU only; the sweep checks it there")
    try:
        scorer = peer.load()
    except Exception as error:  # as find_peers does
        pytest.skip(f"{error}; {peer.install}")
    case = Case(op, 6, 1031, "bf16", 0.5)
    verify(from_scorer(peer.name, case, scorer, rounds=peer.rounds), case, make_rows(case, "cpu"))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none", ignore_index=ignore_index)


def test_cross_entropy_kernels_are_called_with_rows_and_ignored_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    flash, quack = ModuleType("flash"), ModuleType("quack")
    flash.cross_entropy_loss = lambda logits, labels: (cross_entropy(logits, labels), None)  # type: ignore[attr-defined]
    quack.cross_entropy_fwd = cross_entropy  # type: ignore[attr-defined]
    for name in ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton", "quack"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.ops.triton.cross_entropy", flash)
    monkeypatch.setitem(sys.modules, "quack.cross_entropy", quack)
    x = make_rows(TINY, "cpu")
    for load in (peers.flash_attention, peers.quack):
        verify(from_scorer("", TINY, load()), TINY, x)
        assert load()(x.student_store, x)[~x.active].abs().sum() == 0


def test_a_missing_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", None)
    found, absent = peers.find_peers(TINY, "cpu")
    assert found == []
    assert "pip install trl" in absent["TRL selective_log_softmax"]
    assert absent["QuACK cross-entropy"] == "computes cuda tensors only"


def test_every_contender_is_timed_and_a_wrong_one_is_not() -> None:
    wrong = Contender("wrong", lambda x: x.advantages, ours=True)
    broken = Contender("broken", lambda x: x.advantages.view(7, 7, 7))
    big = Contender("big", lambda x: x.advantages, workspace=1 << 50)
    record = measure(TINY, "cpu", Field((eager(TINY), wrong, broken, big), {}), FAST)
    results = {r["contender"]: r for r in record["results"]}
    assert results["eager"]["seconds"]["samples"] == 3
    assert 0 < results["eager"]["seconds"]["min"] <= results["eager"]["seconds"]["median"]
    assert results["eager"]["difference"] <= 1e-4
    assert "seconds" in results[READ]
    assert results["wrong"]["wrong"]
    assert results["broken"]["error"].startswith("RuntimeError")
    assert "GiB beyond the inputs" in results["big"]["error"]
    assert not any("seconds" in results[name] for name in ("wrong", "broken", "big"))
    assert json.loads(json.dumps(record)) == record


def test_a_case_beyond_the_memory_is_skipped_with_the_reason() -> None:
    case = Case("pair", 1 << 40, 4096, "fp32")
    record = measure(case, "cpu", Field((eager(case),), {}), FAST)
    assert "GiB are free" in record["skipped"]
    assert "results" not in record


def test_contenders_take_turns_in_orders_that_change() -> None:
    seen: list[str] = []
    samples = interleaved(
        CpuClock(), {name: lambda _, name=name: seen.append(name) for name in "abc"}, FAST
    )
    rounds = seen[3:]  # the first three are for the number of calls per sample
    orders = ["".join(rounds[:3]), "".join(rounds[3:9:2]), "".join(rounds[9::2])]
    assert rounds[3:9:2] == rounds[4:9:2]  # known to be short: made once before the sample
    assert rounds[9::2] == rounds[10::2]
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(orders)) > 1
    assert [len(s.seconds) for s in samples.values()] == [3, 3, 3]


def test_short_calls_fill_a_sample() -> None:
    calls: list[int] = []
    interleaved(CpuClock(), {"a": calls.append}, Settings(rounds=3, sample_seconds=1e-3, seconds=1.0))
    assert len(calls) > 100


@pytest.mark.parametrize("native", [False, True])
def test_extra_memory_is_the_peak_beyond_the_inputs(native: bool) -> None:
    x = torch.ones(1 << 24)
    for call, want in ((lambda: x.sum(), 0), (lambda: x.exp(), 64), (lambda: x.exp().exp() * 2, 128)):
        call()
        got = extra_memory("cpu", call, native=native)
        assert got is None or abs(got / 2**20 - want) < 8
    assert free_memory("cpu") > cache_bytes("cpu") > 0


def test_native_memory_counts_too(capfd: pytest.CaptureFixture[str]) -> None:
    def beside_torch() -> None:
        np.ones(1 << 23).sum()

    beside_torch()
    assert extra_memory("cpu", beside_torch) == 0
    seen = extra_memory("cpu", beside_torch, native=True)
    assert seen is None or abs(seen / 2**20 - 64) < 8
    assert capfd.readouterr().err == ""


def test_the_limits_of_the_memory_are_bandwidths() -> None:
    limits = ceilings("cpu", size=64 << 20)
    assert limits.keys() == {"copy", "read"}
    assert all(1e8 < rate < 1e13 for rate in limits.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted where there is no GPU")
def test_the_read_kernel_reads_every_word() -> None:
    read_kernel = pytest.importorskip("stepopsd.experiments.bench.read_kernel", reason="a Triton kernel")
    rng = torch.Generator().manual_seed(0)
    for count in (1, 1023, 1024, 5000):
        words = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32, generator=rng)
        read_kernel.check(words)
        if count >= 1024:
            before = read_kernel.read_all([words]).clone()
            words[1000] ^= 1
            assert not torch.equal(read_kernel.read_all([words]), before)
    read_kernel.check(torch.randn(3, 2051, generator=rng).bfloat16())


def test_the_command_prints_tables_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out, threads = tmp_path / "bench.json", torch.get_num_threads()
    words = ["--rows", "3", "--vocab", "301", "--masked", "0.5", "--threads", "1", "--no-compile", "--json", str(out)]
    assert cli.main(["bench", "--device", "cpu", *words]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "pair, N = 3, V = 301, bf16, 50% masked" in printed
    assert "score, N = 3" in printed
    for name in ("read only", "stepopsd torch", "eager log_softmax"):
        assert name in printed
    report = json.loads(out.read_text())
    assert [case["op"] for case in report["cases"]] == ["pair", "score"]
    assert report["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "rows and vocab must be at least 1"),
        (["--masked", "2"], "masked must lie in"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--rows", "9999999999", "--no-compile"], "do not fit the memory"),
        (["--device", "cuda"], "sees no CUDA device"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert cli.main(["bench", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("stepopsd bench: ")
    assert error.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", ["pair", "score"])
def test_a_case_on_the_gpu_has_device_host_and_replay_times(op: str) -> None:
    case = Case(op, 64, 4099, "bf16", 0.5)
    entrants = field(case, "cuda", compiled=False)
    record = measure(case, "cuda", entrants, Settings(rounds=3, sample_seconds=1e-3, seconds=1.0))
    results = {r["contender"]: r for r in record["results"]}
    assert not [r["error"] for r in results.values() if r.get("ours") and "error" in r]
    for name in (READ, contenders.EAGER[0], "stepopsd triton"):
        assert results[name]["replay_seconds"]["median"] > 0
        assert results[name]["host_seconds"] > 0
    assert results[contenders.EAGER[0]]["extra_bytes"] > 0
    assert json.loads(json.dumps(record)) == record
