"""A closed world of our own: invented entities, passages about them, and questions that stand for the seven sets."""

from __future__ import annotations

from stepopsd.envs.searchqa.world.bundle import bundled_passages, bundled_questions
from stepopsd.envs.searchqa.world.make import LEVELS, World, WorldConfig, make_world, write_world

__all__ = ["LEVELS", "World", "WorldConfig", "bundled_passages", "bundled_questions", "make_world", "write_world"]
