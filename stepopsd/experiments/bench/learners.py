"""Ways to compute the ops with gradients: this package's functions, plain PyTorch, torch.compile, other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.experiments.bench.contenders import ALPHA_CLIP, COMPILED, EAGER, LAMBDA_MIX
from stepopsd.experiments.bench.policy_terms import (
    Scorer,
    constants,
    score_log_softmax,
    score_logsumexp,
    through_logits,
)
from stepopsd.experiments.bench.problems import CLIP, KL, Problem, required
from stepopsd.experiments.bench.rows import LINEAR_OPS, Case
from stepopsd.ops import dispatch
from stepopsd.ops.linear import linear_shape_advantages, linear_token_logprobs
from stepopsd.ops.linear_loss import linear_grpo_loss
from stepopsd.ops.logprobs import token_logprobs
from stepopsd.ops.policy_loss import grpo_loss
from stepopsd.ops.shape_and_loss import shape_and_loss

LOSS: dict[str, Any] = {"loss": "dapo", "kl_coef": KL, "clip_low": CLIP[0], "clip_high": CLIP[1]}
SHAPING: dict[str, Any] = {"alpha_clip": ALPHA_CLIP, "lambda_mix": LAMBDA_MIX, "step_norm": "none"}
# What an op ends in: log-probs, entropies, a loss (which the entropies may follow) or shaped advantages.
Forward = Callable[[Problem], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Learner:
    """One way to compute an op.

    Args:
        name: As printed.
        forward: What the op ends in; the backward is PyTorch's.
        ours: Whether it is of this package.
        rounds: Whether its log-probs are rounded to the logits' dtype, which is then allowed for in the check.
        workspace: Bytes per logit of one tensor that it may allocate.
    """

    name: str
    forward: Forward
    ours: bool = False
    rounds: bool = False
    workspace: int = 0


@dataclass(frozen=True)
class Learners:
    """Who takes part, and why the others do not (name -> reason)."""

    contenders: tuple[Learner, ...]
    absent: dict[str, str]


def learners(case: Case, device: str, *, peers: bool = True, compiled: bool = True) -> Learners:
    """Everything that can compute ``case``, an op with gradients, on ``device``; arguments as of ``field``."""
    from stepopsd.experiments.bench.learner_peers import find_learner_peers

    found, absent = [], {}
    for name in dispatch.BACKENDS:
        reason = dispatch.unavailable(name, device)
        if name == "triton" and device == "cpu" and reason is None:
            reason = "the interpreter is no contender"
        if reason is None and case.op != "linear-pair":
            reason = dispatch.no_gradients(name)  # torch would be timed under its name
        if reason is None:
            found += list(ours(name, case))
        else:
            absent[f"stepopsd {name}"] = reason
    found += [
        plain(EAGER[0], case, score_log_softmax, workspace=24),
        plain(EAGER[1], case, score_logsumexp, workspace=24),
    ]
    if compiled:
        torch.compiler.reset()  # shapes add up, and past a limit torch runs eagerly without a word
        found.append(compiled_logsumexp(case))
        if case.op in ("loss", "shape-loss"):
            found.append(compiled_logsumexp(case, watch=False))
    if peers:
        others, reasons = find_learner_peers(case, device)
        found, absent = [*found, *others], {**absent, **reasons}
    return Learners(tuple(found), absent)


def ours(name: str, case: Case) -> Iterator[Learner]:
    """This package's function with one backend, and over the logits where the op knows that."""
    places = ("", ", in place") if case.op not in LINEAR_OPS else ("",)
    for place in places:
        yield Learner(
            f"stepopsd {name}{place}", _FUNCTIONS[case.op](name, bool(place)), ours=True,
            workspace=(24 if name == "torch" else 0) if case.op not in LINEAR_OPS else 0,
        )  # fmt: skip


def plain(name: str, case: Case, score: Scorer, *, watch: bool = True, **properties: Any) -> Learner:
    """A contender that scores logits with ``score`` and does the rest with PyTorch operations."""
    op = case.op.removeprefix("linear-")

    def forward(x: Problem) -> tuple[Tensor, ...]:
        return through_logits(op, score, x.logits(), constants(x), watch)

    def from_hidden(x: Problem) -> tuple[Tensor, ...]:
        return _multiply(
            op, score, required(x.hidden), required(x.weight), x.teacher_hidden, x.teacher_weight, constants(x)
        )

    return Learner(name, from_hidden if case.op in LINEAR_OPS else forward, **properties)


def _multiply(
    op: str, score: Scorer, hidden: Tensor, weight: Tensor, teacher: Tensor | None, head: Tensor | None,
    tensors: list[Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    hinted = [] if teacher is None or head is None else [teacher @ head.T]
    return through_logits(op, score, hidden @ weight.T, [*tensors, *hinted], watch=False)


def compiled_logsumexp(case: Case, *, watch: bool = True) -> Learner:
    """torch.compile of the leaner eager form with all that follows, for one fixed shape."""
    op = case.op.removeprefix("linear-")
    name = COMPILED if watch else f"{COMPILED}, no entropies"

    def on_logits(logits: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return through_logits(op, score_logsumexp, logits, tensors, watch)

    def on_hidden(
        hidden: Tensor, weight: Tensor, teacher: Tensor | None, head: Tensor | None, tensors: list[Tensor]
    ) -> tuple[Tensor, ...]:
        return _multiply(op, score_logsumexp, hidden, weight, teacher, head, tensors)

    # tensors, not the dataclass: its identity would be guarded
    if case.op in LINEAR_OPS:
        from_hidden = torch.compile(on_hidden, dynamic=False)
        return Learner(
            name,
            lambda x: from_hidden(
                required(x.hidden), required(x.weight), x.teacher_hidden, x.teacher_weight, constants(x)
            ),
            workspace=16,
        )
    fused = torch.compile(on_logits, dynamic=False)
    return Learner(name, lambda x: fused(x.logits(), constants(x)), workspace=8)


def _logprobs(backend: str, inplace: bool) -> Forward:
    return lambda x: (
        token_logprobs(x.logits(), x.ids, mask=x.active, inplace_backward=inplace, backend=backend).logprobs,
    )


def _entropies(backend: str, inplace: bool) -> Forward:
    def forward(x: Problem) -> tuple[Tensor, ...]:
        scored = token_logprobs(
            x.logits(), x.ids, mask=x.active, entropy=True, inplace_backward=inplace, backend=backend
        )
        return scored.logprobs, required(scored.entropy)

    return forward


def _loss(backend: str, inplace: bool) -> Forward:
    def forward(x: Problem) -> tuple[Tensor, ...]:
        result = grpo_loss(
            x.logits(), x.ids, x.advantages, x.old, x.active, ref_logprobs=x.ref, inplace=inplace, backend=backend,
            **LOSS,
        )  # fmt: skip
        return result.loss, result.entropy

    return forward


def _shape_loss(backend: str, inplace: bool) -> Forward:
    def forward(x: Problem) -> tuple[Tensor, ...]:
        _, result = shape_and_loss(
            x.logits(), required(x.teacher), x.ids, x.advantages, torch.zeros_like(x.ids).where(x.active, -1), x.active,
            ref_logprobs=x.ref, inplace=inplace, backend=backend, **SHAPING, **LOSS,
        )  # fmt: skip
        return result.loss, result.entropy

    return forward


def _linear_logprobs(backend: str, _: bool) -> Forward:
    return lambda x: (
        linear_token_logprobs(
            required(x.hidden), required(x.weight), x.ids, mask=x.active, max_active=x.case.active, backend=backend
        ).logprobs,
    )


def _linear_loss(backend: str, _: bool) -> Forward:
    def forward(x: Problem) -> tuple[Tensor, ...]:
        result = linear_grpo_loss(
            required(x.hidden), required(x.weight), x.ids, x.advantages, x.old, x.active, ref_logprobs=x.ref,
            max_active=x.case.active, backend=backend, **LOSS,
        )  # fmt: skip
        return result.loss, result.entropy

    return forward


def _linear_pair(backend: str, _: bool) -> Forward:
    return lambda x: (
        linear_shape_advantages(
            required(x.hidden), required(x.weight), required(x.teacher_hidden), required(x.teacher_weight), x.ids,
            x.advantages, torch.zeros_like(x.ids).where(x.active, -1), max_active=x.case.active, backend=backend,
            **SHAPING,
        ).advantages,
    )  # fmt: skip


_FUNCTIONS: dict[str, Callable[[str, bool], Forward]] = {
    "logprobs": _logprobs, "backward": _logprobs, "entropies": _entropies, "loss": _loss, "shape-loss": _shape_loss,
    "linear-logprobs": _linear_logprobs, "linear-loss": _linear_loss, "linear-pair": _linear_pair,
}  # fmt: skip
