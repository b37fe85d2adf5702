"""What a credit method may ask for beside the batch, and who computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from stepopsd.rollout.records import Batch, Row, Trajectory
from stepopsd.train.config import RunConfig
from stepopsd.train.policy import Policy


@dataclass(frozen=True, slots=True)
class Played:
    """One update's rollouts as providers see them.

    Attributes:
        rows: N rows in the order of the batch.
        trajectories: What ``Row.trajectory`` indexes.
    """

    config: RunConfig
    policy: Policy
    batch: Batch
    rows: Sequence[Row]
    trajectories: Sequence[Trajectory]


#: Name in ``CreditMethod.needs`` -> function that computes it, a tensor whose first axis is N.
PROVIDERS: dict[str, Callable[[Played], Tensor]] = {}


def provide(name: str) -> Callable[[Callable[[Played], Tensor]], Callable[[Played], Tensor]]:
    """Register a provider under ``name``."""

    def add(function: Callable[[Played], Tensor]) -> Callable[[Played], Tensor]:
        PROVIDERS[name] = function
        return function

    return add


def gather(names: Iterable[str], played: Played) -> dict[str, Tensor]:
    """The named extras on the batch's device. Raises ValueError for a name that nobody provides."""
    out = {}
    for name in sorted(names):
        if name not in PROVIDERS:
            raise ValueError(f"a credit method needs {name!r}; the trainer provides {', '.join(sorted(PROVIDERS))}")
        out[name] = PROVIDERS[name](played).to(played.batch.input_ids.device)
    return out
