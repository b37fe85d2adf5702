"""The hindsight teacher of hosts that train a transformers model in the same process: live, or a stale copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepopsd.credit.contexts import TeacherContext, collate_contexts, prefix_context, suffix_context
from stepopsd.ops.logprobs import token_logprobs
from stepopsd.options.credit import Section
from stepopsd.text.hindsight import BlockWriter


@dataclass(frozen=True, slots=True)
class HostRow:
    """One episode as a host holds it.

    Attributes:
        prompt_ids: Without padding.
        completion_ids: T ids after it.
        step_ids: T numbers, the tokens to score have one >= 0.
        success: Its outcome, for the label.
        peer: Text of a successful member of its group, None where it gets none.
        prefix_at: Position in the prompt at which a block with the placement ``prefix`` goes.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    step_ids: Sequence[int]
    success: bool
    peer: str | None = None
    prefix_at: int = 0


class HindsightTeacher:
    """Scores the tokens of steps under a context that knows how the episode ended.

    Args:
        model: The live policy, a transformers causal LM, not wrapped.
        tokenizer: Its tokenizer.
        options: The section of the method: which teacher, what it is told; see ``HostCredit.teacher``.
        temperature: Log-probs are taken at the sampling temperature.
        rows: Sequences per forward.
        autocast: Makes the context in which the host runs its model.

    Raises:
        ValueError: A placement that needs a mask which the model's attention cannot take.
    """

    def __init__(
        self, model: Any, tokenizer: Any, options: Section, *, temperature: float = 1.0, rows: int = 8,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        attention = str(getattr(model.config, "_attn_implementation", ""))
        if options.hindsight.placement == "suffix" and "flash" in attention:
            raise ValueError(
                "options hindsight.placement suffix shares one sequence among steps with a mask of its own, which "
                f"attn_implementation {attention!r} cannot take; use sdpa, or the placement prefix"
            )
        self.options, self.temperature, self.rows, self.autocast = options, temperature, rows, autocast
        self.policy, self.pad_id = model, tokenizer.pad_token_id or 0
        self.snapshot = frozen_copy(model) if options.teacher == "stale" else None
        self._blocks = BlockWriter(tokenizer, options.hindsight)
        text_config = model.config.get_text_config()
        self._positions = int(getattr(text_config, "max_position_embeddings", 1 << 30))

    def refresh(self, update: int) -> bool:
        """Let a stale teacher catch up after an update whose number is a multiple of its interval; whether it did."""
        every = self.options.teacher_refresh_every
        due = self.snapshot is not None and every > 0 and update % every == 0
        if due:
            self.catch_up()
        return due

    def catch_up(self) -> None:
        """Copy the policy's weights into a stale teacher."""
        if self.snapshot is not None:
            with torch.no_grad():
                for mine, theirs in zip(_weights(self.snapshot), _weights(self.policy), strict=True):
                    mine.copy_(theirs)

    def student(self, rows: Sequence[HostRow], width: int) -> Tensor:
        """(N, T) float32 log-probs of the live policy at the rows' steps, NaN elsewhere."""
        contexts = {i: self._context(row, []) for i, row in enumerate(rows) if _is_scored(row)}
        return self._score(self.policy, rows, contexts, width)

    def teacher(self, rows: Sequence[HostRow], width: int) -> tuple[Tensor, dict[str, float]]:
        """(N, T) float32 log-probs of the teacher, NaN where it was not asked, and what it was told.

        Rows without a peer are left out where the options say so.
        """
        contexts, told = {}, {"teacher/with_peer": 0.0, "teacher/cut_blocks": 0.0}
        for i, row in enumerate(rows):
            skipped = row.peer is None and self.options.hindsight.rows_without_peer == "skip"
            if skipped or not _is_scored(row):
                continue
            last = max(t for t, step in enumerate(row.step_ids) if step >= 0)
            block = self._blocks.write(row.success, row.peer, room=self._positions - len(row.prompt_ids) - last)
            told["teacher/with_peer"] += block.tells == "peer"
            told["teacher/cut_blocks"] += block.cut_tokens > 0
            contexts[i] = self._context(row, block.ids)
        told["teacher/tokens"] = float(sum(len(c.ids) for c in contexts.values()))
        return self._score(self.snapshot or self.policy, rows, contexts, width), told

    def _context(self, row: HostRow, block: list[int]) -> TeacherContext:
        ids = [*row.prompt_ids, *row.completion_ids]
        steps = [*[-1] * len(row.prompt_ids), *row.step_ids]
        if not block or self.options.hindsight.placement == "prefix":
            return prefix_context(ids, steps, block, row.prefix_at)
        return suffix_context(ids, steps, block)

    @torch.no_grad()
    def _score(
        self, model: Any, rows: Sequence[HostRow], contexts: dict[int, TeacherContext], width: int
    ) -> Tensor:
        device = next(model.parameters()).device
        out = torch.full((len(rows), width), float("nan"), device=device)
        was_training = model.training
        model.eval()  # no dropout, no gradient checkpointing
        # Of similar length together, the longest first.
        order = sorted(contexts, key=lambda i: -len(contexts[i].ids))
        for start in range(0, len(order), self.rows):
            part = order[start : start + self.rows]
            ids, positions, mask = collate_contexts([contexts[i] for i in part], self.pad_id, model.dtype)
            with self.autocast():
                logits = model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=positions.to(device),
                    use_cache=False,
                ).logits  # fmt: skip
            for b, i in enumerate(part):
                packed, targets, tokens = torch.tensor(contexts[i].reads, device=device).unbind(1)
                scored = token_logprobs(logits[b, packed].float(), tokens, temperature=self.temperature)
                out[i, targets - len(rows[i].prompt_ids)] = scored.logprobs
        model.train(was_training)
        return out


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy without gradients, in evaluation mode.

    Hosts replace ``forward`` on the instance by one that is bound to the model it was made for; a copy that kept it
    would go on running the live weights.
    """
    made = copy.deepcopy(model)
    for module in made.modules():
        module.__dict__.pop("forward", None)
    return made.requires_grad_(False).eval()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of equal leading ids."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def prefix_position(tokenizer: Any, prompt: Any, prompt_ids: Sequence[int]) -> int:
    """Where the words of a prompt's last message begin; 0 for a prompt that is plain text."""
    if isinstance(prompt, str) or not prompt:
        return 0
    other: list[Any] = [*prompt[:-1], {**prompt[-1], "content": "\u27e6"}]
    ids = tokenizer.apply_chat_template(other, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    return common_prefix(ids, prompt_ids)


def _weights(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _is_scored(row: HostRow) -> bool:
    return any(step >= 0 for step in row.step_ids)
