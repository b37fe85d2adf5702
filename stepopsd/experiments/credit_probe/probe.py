"""One batch per method, its advantages beside the Monte-Carlo ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepopsd.envs.chain import crossing_of
from stepopsd.experiments.credit_probe.credit import Measured, token_credit
from stepopsd.experiments.credit_probe.measure import Credited, agreement, agreement_gain, decisive_share
from stepopsd.experiments.credit_probe.oracle import OracleTeacher
from stepopsd.experiments.credit_probe.setting import Section, probe_config
from stepopsd.experiments.credit_probe.values import monte_carlo_advantages
from stepopsd.experiments.statistics import Interval
from stepopsd.rollout.records import Row, Trajectory
from stepopsd.train.prepared import Prepared
from stepopsd.train.trainer import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """What the probe found about one method.

    Attributes:
        measured: What the advantages are.
        share: Of |advantage| on the deciding turn; an even spread over turns would put 1 / length there.
        agreement: Correlation with the Monte-Carlo advantages over tokens.
        gain: ``agreement`` minus that of the first method probed, over the same games; None for the first one itself.
        rows: Training rows; ``probed`` of them have Monte-Carlo advantages.
        generated: Tokens sampled for the batch, resets and questions included.
    """

    method: str
    measured: Measured
    share: Interval
    agreement: Interval
    gain: Interval | None
    rows: int
    probed: int
    generated: int

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Truth:
    """Monte-Carlo advantages, estimated once per episode however many methods train on it."""

    def __init__(self, rolls: int) -> None:
        self.rolls = rolls
        self._known: dict[tuple[Any, ...], np.ndarray] = {}

    def of(self, trainer: Trainer, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
        """(tokens,) per trajectory; what is not known yet is played with the trainer's policy."""
        new = {_key(t): t for t in trajectories if _key(t) not in self._known}
        play = partial(trainer.episodes.play_jobs, temperature=trainer.config.rollout.temperature)
        found = monte_carlo_advantages(list(new.values()), play, rolls=self.rolls)
        self._known |= dict(zip(new, found, strict=True))
        return [self._known[_key(t)] for t in trajectories]


def probe(
    methods: dict[str, Section], model: Path, scratch: Path, truth: Truth, *, length: int, groups: int,
    group_size: int, probed: int, oracle: bool = False, seed: int = 0, say: Say = print,
) -> list[Finding]:  # fmt: skip
    """Let every method assign credit to one batch of the same policy and measure it.

    Args:
        methods: Label -> part of the ``credit`` section.
        model: The policy's folder.
        scratch: Folder for the run directories; nothing in it is needed later.
        truth: Of this policy, and what is known of it.
        length: Turns of an episode.
        groups, group_size: Of the batch.
        probed: Rows per game with Monte-Carlo advantages.
        oracle: Let ``OracleTeacher`` stand in for every teacher.
        seed: Of the batch; all methods have the same fresh episodes.
        say: Receives a line per method.
    """
    findings: list[Finding] = []
    reference: list[Credited] = []
    for label, credit in methods.items():
        config = probe_config(
            model, scratch / label.replace(", ", "-"), credit,
            length=length, groups=groups, group_size=group_size, seed=seed,
        )  # fmt: skip
        trainer = Trainer(config)
        if oracle:
            trainer.credit.parts = [
                replace(part, teacher=OracleTeacher(trainer.policy, part.teacher)) if part.teacher else part
                for part in trainer.credit.parts
            ]
        try:
            prepared = trainer.prepare(1)
            chosen = _rows_to_probe(games_of(prepared), probed, seed)
            found = truth.of(trainer, [prepared.trajectories[prepared.rows[i].trajectory] for i in chosen])
            seen, measured = token_credit(trainer, prepared)
        finally:
            trainer.episodes.close()
        rows = credited(prepared, seen, dict(zip(chosen, found, strict=True)))
        known = [rows[i] for i in chosen]
        reference = reference or known
        finding = Finding(
            label, measured, decisive_share(rows), agreement(known), agreement_gain(known, reference) if findings else
            None, len(rows), len(chosen), prepared.spent()["tokens/generated"],
        )  # fmt: skip
        say(f"{label}: {finding.share.estimate:.3f} of |A| on the deciding turn, r = {finding.agreement.estimate:.3f}")
        findings.append(finding)
    return findings


def credited(prepared: Prepared, credit: torch.Tensor, truth: dict[int, np.ndarray]) -> list[Credited]:
    """The trained tokens of every row, with a method's (N, T) credit and what is known of their true advantages."""
    out = []
    for index, (row, game) in enumerate(zip(prepared.rows, games_of(prepared), strict=True)):
        trajectory = prepared.trajectories[row.trajectory]
        trained = np.array(row.response_mask)
        own = credit[index, : len(trained)].double().cpu().numpy()[trained]
        turn, place = _turn_tokens(row, trajectory)
        known = truth.get(index)
        right = np.full(len(own), np.nan) if known is None else known[place[trained]]
        decisive = turn[trained] == crossing_of(trajectory.task)
        out.append(Credited(game, own, decisive, right))
    return out


def games_of(prepared: Prepared) -> list[int]:
    """A number per row, the same for all rows of a game, whatever groups a method makes of them."""
    games = [prepared.trajectories[row.trajectory].task.task_id for row in prepared.rows]
    numbers = {name: number for number, name in enumerate(sorted(set(games)))}
    return [numbers[name] for name in games]


def _turn_tokens(row: Row, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Per position of the row: the turn whose response it belongs to (-1: none), and its number among all responses."""
    turn, place = np.full(len(row.input_ids), -1), np.zeros(len(row.input_ids), dtype=int)
    before = np.cumsum([0, *(len(t.response_ids) for t in trajectory.turns)])
    for number, start in zip(row.turn_ids, row.turn_starts, strict=True):
        length = len(trajectory.turns[number].response_ids)
        turn[start : start + length] = number
        place[start : start + length] = before[number] + np.arange(length)
    return turn, place


def _rows_to_probe(games: Sequence[int], each: int, seed: int) -> list[int]:
    """``each`` rows of every game, drawn at random, the same for all methods with the same rows."""
    chosen: list[int] = []
    for game in sorted(set(games)):
        own = np.flatnonzero(np.asarray(games) == game)
        rng = np.random.default_rng((seed, game))
        chosen += sorted(rng.choice(own, min(each, len(own)), replace=False).tolist())
    return chosen


def _key(trajectory: Trajectory) -> tuple[Any, ...]:
    responses = tuple(tuple(turn.response_ids) for turn in trajectory.turns)
    return trajectory.task.task_id, trajectory.seed, responses
