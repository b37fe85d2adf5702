from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepopsd.rollout.spans import step_spans
from stepopsd.text.chat import decode
from stepopsd.text.spans import token_span

KINDS = ("bpe", "words", "fallback")
PIECES = [
    "<action>", "</action>", "<action>go to desk 2</action>", "<think>", "</think>", " ", "\n", "x<action>é",
    "🙂</action>🚀", "東京", "n>", "<|user|>", "…</action> d", "put", "<", ">",
]


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def touched(tokenizer: Any, ids: list[int], chars: tuple[int, int]) -> set[int]:
    """The definition, slowly: tokens without which a character of the range is incomplete or missing."""
    text = decode(tokenizer, ids)
    complete, dangling = [], []
    for count in range(len(ids) + 1):
        prefix = decode(tokenizer, ids[:count])
        same = next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), len(prefix))
        complete.append(max([same, *complete[-1:]]))
        dangling.append(prefix != text[: complete[-1]])
    low, high = chars
    return {
        i
        for i in range(len(ids))
        if complete[i] < high and (complete[i + 1] > low or (dangling[i + 1] and complete[i + 1] == low))
        and (complete[i + 1] > complete[i] or dangling[i + 1])
    }


@pytest.mark.parametrize("kind", KINDS)
def test_action_block_is_covered_exactly(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = encode(tokenizer, "<think> the mug is cold , </think><action>go to microwave 1</action> desk 2")
    text = decode(tokenizer, ids)
    block = re.search(r"<action>.*</action>", text)
    assert block is not None
    start, stop = token_span(tokenizer, ids, block.span())
    assert set(range(start, stop)) == touched(tokenizer, ids, block.span())
    assert block.group() in decode(tokenizer, ids[start:stop])


def test_tokens_merged_over_the_tag_boundary_are_included(bpe: Any) -> None:
    ids = encode(bpe, "first . </think><action>go to microwave 1</action> <action>open")
    text = decode(bpe, ids)
    block = re.search(r"<action>.*?</action>", text)
    assert block is not None
    start, stop = token_span(bpe, ids, block.span())
    covered = decode(bpe, ids[start:stop])
    assert covered != block.group()  # the merges of this vocabulary do cross
    assert block.group() in covered
    assert block.group() not in decode(bpe, ids[start + 1 : stop])
    assert block.group() not in decode(bpe, ids[start : stop - 1])


@pytest.mark.parametrize("kind", ["bpe", "fallback"])
def test_all_tokens_of_a_multibyte_character_belong_to_it(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = encode(tokenizer, "d") + encode(tokenizer, "鬱")[-3:] + encode(tokenizer, ">")[-1:]
    text = decode(tokenizer, ids)
    at = text.index("鬱")
    start, stop = token_span(tokenizer, ids, (at, at + 1))
    assert stop - start == 3
    assert decode(tokenizer, ids[start:stop]) == "鬱"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_span_of_any_sampled_ids_covers_the_block(kind: str, request: pytest.FixtureRequest, data: Any) -> None:
    tokenizer = request.getfixturevalue(kind)
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    ids: list[int] = []
    for _ in range(data.draw(st.integers(1, 8))):
        if draw.random() < 0.5:
            ids += encode(tokenizer, draw.choice(PIECES))
        else:
            ids += [draw.randrange(len(tokenizer)) for _ in range(draw.randint(1, 4))]
    text = decode(tokenizer, ids)
    if not text:
        return
    block = re.search(r"<action>.*?</action>", text, re.DOTALL)
    low = draw.randrange(len(text))
    chars = block.span() if block else (low, draw.randint(low + 1, len(text)))
    start, stop = token_span(tokenizer, ids, chars)
    if block:
        assert block.group() in decode(tokenizer, ids[start:stop])
    if "\ufffd" not in text:
        assert set(range(start, stop)) >= touched(tokenizer, ids, chars) >= {start, stop - 1}
    else:
        assert 0 <= start < stop <= len(ids)


def test_bytes_that_undo_a_character_keep_it_in_the_span(fallback: Any) -> None:
    """Byte fallback spells a whole run as replacement characters once one byte of it is invalid."""
    run = [fallback.convert_tokens_to_ids(f"<0x{b:02X}>") for b in (0xE2, 0x82, 0xAC, 0xFF)]
    ids = [*encode(fallback, "d")[-1:], *run, *encode(fallback, ">")[-1:]]
    assert decode(fallback, ids) == "d" + "\ufffd" * 4 + ">"
    assert token_span(fallback, ids, (1, 2)) == (1, 5)
    assert token_span(fallback, ids, (3, 6)) == (1, 6)
    assert token_span(fallback, ids, (5, 6)) == (5, 6)


def test_clean_step_is_the_content_and_the_stop_id_lies_in_no_span(bpe: Any) -> None:
    ids = encode(bpe, "<think> heat it </think><action>go</action>")
    block = re.search(r"<action>.*", decode(bpe, ids))
    assert block is not None
    spans = step_spans(bpe, ids, block.span())
    assert spans["clean_step_no_observation"] == (0, len(ids))
    assert spans["action_only"][1] == len(ids)
    assert step_spans(bpe, ids, None).keys() == {"clean_step_no_observation"}


def test_blank_turn_has_no_span(bpe: Any) -> None:
    assert step_spans(bpe, [], None) == {}
    assert step_spans(bpe, encode(bpe, " \n"), None) == {}


def test_range_outside_the_text_is_refused(bpe: Any) -> None:
    with pytest.raises(ValueError, match="non-empty range within 2 characters"):
        token_span(bpe, encode(bpe, "go"), (1, 3))
    with pytest.raises(ValueError, match="non-empty range"):
        token_span(bpe, encode(bpe, "go"), (1, 1))
