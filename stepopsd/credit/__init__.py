"""Credit-assignment methods, one per file, behind one protocol."""

from __future__ import annotations

from stepopsd.credit import appo, appo_method, gigpo, grpo, oar, opsd, reset_methods, rlsd, sdar, stepopsd
from stepopsd.credit.base import (
    AuxiliaryInputs,
    AuxiliaryLoss,
    CreditInputs,
    CreditMethod,
    CreditResult,
    compose,
    create,
    registered,
)

__all__ = [
    "AuxiliaryInputs", "AuxiliaryLoss", "CreditInputs", "CreditMethod", "CreditResult", "appo", "appo_method",
    "compose", "create", "gigpo", "grpo", "oar", "opsd", "registered", "reset_methods", "rlsd", "sdar", "stepopsd",
]  # fmt: skip
