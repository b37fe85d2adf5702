"""TRL: a drop-in for ``GRPOTrainer`` with our credit, and text environments as its ``rollout_func``.

Example:
    >>> from stepopsd.integrations.trl import StepOPSDGRPOTrainer      # doctest: +SKIP
"""

from __future__ import annotations

from stepopsd.integrations.trl.host import TESTED, check_host
from stepopsd.integrations.trl.rollout import TextEnvironment, TextEpisodes, TextStep
from stepopsd.integrations.trl.trainer import StepOPSDGRPOTrainer

__all__ = ["TESTED", "StepOPSDGRPOTrainer", "TextEnvironment", "TextEpisodes", "TextStep", "check_host"]
