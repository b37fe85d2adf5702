"""What other methods would have made of a recorded batch: their own code on stored rewards, log-probs and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit import CreditInputs, CreditMethod, create, registered
from stepopsd.credit.gigpo import TURNS
from stepopsd.envs.base import Task
from stepopsd.experiments.report.load import Record, Run
from stepopsd.options.credit import CreditConfig
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.train.config_io import to_tree
from stepopsd.train.turns import anchors_of

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One method's credit for the recorded members of a group.

    Attributes:
        method: Its label.
        shaped: Per member the advantages of all its tokens, turns in order; empty where ``absent`` says why.
        weights: Likewise; empty for a method without weights.
        absent: Why the record is not enough; empty where it is.
    """

    method: str
    shaped: tuple[tuple[float, ...], ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    absent: str = ""


def methods_of(run: Run) -> dict[str, Options]:
    """Every registered method with the run's ``credit`` section, its control aside."""
    return {name: options_of(run, name=name, control="none") for name in registered()}


def options_of(run: Run, **changes: Any) -> Options:
    """The run's ``credit`` section, whole: what it lacks has its default, keys of another version are left out."""
    return _filled(to_tree(CreditConfig()), run.setting("credit", {})) | changes


def _filled(defaults: dict[str, Any], own: Options) -> dict[str, Any]:
    return {
        key: _filled(value, own.get(key) or {}) if isinstance(value, dict) else own.get(key, value)
        for key, value in defaults.items()
    }


def credit_of_record(members: Sequence[Record], methods: Mapping[str, Options], run: Run) -> list[Recomputed]:
    """What each method makes of one recorded group.

    A method is asked where it reads nothing but the batch, the teacher's log-probs, and what turns say about
    themselves; rollouts of its own, passes of the model and loss terms are not in a record.

    Args:
        members: Stored trajectories of one group and update, see ``train.transcripts``.
        methods: Label -> whole ``credit`` section of a run.
        run: That recorded them; its ``loss`` section scales rewards.

    Returns:
        One entry per method in the given order; what cannot be computed says why.

    Raises:
        ValueError: ``members`` is empty or holds several groups.
    """
    groups = {(m["update"], m["group"]) for m in members}
    if len(groups) != 1:
        raise ValueError(f"members must be of one group and update, got {len(groups)} groups")
    inputs = _inputs(members)
    return [_recompute(label, options, members, inputs, run) for label, options in methods.items()]


def _recompute(
    label: str, options: Options, members: Sequence[Record], inputs: CreditInputs, run: Run
) -> Recomputed:
    name = str(options["name"])
    if name not in registered():
        return Recomputed(label, absent="is several methods together")
    if options["control"] != "none":
        return Recomputed(label, absent="is a control that deals out the numbers of a whole batch")
    method = create(name, options)
    absent = _lacking(method, members, inputs.update)
    if absent:
        return Recomputed(label, absent=absent)
    if method.needs(inputs.update):
        inputs = replace(inputs, extras=_turns(members, run, options))
    result = method.assign(inputs)
    weights = result.tokens.get("weights")
    return Recomputed(
        label, _per_member(result.advantages, inputs.response_mask),
        () if weights is None else _per_member(weights, inputs.response_mask),
    )  # fmt: skip


def _lacking(method: CreditMethod, members: Sequence[Record], update: int) -> str:
    """Why a record is not enough for a method; empty where it is."""
    if method.role == "auxiliary":
        return "leaves the advantages alone and adds a loss term"
    if type(method).plan is not CreditMethod.plan or method.branching:
        return "plays other rollouts"
    if method.per_minibatch:
        return "follows the policy while it is being updated"
    unknown = method.needs(update) - set(TURNS)
    if unknown:
        return f"needs passes of the model ({', '.join(sorted(unknown))})"
    if method.wants_teacher(update) and not any(_asked(m) for m in members):
        return "needs a teacher's log-probs, and the run asked none in this update"
    if method.needs(update):
        if any("reward" not in turn for m in members for turn in m["turns"]):
            return "needs the rewards of turns, which were not recorded"
        size = members[0].get("members")
        if size != len(members):
            return f"needs the whole group, and {len(members)} of {size or 'its'} members were recorded"
    return ""


def _asked(member: Record) -> bool:
    gaps = (gap for turn in member["turns"] for gap in turn.get("delta") or ())
    return bool(member.get("asked", False)) or any(gaps)


def _inputs(members: Sequence[Record]) -> CreditInputs:
    """One row per member that holds its sampled tokens alone: no method reads more of a context than that."""
    old, delta = _column(members, "logprobs", -1.0), _column(members, "delta", 0.0)
    steps = [[k if inside else -1 for k, turn in enumerate(m["turns"]) for inside in _inside(turn)] for m in members]
    return CreditInputs(
        advantages=_column(members, "advantages", 0.0),
        response_mask=_column(members, "", 1.0).bool(),
        step_ids=_padded(steps, -1).int(),
        trajectory_ids=torch.arange(len(members)),
        old_logprobs=old,
        teacher_logprobs=old + delta if any(map(_asked, members)) else None,
        update=int(members[0]["update"]),
        group_ids=torch.zeros(len(members), dtype=torch.int64),
    )


def _turns(members: Sequence[Record], run: Run, options: Options) -> dict[str, Tensor]:
    """What ``train.turns`` provides in a run."""
    scale = float(run.setting("loss.reward_scale", 1.0))
    penalty = float(run.setting("loss.invalid_action_penalty", 0.0))
    episodes = [_episode(m) for m in members]
    places = [[k for k, turn in enumerate(m["turns"]) for _ in turn["tokens"]] for m in members]
    anchors = anchors_of(episodes, similarity=float(options["gigpo"]["similarity"]))
    return {
        "turn_rewards": _padded([[scale * turn.reward for turn in e.turns] for e in episodes], 0.0),
        "turn_penalties": _padded([[0.0 if turn.is_valid else penalty for turn in e.turns] for e in episodes], 0.0),
        "turn_numbers": _padded([range(len(e.turns)) for e in episodes], -1).long(),
        "turn_anchors": _padded(anchors, -1).long(),
        "turn_of_token": _padded(places, -1).long(),
    }


def _episode(member: Record) -> Trajectory:
    task = Task(str(member["task_id"]), "", str(member.get("kind", "")), "", "")
    turns = [
        Turn([], [], [], {}, str(t.get("observation", "")), "", str(t.get("action", "")), bool(t.get("is_valid", True)),
             reward=float(t["reward"]))
        for t in member["turns"]
    ]  # fmt: skip
    return Trajectory(task, "", 0, int(member["member"]), 0, "", turns)


def _column(members: Sequence[Record], key: str, fill: float) -> Tensor:
    """(members, T) float32 of a list per token; ``fill`` where it was not recorded, 0 behind the last token."""
    return _padded([[v for turn in m["turns"] for v in _values(turn, key, fill)] for m in members], 0.0)


def _values(turn: Record, key: str, fill: float) -> list[float]:
    stored = turn.get(key)
    return [fill] * len(turn.get("tokens") or ()) if stored is None else [float(v or 0.0) for v in stored]


def _inside(turn: Record) -> list[bool]:
    return list(turn.get("in_span") or [True] * len(turn.get("tokens") or ()))


def _padded(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float32)


def _per_member(values: Tensor, mask: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row[own].tolist()) for row, own in zip(values, mask, strict=True))
