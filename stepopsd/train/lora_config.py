"""The ``lora`` section; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from stepopsd.options.checks import PositiveFloat, Share, check_fields, within


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters in place of the whole model (arXiv 2106.09685); needs peft.

    Teacher and reference are then adapters beside the trained one, or none, on one copy of the model; checkpoints hold
    adapters, in peft's format.

    Attributes:
        rank: Of every adapter; 0 trains the whole model.
        alpha: Their output is scaled by alpha / rank.
        dropout: Of their input, while training.
        targets: Ends of the names of the layers that get one, such as ``q_proj``; empty for all linear layers but the
            head.
    """

    rank: Annotated[int, within(0, 1 << 16)] = 0
    alpha: PositiveFloat = 32.0
    dropout: Share = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields("lora", self)
