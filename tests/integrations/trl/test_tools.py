"""Environments as tools: the steps are where TRL's own loop says that the policy spoke."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from transformers import AutoTokenizer

from stepopsd.experiments.tiny_model import TinyModelConfig, build_model, build_tokenizer, vocabulary
from tests.examples.loading import example
from tests.extras import missing

pytest.importorskip("trl", reason=missing("trl"))

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "mercury"}}\n</tool_call>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen3 that knows Qwen3's chat template and the words of a little encyclopedia."""
    from stepopsd.experiments.tiny_model import save

    module = example("trl_search")
    texts = [q for q, _ in module.QUESTIONS] + [f"{p.title} {p.text}" for p in module.PASSAGES]
    template = (resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    texts += [CALL, "mercury", template]  # TRL finds an answer behind the template's own words
    tokenizer = build_tokenizer(vocabulary(texts))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.eos_token = "<|im_end|>"
    model = build_model(tokenizer, TinyModelConfig(width=32, layers=2, heads=2, mlp=64, positions=2048))
    where = tmp_path_factory.mktemp("qwen3")
    save(model, tokenizer, where)
    return where


def test_tool_calls_are_the_steps_and_what_tools_say_is_in_none(folder, tmp_path, monkeypatch):
    module = example("trl_search")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    call = tokenizer(f"{CALL}<|im_end|>")
    answer = tokenizer("mercury<|im_end|>")
    seen = []
    trainer_class = module.StepOPSDGRPOTrainer

    class Scripted(trainer_class):
        """Calls the tool once; then answers, every other row rightly."""

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            first = not hasattr(self, "asked")
            self.asked = True
            if first:
                return [list(call["input_ids"]) for _ in prompt_ids], None
            del self.asked
            wrong = tokenizer("closest<|im_end|>")["input_ids"]
            return [list(answer["input_ids"] if i % 2 else wrong) for i in range(len(prompt_ids))], None

        def _with_credit(self, inputs, output):
            found = super()._with_credit(inputs, output)
            seen.append((inputs, found))
            return found

    monkeypatch.setattr(module, "StepOPSDGRPOTrainer", Scripted)
    module.main(["--model", str(folder), "--steps", "1", "--out", str(tmp_path), "--span", "clean_step_no_observation"])
    _, output = seen[0]
    mask = output["completion_mask"].bool()
    sampled = mask & output["tool_mask"].bool()
    assert (mask & ~sampled).any(), "the tool's answer is in the row"
    assert output["advantages"].shape == mask.shape
    assert not output["advantages"][~sampled].any()
    rights = torch.tensor([i % 2 == 1 for i in range(len(mask))])
    assert (output["advantages"][rights][sampled[rights]] > 0).all()
    assert (output["advantages"][~rights][sampled[~rights]] < 0).all()


def test_a_random_model_runs_through_the_example(folder, tmp_path):
    trainer = example("trl_search").main(["--model", str(folder), "--steps", "2", "--out", str(tmp_path)])
    assert trainer.state.global_step == 2
