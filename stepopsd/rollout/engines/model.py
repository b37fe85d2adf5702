"""What the engines that sample with the trainer's own model ask of it, and how they hold it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

ATTENTION = ("sdpa", "eager")


def require_attention(model: PreTrainedModel, engine: str) -> None:
    """Raise ValueError, naming the engine, unless the model's attention takes masks of any shape."""
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation not in ATTENTION:
        raise ValueError(
            f"the {engine} engine needs attn_implementation in {ATTENTION}, the model has {implementation!r}"
        )


def max_context(config: Any) -> int:
    """Longest context that full attention over a per-row cache computes exactly for this model."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"the transformers engine supports attention layers only, the model has {sorted(kinds)}")
    limit = getattr(config, "max_position_embeddings", None) or 1 << 30
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds if getattr(config, "layer_types", None) else window is not None
    return min(limit, window) if windowed and window else limit


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
