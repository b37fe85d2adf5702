"""The words of a run: chat template and prompts from the ``env`` section, and whether they can ever fit."""

from __future__ import annotations

from typing import Any

from stepopsd.envs.base import Observation
from stepopsd.rollout.chat import ChatFormat
from stepopsd.rollout.contexts import Prompting
from stepopsd.train.config import EnvConfig, RolloutConfig

#: The least that a step of an ALFWorld episode can look like.
_SHORTEST = ("Nothing happens.", "look")


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


def check_history(env: EnvConfig, rollout: RolloutConfig, chat: ChatFormat, prompting: Prompting) -> None:
    """Raise ValueError when a full window of past steps cannot fit a prompt, however short the steps are."""
    shown = min(env.history, env.max_steps - 1)
    message = prompting.turn("look", [_SHORTEST] * shown, Observation(_SHORTEST[0], (_SHORTEST[1],)))
    needed = len(chat.opening(message))
    if needed > rollout.max_prompt_tokens:
        raise ValueError(
            f"env.history={env.history} must fit rollout.max_prompt_tokens={rollout.max_prompt_tokens}: a prompt with "
            f"{shown} past steps has at least {needed} tokens with this tokenizer"
        )
