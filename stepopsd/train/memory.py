"""Out of memory in the middle of a batch: the same work again in smaller parts."""

from __future__ import annotations

import gc
import resource
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def halving(work: Callable[[int], T], tokens: int, *, least: int, what: str) -> tuple[T, int]:
    """``work(tokens)``, with half the tokens after every ``torch.OutOfMemoryError``.

    Args:
        work: Called with the padded tokens of a micro-batch; has to leave no trace when it fails.
        tokens: To begin with.
        least: Where smaller parts do not exist: the longest row.
        what: Names the work in the warning.

    Returns:
        The result, and the tokens that it fitted with.

    Raises:
        torch.OutOfMemoryError: ``least`` tokens do not fit either.

    Example:
        >>> halving(lambda tokens: tokens, 64, least=1, what="scoring")
        (64, 64)
    """
    while True:
        try:
            return work(tokens), tokens
        except torch.OutOfMemoryError as error:
            if tokens <= least:
                raise torch.OutOfMemoryError(
                    f"{what}: a single row of {least} tokens does not fit into memory: shorten the episodes "
                    f"(rollout.max_prompt_tokens), or set model.gradient_checkpointing ({error})"
                ) from None
        # Outside the handler: the traceback there keeps the tensors of the failed attempt alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tokens = max(least, tokens // 2)
        warnings.warn(f"{what}: out of memory, goes on with micro-batches of {tokens} tokens", stacklevel=2)


class PeakMemory:
    """The most memory in use since its creation: allocated by torch on a CUDA device, else resident of the process.

    On CPU the system remembers the peak since the process started, so that it never falls.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def mib(self) -> float:
        """In MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
