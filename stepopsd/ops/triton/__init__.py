"""Triton kernels of the ops: importing this package loads no Triton, only calling a kernel does."""

from stepopsd.ops.triton.availability import availability
from stepopsd.ops.triton.epilogue import epilogue_rows
from stepopsd.ops.triton.pair import pair_rows

__all__ = ["availability", "epilogue_rows", "pair_rows"]
