"""verl's batch, rows of different lengths in jagged tensors, as a credit method wants it, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.sessions import numbered, step_ids

if TYPE_CHECKING:
    from tensordict import TensorDict

#: Field of the agent loop's teacher: log-probs of a row's prompt and response, shifted left by one as verl's own
#: outputs are, NaN where nobody was asked.
TEACHER = "teacher_logprobs"


def shape_batch(
    data: TensorDict, keys: Sequence[str], credit: HostCredit, *, update: int, student: str = "rollout_log_probs"
) -> tuple[Tensor, dict[str, float]]:
    """Shaped advantages of one training batch.

    Args:
        data: N rows with jagged fields over the response: ``advantages``, ``response_mask``, ``loss_mask`` and
            ``student``, ``rm_scores``; ``uid``; and, over prompt and response, ``teacher_logprobs`` if there are any.
        keys: verl's name of each row, ``<uid>_<session>_<index>``: rows of one session are one trajectory.
        credit: The method.
        update: Counted from 1.
        student: Name of the field with the policy's log-probs.

    Returns:
        Jagged (N, response) float32 advantages and metrics, whose names begin with ``stepopsd/``.

    Steps are the sampled stretches of a session in their order: a whole row where each call is a row, the stretches
    between observations where a dialogue is one. They are read from ``loss_mask``, because rejection by importance
    ratios cuts holes into ``response_mask``.

    Raises:
        ValueError: A key of another form, or what ``HostCredit.advantages`` refuses.
    """
    mask = [row.bool() for row in data["response_mask"].unbind()]
    whole = [row.bool() for row in data["loss_mask"].unbind()]
    sessions, order = sessions_of(keys)
    teacher: list[Tensor] | None = None
    if TEACHER in list(data.keys()):
        told = [row.float() for row in data[TEACHER].unbind()]
        teacher = [row[len(row) - len(own) - 1 : -1] for row, own in zip(told, mask, strict=True)]
    groups = numbered([str(uid) for uid in data["uid"]])
    shaped = credit.advantages(
        response_mask=mask,
        advantages=[row.float() for row in data["advantages"].unbind()],
        rewards=[float(row.sum()) for row in data["rm_scores"].unbind()],
        group_ids=groups,
        trajectory_ids=sessions,
        step_ids=step_ids(whole, sessions, order),
        student_logprobs=[row.float() for row in data[student].unbind()],
        teacher_logprobs=teacher,
        update=update,
    )
    metrics = {f"stepopsd/{name}": value for name, value in shaped.metrics.items()}
    return torch.nested.as_nested_tensor(list(shaped.advantages), layout=torch.jagged), metrics


def sessions_of(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Number of each row's session, and the row's place in it.

    Example:
        >>> sessions_of(["a_0_0", "a_1_0", "a_0_1"])
        ([0, 1, 0], [0, 0, 1])
    """
    names, places = [], []
    for key in keys:
        parts = key.rsplit("_", 2)
        if len(parts) != 3 or not parts[2].isdigit():
            raise ValueError(f"keys must have the form <uid>_<session>_<index>, got {key!r}")
        names.append(f"{parts[0]}_{parts[1]}")
        places.append(int(parts[2]))
    return numbered(names), places
