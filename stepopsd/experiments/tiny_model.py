"""A tiny model made on the spot: stock Qwen3 blocks and a word-level tokenizer whose decoding is lossless."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

UNKNOWN, PAD, USER, ASSISTANT, END = "<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (UNKNOWN, PAD, USER, ASSISTANT, END)

# One token per role keeps a 20-step dialogue inside a few hundred tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# A piece carries the space before it, so that pieces joined with nothing between them give the text back.
_PIECE = r" ?</?[a-z_]+>| ?\w+| ?[^\w\s]|\s"


@dataclass(frozen=True, slots=True)
class TinyModelConfig:
    """Size of the tiny model.

    Attributes:
        width: Hidden size; ``heads`` must divide it.
        mlp: Inner size of the gated MLP.
        positions: Longest context.
        fan_in: Draw every layer with standard deviation 1/√inputs, the embeddings with 0.1. Qwen3's own 0.02 is meant
            for wide models; a narrow one then takes thousands of steps until it begins to read its context.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    positions: int = 1024
    fan_in: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width / heads must be an even whole number, got {self.width} / {self.heads}")


def split_pieces(text: str) -> list[str]:
    """The word pieces of a text, exactly as the tokenizer cuts it (role tokens aside)."""
    return re.findall(_PIECE, text)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Every word of the texts, each with and without the space before it, sorted; special tokens first."""
    pieces = {piece for text in texts for piece in split_pieces(text)} | {" ", "\n"}
    blank = {piece for piece in pieces if piece.isspace()}
    words = {piece.lstrip(" ") for piece in pieces - blank}
    return [*SPECIALS, *sorted(blank), *sorted(words | {" " + word for word in words})]


def build_tokenizer(vocab: list[str], *, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template; nothing is downloaded.

    Args:
        vocab: Distinct pieces in id order, starting with ``SPECIALS`` (see ``vocabulary``).
        lowercase: Read all text in lower case; the pieces must be lower case then.

    Decoding joins the pieces, so text made of known pieces survives ``decode(encode(text))`` character for
    character, and the text of the first n ids is always a prefix of the whole text.

    Raises:
        ValueError: ``vocab`` repeats a piece or does not start with the special tokens.
    """
    if tuple(vocab[: len(SPECIALS)]) != SPECIALS:
        raise ValueError(f"vocab must start with {SPECIALS}, got {tuple(vocab[: len(SPECIALS)])}")
    if len(set(vocab)) != len(vocab):
        raise ValueError(f"vocab must hold distinct pieces, got {len(vocab) - len(set(vocab))} repeated")
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocab)}, unk_token=UNKNOWN))
    if lowercase:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    tokenizer: PreTrainedTokenizerFast, config: TinyModelConfig | None = None, *, seed: int = 0
) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 causal LM with tied embeddings; the global random state is left alone."""
    config = config or TinyModelConfig()
    # Qwen3's own rotary base of 10,000 is right for short contexts; newer and older transformers name it differently.
    architecture = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.width // config.heads,
        max_position_embeddings=config.positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(architecture)
        if config.fan_in:
            _draw_by_inputs(model)
        return model


@torch.no_grad()
def _draw_by_inputs(model: Qwen3ForCausalLM) -> None:
    for module in model.model.modules():  # not the head: it is tied to the embeddings
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(0.0, module.in_features**-0.5)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.normal_(0.0, 0.1)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write both so that ``from_pretrained(folder)`` loads them without a network."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that version 4 does not know; both know this one.
    settings = Path(folder) / "tokenizer_config.json"
    described = json.loads(settings.read_text(encoding="utf-8"))
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
