"""Tiny offline models and tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from stepopsd.text.chat import ChatFormat
from tests.rollout.toy import LINES, SPECIALS, TEMPLATE


def wrap(core: Tokenizer) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def bpe() -> Any:
    """Byte-level BPE whose merges cross tag boundaries (no pre-split at punctuation)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*LINES * 3, "><" * 400, "> " * 400], trainer)
    return wrap(core)


@pytest.fixture(scope="session")
def words() -> Any:
    """Word-level; decoding joins words with spaces."""
    vocab = [*SPECIALS, *sorted({word for line in LINES for word in line.split()})]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    return wrap(core)


@pytest.fixture(scope="session")
def fallback() -> Any:
    """SentencePiece-like: a leading space is stripped when decoding, unknown characters fall back to bytes."""
    pieces = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), "\u2581"]
    pieces += sorted({c for line in LINES for c in line if c.isascii() and c != " "})
    merges = [("<", "a"), ("<a", "c"), ("n", ">"), ("\u2581", "d"), (">", "\u2581")]
    vocab = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    return wrap(core)


@pytest.fixture(scope="session")
def chat(bpe: Any) -> ChatFormat:
    return ChatFormat(bpe)


@pytest.fixture(scope="session")
def model(bpe: Any) -> Qwen3ForCausalLM:
    """Weights drawn wide, so that next-token distributions are far from uniform."""
    config = Qwen3Config(
        vocab_size=len(bpe), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=1024, initializer_range=0.2,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()
