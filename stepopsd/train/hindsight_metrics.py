"""What the teacher was told and what came of it: gaps apart by hindsight and by the sign of the advantage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepopsd.train.teacher import TeacherScores


def hindsight_metrics(scores: TeacherScores, delta: Tensor, advantages: Tensor) -> dict[str, Any]:
    """Flat metrics of one scoring.

    Args:
        scores: Of this update.
        delta: (N, T) Δ of the credit method, 0 where the teacher was not asked.
        advantages: (N, T) before shaping.

    Returns:
        ``teacher/*``: rows by what their block told, the share of failed rows whose group has a peer, tokens cut off
        blocks. ``delta/TOLD/SIGN/*``: count, mean and mean size of Δ for TOLD of ``peer``, ``label``, ``none`` and
        SIGN of ``up`` (A > 0) and ``down`` (A < 0); empty cells are left out.
    """
    told = list(scores.tells.values())
    out: dict[str, Any] = {
        "teacher/label_only": told.count("label"),
        "teacher/untold": told.count("none"),
        "teacher/failed_with_peer": scores.failed_with_peer / scores.failed if scores.failed else 0.0,
        "teacher/cut_tokens": scores.cut_tokens,
    }
    scored = scores.logprobs.isfinite().to(delta.device)
    for kind in ("peer", "label", "none"):
        rows = torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
        rows[[i for i, tells in scores.tells.items() if tells == kind]] = True
        for sign, side in (("up", advantages > 0), ("down", advantages < 0)):
            gaps = delta[scored & side & rows[:, None]]
            if gaps.numel():
                cell = {"count": gaps.numel(), "mean": gaps.mean(), "abs_mean": gaps.abs().mean()}
                out |= {f"delta/{kind}/{sign}/{name}": value for name, value in cell.items()}
    return out
