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
        lent: (N, K) rewards of branches, see ``credit.base.BRANCH_REWARDS``; None before there are any.
        wanted: (N,) bool, rows that have an advantage; others need no extras. None wants all.
    """

    config: RunConfig
    policy: Policy
    batch: Batch
    rows: Sequence[Row]
    trajectories: Sequence[Trajectory]
    wanted: Tensor | None = None
    lent: Tensor | None = None


#: Name in ``CreditMethod.needs`` -> function that computes it, a tensor whose first axis is N.
PROVIDERS: dict[str, Callable[[Played], Tensor]] = {}
#: The same names -> function that says what a policy lacks for it, in words that follow "needs"; "" for nothing.
LACKS: dict[str, Callable[[Policy], str]] = {}


def provide(
    name: str, *, lacks: Callable[[Policy], str] | None = None
) -> Callable[[Callable[[Played], Tensor]], Callable[[Played], Tensor]]:
    """Register a provider under ``name``, and what it asks of a policy."""

    def add(function: Callable[[Played], Tensor]) -> Callable[[Played], Tensor]:
        PROVIDERS[name] = function
        if lacks is not None:
            LACKS[name] = lacks
        return function

    return add


def require(method: str, names: Iterable[str], policy: Policy) -> None:
    """Raise ValueError, before any work starts, where the policy lacks what an extra of the method takes."""
    for name in sorted(names):
        if lacking := LACKS.get(name, lambda _: "")(policy):
            raise ValueError(f"credit.name {method} needs {lacking}")


def gather(names: Iterable[str], played: Played) -> dict[str, Tensor]:
    """The named extras on the batch's device. Raises ValueError for a name that nobody provides."""
    out = {}
    for name in sorted(names):
        if name not in PROVIDERS:
            raise ValueError(f"a credit method needs {name!r}; the trainer provides {', '.join(sorted(PROVIDERS))}")
        out[name] = PROVIDERS[name](played).to(played.batch.input_ids.device)
    return out
