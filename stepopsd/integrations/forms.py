"""A host's batch as it comes: padded (N, T) tensors, or lists of N rows of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

#: Per-token values: an (N, T) tensor, or N one-dimensional tensors or lists.
Rows: TypeAlias = "Tensor | Sequence[Tensor] | Sequence[Sequence[Any]]"


class Form:
    """The form of a batch, taken from one of its arguments; brings the others into (N, T) and results back.

    Args:
        name: Of the argument, for messages.
        like: (N, T) tensor, or a list of N one-dimensional tensors or lists.

    Raises:
        ValueError: No rows, or another number of axes.

    Example:
        >>> form = Form("response_mask", [[True, True], [True]])
        >>> form.padded("advantages", [[1.0, 2.0], [3.0]], fill=0.0, dtype=torch.float32)
        tensor([[1., 2.],
                [3., 0.]])
    """

    def __init__(self, name: str, like: Rows) -> None:
        self.name, self.is_padded = name, isinstance(like, Tensor)
        if isinstance(like, Tensor):
            if like.ndim != 2:
                raise ValueError(f"{name} must have the axes (N, T), got shape {tuple(like.shape)}")
            self.device, self.lengths = like.device, [like.shape[1]] * like.shape[0]
        else:
            first = like[0] if len(like) else None
            self.device = first.device if isinstance(first, Tensor) else torch.device("cpu")
            self.lengths = [_length(f"{name}[{i}]", row) for i, row in enumerate(like)]
        if not self.lengths:
            raise ValueError(f"{name} must hold at least one row, got none")

    @property
    def rows(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """T, the longest row."""
        return max(self.lengths)

    def padded(self, name: str, value: Rows, *, fill: float, dtype: torch.dtype) -> Tensor:
        """The argument ``name`` as (N, T), detached, ``fill`` beyond the end of a row.

        Raises:
            ValueError: Another form, number of rows or length of a row; the message has the name and the row.
        """
        if isinstance(value, Tensor) != self.is_padded:
            wanted = "an (N, T) tensor" if self.is_padded else "a list of rows"
            raise ValueError(f"{name} must be {wanted} like {self.name}, got {type(value).__name__}")
        if isinstance(value, Tensor):
            if tuple(value.shape) != (self.rows, self.width):
                raise ValueError(
                    f"{name} must have the shape {(self.rows, self.width)} of {self.name}, got {tuple(value.shape)}"
                )
            return value.detach().to(self.device, dtype)
        if len(value) != self.rows:
            raise ValueError(f"{name} must hold {self.rows} rows like {self.name}, got {len(value)}")
        out = torch.full((self.rows, self.width), fill, dtype=dtype, device=self.device)
        for i, (row, length) in enumerate(zip(value, self.lengths, strict=True)):
            if _length(f"{name}[{i}]", row) != length:
                got = _length(name, row)
                raise ValueError(f"{name}[{i}] must hold {length} tokens like {self.name}[{i}], got {got}")
            out[i, :length] = torch.as_tensor(row, dtype=dtype, device=self.device).detach()
        return out

    def per_row(self, name: str, value: Tensor | Sequence[Any], *, dtype: torch.dtype) -> Tensor:
        """The argument ``name`` as (N,).

        Raises:
            ValueError: Another number of rows, or more axes.
        """
        out = torch.as_tensor(value, device=self.device).detach().to(dtype)
        if tuple(out.shape) != (self.rows,):
            raise ValueError(f"{name} must hold one value for each of {self.rows} rows, got shape {tuple(out.shape)}")
        return out

    def back(self, value: Tensor) -> Tensor | list[Tensor]:
        """An (N, T) result in the batch's own form."""
        return value if self.is_padded else [value[i, :length] for i, length in enumerate(self.lengths)]


def _length(name: str, row: Any) -> int:
    if isinstance(row, Tensor) and row.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {tuple(row.shape)}")
    if not isinstance(row, (Tensor, Sequence)) or isinstance(row, str):
        raise ValueError(f"{name} must be a one-dimensional tensor or a list, got {type(row).__name__}")
    return len(row)
