"""slime: one function for ``--custom-advantage-function-path stepopsd.integrations.slime.advantages``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied
from stepopsd.integrations.sessions import numbered, step_ids

TESTED = "git 624b824 (2026-08-21)"
#: The part of slime that calls us; it imports Megatron.
RELIED = (
    Relied("slime.backends.megatron_utils.loss:compute_advantages_and_returns", ("args", "rollout_data"), called=False),
    Relied("slime.utils.misc:load_function", ("path",)),
)


def advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Set ``advantages`` and ``returns`` of a rollout from its group-normalised rewards and its teacher's log-probs.

    slime calls it once per update, on the last pipeline stage, after its KL.

    Args:
        args: slime's namespace. Read: ``context_parallel_size``, ``normalize_advantages``, ``use_opd`` with
            ``opd_kl_coef``, ``use_rollout_logprobs``, ``start_rollout_id``, and two that ``--custom-config-path`` may
            set: ``stepopsd_method`` (default ``stepopsd``) and ``stepopsd_options``, keys of the ``credit`` section.
        rollout_data: Lists with one entry per sample: ``rewards`` (floats), ``loss_masks`` and ``log_probs`` (or
            ``rollout_log_probs``) over the response, ``teacher_log_probs`` if a teacher was asked, ``rollout_ids`` if
            several samples are one episode.

    Returns:
        Nothing; ``rollout_data["advantages"]`` and ``["returns"]`` become lists of one-dimensional float32 tensors, one
        per sample, of response length.

    Raises:
        ValueError: Context parallelism, whitening or a distillation penalty that would undo the shaping, a missing
            list, or lists that do not fit.
    """
    _check(args)
    student = rollout_data.get("rollout_log_probs" if getattr(args, "use_rollout_logprobs", False) else "log_probs")
    student = student or rollout_data.get("rollout_log_probs")
    if not student:
        raise ValueError("rollout_data must hold log_probs or rollout_log_probs, got neither")
    masks = [mask.to(own.device).bool() for mask, own in zip(_listed(rollout_data, "loss_masks"), student, strict=True)]
    ids = rollout_data.get("rollout_ids")
    sessions = list(range(len(masks))) if ids is None else numbered([int(i) for i in ids])
    update = args.stepopsd_update = getattr(args, "stepopsd_update", getattr(args, "start_rollout_id", None) or 0) + 1
    rewards = [float(reward) for reward in _listed(rollout_data, "rewards")]
    shaped = _credit(args).advantages(
        response_mask=masks,
        advantages=torch.tensor(rewards, device=student[0].device),
        trajectory_ids=sessions,
        step_ids=step_ids(masks, sessions, list(range(len(masks)))),
        student_logprobs=student,
        teacher_logprobs=_teacher(rollout_data, student),
        update=update,
    )  # fmt: skip
    rollout_data["advantages"] = list(shaped.advantages)
    rollout_data["returns"] = [row.clone() for row in shaped.advantages]


def _listed(rollout_data: Mapping[str, Any], name: str) -> Any:
    found = rollout_data.get(name)
    if found is None:
        raise ValueError(f"rollout_data must hold {name}, got {', '.join(sorted(rollout_data))}")
    return found


def _teacher(rollout_data: Mapping[str, Any], student: list[Tensor]) -> list[Tensor] | None:
    told = rollout_data.get("teacher_log_probs")
    if not told:
        return None
    return [torch.as_tensor(row, dtype=torch.float32).to(own.device) for row, own in zip(told, student, strict=True)]


def _credit(args: Any) -> HostCredit:
    credit = HostCredit(getattr(args, "stepopsd_method", "stepopsd"), getattr(args, "stepopsd_options", None) or {})
    if credit.needs():
        lacking = ", ".join(sorted(credit.needs()))
        raise ValueError(f"stepopsd_method {args.stepopsd_method} needs {lacking}, which slime's rollout does not hold")
    return credit


def _check(args: Any) -> None:
    size = getattr(args, "context_parallel_size", 1)
    if size != 1:
        raise ValueError(
            f"context_parallel_size must be 1, got {size}: a step's tokens lie on several ranks, and its mean needs all"
        )
    if getattr(args, "normalize_advantages", False):
        raise ValueError("normalize_advantages must be off: whitening after the shaping changes signs and step budgets")
    if getattr(args, "use_opd", False) and getattr(args, "opd_kl_coef", 0.0) != 0:
        raise ValueError(
            "opd_kl_coef must be 0 with a shaped advantage, or slime subtracts the teacher a second time, "
            f"got {args.opd_kl_coef}"
        )
