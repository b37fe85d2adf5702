"""Resets: continue failed attempts from an earlier step and learn on the suffix; RRPO and SRPO (arXiv 2605.25507).

RRPO resets to a step drawn uniformly, SRPO to the one that the model itself names (``credit/localise.py``). These are
functions on records and tensors; ``credit/reset_methods.py`` makes a rollout plan of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from stepopsd.credit.groups import population_normalize
from stepopsd.credit.plan import Continuation

Role = Literal["fresh", "parent", "dropped"]
PARENTS = ("iid", "code")


@dataclass(frozen=True, slots=True)
class ResetOptions:
    """Sizes and rules of a prompt's groups.

    Attributes:
        n_fresh: Fresh attempts that are trained on.
        n_reset: Continuations, divided among the parents; a multiple of ``n_parents``.
        n_parents: Failed attempts to reset.
        parents: ``iid``: the first n_fresh attempts are all kept, parents are drawn from the failed ones among them;
            if none failed, up to ``n_probes`` further attempts look for one and are not trained on. ``code``: the first
            failures become parents and are taken out of the fresh group, whose success rate is too high for that
            reason; at most n_fresh + n_probes attempts.
        n_probes: Further attempts.

    Raises:
        ValueError: A value outside its range.
    """

    n_fresh: int = 4
    n_reset: int = 4
    n_parents: int = 1
    parents: Literal["iid", "code"] = "iid"
    n_probes: int = 8

    def __post_init__(self) -> None:
        if self.parents not in PARENTS:
            raise ValueError(f"parents must be one of {', '.join(PARENTS)}, got {self.parents!r}")
        for name, least in (("n_fresh", 0), ("n_reset", 1), ("n_parents", 1), ("n_probes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.n_reset % self.n_parents:
            raise ValueError(f"n_reset must be a multiple of n_parents {self.n_parents}, got {self.n_reset}")


@dataclass(slots=True)
class Intake:
    """Takes one prompt's attempts in the order in which they were sampled, and says what each is good for.

    Attributes:
        roles: Of each attempt so far. A parent of ``iid`` among the fresh attempts stays ``fresh``.

    Example:
        >>> intake = Intake(ResetOptions(n_fresh=2))
        >>> while intake.wants_more:
        ...     attempt = sample()
        ...     intake.add(failed=attempt.failed, steps=len(attempt.steps))
        >>> parents = intake.parents(random.Random(0))
    """

    options: ResetOptions
    roles: list[Role] = field(default_factory=list)
    _able: list[int] = field(default_factory=list)  # failed attempts with a step, which can be reset

    @property
    def fresh(self) -> list[int]:
        """Attempts of the fresh group."""
        return [i for i, role in enumerate(self.roles) if role == "fresh"]

    @property
    def wants_more(self) -> bool:
        """Whether another attempt is needed."""
        o = self.options
        if len(self.roles) >= o.n_fresh + o.n_probes:
            return False
        if o.parents == "iid":
            return len(self.roles) < o.n_fresh or not self._able
        return len(self.fresh) < o.n_fresh or len(self._able) < o.n_parents

    @property
    def missing(self) -> int:
        """How many further attempts are needed at least: no more than that can be sampled without asking again."""
        o, fresh = self.options, len(self.fresh)
        if not self.wants_more:
            return 0
        if o.parents == "iid":
            lacking = o.n_fresh - len(self.roles)
        else:
            lacking = o.n_fresh - fresh + o.n_parents - len(self._able)
        return min(max(1, lacking), o.n_fresh + o.n_probes - len(self.roles))

    def add(self, *, failed: bool, steps: int, usable: bool = True) -> Role:
        """Take the next attempt. One without any step cannot be reset; one that broke is dropped.

        Raises:
            ValueError: No further attempt is wanted, or a negative number of steps.
        """
        if not self.wants_more or steps < 0:
            raise ValueError(f"no attempt is wanted, or steps is negative: {len(self.roles)} attempts, steps {steps}")
        able, o = failed and steps > 0 and usable, self.options
        role: Role = "fresh" if usable and self._has_room() else "dropped"
        if able and (role == "dropped" if o.parents == "iid" else len(self._able) < o.n_parents):
            role = "parent"
        if able and (o.parents == "iid" or role == "parent"):
            self._able.append(len(self.roles))
        self.roles.append(role)
        return role

    def _has_room(self) -> bool:
        # Of ``iid`` the first n_fresh attempts are the fresh group, whatever became of them.
        taken = len(self.roles) if self.options.parents == "iid" else len(self.fresh)
        return taken < self.options.n_fresh

    def parents(self, rng: random.Random) -> list[int]:
        """Attempts to reset, n_parents of them; all that there are where there are fewer."""
        if self.options.parents == "code":
            return list(self._able)
        return sorted(rng.sample(self._able, min(self.options.n_parents, len(self._able))))


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What to sample beside the fresh attempts of a prompt.

    Attributes:
        continuations: One entry per parent, its ``row`` an attempt; empty where nothing failed.
        steps: The step that each goes back to, in 1..n.
        top_up: Further fresh attempts of the fresh group where nothing failed, so that the batch keeps its size.
    """

    continuations: list[Continuation]
    steps: list[int]
    top_up: int


def uniform_step(rng: random.Random) -> Callable[[int, int], int]:
    """RRPO's choice: (attempt, n) -> a step drawn uniformly from 1..n."""
    return lambda attempt, count: rng.randint(1, count)


def plan_resets(
    intake: Intake,
    parents: Sequence[int],
    step_ends: Sequence[Sequence[int]],
    choose: Callable[[int, int], int],
    *,
    first_group: int = 1,
) -> ResetPlan:
    """Continuations of one prompt's failed attempts from right before a step.

    Args:
        intake: Complete, ``wants_more`` being False.
        parents: Attempts to reset, drawn by ``Intake.parents``.
        step_ends: Of each attempt, the number of response tokens up to the end of each step, rising.
        choose: (attempt, number n of its steps) -> step e in 1..n, e.g. ``uniform_step`` or what ``parse_location``
            read from the model's reply; what lies outside is clamped.
        first_group: Group id of the first parent's continuations; the fresh group needs another one.

    Returns:
        ``ResetPlan``; the continuations of e = 1 begin at the prompt.

    Raises:
        ValueError: An intake that is not complete, ends that do not rise or belong to another number of attempts.
    """
    if intake.wants_more:
        raise ValueError(f"the intake must be complete, got one that wants more after {len(intake.roles)} attempts")
    if len(step_ends) != len(intake.roles):
        raise ValueError(f"step_ends must hold {len(intake.roles)} attempts, got {len(step_ends)}")
    o = intake.options
    if not parents:
        return ResetPlan([], [], o.n_fresh + o.n_reset - len(intake.fresh))
    share, extra = divmod(o.n_reset, len(parents))
    continuations, steps = [], []
    for i, attempt in enumerate(parents):
        ends = list(step_ends[attempt])
        if not ends or ends != sorted(set(ends)) or ends[0] < 1:
            raise ValueError(f"step_ends of attempt {attempt} must rise from at least 1, got {ends}")
        step = min(max(1, choose(attempt, len(ends))), len(ends))
        cut = ends[step - 2] if step > 1 else 0
        continuations.append(Continuation(attempt, cut, share + (i < extra), "reset", first_group + i))
        steps.append(step)
    return ResetPlan(continuations, steps, 0)


def reset_advantages(rewards: Tensor, group_ids: Tensor, trajectory_ids: Tensor | None = None) -> Tensor:
    """(N,) advantages, fresh group and every reset group normalised apart; see ``population_normalize``."""
    return population_normalize(rewards, group_ids, trajectory_ids)
