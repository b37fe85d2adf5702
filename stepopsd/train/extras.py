"""What a credit method may ask for beside the batch, and who computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Provided:
    """An extra and what is worth logging about its making."""

    values: Tensor
    metrics: Mapping[str, Any] = field(default_factory=dict)


Provider: TypeAlias = Callable[[Played], Tensor | Provided]

#: Name in ``CreditMethod.needs`` -> function that computes it, a tensor whose first axis is N.
PROVIDERS: dict[str, Provider] = {}
#: The same names -> function that says what a policy lacks for it, in words that follow "needs"; "" for nothing.
LACKS: dict[str, Callable[[Policy], str]] = {}


def provide(name: str, *, lacks: Callable[[Policy], str] | None = None) -> Callable[[Provider], Provider]:
    """Register a provider under ``name``, and what it asks of a policy."""

    def add(function: Provider) -> Provider:
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


def gather(
    names: Iterable[str], played: Played, log: Callable[[str, Any], None] = lambda name, value: None
) -> dict[str, Tensor]:
    """The named extras on the batch's device.

    Args:
        names: What the method needs.
        played: The batch.
        log: Called with name and value of what their making has to say.

    Raises:
        ValueError: A name that nobody provides.
    """
    out = {}
    for name in sorted(names):
        if name not in PROVIDERS:
            raise ValueError(f"a credit method needs {name!r}; the trainer provides {', '.join(sorted(PROVIDERS))}")
        found = PROVIDERS[name](played)
        if isinstance(found, Provided):
            for key, value in found.metrics.items():
                log(key, value)
            found = found.values
        out[name] = found.to(played.batch.input_ids.device)
    return out
