"""The check that a contender with gradients must pass before it is timed: values and gradients in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepopsd.experiments.bench.check import CHECKED_ROWS, TOLERANCE, WrongResult
from stepopsd.experiments.bench.contenders import shaped
from stepopsd.experiments.bench.learners import Learner
from stepopsd.experiments.bench.policy_terms import grpo, shape_then_grpo
from stepopsd.experiments.bench.problems import KL, Problem, exact_logits, required
from stepopsd.experiments.bench.rows import DTYPES, LINEAR_OPS

CHECKED_COLUMNS = 256  # of the vocabulary, where the gradient of a weight is looked at
GRADIENT_TOLERANCE = 1e-3
ENTROPY_TOLERANCE = 5e-4  # a sum of V terms in fp32, in whatever order
LOSSES = ("loss", "shape-loss", "linear-loss")


@dataclass(frozen=True)
class Truth:
    """What float64 says: values in the order in which a contender returns them, and some rows of the gradients.

    ``gradients`` holds (place, rows) by name: of the logits, or of hidden states and weight. ``spread`` (1, N) is what
    a rounding of the logits or log-probs to their dtype may do to a log-prob.
    """

    values: tuple[Tensor, ...]
    gradients: dict[str, tuple[Tensor, Tensor]]
    spread: Tensor
    slope: Tensor


@dataclass(frozen=True)
class GradientAgreement:
    """Largest difference of a value, and of a row of a gradient relative to it, from float64; and what was allowed."""

    error: float
    allowed: float
    gradient_error: float | None
    gradient_allowed: float | None


def truth(x: Problem) -> Truth:
    """Values of all tokens and the gradients of up to 64 of them, in float64."""
    logprobs, lse, entropy, largest = _statistics(x)
    taught = None if x.teacher is None and x.teacher_hidden is None else _statistics(x, teacher=True)[0]
    values, slope, bend = _objective(x, logprobs, entropy, taught)
    spread = torch.finfo(DTYPES[x.case.dtype]).eps * (largest if x.case.op in LINEAR_OPS else logprobs.abs())
    gradients = {} if x.case.op == "linear-pair" else _gradients(x, slope, bend, lse, entropy)
    return Truth(values, gradients, spread, slope.abs())


def verify_gradients(learner: Learner, x: Problem, want: Truth) -> GradientAgreement:
    """Compare values and gradients of a contender with ``truth(x)``.

    Values may be off by 1e-4, entropies by 5e-4; a row of a gradient, summed over its absolute differences, by 1e-3 of
    its own sum and by the rounding of its dtype. Where logits or log-probs are rounded to 16 bits on the way, what that
    can do is allowed for.

    Raises:
        WrongResult: A value or a gradient is off by more than is allowed, or NaN.
    """
    x.refresh()
    found = learner.forward(x)
    loose = learner.rounds or (x.case.op in LINEAR_OPS and x.case.dtype != "fp32")
    error, allowed = _compare_values(learner.name, found, want, x, loose)
    if not want.gradients:
        return GradientAgreement(error, allowed, None, None)
    differentiate(found, x)
    most = (0.0, 0.0)
    eps = torch.finfo(DTYPES[x.case.dtype]).eps
    for name, (place, rows) in want.gradients.items():
        got = _gradient(x, name)[place].double()
        off = ((got - rows).abs().sum(-1) / rows.abs().sum(-1).clamp(min=1e-30)).max().item()
        may = GRADIENT_TOLERANCE + eps + (2 * want.spread.max().item() if loose else 0)
        if not off <= may:
            raise WrongResult(
                f"{learner.name}: the gradient of {name} is off by {off:.3g} of itself from float64 "
                f"(allowed {may:.3g}): not timed"
            )
        most = max(most, (off, may))
    return GradientAgreement(error, allowed, *most)


def differentiate(found: tuple[Tensor, ...], x: Problem) -> None:
    """The backward of what a contender's forward returned."""
    if x.case.op in LOSSES:
        found[0].backward()
    elif x.case.op != "linear-pair":
        torch.autograd.backward(found, x.upstream[: len(found)])


def _compare_values(name: str, found: tuple[Tensor, ...], want: Truth, x: Problem, loose: bool) -> tuple[float, float]:
    worst = (0.0, 0.0)
    for number, (value, exact) in enumerate(zip(found, want.values, strict=False)):
        allowed = torch.full_like(exact, ENTROPY_TOLERANCE if number == 1 else TOLERANCE)
        if loose and number == 1:  # an entropy: as many roundings as it has digits
            allowed += 4 * want.spread
        elif loose:
            allowed += 2 * (want.spread if exact.dim() else (want.spread * (want.slope + KL / x.case.active)).sum())
        off = (value.detach().double() - exact).abs()
        if not bool((off <= allowed).all()):
            place = (off - allowed).nan_to_num(nan=torch.inf).argmax()
            raise WrongResult(
                f"{name} is off by {off.view(-1)[place].item():.3g} from float64 "
                f"(allowed {allowed.view(-1)[place].item():.3g}): not timed"
            )
        worst = max(worst, (off.max().item(), allowed.max().item()))
    return worst


def _statistics(x: Problem, *, teacher: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-prob, log-sum-exp, entropy and largest absolute logit, (1, N) each."""
    parts = []
    for place, logits in exact_logits(x, teacher=teacher):
        lse = logits.logsumexp(-1)
        logprobs = logits.gather(-1, x.ids[:, place, None])[..., 0] - lse
        entropy = lse - (logits - lse[..., None]).exp_().mul_(logits).sum(-1)
        parts.append((logprobs, lse, entropy, logits.abs().amax(-1)))
    logprobs, lse, entropy, largest = (torch.cat(rows, 1) for rows in zip(*parts, strict=True))
    return logprobs, lse, entropy, largest


def _objective(
    x: Problem, logprobs: Tensor, entropy: Tensor, taught: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """The op's values, and the derivative of what is differentiated by log-prob and by entropy, (1, N) each."""
    op, none = x.case.op.removeprefix("linear-"), torch.zeros_like(logprobs)
    if op == "pair":
        return (shaped(x.advantages.double(), required(taught) - logprobs, x.active),), none, none
    slopes = [values.double() for values in x.upstream]
    if op in ("logprobs", "backward"):
        return (logprobs.where(x.active, 0),), slopes[0], none
    if op == "entropies":
        return (logprobs.where(x.active, 0), entropy.where(x.active, 0)), slopes[0], slopes[1]
    free = logprobs.clone().requires_grad_()
    advantages, old, ref = x.advantages.double(), x.old.double(), x.ref.double()
    if taught is not None:
        value = shape_then_grpo(free, taught, advantages, ref, x.active)
    else:
        value = grpo(free, advantages, old, ref, x.active)
    return (value.detach(), entropy.where(x.active, 0)), torch.autograd.grad(value, free)[0], none


def _gradients(
    x: Problem, slope: Tensor, bend: Tensor, lse: Tensor, entropy: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    tokens = _some(x.active[0].nonzero()[:, 0], CHECKED_ROWS)
    numbers = [values[0].double() for values in (slope, bend, lse, entropy)]
    if x.case.op not in LINEAR_OPS:
        logits = required(x.pristine)[0, tokens].double()
        return {"the logits": (tokens, _slopes(logits, x.ids[0, tokens], *(v[tokens] for v in numbers)))}
    hidden, weight = required(x.hidden).detach()[0].double(), required(x.weight).detach().double()
    rows = _slopes(hidden[tokens] @ weight.T, x.ids[0, tokens], *(v[tokens] for v in numbers)) @ weight
    columns = _some(torch.arange(x.case.vocab, device=hidden.device), CHECKED_COLUMNS)
    columns = torch.cat((columns, x.ids[0, tokens])).unique()
    logits = hidden @ weight[columns].T
    hits = x.ids[0, :, None] == columns
    of_weight = _slopes(logits, hits, *numbers).where(x.active[0, :, None], 0).T @ hidden
    return {"the hidden states": (tokens, rows), "the weight": (columns, of_weight)}


def _slopes(logits: Tensor, ids: Tensor, slope: Tensor, bend: Tensor, lse: Tensor, entropy: Tensor) -> Tensor:
    """The gradient (n, C) of logits (n, C); ids (n,), or where they are (n, C) bool."""
    hits = ids if ids.dim() == 2 else ids[:, None] == torch.arange(logits.shape[-1], device=ids.device)
    logs = logits - lse[:, None]
    mass = logs.exp()
    return slope[:, None] * (hits.double() - mass) - bend[:, None] * mass * (logs + entropy[:, None])


def _some(places: Tensor, count: int) -> Tensor:
    return places[torch.linspace(0, len(places) - 1, min(len(places), count), device=places.device).round().long()]


def _gradient(x: Problem, name: str) -> Tensor:
    if name == "the logits":
        return required(x.gradient)[0]
    return required(required(x.hidden).grad)[0] if name == "the hidden states" else required(required(x.weight).grad)
