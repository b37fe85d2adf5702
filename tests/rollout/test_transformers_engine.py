from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stepopsd.rollout.engines import transformers as transformers_engine
from stepopsd.rollout.engines.base import Completion, Sampling, call_seed
from stepopsd.rollout.engines.model import max_context
from stepopsd.rollout.engines.transformers import TransformersEngine

STOPS = frozenset(range(5, 60))


def prompts_of(count: int, vocab: int, *, low: int = 3, high: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(vocab) for _ in range(draw.randint(low, high))] for _ in range(count)]


def forward_logprobs(model: Any, prompt: list[int], ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of ``ids`` from one pass over the whole row, as a trainer computes them."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return logprobs[torch.arange(len(ids)), torch.tensor(ids)]


def largest_gap(model: Any, prompt: list[int], done: Completion, temperature: float = 1.0) -> float:
    return float((forward_logprobs(model, prompt, done.ids, temperature) - torch.tensor(done.logprobs)).abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_sampler_and_trainer_agree_on_logprobs(model: Any, temperature: float) -> None:
    prompts = prompts_of(13, model.config.vocab_size)
    engine = TransformersEngine(model, prefill_tokens=100)
    done = engine.generate(prompts, Sampling(20, temperature, STOPS), seeds=range(13))
    assert len({len(d.ids) for d in done}) > 3  # rows of different lengths, so the batch has shrunk
    assert max(largest_gap(model, p, d, temperature) for p, d in zip(prompts, done, strict=True)) < 1e-4


def test_completions_end_at_the_first_stop_id_or_at_the_budget(model: Any) -> None:
    done = TransformersEngine(model).generate(
        prompts_of(30, model.config.vocab_size), Sampling(9, 1.0, STOPS), seeds=range(30)
    )
    for d in done:
        assert len(d.ids) == len(d.logprobs) <= 9
        assert not STOPS & set(d.ids[:-1])
        assert d.finish == ("stop" if d.ids[-1] in STOPS else "length")
        assert d.finish == "stop" or len(d.ids) == 9
        assert all(x <= 0 for x in d.logprobs)
    assert {d.finish for d in done} == {"stop", "length"}


def test_batch_composition_does_not_change_samples(model: Any) -> None:
    prompts = prompts_of(12, model.config.vocab_size)
    sampling, engine = Sampling(15, 1.0, STOPS), TransformersEngine(model)
    together = engine.generate(prompts, sampling, seeds=range(12))
    alone = [engine.generate([p], sampling, seeds=[i])[0] for i, p in enumerate(prompts)]
    backwards = engine.generate(prompts[::-1], sampling, seeds=range(11, -1, -1))[::-1]
    assert [d.ids for d in together] == [d.ids for d in alone] == [d.ids for d in backwards]


def test_seed_decides_the_sample(model: Any) -> None:
    [prompt] = prompts_of(1, model.config.vocab_size)
    engine, sampling = TransformersEngine(model), Sampling(12)
    first, again, other = (engine.generate([prompt], sampling, seeds=[s])[0].ids for s in (7, 7, 2**63 + 7))
    assert first == again != other


def test_samples_follow_the_model_distribution(model: Any) -> None:
    [prompt] = prompts_of(1, model.config.vocab_size)
    count = 4000
    seeds = [call_seed("draw", i) for i in range(count)]
    done = TransformersEngine(model).generate([prompt] * count, Sampling(1, 1.5), seeds=seeds)
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1] / 1.5, -1)
    seen = torch.bincount(torch.tensor([d.ids[0] for d in done]), minlength=len(expected)) / count
    top = expected.topk(20).indices
    tolerance = 4.5 * (expected * (1 - expected) / count).sqrt() + 1e-3
    assert ((seen - expected).abs() < tolerance)[top].all()
    assert 0.5 * (seen - expected).abs().sum() < 0.12


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "eager"])
def test_greedy_equals_transformers_generate(model: Any, kind: str) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    chosen = {
        "qwen3": lambda: model,
        "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=90, initializer_range=0.2, **sizes)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2)
        ),
        "eager": lambda: Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=90, num_key_value_heads=2, head_dim=8, initializer_range=0.2, attn_implementation="eager",
                **sizes,
            )
        ),
    }[kind]().eval()
    prompts = prompts_of(5, chosen.config.vocab_size)
    ours = TransformersEngine(chosen).generate(prompts, Sampling(16, 0.0), seeds=[0] * 5)
    for prompt, done in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = chosen.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=None
        )
        assert done.ids == theirs[0, len(prompt) :].tolist()
        assert largest_gap(chosen, prompt, done) < 1e-4


def test_resumed_session_equals_fresh_full_forward(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations that start, pause and end at different times in one cache; prefill split at a shared tail."""
    monkeypatch.setattr(transformers_engine, "SPLIT_GAIN", 0)
    vocab, draw = model.config.vocab_size, random.Random(3)
    engine, sampling = TransformersEngine(model, prefill_tokens=64), Sampling(10, 1.0, STOPS)
    contexts = dict(enumerate(prompts_of(8, vocab)))
    with engine.session() as session:
        for turn in range(4):
            playing = sorted(draw.sample(sorted(contexts), 7))
            seeds = {k: call_seed(k, turn) for k in playing}
            done = session.generate({k: contexts[k] for k in playing}, sampling, seeds=seeds)
            for k in playing:
                assert largest_gap(model, contexts[k], done[k]) < 1e-4
                [fresh] = engine.generate([contexts[k]], sampling, seeds=[seeds[k]])
                assert fresh.ids == done[k].ids
                contexts[k] = contexts[k] + done[k].ids + [draw.randrange(vocab) for _ in range(draw.randint(1, 25))]
            session.drop([playing[0]])
            del contexts[playing[0]]
            contexts[100 + turn] = prompts_of(1, vocab, seed=100 + turn)[0]


def test_rewritten_context_is_computed_again_from_the_first_difference(model: Any) -> None:
    vocab = model.config.vocab_size
    [context] = prompts_of(1, vocab, low=30)
    changed = [*context[:12], (context[12] + 1) % vocab, *context[13:20]]
    engine = TransformersEngine(model)
    with engine.session() as session:
        for ids in (context, changed, changed[:5], context):
            done = session.generate({0: ids}, Sampling(6), seeds={0: 5})[0]
            assert done.ids == engine.generate([ids], Sampling(6), seeds=[5])[0].ids
            assert largest_gap(model, ids, done) < 1e-4


def test_session_computes_each_token_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    forward = TransformersEngine.logits

    def counting(self: Any, cache: Any, rows: Any, ids: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += int((columns >= 0).sum())
        return forward(self, cache, rows, ids, columns)

    monkeypatch.setattr(TransformersEngine, "logits", counting)
    context = prompts_of(1, model.config.vocab_size, low=20)[0]
    with TransformersEngine(model).session() as session:
        for turn in range(5):
            done = session.generate({0: context}, Sampling(6), seeds={0: turn})[0]
            context = context + done.ids + [1, 2, 3]
    assert computed == len(context) - 4  # all but the last response's final token and the three ids behind it


def test_finished_rows_stop_costing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = TransformersEngine.logits

    def recording(self: Any, cache: Any, rows: Any, ids: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return forward(self, cache, rows, ids, columns)

    monkeypatch.setattr(TransformersEngine, "logits", recording)
    prompts = prompts_of(24, model.config.vocab_size, low=10, high=10)
    done = TransformersEngine(model).generate(prompts, Sampling(40, 1.0, STOPS), seeds=range(24))
    assert sizes == sorted(sizes, reverse=True)
    needed = [sum(len(d.ids) > step for d in done) for step in range(len(sizes))]
    assert all(size < 2 * alive for size, alive in zip(sizes, needed, strict=True))


@pytest.mark.parametrize(
    ("lengths", "tail"),
    [([30] * 40, 30), ([20] * 60 + [80] * 4, 20), ([20] * 3 + [25], 25), ([10] * 90 + [40] * 9 + [500], 40)],
)
def test_prefill_is_split_where_padding_would_cost_more_than_a_pass(lengths: list[int], tail: int) -> None:
    assert transformers_engine.shared_tail(lengths) == tail


def test_training_mode_and_gradients_survive_a_call(model: Any) -> None:
    model.train()
    model.lm_head.eval()
    try:
        TransformersEngine(model).generate([[5, 6]], Sampling(3), seeds=[0])
        assert model.training
        assert model.model.layers[0].training
        assert not model.lm_head.training
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
        assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def test_bad_calls_are_refused_by_name(model: Any) -> None:
    engine = TransformersEngine(model)
    with pytest.raises(ValueError, match="context 0 is empty"):
        engine.generate([[]], Sampling(4), seeds=[0])
    with pytest.raises(ValueError, match=r"context 0 has 1020 tokens; with max_new_tokens=8 it exceeds .* 1024"):
        engine.generate([[1] * 1020], Sampling(8), seeds=[0])
    with pytest.raises(ValueError, match="seeds must match prompts"):
        engine.generate([[1]], Sampling(4), seeds=[])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        Sampling(0)
    with pytest.raises(ValueError, match="temperature must be 0"):
        Sampling(1, -0.5)


def test_models_without_full_attention_are_limited_or_refused() -> None:
    sliding = Qwen3Config(
        num_hidden_layers=2, use_sliding_window=True, sliding_window=64, max_window_layers=1,
        max_position_embeddings=512,
    )
    assert max_context(sliding) == 64
    assert max_context(Qwen3Config(max_position_embeddings=512)) == 512
    state_space = type("Config", (), {"layer_types": ["linear_attention", "full_attention"]})()
    with pytest.raises(ValueError, match="linear_attention"):
        max_context(state_space)


def test_nan_weights_are_reported(model: Any) -> None:
    broken = type(model)(model.config).eval()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN logits"):
        TransformersEngine(broken).generate([[1, 2]], Sampling(2), seeds=[0])
