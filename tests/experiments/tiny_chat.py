"""Tiny random models of the presets' architectures with byte-level tokenizers, made on the spot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stepopsd.envs.base import Observation
from stepopsd.envs.prompts import turn_prompt

ROLES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<action>", "</action>")  # one token each, so that a tiny model finds them
_MESSAGES = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{{ given }}{% endif %}"
# Like Qwen's: 2.5 adds a system message of its own, 3 has a switch that closes the think block in the prompt.
QWEN2_TEMPLATE = "<|im_start|>system\nYou are helpful.<|im_end|>\n" + _MESSAGES + _GENERATION
QWEN3_TEMPLATE = (
    "{% set given = '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '' %}"
    + _MESSAGES + _GENERATION
)  # fmt: skip
TEXTS = [
    turn_prompt(
        "put a clean mug in coffeemachine.", [("You arrive at cabinet 1. You see nothing.", "look")] * 2,
        Observation("You open the fridge 1. In it, you see a mug 1, and an apple 2.", ("go to shelf 1", "look")),
        2, window=2, think=True,
    ),
    "<think>The task is to cool some bread. The next step is to take it.</think>\n<action>take bread 1</action>",
    "<hindsight>\nfinal_correctness: incorrect\npeer_correct_trajectory:\n1. look\n</hindsight>\n",
]  # fmt: skip


@cache
def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the roles as special tokens and the tags as added ones; keeps any text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXTS * 3, trainer)
    core.add_special_tokens([AddedToken(role, special=True, normalized=False) for role in ROLES])
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = template
    return made


def save_tiny(family: str, folder: Path, *, seed: int = 0, positions: int = 4096) -> Path:
    """Write a model of 2 layers and width 32: ``qwen2`` or ``qwen3``."""
    words = tokenizer(QWEN2_TEMPLATE if family == "qwen2" else QWEN3_TEMPLATE)
    sizes = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "max_position_embeddings": positions, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        "bos_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(head_dim=8, **sizes))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
