"""The words of a run: chat template and prompts from the ``env`` section."""

from __future__ import annotations

from typing import Any

from stepopsd.rollout.contexts import Prompting
from stepopsd.text.chat import ChatFormat
from stepopsd.train.config import EnvConfig


def chat_of(env: EnvConfig, tokenizer: Any) -> ChatFormat:
    """The chat format with the template's thinking switch as the run wants it."""
    thinking = {"on": True, "off": False, "auto": env.think}[env.template_thinking]
    return ChatFormat(tokenizer, enable_thinking=thinking)


def prompting_of(env: EnvConfig, chat: ChatFormat) -> Prompting:
    """The prompts; a think block that the template's generation prompt already holds is not demanded again.

    With ``env.think_check: always`` it is, and non-thinking Qwen3 templates make every action invalid.
    """
    given = env.think_check == "auto" and "</think>" in chat.generation_prompt
    return Prompting(env.history, env.think, env.prompt_style, given)
