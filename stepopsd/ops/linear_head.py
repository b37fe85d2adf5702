"""The products of a language-model head with a chunk of rows: logits forward, the chunk's share of the gradients back.

Each may mix precisions. What PyTorch cannot multiply as it is goes through tiles of the vocabulary, so that neither the
weight nor a chunk of logits is ever copied as a whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes of one chunk of logits. A GPU wants many rows per product, or it waits for the weight to be read again.
_CHUNK_BYTES = {"cuda": 1 << 29, "cpu": 1 << 25}
_MOST_BYTES = {"cuda": 1 << 29, "cpu": 1 << 27}  # where the former hold less than _ROW_STEP rows
# Elements of one converted tile: at most 128 MiB in float32 on a GPU, 8 MiB elsewhere.
_TILE_ELEMENTS = {"cuda": 1 << 25, "cpu": 1 << 21}
_ROW_STEP = 128  # rows of a chunk come in multiples of this where there are that many; with fewer, products are slow


def default_chunk_rows(vocab: int, dtype: torch.dtype, device_type: str) -> int:
    """Rows of logits in one chunk: at most 512 MiB of them on a GPU and 32 MiB elsewhere, but one row at least.

    Where 32 MiB hold less than 128 rows: 128 of them, or as many as fit into 128 MiB.
    """
    kind, row = device_type if device_type in _CHUNK_BYTES else "cpu", vocab * dtype.itemsize
    rows, most = _CHUNK_BYTES[kind] // row, _MOST_BYTES[kind] // row
    return rows // _ROW_STEP * _ROW_STEP if rows > _ROW_STEP else max(1, min(_ROW_STEP, most))


@dataclass(frozen=True, slots=True)
class Head:
    """A head as it enters the products.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        logits: Dtype of the logits and of their gradient.
        operand: Dtype of the factors of the gradients' products.
    """

    weight: Tensor
    bias: Tensor | None
    logits: torch.dtype
    operand: torch.dtype

    @classmethod
    def build(cls, weight: Tensor, bias: Tensor | None, hidden: torch.dtype, fp32_logits: bool) -> Head:
        """The head for hidden states of dtype ``hidden``; logits are in the weight's dtype, or in float32."""
        wide = _wide(weight.dtype)
        narrow = weight.device.type == "cuda" and hidden == weight.dtype
        return cls(weight, bias, wide if fp32_logits else weight.dtype, weight.dtype if narrow else wide)

    def write_logits(self, hidden: Tensor, out: Tensor) -> None:
        """hidden · weightᵀ + bias of (m, H) rows into ``out`` (m, V)."""
        if hidden.dtype == self.weight.dtype == out.dtype:
            if self.bias is None:
                torch.mm(hidden, self.weight.t(), out=out)
            else:
                torch.addmm(self.bias.to(out.dtype), hidden, self.weight.t(), out=out)
            return
        if hidden.dtype == self.weight.dtype and _widens(hidden.device.type, add=False):
            torch.mm(hidden, self.weight.t(), out_dtype=out.dtype, out=out)
        else:
            wide = hidden.to(out.dtype)
            for tile in self._tiles(hidden):
                torch.mm(wide, self.weight[tile].to(out.dtype).t(), out=out[:, tile])
        if self.bias is not None:
            out.add_(self.bias)

    def hidden_gradient(self, gradient: Tensor) -> Tensor:
        """gradient · weight of a (m, V) chunk: (m, H)."""
        if gradient.dtype == self.weight.dtype:
            return torch.mm(gradient, self.weight)
        total = gradient.new_zeros((gradient.shape[0], self.weight.shape[1]))
        for tile in self._tiles(gradient):
            _add_product(total, gradient[:, tile].to(self.operand), self.weight[tile].to(self.operand))
        return total

    def new_weight_gradient(self, chunks: int, hidden: torch.dtype) -> Tensor:
        """(V, H) memory for the gradient of the weight: added up in float32, or written once in its own dtype."""
        once = chunks == 1 and hidden == self.weight.dtype == self.logits
        dtype = self.weight.dtype if once else _wide(self.weight.dtype)
        return torch.empty_like(self.weight, dtype=dtype, memory_format=torch.contiguous_format)

    def new_bias_gradient(self) -> Tensor:
        """(V,) zeros in the precision in which gradients are added up."""
        return torch.zeros(self.weight.shape[0], dtype=_wide(self.weight.dtype), device=self.weight.device)

    def add_weight_gradient(self, gradient: Tensor, hidden: Tensor, total: Tensor, *, first: bool) -> None:
        """gradientᵀ · hidden of a chunk, (m, V) and (m, H), added to ``total`` (V, H); written when ``first``."""
        if gradient.dtype == hidden.dtype == total.dtype:
            torch.addmm(total, gradient.t(), hidden, beta=0 if first else 1, out=total)
            return
        if first:
            total.zero_()
        hidden = hidden.to(self.operand)
        for tile in self._tiles(gradient):
            _add_product(total[tile], gradient[:, tile].to(self.operand).t(), hidden)

    def add_bias_gradient(self, gradient: Tensor, total: Tensor) -> None:
        """The column sums of a chunk (m, V), added to ``total`` (V,)."""
        for tile in self._tiles(gradient):
            total[tile] += gradient[:, tile].sum(0, dtype=total.dtype)

    def _tiles(self, chunk: Tensor) -> list[slice]:
        """Slices of the vocabulary such that a tile of a (m, ...) chunk, and one of the weight, stay small."""
        vocab, width = self.weight.shape
        size = _TILE_ELEMENTS.get(chunk.device.type, _TILE_ELEMENTS["cpu"])
        step = max(16, size // max(width, chunk.shape[0], 1))
        return [slice(start, min(vocab, start + step)) for start in range(0, vocab, step)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total`` += a · b; factors of 16 bits are added up in the precision of ``total``."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif _widens(total.device.type, add=True):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(a, b))


@functools.cache
def _widens(device_type: str, *, add: bool) -> bool:
    """Whether a product of 16-bit factors can be written (``add``: added) to float32; some CUDA builds of torch can."""
    if device_type != "cuda":
        return False
    a = torch.zeros((16, 16), dtype=torch.bfloat16, device=device_type)
    out = torch.zeros((16, 16), dtype=torch.float32, device=device_type)
    try:
        if add:
            torch.addmm(out, a, a, out_dtype=torch.float32, out=out)
        else:
            torch.mm(a, a, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError):
        return False
    return True
