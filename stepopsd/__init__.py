"""Fused credit assignment for agent RL: better advantages in one import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepopsd.ops.shaping import ShapedAdvantages, shape_advantages

__version__ = "0.1.0"
__all__ = ["ShapedAdvantages", "__version__", "shape_advantages"]


def __getattr__(name: str) -> Any:
    # On first use, so that the parts without torch (environments, retrieval, configuration) stay without it.
    if name not in ("ShapedAdvantages", "shape_advantages"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stepopsd.ops import shaping

    return globals().setdefault(name, getattr(shaping, name))
