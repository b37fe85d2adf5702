"""Fused credit assignment for agent RL: better advantages in one import."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepopsd.ops import vocab_parallel
    from stepopsd.ops.linear import linear_shape_advantages, linear_token_logprobs
    from stepopsd.ops.linear_loss import linear_grpo_loss
    from stepopsd.ops.logprobs import TokenLogprobs, token_logprobs
    from stepopsd.ops.losses import aggregation_weights
    from stepopsd.ops.policy_loss import LossMetrics, PolicyLoss, grpo_loss
    from stepopsd.ops.shape_and_loss import shape_and_loss
    from stepopsd.ops.shaping import ShapedAdvantages, shape_advantages, step_segments

__version__ = "0.1.0"
__all__ = [
    "LossMetrics", "PolicyLoss", "ShapedAdvantages", "TokenLogprobs", "__version__", "aggregation_weights", "grpo_loss",
    "linear_grpo_loss", "linear_shape_advantages", "linear_token_logprobs", "shape_advantages", "shape_and_loss",
    "step_segments", "token_logprobs", "vocab_parallel",
]  # fmt: skip

_HOMES = {
    "ShapedAdvantages": "shaping", "shape_advantages": "shaping", "step_segments": "shaping",
    "TokenLogprobs": "logprobs", "token_logprobs": "logprobs",
    "LossMetrics": "policy_loss", "PolicyLoss": "policy_loss", "grpo_loss": "policy_loss",
    "aggregation_weights": "losses", "shape_and_loss": "shape_and_loss",
    "linear_grpo_loss": "linear_loss", "linear_shape_advantages": "linear", "linear_token_logprobs": "linear",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # On first use, so that the parts without torch (environments, retrieval, configuration) stay without it.
    if name == "vocab_parallel":  # a module: its functions have the names of the others
        return importlib.import_module("stepopsd.ops.vocab_parallel")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(f"stepopsd.ops.{_HOMES[name]}"), name))
