"""tinker-cookbook: shape the advantages of the datums, between ``assemble_training_data`` and the training call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied
from stepopsd.integrations.sessions import numbered, step_ids

TESTED = "git 9dfcc3a (2026-08-19)"
RELIED = (
    Relied("tinker_cookbook.rl.data_processing:assemble_training_data", ("trajectory_groups_P", "advantages_P")),
    Relied("tinker_cookbook.rl.data_processing:trajectory_to_data", ("traj", "traj_advantage")),
    Relied("tinker:Datum", members=("model_input", "loss_fn_inputs")),
    Relied("tinker:TensorData", members=("from_torch", "to_torch")),
)


def shape_datums(
    data_D: Sequence[Any], metadata_D: Sequence[Mapping[str, int]], credit: HostCredit, *, update: int,
    teacher_logprobs_D: Sequence[Tensor] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Replace ``loss_fn_inputs["advantages"]`` of every datum by shaped ones, in place.

    Args:
        data_D: Datums of ``assemble_training_data``: ``mask``, ``logprobs`` and ``advantages`` of T targets each.
        metadata_D: Beside them: ``group_idx`` and ``traj_idx``; the datums of a trajectory share both.
        credit: The method.
        update: Counted from 1.
        teacher_logprobs_D: (T,) float per datum, of its targets, NaN where nobody was asked, e.g. from
            ``compute_logprobs`` of a sampling client on a hint and the same tokens.

    Returns:
        Metrics.

    A step is a stretch of targets with mask 1. A datum's kind of ``advantages`` (tinker's ``TensorData`` or a tensor)
    stays what it was.

    Raises:
        ValueError: Lists of different lengths, or a datum without one of its inputs.
    """
    if len(data_D) != len(metadata_D):
        raise ValueError(f"metadata_D must hold {len(data_D)} entries like data_D, got {len(metadata_D)}")
    masks = [_tensor(datum, "mask").bool() for datum in data_D]
    sessions = numbered([(entry["group_idx"], entry["traj_idx"]) for entry in metadata_D])
    shaped = credit.advantages(
        response_mask=masks,
        advantages=[_tensor(datum, "advantages").float() for datum in data_D],
        group_ids=[int(entry["group_idx"]) for entry in metadata_D],
        trajectory_ids=sessions,
        step_ids=step_ids(masks, sessions, list(range(len(masks)))),
        student_logprobs=[_tensor(datum, "logprobs").float() for datum in data_D],
        teacher_logprobs=None if teacher_logprobs_D is None else list(teacher_logprobs_D),
        update=update,
    )
    for datum, values in zip(data_D, shaped.advantages, strict=True):
        old = datum.loss_fn_inputs["advantages"]
        datum.loss_fn_inputs["advantages"] = values if isinstance(old, Tensor) else type(old).from_torch(values)
    return shaped.metrics


def _tensor(datum: Any, name: str) -> Tensor:
    found = datum.loss_fn_inputs.get(name)
    if found is None:
        raise ValueError(f"loss_fn_inputs must hold {name}, got {', '.join(sorted(datum.loss_fn_inputs))}")
    return found if isinstance(found, Tensor) else torch.as_tensor(found.to_torch())
