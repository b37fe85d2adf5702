"""Credit-assignment methods, one per file, behind one protocol."""

from __future__ import annotations

from stepopsd.credit import grpo, stepopsd
from stepopsd.credit.base import CreditInputs, CreditMethod, CreditResult, create

__all__ = ["CreditInputs", "CreditMethod", "CreditResult", "create", "grpo", "stepopsd"]
