"""What the model says the answer is: the distribution, or the log-prob, that a reasoning token may move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PROBES = ("last", "answer_mean", "answer_joint")
_SERIES = 0.05  # |d| below which exp(d) - 1 - d is summed as a series


def check_row(input_ids: Tensor, reasoning: Tensor, answer: Tensor, probe: str) -> None:
    """Hold one row (T,) to what both scorers need.

    Raises:
        ValueError: An unknown probe, masks of another shape or dtype, no answer, or reasoning that is not before it.
    """
    if probe not in PROBES:
        raise ValueError(f"probe must be one of {', '.join(PROBES)}, got {probe!r}")
    for name, mask in (("reasoning", reasoning), ("answer", answer)):
        if mask.shape != input_ids.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must be bool of shape {tuple(input_ids.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
            )
    if not bool(answer.any()) or bool(answer[0]) or bool(reasoning[0]):
        raise ValueError("answer must hold a token, and neither it nor reasoning the first token of the row")
    first = int(answer.nonzero()[0, 0])
    if bool(reasoning[first:].any()):
        raise ValueError(f"reasoning must lie before the answer, which begins at {first}")


def probed(answer: Tensor, input_ids: Tensor, probe: str) -> tuple[Tensor, Tensor]:
    """Positions (A,) whose logits are read, and the ids (A,) that they predict."""
    places = answer.nonzero()[:, 0]
    places = places[:1] if probe == "last" else places
    return places - 1, input_ids[places]


def outcome(logits: Tensor, targets: Tensor, probe: str) -> Tensor:
    """Log-probs (..., V) of the outcome from logits (..., A, V), or the answer's mean log-prob (...)."""
    if probe != "answer_joint":
        return logits.mean(-2).log_softmax(-1)
    index = targets.expand(*logits.shape[:-2], -1)[..., None]
    return logits.log_softmax(-1).gather(-1, index)[..., 0].mean(-1)


def probe_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p0 || q) of K outcome distributions, accurate where it is tiny.

    Computed as Σ_v p0_v·(exp(d_v) - 1 - d_v) with d = log q - log p0, whose terms are all at least 0; the usual
    Σ p0·(log p0 - log q) has an error of the size of the result at 1e-7 in float32.

    Args:
        logits: (K, V) float; computed in float32, or float64 where they are.
        reference: (V,) log-probs of p0.

    Returns:
        (K,) at least 0; where p0 gives a token a probability that q does not, +inf.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 2.0])
        >>> probe_kl(torch.stack((x, x.flip(0))), x.log_softmax(0))
        tensor([0.0000, 1.1503])
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    impossible = reference == -torch.inf
    d = (wide.log_softmax(-1) - reference).masked_fill(impossible, 0)
    series = d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d / 720))))
    excess = torch.where(d.abs() < _SERIES, series, torch.expm1(d) - d)
    # q where p0 is 0 counts too: Σ q - Σ p0 = 0 is what makes the two forms equal.
    beyond = wide.softmax(-1).masked_fill(~impossible, 0).sum(-1)
    return (reference.exp() * excess).sum(-1) + beyond


@contextmanager
def evaluation(model: Any) -> Iterator[None]:
    """The model in evaluation mode, its parameters without gradients; both as before at the end."""
    training, wanted = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)
