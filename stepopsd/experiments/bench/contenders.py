"""Ways to compute the ops: this package's backends, plain PyTorch, torch.compile, and other packages' kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.experiments.bench.rows import Case, Rows
from stepopsd.ops import dispatch

# The widest clip and the full mix: with narrower ones a wrong log-prob could hide behind the clip.
ALPHA_CLIP = 1.0
LAMBDA_MIX = 1.0
EAGER = ("eager log_softmax", "eager logsumexp")
COMPILED = "torch.compile"

# Log-probs (1, N) of the ids from one store (1, N + 1, V), whose last position is not scored.
Scorer = Callable[[Tensor, Rows], Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to compute an op.

    Args:
        name: As printed.
        run: Inputs to (1, N) shaped advantages (``pair``) or log-probs (``score``).
        ours: Whether it is one of this package's backends.
        rounds: Whether its log-probs are rounded to the logits' dtype, which is then allowed for in the check.
        workspace: Bytes per logit of one tensor that it may allocate.
        capture: Whether its calls may be captured in a CUDA graph; a failed capture can spoil what comes after.
    """

    name: str
    run: Callable[[Rows], Tensor]
    ours: bool = False
    rounds: bool = False
    workspace: int = 0
    capture: bool = True


@dataclass(frozen=True)
class Field:
    """Who takes part, and why the others do not (name -> reason)."""

    contenders: tuple[Contender, ...]
    absent: dict[str, str]


def field(case: Case, device: str, *, peers: bool = True, compiled: bool = True) -> Field:
    """Everything that can compute ``case`` on ``device``; an interpreted kernel is no contender.

    Args:
        case: What is to be computed.
        device: ``cpu`` or ``cuda``.
        peers: Whether to look for other packages' kernels.
        compiled: Whether torch.compile takes part.
    """
    from stepopsd.experiments.bench.peers import find_peers

    found, absent = _backends(case, device)
    found += [
        from_scorer(EAGER[0], case, score_log_softmax, workspace=8),
        from_scorer(EAGER[1], case, score_logsumexp, workspace=8),
    ]
    if compiled:
        found.append(compiled_logsumexp(case))
    if peers:
        others, reasons = find_peers(case, device)
        found, absent = [*found, *others], {**absent, **reasons}
    return Field(tuple(found), absent)


def _backends(case: Case, device: str) -> tuple[list[Contender], dict[str, str]]:
    found, absent = [], {}
    for name in dispatch.BACKENDS:
        reason = dispatch.unavailable(name, device)
        if name == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
            reason = "the interpreter is no contender"
        if reason is not None:
            absent[f"stepopsd {name}"] = reason
            continue
        found.append(backend(name, case))
        if name != "torch":
            found.append(backend(name, case, entropy=True))
    return found, absent


def backend(name: str, case: Case, *, entropy: bool = False) -> Contender:
    """The kernels of one backend of this package: score, and for ``pair`` also shape without step budget."""
    kernels = dispatch.load(name)

    def score(x: Rows) -> Tensor:
        return kernels.score_rows([x.student], x.ids, x.active, temperature=1.0, entropy=entropy)[0, 0]

    def pair(x: Rows) -> Tensor:
        scores = kernels.score_rows([x.student, x.teacher], x.ids, x.active, temperature=1.0, entropy=entropy)
        student, teacher = (scores[model, 0].view(-1) for model in (0, 1))
        planes, _ = kernels.shape_rows(student, teacher, x.advantages.view(-1), x.active.view(-1), None, **shaping())
        return planes[0].view_as(x.advantages)

    label = f"stepopsd {name}" + (", entropies" if entropy else "")
    return Contender(label, pair if case.op == "pair" else score, ours=True, capture=name != "torch")


def shaping() -> dict[str, Any]:
    """Options of the shaping for ``Backend.shape_rows``."""
    return {"alpha_clip": ALPHA_CLIP, "lambda_mix": LAMBDA_MIX, "weight_fn": "sigmoid", "step_norm": "none"}


def from_scorer(name: str, case: Case, scorer: Scorer, **properties: Any) -> Contender:
    """A contender that scores each tensor by itself and shapes with PyTorch operations."""

    def score(x: Rows) -> Tensor:
        return scorer(x.student_store, x)

    def pair(x: Rows) -> Tensor:
        return epilogue(x, scorer(x.teacher_store, x) - scorer(x.student_store, x))

    return Contender(name, pair if case.op == "pair" else score, **properties)


def compiled_logsumexp(case: Case) -> Contender:
    """torch.compile of the leaner eager form, epilogue included, for one fixed shape."""
    torch.compiler.reset()  # shapes add up, and past a limit torch runs eagerly without a word
    eager = from_scorer("", case, score_logsumexp).run

    def on_tensors(student: Tensor, teacher: Tensor, ids: Tensor, advantages: Tensor, active: Tensor) -> Tensor:
        return eager(Rows(student, teacher, ids, advantages, active))

    fused = torch.compile(on_tensors, dynamic=False)
    # tensors, not the dataclass: its identity would be guarded, and rotating inputs would compile anew
    return Contender(
        COMPILED,
        lambda x: fused(x.student_store, x.teacher_store, x.ids, x.advantages, x.active),
    )


def score_log_softmax(store: Tensor, x: Rows) -> Tensor:
    """What most training code does: log_softmax in fp32, then gather."""
    return store[:, :-1].float().log_softmax(-1).gather(-1, x.ids[..., None])[..., 0]


def score_logsumexp(store: Tensor, x: Rows) -> Tensor:
    """The leaner form: selected logit minus logsumexp in fp32."""
    logits = store[:, :-1]
    return logits.gather(-1, x.ids[..., None])[..., 0].float() - logits.float().logsumexp(-1)


def epilogue(x: Rows, delta: Tensor) -> Tensor:
    """The shaping in PyTorch operations, as one writes it down."""
    return shaped(x.advantages, delta, x.active)


def shaped(advantages: Tensor, delta: Tensor, active: Tensor) -> Tensor:
    """``epilogue`` for tensors (1, N) of their own."""
    weight = (2 * torch.sigmoid(advantages.sign() * delta)).clamp(1 - ALPHA_CLIP, 1 + ALPHA_CLIP)
    return torch.where(active, advantages * (1 + LAMBDA_MIX * (weight - 1)), advantages)
