"""transformers' continuous batching behind the engine protocol, on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepopsd.rollout.engines.base import Sampling
from stepopsd.rollout.engines.continuous import ContinuousEngine
from stepopsd.rollout.engines.results import LostResults
from tests.rollout.test_transformers_engine import STOPS, largest_gap, prompts_of

pytest.importorskip("transformers.generation.continuous_batching", reason="transformers without continuous batching")


@pytest.fixture
def small():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=199, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen3ForCausalLM(config).train()


def worst(model, prompts, done, temperature=1.0):
    return max(largest_gap(model.eval(), p, d, temperature) for p, d in zip(prompts, done, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 0.0])
def test_sampler_and_trainer_agree_on_logprobs(small, temperature):
    prompts = prompts_of(9, 199)
    done = ContinuousEngine(small).generate(prompts, Sampling(12, temperature, STOPS), seeds=range(9))
    assert small.training
    assert small.config._attn_implementation == "sdpa"
    for d in done:
        assert d.finish == ("stop" if d.ids[-1] in STOPS else "length")
        assert not STOPS & set(d.ids[:-1])
        assert d.finish == "stop" or len(d.ids) == 12
    assert worst(small, prompts, done, temperature or 1.0) < 1e-4


def test_greedy_is_the_most_likely_token_and_budgets_hold(small):
    with ContinuousEngine(small).session() as session:
        done = session.generate({3: [5, 6, 7], 8: [9]}, Sampling(6, 0.0), seeds={3: 0, 8: 1}, budgets={8: 2})
    assert [len(done[3].ids), len(done[8].ids)] == [6, 2]
    with torch.no_grad():
        assert small.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax() == done[3].ids[0]


def test_a_new_session_samples_with_the_new_weights(small):
    prompts = prompts_of(4, 199)
    engine = ContinuousEngine(small)
    engine.generate(prompts, Sampling(6), seeds=range(4))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert worst(small, prompts, engine.generate(prompts, Sampling(6), seeds=range(4))) < 1e-4


def test_conversations_grow_within_a_session(small):
    prompts = prompts_of(3, 199)
    with ContinuousEngine(small).session() as session:
        first = session.generate(dict(enumerate(prompts)), Sampling(5), seeds={0: 1, 1: 2, 2: 3})
        grown = {0: [*prompts[0], *first[0].ids, 17], 2: [*prompts[2], *first[2].ids, 18, 19]}
        session.drop([1])
        second = session.generate(grown, Sampling(5), seeds={0: 4, 2: 5})
        assert sorted(second) == [0, 2]
    assert worst(small, [grown[0], grown[2]], [second[0], second[2]]) < 1e-4


class Manager:
    """Answers as a manager does: ``outputs`` one by one, then nothing."""

    def __init__(self, outputs, *, accepts=True, running=False):
        self.outputs, self.accepts, self.running = list(outputs), accepts, running

    def add_request(self, input_ids, request_id=None, max_new_tokens=None, eos_token_id=None):
        return request_id if self.accepts else None

    def get_result(self, request_id=None, timeout=None):
        return self.outputs.pop(0) if self.outputs else None

    def is_running(self):
        return self.running

    def start(self):
        pass

    def stop(self, block=True, timeout=None, keep_for_next_session=False, hard_stop=False):
        pass

    def destroy(self):
        pass


def output(name, error=None):
    return SimpleNamespace(
        request_id=name, generated_tokens=[4, 5], logprobs=[-1.0, -1.0], error=error, is_finished=lambda: True
    )


@pytest.mark.parametrize(
    ("manager", "message"),
    [
        (Manager([output("1/0")]), "1 of 2 results lost: batching ended"),
        (Manager([output("1/0")], running=True), "1 of 2 results lost: batching took too long"),
        (Manager([output("1/0"), output("1/1", "no pages left")]), "request 1/1 failed: no pages left"),
        (Manager([], accepts=False), "was refused: the manager has stopped"),
    ],
)
def test_what_the_manager_drops_is_an_error(small, monkeypatch, manager, message):
    monkeypatch.setattr(type(small), "init_continuous_batching", lambda self, **options: manager)
    engine = ContinuousEngine(small, patience_s=0.01)
    with pytest.raises(LostResults, match=message):
        engine.generate([[5], [6, 7]], Sampling(2), seeds=[0, 1])


def test_calls_that_cannot_fit_are_refused(small):
    engine = ContinuousEngine(small)
    with pytest.raises(ValueError, match=r"context 0 has 510 tokens.* exceeds the model's 512 positions"):
        engine.generate([[5] * 510], Sampling(3), seeds=[0])
    with pytest.raises(ValueError, match="context 0 is empty"):
        engine.generate([[]], Sampling(3), seeds=[0])
    small.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="needs attn_implementation in"):
        ContinuousEngine(small)
