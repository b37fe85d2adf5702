from __future__ import annotations

import copy
from typing import Any

import pytest

from stepopsd.text.chat import ChatFormat, decode

THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}{% endif %}"
)


def with_template(tokenizer: Any, template: str | None) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def test_dialogue_ids_equal_the_rendered_template(bpe: Any, chat: ChatFormat) -> None:
    said = "<action>go to desk 2</action>"
    response = [*bpe(said, add_special_tokens=False)["input_ids"], bpe.eos_token_id]
    ids = chat.opening("you see a mug 1 .")
    ids = [*ids, *response, *chat.followup("nothing happens .", response)]
    whole = bpe.apply_chat_template(
        [
            {"role": "user", "content": "you see a mug 1 ."},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "nothing happens ."},
        ],
        tokenize=False, add_generation_prompt=True,
    )
    assert decode(bpe, ids) == whole


def test_response_without_end_gets_one_that_is_not_its_own(chat: ChatFormat) -> None:
    end = chat.tokenizer.eos_token_id
    cut, ended = [20, 21], [20, 21, end]
    assert chat.followup("hm", cut) == [end, *chat.followup("hm", ended)]
    assert chat.followup("hm", []) == chat.followup("hm", cut)


def test_final_stop_id_is_not_part_of_the_text(bpe: Any, chat: ChatFormat) -> None:
    ids = bpe("go to desk 2", add_special_tokens=False)["input_ids"]
    assert chat.text([*ids, bpe.eos_token_id]) == chat.text(ids) == "go to desk 2"
    assert chat.text([bpe.eos_token_id, *ids]) == "<|end|>go to desk 2"


def test_end_of_turn_token_of_a_base_tokenizer_is_a_stop_id(bpe: Any) -> None:
    base = copy.deepcopy(bpe)
    base.eos_token = "<|pad|>"
    assert ChatFormat(base).stop_ids == {bpe.convert_tokens_to_ids(t) for t in ("<|end|>", "<|pad|>")}


def test_thinking_switch_reaches_templates_that_know_it(bpe: Any, chat: ChatFormat) -> None:
    knows = with_template(bpe, THINKING)
    off, on = ChatFormat(knows, enable_thinking=False), ChatFormat(knows, enable_thinking=True)
    assert decode(bpe, off.opening("hm")).endswith("<think>\n\n</think>")
    assert decode(bpe, off.followup("hm", [])).endswith("<think>\n\n</think>")
    assert "<think>" not in decode(bpe, on.opening("hm"))
    assert ChatFormat(bpe, enable_thinking=False).opening("hm") == chat.opening("hm")


def test_thoughts_of_earlier_turns_stay_in_a_dialogue(bpe: Any) -> None:
    """The template would drop them; sampled ids are never rendered again."""
    chat = ChatFormat(with_template(bpe, THINKING))
    response = bpe("<think> heat it </think><action>go</action>", add_special_tokens=False)["input_ids"]
    ids = [*chat.opening("hm"), *response, *chat.followup("more", response)]
    assert "<think> heat it </think>" in decode(bpe, ids)


def test_missing_or_unusable_template_is_named(bpe: Any) -> None:
    nameless = with_template(bpe, None)
    nameless.name_or_path = "models/base"
    with pytest.raises(ValueError, match="'models/base' has no chat template; give it one"):
        ChatFormat(nameless)
    with pytest.raises(ValueError, match="must show each message once and unchanged"):
        ChatFormat(with_template(bpe, "{{ messages[0].content }}"))
