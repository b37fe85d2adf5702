"""Fused credit assignment for agent RL: better advantages in one import."""

from __future__ import annotations

from stepopsd.ops.shaping import ShapedAdvantages, shape_advantages

__version__ = "0.1.0"
__all__ = ["ShapedAdvantages", "__version__", "shape_advantages"]
