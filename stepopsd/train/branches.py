"""Branching rounds of one update: sampled tokens are scored, a method chooses cuts, branches lend their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepopsd.credit.base import BRANCH_REWARDS, BranchTokens, CreditMethod
from stepopsd.rollout.records import Batch, Row, Trajectory
from stepopsd.train.config import RunConfig
from stepopsd.train.extras import Played, provide
from stepopsd.train.plan import Conductor
from stepopsd.train.policy import Policy


@dataclass(frozen=True, slots=True)
class Branched:
    """What came of a round.

    Attributes:
        rewards: (n, K) float32, rewards of the branches of each row's group, NaN where it has fewer than K.
        logprobs: (n, T) float32 under the policy as it is now, 0 outside responses.
    """

    rewards: Tensor
    logprobs: Tensor


class Branches:
    """The branching rounds of one update.

    Args:
        method: Chooses the cuts.
        conductor: Has played the attempts and plays the branches.
        policy: As it is at the time of each round.
        previous: As the policy was before the last update, for ``lagged`` rounds.
        batch, rows: Of the attempts; old log-probs are read at the time of each round.
    """

    def __init__(
        self,
        method: CreditMethod,
        conductor: Conductor,
        policy: Policy,
        previous: Policy | None,
        config: RunConfig,
        batch: Batch,
        rows: Sequence[Row],
    ) -> None:
        self.method, self.conductor, self.config = method, conductor, config
        self.policy, self.previous = policy, previous
        self.batch, self.rows = batch, rows
        self._asked = 0
        self._rewards: list[float] = []
        self._attempts: list[float] = []  # rewards of the rows that were branched
        self._seen: dict[str, list[tuple[float, int]]] = {}

    @property
    def in_minibatches(self) -> bool:
        """Whether a round comes before every optimiser step, or one before the update."""
        return self.method.branching == "minibatch"

    def play(self, rows: Tensor, *, first: bool) -> Branched:
        """Branch the attempts of some rows, which must be all rows of their groups.

        Args:
            rows: (n,) int64.
            first: No optimiser step has been taken since the attempts were sampled: there is no drift.
        """
        part = self.batch.select(rows)
        temperature, most = self.config.rollout.temperature, self.config.optim.microbatch_tokens
        where = part.input_ids, part.attention_mask, part.response_mask
        logprobs, entropies = self.policy.measure(*where, temperature=temperature, max_tokens=most)
        reference: Tensor | None = None
        if self.method.branching == "minibatch":
            # The sampler's own log-probs differ by rounding, which is no drift.
            reference = logprobs if first else part.old_logprobs
        elif self.previous is not None:
            reference = self.previous.score(*where, temperature=temperature, max_tokens=most)
        tokens = self._tokens(part, rows, logprobs, reference, entropies)
        branching = self.method.branch(tokens)
        requests = branching.continuations
        self._note(branching.metrics, part.rewards)
        self._asked += len(requests)
        lent: dict[int, list[float]] = {}
        for request, attempts in zip(requests, self.conductor.answer(requests), strict=True):
            played = [self.conductor.trajectories[a.index] for a in attempts]
            lent.setdefault(request.group, []).extend(map(self._vote, played))
        self._rewards += [value for values in lent.values() for value in values]
        return Branched(_table(lent, part.group_ids), logprobs)

    def metrics(self) -> dict[str, Any]:
        """``branches/asked``, ``/played``, their mean reward and that of what they branched from, the method's own."""
        count = len(self._rewards)
        return {
            **{
                name: sum(value * rows for value, rows in seen) / sum(rows for _, rows in seen)
                for name, seen in self._seen.items()
            },
            "branches/attempt_reward_mean": sum(self._attempts) / max(1, len(self._attempts)),
            "branches/asked": self._asked,
            "branches/played": count,
            "branches/reward_mean": sum(self._rewards) / max(1, count),
        }

    def _note(self, metrics: Mapping[str, float], rewards: Tensor) -> None:
        self._attempts += rewards.tolist()
        for name, value in metrics.items():
            self._seen.setdefault(name, []).append((value, len(rewards)))

    def _tokens(
        self, part: Batch, rows: Tensor, logprobs: Tensor, reference: Tensor | None, entropies: Tensor
    ) -> BranchTokens:
        """Rows as attempts: a dialogue's row as it is, the calls of a windowed episode one after the other."""
        own: dict[int, list[int]] = {}
        seen: set[tuple[int, tuple[int, ...]]] = set()
        for place, index in enumerate(rows.tolist()):
            row = self.rows[index]
            key = (row.trajectory, tuple(row.turn_ids))
            if key not in seen:  # a copy of a row is no further call
                seen.add(key)
                own.setdefault(row.trajectory, []).append(place)

        def joined(values: Tensor) -> Tensor:
            parts = [
                values[places[0]] if len(places) == 1
                else torch.cat([values[p][part.response_mask[p]] for p in places])
                for places in own.values()
            ]  # fmt: skip
            return pad_sequence(parts, batch_first=True)

        return BranchTokens(
            attempts=tuple(self.conductor.order[t] for t in own),
            mask=joined(part.response_mask),
            entropies=joined(entropies),
            logprobs=None if reference is None else joined(logprobs),
            reference_logprobs=None if reference is None else joined(reference),
            group_ids=part.group_ids[[places[0] for places in own.values()]],
        )

    def _vote(self, trajectory: Trajectory) -> float:
        """The reward of an episode as the rows of the batch have it: the mean over its rows."""
        loss = self.config.loss
        rows = len(trajectory.turns) if trajectory.context == "turn" else 1
        return loss.reward_scale * trajectory.reward - loss.invalid_action_penalty * trajectory.invalid_turns / rows


def _table(lent: dict[int, list[float]], group_ids: Tensor) -> Tensor:
    """(n, K), NaN where a group has fewer than K."""
    width = max([1, *(len(values) for values in lent.values())])
    out = torch.full((len(group_ids), width), torch.nan, device=group_ids.device)
    for group, values in lent.items():
        out[group_ids == group, : len(values)] = torch.tensor(values, device=group_ids.device)
    return out


@provide(BRANCH_REWARDS)
def branch_rewards(played: Played) -> Tensor:
    """(N, K) rewards that branches have lent so far, NaN where there are none."""
    if played.lent is not None:
        return played.lent
    return torch.full((len(played.batch), 1), torch.nan, device=played.batch.input_ids.device)
