"""A tiny Qwen3 policy, made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from stepopsd.train import episodes
from stepopsd.train.policy import Policy
from tests.train.toy import TASKS, WordGame

WORDS = (
    "<pad> <unk> <|im_start|> <|im_end|> user assistant look go to shelf cup <hindsight> </hindsight> "
    "final_correctness : correct incorrect peer_correct_trajectory <peer_correct_trajectory> "
    "</peer_correct_trajectory> . 1 2 3 take"
).split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


def make_policy(seed: int = 0) -> Policy:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.set_num_threads(1)  # tiny matrices: a second thread only waits
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, max_position_embeddings=512,
        eos_token_id=WORDS.index("<|im_end|>"), pad_token_id=0,
    )
    return Policy(Qwen3ForCausalLM(config).eval(), tokenizer)


@pytest.fixture
def policy() -> Policy:
    return make_policy()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny policy in a folder, and a trainer that plays the word game with it."""
    monkeypatch.setattr(episodes, "AlfworldEnv", WordGame)
    monkeypatch.setattr("stepopsd.train.trainer.tasks_of", lambda env, split: TASKS)
    policy = make_policy()
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
