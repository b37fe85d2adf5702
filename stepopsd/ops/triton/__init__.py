"""Triton kernels of the ops: importing this package loads no Triton, only calling a kernel does."""

from stepopsd.ops.triton.availability import availability
from stepopsd.ops.triton.future import future_rows
from stepopsd.ops.triton.gradient import gradient_rows, scale_rows
from stepopsd.ops.triton.oar import oar_rows
from stepopsd.ops.triton.score import score_rows
from stepopsd.ops.triton.shape import shape_rows

__all__ = [
    "availability", "future_rows", "gradient_rows", "oar_rows", "scale_rows", "score_rows", "shape_rows",
]  # fmt: skip
