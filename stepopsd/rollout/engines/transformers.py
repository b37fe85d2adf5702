"""Batched sampling from a transformers causal LM: our own decode loop over a cache that outlives the turn.

Each token of a conversation is computed once. Within a call all rows decode together; when half of them have
finished, the others move to the front and the batch shrinks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stepopsd.rollout.engines.base import Completion, Engine, Sampling
from stepopsd.rollout.engines.model import eval_mode, max_context, require_attention
from stepopsd.rollout.engines.noise import gumbel, row_states
from stepopsd.rollout.engines.results import check_calls
from stepopsd.rollout.engines.row_cache import RowCache

SPLIT_GAIN = 256  # padded tokens that pay for one more forward pass
Rows = range | list[int]


class TransformersEngine(Engine):
    """Samples from ``model`` as it is now; weights may change between sessions, not within one.

    A row's samples depend on its context and seed, not on its neighbours, up to the rounding of batched matrix
    products. The model is put in eval mode for the time of a call.

    Args:
        model: Causal LM with full attention (sliding windows limit ``max_context``), on its device, with the
            ``sdpa`` or ``eager`` attention implementation.
        prefill_tokens: Padded tokens per prefill pass; bounds activation memory.

    Raises:
        ValueError: The attention implementation or a layer type cannot work with per-row caches.

    Example:
        >>> engine = TransformersEngine(model)                                   # doctest: +SKIP
        >>> [done] = engine.generate([[5, 6, 7]], Sampling(8), seeds=[0])       # doctest: +SKIP
        >>> len(done.ids) == len(done.logprobs)                                  # doctest: +SKIP
        True
    """

    def __init__(self, model: PreTrainedModel, *, prefill_tokens: int = 32768) -> None:
        self.model = model
        self.prefill_tokens = prefill_tokens
        self.forwarded = 0  # tokens, without padding; rows that wait for their neighbours included
        self.max_context = max_context(model.config)
        require_attention(model, "transformers")
        parameters = inspect.signature(model.forward).parameters
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def session(self) -> TransformersSession:
        """See ``Engine.session``."""
        return TransformersSession(self)

    def close(self) -> None:
        """See ``Engine.close``; there is nothing to give back."""

    def logits(self, cache: RowCache, rows: Rows, ids: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """One forward pass of ``ids`` (n, Q) at ``columns`` (n, Q); -1 marks padding. Returns (n, V) float32.

        Padding lies left, so that the last position is real in every row. It is written behind the row's real
        columns, where the next tokens overwrite it.
        """
        real = columns >= 0
        missing = (~real).sum(1, keepdim=True)  # (n, 1)
        behind = columns[:, -1:] + 1 + torch.arange(columns.shape[1], device=columns.device)  # (n, Q)
        targets = torch.where(real, columns, behind)
        width = int((columns[:, -1:] + 1 + missing).max())
        cache.aim(rows, targets, width)
        readable = torch.arange(width, device=ids.device) <= targets[:, :, None]  # (n, Q, K)
        dtype = self.model.dtype
        mask = torch.zeros(readable.shape, dtype=dtype, device=ids.device)
        mask.masked_fill_(~readable, torch.finfo(dtype).min)
        out = self.model(
            input_ids=ids,
            attention_mask=mask[:, None],  # a 4-D mask is taken as it is
            position_ids=columns.clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        logits: torch.Tensor = out.logits
        return logits[:, -1].float()


@dataclass(slots=True, eq=False)
class _Row:
    """One conversation; its index in the session's list is its row in the cache."""

    key: int
    held: list[int] = field(default_factory=list)  # ids whose keys and values are in the cache
    seed: int = 0
    budget: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""


class TransformersSession:
    """Conversations whose keys and values stay in one ``RowCache``; see ``Session``.

    A context may also rewrite what the session holds: the common prefix is kept, the rest is computed again.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self._cache = RowCache()
        self._rows: list[_Row] = []

    def __enter__(self) -> TransformersSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows, self._cache = [], RowCache()

    def generate(
        self,
        contexts: Mapping[int, Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Mapping[int, int],
        budgets: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        """See ``Session.generate``."""
        if not contexts:
            return {}
        most = check_calls(contexts, sampling, budgets, self._engine.max_context)
        rows = self._seat(list(contexts))
        for row in rows:
            row.seed, row.ids, row.logprobs, row.finish = seeds[row.key] % 2**64, [], [], ""
            row.budget = most[row.key]
        # inference_mode would leave inference tensors in modules that cache (rotary tables) and break training.
        with torch.no_grad(), eval_mode(self._engine.model):
            self._decode(self._prefill(contexts, len(rows)), len(rows), sampling)
        return {row.key: Completion(row.ids, row.logprobs, row.finish) for row in rows}  # type: ignore[arg-type]

    def drop(self, keys: Sequence[int]) -> None:
        """See ``Session.drop``."""
        gone = set(keys)
        kept = [row for row in self._rows if row.key not in gone]
        self._to_front(kept)
        del self._rows[len(kept) :]

    def _seat(self, keys: list[int]) -> list[_Row]:
        """Rows of ``keys`` in front of the cache; new keys get a row."""
        by_key = {row.key: row for row in self._rows}
        for key in keys:
            if key not in by_key:
                by_key[key] = _Row(key)
                self._rows.append(by_key[key])
        self._cache.reserve(len(self._rows), 1)
        self._to_front([by_key[key] for key in keys])
        return self._rows[: len(keys)]

    def _to_front(self, chosen: list[_Row]) -> None:
        """Swap rows, as few as possible, until the chosen ones come first."""
        wanted = {id(row) for row in chosen}
        front, back = range(len(chosen)), range(len(chosen), len(self._rows))
        out = [i for i in front if id(self._rows[i]) not in wanted]
        into = [i for i in back if id(self._rows[i]) in wanted]
        if not out:
            return
        width = max(len(self._rows[i].held) for i in (*out, *into))
        self._cache.swap(out, into, width)
        for i, j in zip(out, into, strict=True):
            self._rows[i], self._rows[j] = self._rows[j], self._rows[i]

    def _prefill(self, contexts: Mapping[int, Sequence[int]], count: int) -> torch.Tensor:
        """Compute what the cache lacks of each context; next-token logits (count, V)."""
        news = []
        for row in self._rows[:count]:
            context = list(contexts[row.key])
            kept = common_prefix(row.held, context[:-1])
            news.append((kept, context[kept:]))
            row.held = context
        tail = shared_tail([len(ids) for _, ids in news])
        long = [i for i, (_, ids) in enumerate(news) if len(ids) > tail]
        for part in self._portions(long, [len(news[i][1]) - tail for i in long]):
            self._pass(part, [(news[i][0], news[i][1][:-tail]) for i in part])
        rest = [(first + max(0, len(ids) - tail), ids[-tail:]) for first, ids in news]
        parts = self._portions(range(count), [len(ids) for _, ids in rest])
        return torch.cat([self._pass(part, [rest[i] for i in part]) for part in parts])

    def _portions(self, rows: Rows, lengths: list[int]) -> Iterator[Rows]:
        """Consecutive rows whose padded tokens fit one pass; at least one row each."""
        start = 0
        while start < len(rows):
            stop, longest = start + 1, lengths[start]
            while stop < len(rows):
                longest = max(longest, lengths[stop])
                if longest * (stop + 1 - start) > self._engine.prefill_tokens:
                    break
                stop += 1
            yield rows[start:stop]
            start = stop

    def _pass(self, rows: Rows, news: list[tuple[int, list[int]]]) -> torch.Tensor:
        """Forward new tokens of ``rows``; ``news`` has (first column, ids) per row. Returns (n, V) last logits."""
        longest = max(len(ids) for _, ids in news)
        self._engine.forwarded += sum(len(ids) for _, ids in news)
        ids = np.zeros((len(news), longest), dtype=np.int64)
        columns = np.full((len(news), longest), -1, dtype=np.int64)
        for i, (first, new) in enumerate(news):
            ids[i, longest - len(new) :] = new
            columns[i, longest - len(new) :] = np.arange(first, first + len(new))
        self._cache.reserve(len(self._rows), max(first for first, _ in news) + longest + 1)
        device = self._engine.model.device
        return self._engine.logits(
            self._cache, rows, torch.from_numpy(ids).to(device), torch.from_numpy(columns).to(device)
        )

    def _decode(self, logits: torch.Tensor, count: int, sampling: Sampling) -> None:
        """Sample until every one of the first ``count`` rows has stopped or used its budget."""
        while True:
            rows = self._rows[:count]
            running = self._take(rows, logits, sampling)
            if not running:
                return
            if 2 * len(running) <= count:
                self._to_front(running)
                count = len(running)
                rows = self._rows[:count]
            # A finished row repeats its last token into a column that nobody reads.
            logits = self._pass(range(count), [(len(row.held) - (not row.finish), [row.ids[-1]]) for row in rows])

    def _take(self, rows: list[_Row], logits: torch.Tensor, sampling: Sampling) -> list[_Row]:
        """Sample one token for each row that still runs; returns those that run on."""
        positions = np.array([len(row.ids) for row in rows], dtype=np.int64)
        seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        tokens, logprobs = sample(logits, sampling.temperature, row_states(seeds, positions))
        running = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if row.finish:
                continue
            if logprob != logprob:
                raise FloatingPointError(f"the model gave NaN logits for context {row.key}")
            row.ids.append(token)
            row.logprobs.append(logprob)
            if token in sampling.stop_ids:
                row.finish = "stop"
            elif len(row.ids) == row.budget:
                row.finish = "length"
            else:
                row.held.append(token)  # true once the next pass has run
                running.append(row)
        return running


def sample(logits: torch.Tensor, temperature: float, states: np.ndarray) -> tuple[list[int], list[float]]:
    """One token per row by the Gumbel-max rule, or the argmax at temperature 0.

    Args:
        logits: (N, V) float32.
        temperature: See ``Sampling``.
        states: (N,) uint64 noise state per row.

    Returns:
        Token ids and their log-probs (at temperature 1 for greedy calls).
    """
    scaled = logits / temperature if temperature > 0 else logits
    noisy = scaled + gumbel(states, logits.shape[1], logits.device) if temperature > 0 else scaled
    tokens = noisy.argmax(dim=1, keepdim=True)  # (N, 1)
    logprobs = scaled.gather(1, tokens) - scaled.logsumexp(dim=1, keepdim=True)
    return tokens[:, 0].tolist(), logprobs[:, 0].clamp_max(0.0).tolist()


def shared_tail(lengths: list[int]) -> int:
    """How many final new tokens of each row go into the pass over all rows; the longer rows' heads go before.

    Minimises padded tokens, and splits only when that saves more than ``SPLIT_GAIN`` of them.
    """
    ordered = np.sort(np.asarray(lengths))
    longer = len(ordered) - np.searchsorted(ordered, ordered, side="right")
    padded = len(ordered) * ordered + longer * (ordered[-1] - ordered)
    best = int(padded.argmin())
    worth = padded[-1] - padded[best] > max(SPLIT_GAIN, padded[-1] // 10)
    return int(ordered[best] if worth else ordered[-1])


def common_prefix(held: list[int], context: list[int]) -> int:
    """Length of the longest common prefix."""
    if context[: len(held)] == held:
        return len(held)
    return next((i for i, (a, b) in enumerate(zip(held, context, strict=False)) if a != b), len(context))
