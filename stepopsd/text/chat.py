"""Token ids of chat turns from a tokenizer's own template; what was sampled is never tokenised again."""

from __future__ import annotations

from typing import Any

from stepopsd.text.spans import decode

USER, ASSISTANT = "\u27e6user words\u27e7", "\u27e6assistant words\u27e7"


class ChatFormat:
    """The template as three pieces of text: before a first user message, between turns, and the generation prompt.

    The pieces are found once, by rendering marker messages and taking the template's text around the markers.
    Each piece is tokenised by itself, without special tokens added.

    Args:
        tokenizer: transformers tokenizer with a chat template.
        enable_thinking: Passed to templates that know the switch (Qwen3); None leaves the template's default. With
            False, Qwen3 puts an empty think block into every generation prompt.

    Raises:
        ValueError: The tokenizer has no chat template, or the template does not show messages as given.

    Example:
        >>> chat = ChatFormat(tokenizer)                           # doctest: +SKIP
        >>> ids = chat.opening("You are in a kitchen.")            # doctest: +SKIP
        >>> ids += response_ids                                    # doctest: +SKIP
        >>> ids += chat.followup("You see a mug.", response_ids)   # doctest: +SKIP
    """

    def __init__(self, tokenizer: Any, *, enable_thinking: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self._options = _options(tokenizer, enable_thinking)
        first = self._render([{"role": "user", "content": USER}])
        dialogue = self._render(
            [
                {"role": "user", "content": USER + "1"},
                {"role": "assistant", "content": ASSISTANT},
                {"role": "user", "content": USER},
            ]
        )
        self._before, self._generation = self._around(first, USER)
        _, tail = self._around(dialogue, ASSISTANT)
        self._between, self._generation_again = self._around(tail, USER)
        self.stop_ids = self._find_stop_ids()

    @property
    def generation_prompt(self) -> str:
        """What the template puts between the user's words and the response."""
        return self._generation

    def opening(self, user: str) -> list[int]:
        """Ids of a conversation's first user message and the generation prompt."""
        return self._ids(self._before + user + self._generation)

    def content_start(self) -> int:
        """Position of the user's words in an opening: where two openings with different words part."""
        pairs = zip(self.opening("look"), self.opening("go"), strict=False)
        return next(i for i, (a, b) in enumerate(pairs) if a != b)

    def followup(self, user: str, response_ids: list[int]) -> list[int]:
        """Ids between a sampled response and the next one: end of turn, user message, generation prompt.

        A response that already sampled the end-of-turn id keeps it as its own; otherwise it is part of these ids.
        """
        ids = self._ids(self._between + user + self._generation_again)
        sampled_end = bool(response_ids) and response_ids[-1] in self.stop_ids
        return ids[1:] if sampled_end and ids[:1] == response_ids[-1:] else ids

    def response(self, text: str) -> list[int]:
        """Ids of a whole response as a model would sample it: the words and the end of turn.

        For text that somebody else wrote, such as an expert; what a policy sampled is never tokenised again.
        """
        end = self._ids(self._between)[:1]
        if not end or end[0] not in self.stop_ids:
            end = [min(self.stop_ids)]
        return [*self._ids(text), *end]

    def text(self, response_ids: list[int]) -> str:
        """Readable response: a final stop id is left out, other special tokens are shown."""
        return decode(self.tokenizer, self.content(response_ids))

    def content(self, response_ids: list[int]) -> list[int]:
        """The response without a final stop id."""
        return response_ids[:-1] if response_ids and response_ids[-1] in self.stop_ids else response_ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._options
            )
        )

    def _around(self, text: str, marker: str) -> tuple[str, str]:
        if text.count(marker) != 1:
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} must show each message once and unchanged; "
                f"{marker!r} appears {text.count(marker)} times in {text!r}"
            )
        before, _, after = text.partition(marker)
        return before, after

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _find_stop_ids(self) -> frozenset[int]:
        """The tokenizer's end id, and the template's end of turn when that is one special token (base models)."""
        found = {self.tokenizer.eos_token_id}
        end_of_turn = self._ids(self._between)[:1]
        if end_of_turn and end_of_turn[0] in self.tokenizer.added_tokens_decoder:
            found.add(end_of_turn[0])
        return frozenset(found - {None})


def _options(tokenizer: Any, enable_thinking: bool | None) -> dict[str, bool]:
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise ValueError(
            f"the tokenizer of {_name(tokenizer)} has no chat template; give it one (tokenizer.chat_template, or "
            "chat_template.jinja beside tokenizer.json): it says where user and assistant turns begin and end"
        ) from error
    known = enable_thinking is not None and "enable_thinking" in template
    return {"enable_thinking": bool(enable_thinking)} if known else {}


def _name(tokenizer: Any) -> str:
    return repr(getattr(tokenizer, "name_or_path", "") or "an unnamed model")
