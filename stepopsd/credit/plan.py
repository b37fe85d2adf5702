"""What a credit method asks of the rollouts: continuations of rows from a cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Continuation:
    """Sample ``count`` continuations of a row from one of its prefixes.

    Attributes:
        row: The parent, an index into the rollouts that the plan was made from.
        cut: Response tokens of the parent to keep: token ids, never text that is tokenised again. 0 keeps none.
        count: Continuations to sample under the ordinary prompt.
        kind: ``reset`` continuations are trained on their suffix, ``branch`` ones only lend their rewards.
        group: Group id of the continuations.
    """

    row: int
    cut: int
    count: int
    kind: Literal["reset", "branch"]
    group: int

    def __post_init__(self) -> None:
        if self.cut < 0 or self.count < 1:
            raise ValueError(f"cut must be at least 0 and count at least 1, got {self.cut} and {self.count}")
