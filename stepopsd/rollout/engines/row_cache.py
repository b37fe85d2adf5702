"""A key/value cache whose rows grow independently: no holes, no concatenation, rows can be re-ordered in place.

transformers' own caches give all rows one length, so a conversation that waits for a longer neighbour would collect
masked padding with every turn, and each step would copy the whole cache. Here row r owns columns [0, length_r).
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache

GROWTH = 1.5
COLUMN_STEP = 64


class RowCache(Cache):
    """Storage (rows, heads, columns, dim) per layer; ``aim`` says where the next forward pass reads and writes.

    Columns beyond a row's length hold zeros or stale values: finite, and masked by the caller.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.row_count = 0
        self.columns = 0
        self._rows: slice | torch.Tensor = slice(0, 0)
        self._width = 0
        self._owners = self._targets = torch.empty(0, dtype=torch.long)
        self._flat: dict[int, torch.Tensor] = {}

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` rows of ``columns`` columns; growth is geometric, contents stay."""
        if rows > self.row_count:
            self.row_count = rows if self.row_count == 0 else max(rows, int(self.row_count * GROWTH))
        if columns > self.columns:
            wanted = max(columns, int(self.columns * GROWTH))
            self.columns = -(-wanted // COLUMN_STEP) * COLUMN_STEP
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                if old.shape[0] != self.row_count or old.shape[2] != self.columns:
                    store[layer] = self._empty(old)
                    store[layer][: old.shape[0], :, : old.shape[2]] = old

    def aim(self, rows: range | list[int], columns: torch.Tensor, width: int) -> None:
        """Direct the next forward pass.

        Args:
            rows: Cache rows of the pass; a range is read in place, a list is gathered.
            columns: (n, Q) int64, where each new token is written; no duplicates within a row.
            width: Columns that attention reads; all of ``columns`` lie below it.
        """
        self._owners = torch.tensor(rows, device=columns.device)
        self._targets, self._width, self._flat = columns, width, {}
        self._rows = slice(rows.start, rows.stop) if isinstance(rows, range) else self._owners

    def swap(self, first: list[int], second: list[int], width: int) -> None:
        """Exchange rows ``first[i]`` and ``second[i]`` in their first ``width`` columns."""
        for store in (self.keys, self.values):
            for tensor in store:
                a = torch.tensor(first, device=tensor.device)
                b = torch.tensor(second, device=tensor.device)
                kept = tensor[a, :, :width]
                tensor[a, :, :width] = tensor[b, :, :width]
                tensor[b, :, :width] = kept

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model's attention: store (n, H, Q, D) states, return (n, H, width, D) views."""
        if layer_idx == len(self.keys):
            self.keys.append(self._empty(key_states))
            self.values.append(self._empty(value_states))
        views = []
        for tensor, new in ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states)):
            dim = tensor.shape[3]
            lines = self._lines(tensor.shape[1])
            tensor.view(-1, dim).index_copy_(0, lines, new.reshape(-1, dim).to(tensor.dtype))
            views.append(tensor[self._rows, :, : self._width])
        return views[0], views[1]

    def get_seq_length(self, layer_idx: int = 0, *_: object, **__: object) -> int:
        """Columns of the next pass that precede its new tokens; only models that build their own mask ask."""
        return max(self._width - 1, 0)

    def _lines(self, heads: int) -> torch.Tensor:
        """(n * H * Q,) where the new states go in storage seen as lines of one head and column; once per pass."""
        if heads not in self._flat:
            owners = self._owners[:, None] * heads + torch.arange(heads, device=self._owners.device)  # (n, H)
            self._flat[heads] = (owners[:, :, None] * self.columns + self._targets[:, None]).flatten()
        return self._flat[heads]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros((self.row_count, like.shape[1], self.columns, like.shape[3]))
