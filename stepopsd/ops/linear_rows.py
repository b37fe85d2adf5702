"""Rows of hidden states taken chunk by chunk through one buffer of logits: scores forward, gradients back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepopsd.ops import dispatch, layout
from stepopsd.ops.linear_head import Head, default_chunk_rows
from stepopsd.ops.losses import LossOptions, Targets


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a call, and which of them are computed.

    Attributes:
        ids: (...) int64 or int32.
        active: (...) bool, or None for all.
        index: (C,) int64, flat places of the rows to compute; None: all of them, or those of ``active``.
        live: (C,) bool, which places of ``index`` are active; None for all.
    """

    ids: Tensor
    active: Tensor | None
    index: Tensor | None
    live: Tensor | None

    def resolved(self) -> Tokens:
        """With an index where there is a mask. Waits for the device when the number of rows is not known yet."""
        if self.active is None or self.index is not None:
            return self
        return Tokens(self.ids, self.active, self.active.reshape(-1).nonzero()[:, 0], None)

    def check(self, vocab: int) -> None:
        """Raise on values out of range, on CPU: reading them on a GPU would mean waiting for it."""
        if self.ids.device.type != "cpu":
            return
        active = torch.ones_like(self.ids, dtype=torch.bool) if self.active is None else self.active
        layout.check_ids(self.ids, active, vocab)
        if self.live is not None and int(active.sum()) > self.live.numel():
            raise ValueError(
                f"max_active must be at least the number of tokens in the mask, {int(active.sum())}, "
                f"got {self.live.numel()}"
            )


class Chunks:
    """Chunks of the computed rows, all of whose logits go through one buffer."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        tokens: Tokens,
        temperature: float | Tensor,
        compute: torch.dtype,
        chunk_rows: int,
        backend: str,
        *,
        differentiable: bool,
    ) -> None:
        tokens = tokens.resolved()
        tokens.check(head.weight.shape[0])
        self.head, self.tokens, self.compute = head, tokens, compute
        self.hidden = _two_strides(hidden)
        self.count = tokens.ids.numel() if tokens.index is None else tokens.index.numel()
        limit = chunk_rows or default_chunk_rows(head.weight.shape[0], head.logits, hidden.device.type)
        self.chunks = max(1, -(-self.count // limit))
        self.size = -(-self.count // self.chunks)  # chunks of one size: a short last one would read the weight again
        self.buffer = torch.empty((self.size, head.weight.shape[0]), dtype=head.logits, device=hidden.device)
        self.ids = self.compact(tokens.ids).long()
        self.temperature = self.compact(temperature) if isinstance(temperature, Tensor) else temperature
        every = torch.ones(self.count, dtype=torch.bool, device=hidden.device)
        self.live = every if tokens.live is None else tokens.live
        resolve = dispatch.resolve_gradients if differentiable else dispatch.resolve
        self.backend = dispatch.load(resolve(backend, hidden.device.type, head.logits))
        self.fuses_losses = dispatch.fuses_losses(backend, hidden.device.type, head.logits)

    def __iter__(self) -> Iterator[slice]:
        """Places of each chunk in the computed rows."""
        for start in range(0, self.count, max(1, self.size)):
            yield slice(start, min(self.count, start + self.size))

    def logits(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Hidden states (m, H) in the dtype of the product, and logits (m, V) in the buffer, of one chunk."""
        hidden = self._hidden(chunk)
        out = self.buffer[: hidden.shape[0]]
        self.head.write_logits(hidden, out)
        return hidden, out

    def score(self, logits: Tensor, chunk: slice, *, entropy: bool, normaliser: bool) -> Tensor:
        """(3, m) rows of the backend's ``score_rows``, (5, m) with the normaliser."""
        options = {"normaliser": True} if normaliser else {}
        scored = self.backend.score_rows(
            (logits[None],), self.ids[None, chunk], self.live[None, chunk], temperature=self._temperature(chunk),
            entropy=entropy, **options,
        )  # fmt: skip
        return scored[0, :, 0]

    def differentiate(self, logits: Tensor, chunk: slice, normaliser: Tensor, coefficients: Tensor) -> None:
        """Overwrite the logits (m, V) with their gradient; ``normaliser`` (2, m), ``coefficients`` (3, m)."""
        x, normaliser, coefficients = logits[None], normaliser[:, None], coefficients[:, None]
        self.backend.gradient_rows(
            x, self.ids[None, chunk], self.live[None, chunk], normaliser.contiguous(), coefficients.contiguous(),
            temperature=self._temperature(chunk), out=x,
        )  # fmt: skip

    def learn(self, logits: Tensor, chunk: slice, targets: Targets, options: LossOptions) -> Tensor:
        """Overwrite the logits (m, V) with the gradient of a token-level loss; (5, m) rows as of ``score``."""
        x, ids, live = logits[None], self.ids[None, chunk], self.live[None, chunk]
        old, ref, advantages, weights = targets.map(lambda y: y[None])
        scored = self.backend.loss_rows(
            x, ids, live, old, ref, advantages, weights, options, temperature=self._temperature(chunk), out=x
        )
        return scored[:, 0]

    def compact(self, values: Tensor) -> Tensor:
        """(C,) contiguous, of (...) values those of the computed rows."""
        flat = values.reshape(-1)
        return flat.contiguous() if self.tokens.index is None else flat[self.tokens.index]

    def spread(self, rows: Tensor) -> Tensor:
        """(K, ...) of (K, C) rows: 0 where masked, NaN at active tokens that the index has no room for."""
        shape = (rows.shape[0], *self.tokens.ids.shape)
        if self.tokens.index is None:
            return rows.view(shape)
        out = rows.new_zeros((rows.shape[0], self.tokens.ids.numel()))
        if self.tokens.live is not None and self.tokens.active is not None:
            out.masked_fill_(self.tokens.active.reshape(-1), float("nan"))
        return out.index_copy_(1, self.tokens.index, rows).view(shape)

    def _hidden(self, chunk: slice) -> Tensor:
        index, rows = self.tokens.index, self.hidden.shape[1]
        if index is None and self.hidden.shape[0] == 1:
            return self.hidden[0, chunk].to(self.compute)
        where = torch.arange(chunk.start, chunk.stop, device=self.hidden.device) if index is None else index[chunk]
        picked = self.hidden[where // rows, where % rows].to(self.compute)
        if self.tokens.live is not None:
            picked.masked_fill_(~self.live[chunk, None], 0)  # masked rows may hold NaN, which 0 does not cancel
        return picked

    def _temperature(self, chunk: slice) -> float | Tensor:
        return self.temperature[None, chunk] if isinstance(self.temperature, Tensor) else self.temperature


class Gradients:
    """Gradients of hidden states, weight and bias, added up chunk by chunk; those not wanted cost nothing."""

    def __init__(self, chunks: Chunks, hidden: Tensor, wanted: Sequence[bool]) -> None:
        self.chunks, head = chunks, chunks.head
        make = torch.empty_like if chunks.tokens.index is None else torch.zeros_like
        self.hidden, self.weight, self.bias = (hidden.new_empty(0) for _ in range(3))
        if wanted[0]:
            self.hidden = make(hidden, memory_format=torch.contiguous_format)
        if wanted[1]:
            self.weight = head.new_weight_gradient(chunks.chunks, chunks.compute)
        if wanted[2]:
            self.bias = head.new_bias_gradient()

    def add(self, gradient: Tensor, hidden: Tensor, chunk: slice) -> None:
        """What the gradient (m, V) of one chunk's logits gives to each."""
        head, index = self.chunks.head, self.chunks.tokens.index
        if self.hidden.numel():
            rows = head.hidden_gradient(gradient).to(self.hidden.dtype)
            flat = self.hidden.view(-1, self.hidden.shape[-1])
            if index is None:
                flat[chunk] = rows
            else:
                flat.index_copy_(0, index[chunk], rows)
        if self.weight.numel():
            head.add_weight_gradient(gradient, hidden, self.weight, first=chunk.start == 0)
        if self.bias.numel():
            head.add_bias_gradient(gradient, self.bias)

    def finish(self, weight: torch.dtype, bias: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """All three, in the dtypes of their tensors; empty where not wanted."""
        if self.weight.numel() and self.chunks.count == 0:
            self.weight.zero_()
        return self.hidden, self.weight.to(weight), self.bias.to(bias)


def _two_strides(hidden: Tensor) -> Tensor:
    """(B, R, H) view of (..., H) hidden states; a copy where their strides need three numbers."""
    blocks = list(layout.row_blocks(hidden)) if hidden.stride(-1) == 1 and hidden.numel() else []
    if len(blocks) == 1:
        return blocks[0][1][0]
    return hidden.reshape(1, -1, hidden.shape[-1])
