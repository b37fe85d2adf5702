"""The tiny model and its tokenizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepopsd.experiments.tiny_model import (
    ASSISTANT,
    END,
    SPECIALS,
    TinyModelConfig,
    build_model,
    build_tokenizer,
    save,
    split_pieces,
    vocabulary,
)
from stepopsd.rollout.spans import step_spans
from stepopsd.text.chat import ChatFormat, decode

TEXT = (
    "task : move a mug to the shelf\nYou see a cabinet 1, and a shelf 12. There's nothing -= special =-\n"
    "<action>go to cabinet 3</action>\n<hindsight>\nfinal_correctness: incorrect\n1. use x\n</hindsight>\n"
)
WORDS = sorted({piece.strip() for piece in split_pieces(TEXT)} - {""})


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary([TEXT]))


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_pieces_joined_give_the_text_back():
    assert "".join(split_pieces(TEXT)) == TEXT


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["", " ", "\n", "  "])), max_size=12))
@settings(max_examples=60, deadline=None)
def test_decoding_known_words_is_lossless(tokenizer, parts):
    # "mug" and "shelf" without anything between them is one word that nobody knows, so words get a separator.
    text = "".join(word + (gap or " ") for word, gap in parts)
    ids = ids_of(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    assert decode(tokenizer, ids) == text


def test_text_of_first_ids_is_a_prefix(tokenizer):
    ids = ids_of(tokenizer, TEXT)
    whole = decode(tokenizer, ids)
    assert all(whole.startswith(decode(tokenizer, ids[:n])) for n in range(len(ids)))


def test_unknown_word_becomes_the_unknown_id(tokenizer):
    assert tokenizer.unk_token_id in ids_of(tokenizer, "go to zebra 1")


def test_action_span_covers_the_tags_and_not_the_end_of_turn(tokenizer):
    ids = ids_of(tokenizer, f"<action>go to cabinet 3</action>{END}")
    content = ChatFormat(tokenizer).content(ids)
    text = decode(tokenizer, content)
    span = step_spans(tokenizer, content, (0, len(text)))["action_only"]
    assert span == (0, len(ids) - 1)


def test_dialogue_ids_equal_the_template_of_the_whole_dialogue(tokenizer):
    chat = ChatFormat(tokenizer)
    action = "<action>use x</action>"
    response = ids_of(tokenizer, action + END)
    ids = chat.opening("task : move a mug") + response + chat.followup("You see a shelf 1", response)
    messages = [
        {"role": "user", "content": "task : move a mug"},
        {"role": "assistant", "content": action},
        {"role": "user", "content": "You see a shelf 1"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids == ids_of(tokenizer, text)
    assert text.endswith(ASSISTANT)


def test_vocabulary_holds_both_forms_of_a_word_once():
    vocab = vocabulary(["go to shelf", "shelf go"])
    assert {"go", " go", "shelf", " shelf"} <= set(vocab)
    assert len(vocab) == len(set(vocab))


@pytest.mark.parametrize(
    ("vocab", "message"),
    [(["go"], "must start with"), ([*SPECIALS, "go", "go"], "1 repeated")],
)
def test_bad_vocabulary_is_refused(vocab, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(vocab)


@pytest.mark.parametrize(("width", "heads"), [(100, 3), (12, 4), (16, 0)])
def test_width_that_heads_cannot_share_is_refused(width, heads):
    with pytest.raises(ValueError, match="width / heads"):
        TinyModelConfig(width=width, heads=heads)


@pytest.mark.parametrize("fan_in", [False, True])
def test_model_depends_on_its_seed_alone(tokenizer, fan_in):
    config = TinyModelConfig(width=16, layers=1, heads=2, mlp=32, fan_in=fan_in)
    state = torch.get_rng_state()
    first, again, other = (build_model(tokenizer, config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_layers_drawn_by_their_inputs(tokenizer):
    config = TinyModelConfig(width=64, layers=1, heads=2, mlp=256, fan_in=True)
    model = build_model(tokenizer, config, seed=3)
    block = model.model.layers[0]
    for layer in (block.self_attn.q_proj, block.mlp.up_proj, block.mlp.down_proj):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.1)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(block.input_layernorm.weight, torch.ones(64))


def test_saved_folder_loads_without_a_network(tokenizer, tmp_path):
    model = build_model(tokenizer, TinyModelConfig(width=16, layers=1, heads=2, mlp=32))
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    words = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = torch.tensor([ids_of(words, TEXT)])
    assert ids.tolist()[0] == ids_of(tokenizer, TEXT)
    assert decode(words, ids[0].tolist()) == TEXT
    assert ChatFormat(words).stop_ids == {tokenizer.eos_token_id}
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
