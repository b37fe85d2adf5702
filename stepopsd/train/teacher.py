"""The hindsight teacher: a stale snapshot (or the live policy) that re-scores sampled tokens knowing the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepopsd.rollout.chat import ChatFormat
from stepopsd.rollout.records import Row, Trajectory
from stepopsd.train.config import CreditConfig
from stepopsd.train.hindsight import choose_peers, render_hindsight, render_peer
from stepopsd.train.policy import Policy, microbatches
from stepopsd.train.teacher_contexts import TeacherContext, collate_contexts, prefix_context, suffix_context


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """Log-probs under the teacher and what they cost.

    Attributes:
        logprobs: (N, T) float32, NaN where the teacher was not asked.
        tokens: Tokens forwarded, without padding.
        with_peer: Rows scored with a peer's trajectory in view.
        cut_blocks: Hindsight blocks that were cut to ``hindsight.max_tokens``.
    """

    logprobs: Tensor
    tokens: int
    with_peer: int
    cut_blocks: int


class Teacher:
    """Scores spans under hindsight.

    Args:
        policy: The live policy; a stale teacher starts as its frozen copy.
        config: The credit section.
        temperature: Log-probs are taken at the sampling temperature.
        max_tokens: Padded tokens per forward.
    """

    def __init__(self, policy: Policy, config: CreditConfig, *, temperature: float, max_tokens: int) -> None:
        self.config, self.temperature, self.max_tokens = config, temperature, max_tokens
        self.scorer = policy if config.teacher == "live" else policy.frozen_copy()
        self._prefix_at = ChatFormat(policy.tokenizer).content_start()

    def refresh(self, policy: Policy, update: int) -> bool:
        """Hard copy after every ``teacher_refresh_every``-th update; returns whether it happened."""
        due = self.config.teacher == "stale" and update % self.config.teacher_refresh_every == 0
        if due:
            self.scorer.copy_weights_from(policy)
        return due

    def score(
        self, rows: Sequence[Row], trajectories: Sequence[Trajectory], wanted: Tensor, width: int
    ) -> TeacherScores:
        """Score the spans of the wanted rows.

        Args:
            rows: All N rows of the batch.
            trajectories: Their trajectories.
            wanted: (N,) bool; other rows stay NaN.
            width: T of the result.
        """
        peers = choose_peers(trajectories) if self.config.hindsight.peer else {}
        out = torch.full((len(rows), width), float("nan"))
        chosen, contexts, cuts, with_peer = [], [], 0, 0
        for i in wanted.nonzero().squeeze(1).tolist():
            row = rows[i]
            has_peer = row.trajectory in peers
            skipped = self.config.hindsight.rows_without_peer == "skip" and not has_peer
            if skipped or not any(s >= 0 for s in row.step_ids):
                continue
            peer = trajectories[peers[row.trajectory]] if has_peer else None
            block, cut = self._block(trajectories[row.trajectory], peer)
            chosen.append(i)
            contexts.append(self._context(row, block))
            cuts, with_peer = cuts + cut, with_peer + has_peer
        self._forward(contexts, chosen, out)
        return TeacherScores(out, sum(len(c.ids) for c in contexts), with_peer, cuts)

    def _block(self, own: Trajectory, peer: Trajectory | None) -> tuple[list[int], bool]:
        options = self.config.hindsight
        text = render_hindsight(
            own.success if options.label else None, None if peer is None else render_peer(peer, options.render)
        )
        ids = self.scorer.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        cut = 0 < options.max_tokens < len(ids)
        return (ids[: options.max_tokens] if cut else ids), cut

    def _context(self, row: Row, block: list[int]) -> TeacherContext:
        if self.config.hindsight.placement == "prefix":
            return prefix_context(row.input_ids, row.step_ids, block, self._prefix_at)
        return suffix_context(row.input_ids, row.step_ids, block)

    @torch.no_grad()
    def _forward(self, contexts: list[TeacherContext], row_of: list[int], out: Tensor) -> None:
        model, device = self.scorer.model, self.scorer.device
        was_training = model.training
        model.eval()
        lengths = torch.tensor([len(c.ids) for c in contexts], dtype=torch.int64)
        for picked, _ in microbatches(lengths, self.max_tokens):
            part = [contexts[i] for i in picked.tolist()]
            ids, positions, mask = collate_contexts(part, self.scorer.pad_id, model.dtype)
            # Reads ascend inside a context, so this list has the row-major order in which read_at answers.
            flat = [(b, *read, row_of[i]) for b, i in enumerate(picked.tolist()) for read in contexts[i].reads]
            b, packed, targets, tokens, rows = (torch.tensor(column) for column in zip(*flat, strict=True))
            read = torch.zeros(ids.shape, dtype=torch.bool)
            read[b, packed] = True
            states = self.scorer.read_at(ids.to(device), mask.to(device), read.to(device), positions.to(device))
            out[rows, targets] = states.logprobs(tokens.to(device), self.temperature).cpu()
        model.train(was_training)
