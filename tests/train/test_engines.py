"""Every engine under the same trainer: its log-probs are those of the policy of the update, and nothing is lost."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from stepopsd.cli import main
from stepopsd.rollout.engines.base import Completion, Sampling
from stepopsd.rollout.engines.results import EngineError, LostResults, completion
from stepopsd.rollout.engines.vllm import VllmEngine
from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.config import RolloutConfig
from stepopsd.train.config_io import dump_config
from stepopsd.train.engine_config import VllmConfig
from stepopsd.train.trainer import Trainer
from tests.extras import missing
from tests.rollout import fake_vllm
from tests.train.test_trainer import config, log, train

needs_httpx = pytest.mark.skipif(importlib.util.find_spec("httpx") is None, reason=missing("httpx"))


@pytest.fixture
def vllm(monkeypatch):
    """The interface of vLLM, importable."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = fake_vllm.LLM, fake_vllm.SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.parametrize("sleep", [0, 1, 2])
def test_colocated_vllm_samples_with_the_weights_of_the_update(model, tmp_path, vllm, sleep):
    rollout = {"engine": "vllm", "vllm": {"sleep": sleep}}
    trainer = train(config(tmp_path / "run", model, rollout=rollout, optim={"updates": 2}))
    records = log(trainer)
    assert all(record["sampler_gap_max"] < 1e-4 for record in records)
    assert any(record["grad_norm"] > 0 for record in records)
    engine = trainer.episodes.engine
    assert engine.version >= 2


def test_a_session_wakes_weights_then_cache_and_sends_only_what_changed(model, tmp_path, vllm):
    trainer = Trainer(config(tmp_path / "run", model, rollout={"engine": "vllm", "vllm": {"sleep": 1}}))
    engine, llm = trainer.episodes.engine, trainer.episodes.engine.transport.llm
    assert llm.options == {"dtype": "float32", "logprobs_mode": "processed_logprobs", "memory": 0.4}
    assert llm.calls == [("sleep", 1)]
    engine.generate([[5, 6]], Sampling(2), seeds=[2**64 - 1])
    engine.generate([[5, 6]], Sampling(2), seeds=[1])
    names = [name for name, _ in llm.calls]
    cycle = ["wake_up", "wake_up", "sleep"]
    assert names == ["sleep", "wake_up", "wake_up", "reload_weights", "reset_prefix_cache", "sleep", *cycle]
    assert [tags for name, tags in llm.calls if name == "wake_up"] == [["weights"], ["kv_cache"]] * 2
    with torch.no_grad():
        next(trainer.policy.model.parameters()).mul_(0.5)
    engine.generate([[5, 6]], Sampling(2), seeds=[1])
    assert [name for name, _ in llm.calls].count("reload_weights") == 2
    assert engine.version == 2


def test_weights_that_were_given_up_are_sent_again(model, tmp_path, vllm):
    trainer = Trainer(config(tmp_path / "run", model, rollout={"engine": "vllm", "vllm": {"sleep": 2}}))
    engine, llm = trainer.episodes.engine, trainer.episodes.engine.transport.llm
    first = engine.generate([[5, 6]], Sampling(4, 0.0), seeds=[1])
    again = engine.generate([[5, 6]], Sampling(4, 0.0), seeds=[1])
    assert [name for name, _ in llm.calls].count("reload_weights") == 2
    assert first == again


def test_finished_episodes_cost_no_request(model, tmp_path, vllm):
    run = config(tmp_path / "run", model, rollout={"engine": "vllm"}, optim={"updates": 1})
    trainer = Trainer(replace(run, env=replace(run.env, eval_splits=())))
    trainer.run()
    [record] = log(trainer)
    assert record["turns_mean"] < 3  # of at most 3: some episodes ended early
    assert FAKES[-1].requests == pytest.approx(16 * record["turns_mean"])


FAKES: list[fake_vllm.LLM] = []


@pytest.fixture(autouse=True)
def remember(monkeypatch):
    """The fake engines of a test, newest last; a run closes its own."""
    FAKES.clear()
    real = fake_vllm.LLM.__init__

    def init(self, *args, **kwargs):
        real(self, *args, **kwargs)
        FAKES.append(self)

    monkeypatch.setattr(fake_vllm.LLM, "__init__", init)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda outputs: outputs[:-1], r"returned \d+ results for \d+ requests"),
        (lambda outputs: outputs[::-1], "belongs to another prompt"),
        (lambda outputs: [aborted(o) for o in outputs], "with 'abort'"),
        (lambda outputs: [without_logprobs(o) for o in outputs], "tokens came back with 0 log-probs"),
    ],
)
def test_what_is_lost_is_an_error(model, tmp_path, vllm, spoil, message):
    trainer = Trainer(config(tmp_path / "run", model, rollout={"engine": "vllm"}))
    FAKES[-1].spoil = spoil
    with pytest.raises(LostResults, match=message):
        trainer.episodes.engine.generate([[5, 6], [6, 7, 8]], Sampling(3), seeds=[1, 2])


def aborted(output):
    output.outputs[0].finish_reason = "abort"
    return output


def without_logprobs(output):
    output.outputs[0].logprobs = None
    return output


def test_a_run_that_loses_results_stops_with_its_updates_saved(model, tmp_path, vllm, monkeypatch, capsys):
    run = config(tmp_path / "run", model, rollout={"engine": "vllm"}, optim={"updates": 5})
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(run))
    real = fake_vllm.LLM.generate

    def breaking(self, *args, **kwargs):
        done = real(self, *args, **kwargs)
        return done[:-1] if (tmp_path / "run" / "metrics.jsonl").exists() and updates(tmp_path) == 2 else done

    monkeypatch.setattr(fake_vllm.LLM, "generate", breaking)
    assert main(["train", "--config", str(file)]) == 1
    assert "results for" in capsys.readouterr().err
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["update-000002"]


def updates(tmp_path):
    return len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


@needs_httpx
def test_a_server_samples_with_the_weights_of_the_update(model, tmp_path):
    server = fake_vllm.Server(str(model), max_model_len=104)
    try:
        options = {"url": server.url, "weights_dir": str(tmp_path), "concurrency": 4}
        trainer = train(config(tmp_path / "run", model, rollout={"engine": "vllm_server", "vllm": options}))
    finally:
        server.close()
    records = log(trainer)
    assert all(record["sampler_gap_max"] < 1e-4 for record in records)
    assert any(record["grad_norm"] > 0 for record in records)
    assert [name for name, _ in server.llm.calls].count("reload_weights") >= 2
    assert not list(tmp_path.glob("stepopsd-weights-*"))


@needs_httpx
def test_a_server_that_cannot_work_says_why(model, tmp_path):
    server = fake_vllm.Server(str(model), max_model_len=104, dev_mode=False)
    run = config(tmp_path / "run", model, rollout={"engine": "vllm_server", "vllm": {"url": server.url}})
    try:
        engine = Trainer(run).episodes.engine
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
            engine.generate([[5, 6]], Sampling(2), seeds=[1])
        server.refuse = True
        engine.transport.load = lambda folder: None
        with pytest.raises(EngineError, match="500"):
            engine.generate([[5, 6]], Sampling(2), seeds=[1])
    finally:
        server.close()
    with pytest.raises(EngineError, match=r"GET http://127.*/health: ConnectError"):
        Trainer(run)


def test_what_is_not_installed_is_named_with_its_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"stepopsd\[vllm\]"):
        Trainer(config(tmp_path / "run", model, rollout={"engine": "vllm"}))
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"stepopsd\[vllm\]"):
        Trainer(config(tmp_path / "run", model, rollout={"engine": "vllm_server"}))


def test_continuous_batching_samples_with_the_weights_of_the_update(model, tmp_path):
    continuous = "transformers.generation.continuous_batching"
    pytest.importorskip(continuous, reason="transformers without continuous batching")
    trainer = train(config(tmp_path / "run", model, rollout={"engine": "continuous"}, optim={"updates": 2}))
    assert all(record["sampler_gap_max"] < 1e-4 for record in log(trainer))


def test_adapters_are_refused(policy):
    policy.model.peft_config = {}
    with pytest.raises(ValueError, match="LoRA"):
        VllmEngine(policy.model, None, max_context=10)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"rollout\.engine must be one of"):
        RolloutConfig(engine="sglang")
    with pytest.raises(ValueError, match=r"rollout\.vllm\.sleep must lie in \[0, 2\], got 3"):
        VllmConfig(sleep=3)
    with pytest.raises(ValueError, match=r"rollout\.vllm\.url must begin with http"):
        VllmConfig(url="localhost:8000")


def test_completions_of_others_are_checked():
    sampling = Sampling(3, stop_ids=frozenset({9}))
    assert completion(0, [4, 9], [-1.0, 1e-9], 3, sampling) == Completion([4, 9], [-1.0, 0.0], "stop")
    assert completion(0, [4, 5, 6], [-1.0] * 3, 3, sampling).finish == "length"
    for ids in ([4, 5], [9, 4, 5], [4, 5, 6, 7], []):
        with pytest.raises(LostResults):
            completion(0, ids, [-1.0] * len(ids), 3, sampling)
    with pytest.raises(FloatingPointError, match="NaN"):
        completion(0, [9], [float("nan")], 3, sampling)


def test_a_run_with_another_engine_is_another_run(model, tmp_path, vllm):
    run = config(tmp_path / "run", model, rollout={"engine": "vllm"}, optim={"updates": 1})
    train(run)
    again = replace(run, rollout=replace(run.rollout, vllm=VllmConfig(sleep=2)), optim=replace(run.optim, updates=2))
    train(again)  # where and how it sleeps may change
    other = replace(again, rollout=replace(again.rollout, engine="transformers"))
    with pytest.raises(ValueError, match=r"rollout\.engine was 'vllm' and is now 'transformers'"):
        train(other)
