"""Hosts with padded tensors and one row per episode: their advantages, shaped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.sessions import step_ids


def shape_rows(
    credit: HostCredit, advantages: Tensor, mask: Tensor, student: Tensor, teacher: Tensor | None, *,
    update: int, rewards: Tensor | None = None, group_ids: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Shaped advantages in the dtype that came in, and metrics; rows are episodes, sampled stretches their steps.

    Args:
        credit: The method.
        advantages: (B, T) float, the host's.
        mask: (B, T) bool or 0/1, sampled tokens.
        student: (B, T) float, log-probs under the policy that is about to be updated.
        teacher: (B, T) float, NaN where nobody was asked; None where nobody was at all.
        update: Counted from 1.
        rewards: (B,) float, for methods that ask for them.
        group_ids: (B,) int, likewise.

    Raises:
        ValueError: Shapes that differ; see ``HostCredit.advantages``.
    """
    masks = list(mask.bool().unbind())
    rows = list(range(len(masks)))
    shaped = credit.advantages(
        response_mask=masks, advantages=list(advantages.unbind()), rewards=rewards, group_ids=group_ids,
        step_ids=step_ids(masks, rows, rows), student_logprobs=list(student.unbind()),
        teacher_logprobs=None if teacher is None else list(teacher.unbind()), update=update,
    )  # fmt: skip
    out = advantages.new_zeros(advantages.shape)
    for row, values in zip(out, shaped.advantages, strict=True):
        row.copy_(values)
    return out, shaped.metrics
