"""The hindsight teacher: a stale snapshot (or the live policy) that re-scores sampled tokens knowing the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, Protocol

import torch
from torch import Tensor

from stepopsd.credit.contexts import TeacherContext, collate_contexts, prefix_context, suffix_context
from stepopsd.options.methods import HindsightConfig
from stepopsd.rollout.engines.model import max_context
from stepopsd.rollout.records import Row, Trajectory
from stepopsd.text.chat import ChatFormat
from stepopsd.text.hindsight import Block, BlockWriter, Tells
from stepopsd.train.hindsight import choose_peers, render_peer
from stepopsd.train.policy import Policy, microbatches
from stepopsd.train.readout import Readout


class TeacherOptions(Protocol):
    """The keys that every section of a method with a teacher has."""

    @property
    def teacher(self) -> str: ...

    @property
    def teacher_refresh_every(self) -> int: ...

    @property
    def hindsight(self) -> HindsightConfig: ...


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """Log-probs under the teacher and what they cost.

    Attributes:
        logprobs: (N, T) float32, NaN where the teacher was not asked (everywhere, where it will be read instead).
        asked: (N, T) bool, tokens that were scored or will be read.
        tokens: Tokens forwarded, without padding.
        saved: Tokens more that contexts of their own for every span would have taken.
        with_peer: Rows scored with a peer's trajectory in view.
        cut_blocks, cut_tokens: Hindsight blocks that were cut, to ``hindsight.max_tokens`` or to what the model can
            hold, and the tokens that they lost.
        failed, failed_with_peer: Rows of lost episodes, asked or not, and those of them whose group has a peer.
        tells: Scored row -> what its block told.
        contexts: Row -> its context, kept where the hidden states will be read.
    """

    logprobs: Tensor
    asked: Tensor
    tokens: int
    with_peer: int
    cut_blocks: int
    cut_tokens: int = 0
    failed: int = 0
    failed_with_peer: int = 0
    tells: Mapping[int, Tells] = field(default_factory=dict)
    contexts: Mapping[int, TeacherContext] = field(default_factory=dict)
    saved: int = 0


class Teacher:
    """Scores spans under hindsight.

    Args:
        policy: The live policy; a stale teacher starts as its frozen copy.
        config: The section of the method that asks.
        temperature: Log-probs are taken at the sampling temperature.
        max_tokens: Padded tokens per forward.
    """

    def __init__(self, policy: Policy, config: TeacherOptions, *, temperature: float, max_tokens: int) -> None:
        self.config, self.temperature, self.max_tokens = config, temperature, max_tokens
        self.is_stale = config.teacher == "stale"
        self.scorer = policy.frozen_copy() if self.is_stale else policy
        self._prefix_at = ChatFormat(policy.tokenizer).content_start()
        self._blocks = BlockWriter(policy.tokenizer, config.hindsight)
        self._positions = max_context(policy.model.config)

    def refresh(self, policy: Policy, update: int) -> bool:
        """Hard copy after every ``teacher_refresh_every``-th update, 0 never; returns whether it happened."""
        every = self.config.teacher_refresh_every
        due = self.is_stale and every > 0 and update % every == 0
        if due:
            self.scorer.copy_weights_from(policy)
        return due

    def score(
        self, rows: Sequence[Row], trajectories: Sequence[Trajectory], wanted: Tensor, width: int, *,
        tokens: Literal["span", "response"] = "span", keep: bool = False,
    ) -> TeacherScores:
        """Score the spans of the wanted rows.

        Args:
            rows: All N rows of the batch.
            trajectories: Their trajectories.
            wanted: (N,) bool; other rows stay NaN.
            width: T of the result.
            tokens: Score the steps' spans, or every sampled token.
            keep: Keep the contexts for ``read`` and forward nothing yet.
        """
        hindsight = self.config.hindsight
        peers = choose_peers(trajectories, hindsight.peer_of) if hindsight.peer else {}
        out = torch.full((len(rows), width), float("nan"))
        chosen: list[int] = []
        contexts: list[TeacherContext] = []
        blocks: list[Block] = []
        for i in wanted.nonzero().squeeze(1).tolist():
            row = rows[i]
            has_peer = row.trajectory in peers
            skipped = hindsight.rows_without_peer == "skip" and not has_peer
            steps = row.step_ids if tokens == "span" else response_steps(row)
            if skipped or not any(s >= 0 for s in steps):
                continue
            peer = trajectories[peers[row.trajectory]] if has_peer else None
            # The last scored token is the farthest from the start, whatever the placement.
            room = self._positions - max(t for t, step in enumerate(steps) if step >= 0)
            told = None if peer is None else render_peer(peer, hindsight.render)
            block = self._blocks.write(trajectories[row.trajectory].success, told, room=room)
            chosen.append(i)
            blocks.append(block)
            contexts.append(self._context(row, steps, block.ids))
        asked = torch.zeros(out.shape, dtype=torch.bool)
        for i, context in zip(chosen, contexts, strict=True):
            asked[i, [target for _, target, _ in context.reads]] = True
        if not keep:
            self._forward(contexts, chosen, out)
        failed = [row.trajectory for row in rows if not trajectories[row.trajectory].success]
        return TeacherScores(
            out,
            asked,
            tokens=sum(len(c.ids) for c in contexts),
            with_peer=sum(block.tells == "peer" for block in blocks),
            cut_blocks=sum(block.cut_tokens > 0 for block in blocks),
            cut_tokens=sum(block.cut_tokens for block in blocks),
            failed=len(failed),
            failed_with_peer=sum(trajectory in peers for trajectory in failed),
            tells={i: block.tells for i, block in zip(chosen, blocks, strict=True)},
            contexts=dict(zip(chosen, contexts, strict=True)) if keep else {},
            saved=sum(c.apart - len(c.ids) for c in contexts),
        )

    @torch.no_grad()
    def read(self, scores: TeacherScores, rows: Tensor) -> Readout:
        """What predicts the asked tokens of the given rows under the teacher.

        Args:
            scores: Of this update, from ``score`` with ``keep``.
            rows: (B,) int64 rows of the batch, of which at least one was asked; the others are left out.

        Returns:
            ``Readout`` of the asked tokens, in the order of ``rows`` and then of positions.
        """
        contexts = [scores.contexts[i] for i in rows.tolist() if i in scores.contexts]
        model = self.scorer.model
        was_training = model.training
        model.eval()
        size = max(1, self.max_tokens // max(len(c.ids) for c in contexts))
        parts = [self._states(contexts[i : i + size]) for i in range(0, len(contexts), size)]
        model.train(was_training)
        return Readout(torch.cat([part.states for part in parts]), parts[0].head)

    def _context(self, row: Row, steps: Sequence[int], block: list[int]) -> TeacherContext:
        if self.config.hindsight.placement == "prefix":
            return prefix_context(row.input_ids, steps, block, self._prefix_at)
        return suffix_context(row.input_ids, steps, block)

    @torch.no_grad()
    def _forward(self, contexts: list[TeacherContext], row_of: list[int], out: Tensor) -> None:
        model, device = self.scorer.model, self.scorer.device
        was_training = model.training
        model.eval()
        lengths = torch.tensor([len(c.ids) for c in contexts], dtype=torch.int64)
        for picked, _ in microbatches(lengths, self.max_tokens):
            part = [contexts[i] for i in picked.tolist()]
            rows = torch.tensor([row_of[i] for i in picked.tolist() for _ in contexts[i].reads])
            _, targets, tokens = torch.tensor(list(chain.from_iterable(c.reads for c in part))).unbind(1)
            out[rows, targets] = self._states(part).logprobs(tokens.to(device), self.temperature).cpu()
        model.train(was_training)

    def _states(self, contexts: list[TeacherContext]) -> Readout:
        """What predicts the tokens of the contexts' reads, context by context."""
        device = self.scorer.device
        ids, positions, mask = collate_contexts(contexts, self.scorer.pad_id, self.scorer.model.dtype)
        read = torch.zeros(ids.shape, dtype=torch.bool)
        # Reads ascend inside a context, so their list has the row-major order in which read_at answers.
        for b, context in enumerate(contexts):
            read[b, [packed for packed, _, _ in context.reads]] = True
        return self.scorer.read_at(ids.to(device), mask.to(device), read.to(device), positions.to(device))


def response_steps(row: Row) -> list[int]:
    """Step ids of a row as if every sampled token belonged to its turn's span; -1 elsewhere."""
    out = [-1] * len(row.input_ids)
    ends = [*row.turn_starts[1:], len(row.input_ids)]
    for turn, start, end in zip(row.turn_ids, row.turn_starts, ends, strict=True):
        for t in range(start, end):
            if row.response_mask[t]:
                out[t] = turn
    return out
