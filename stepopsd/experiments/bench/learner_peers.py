"""Adapters to other packages' kernels with gradients; each is loaded only where its package is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.experiments.bench.contenders import shaped
from stepopsd.experiments.bench.learners import Forward, Learner, plain
from stepopsd.experiments.bench.peers import IGNORED
from stepopsd.experiments.bench.policy_terms import constants, grpo
from stepopsd.experiments.bench.problems import CLIP, KL, Problem, required
from stepopsd.experiments.bench.rows import LINEAR_OPS, ROW_OPS, Case

TRL_COLUMNS = 32_768  # of the vocabulary at a time, as TRL's trainers choose

HeadScorer = Callable[[Tensor, Tensor, Problem], Tensor]  # hidden (1, N, H), weight (V, H) -> log-probs (1, N)


@dataclass(frozen=True)
class LearnerPeer:
    """One kernel of another package.

    Args:
        name: As printed.
        install: What brings it.
        load: Imports it, for a case and a device; ImportError where it is missing.
        ops: What it can compute, with PyTorch operations around it.
        devices: Device types that it computes on.
        rounds: Whether 16-bit logits give 16-bit log-probs.
        workspace: Bytes per logit that it may allocate.
    """

    name: str
    install: str
    load: Callable[[Case, str], Forward]
    ops: tuple[str, ...]
    devices: tuple[str, ...] = ("cuda",)
    rounds: bool = False
    workspace: int = 4


def find_learner_peers(case: Case, device: str) -> tuple[list[Learner], dict[str, str]]:
    """The peers that can compute ``case`` here, and for each other one that knows the op the reason."""
    found, absent = [], {}
    for peer in LEARNER_PEERS:
        if case.op not in peer.ops:
            continue
        if device not in peer.devices:
            absent[peer.name] = f"computes {' and '.join(peer.devices)} tensors only"
            continue
        try:
            forward = peer.load(case, device)
        except Exception as error:  # a broken installation must not end the run either
            first = (str(error).splitlines() or [type(error).__name__])[0]
            absent[peer.name] = f"{first}; {peer.install}"
            continue
        found.append(Learner(peer.name, forward, rounds=peer.rounds and case.dtype != "fp32", workspace=peer.workspace))
    return found, absent


def trl_functions(case: Case, device: str) -> Forward:
    """TRL's functions for log-probs and entropies; on a GPU they take its Triton kernel by themselves."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax, selective_log_softmax_and_entropy

    def score(logits: Tensor, ids: Tensor, entropy: str) -> tuple[Tensor, Tensor | None]:
        if device == "cuda" and entropy != "none":
            logprobs, spread = selective_log_softmax_and_entropy(logits, ids, entropy == "wanted")
            return logprobs, spread
        # rows one by one on a CPU, where it is fastest
        logprobs = selective_log_softmax(*((logits[0], ids[0]) if device == "cpu" else (logits, ids)))
        logprobs = logprobs.view(ids.shape).float()
        if entropy == "none":
            return logprobs, None
        with torch.set_grad_enabled(entropy == "wanted"):
            return logprobs, entropy_from_logits(logits).float()

    return plain("", case, score).forward


def liger_loss(*, inplace: bool) -> Callable[[Case, str], Forward]:
    """Liger's Triton GRPO loss, whose gradient may overwrite the logits; it knows no entropies."""

    def load(case: Case, device: str) -> Forward:
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss

        def forward(x: Problem) -> tuple[Tensor, ...]:
            value, _ = triton_grpo_loss(
                x.store(), x.old, x.ref, x.ids, x.advantages[:, 0].contiguous(), x.active.long(), temperature=1.0,
                beta=KL, eps_low=CLIP[0], eps_high=CLIP[1], inplace=inplace, loss_type="bnpo", reduce=True,
            )  # fmt: skip
            return (value,)

        return forward

    return load


def liger_linear_loss(case: Case, device: str) -> Forward:
    """Liger's fused linear GRPO loss."""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

    # compiled is the arithmetic per token alone, which takes no time beside the products
    loss = LigerFusedLinearGRPOLoss(
        beta=KL, compiled=False, epsilon_low=CLIP[0], epsilon_high=CLIP[1], loss_type="bnpo", temperature=1.0
    )

    def forward(x: Problem) -> tuple[Tensor, ...]:
        value, _ = loss(
            required(x.hidden), required(x.weight), x.ids, x.active.float(), x.advantages[:, 0],
            ref_per_token_logps=x.ref, old_per_token_logps=x.old,
        )  # fmt: skip
        return (value,)

    return forward


def trl_chunked(case: Case, device: str) -> Forward:
    """TRL's log-probs from hidden states, tile by tile."""
    from trl.kernels import ChunkedLogProbFunction

    def score(hidden: Tensor, weight: Tensor, x: Problem) -> Tensor:
        kept = x.active[0].nonzero()[:, 0] if case.masked else slice(None)  # its trainers leave masked tokens out
        picked = ChunkedLogProbFunction.apply(
            hidden[0, kept], weight, None, x.ids[0, kept], 1.0, TRL_COLUMNS, None, 1.0, ()
        )[0]
        return picked[None] if not case.masked else picked.new_zeros(x.ids.shape).masked_scatter(x.active, picked)

    return through_heads(case, score)


def cut_cross_entropy(case: Case, device: str) -> Forward:
    """Apple's cut cross-entropy without its filter of small gradients; off CUDA, the form that torch.compile takes."""
    from cut_cross_entropy import linear_cross_entropy

    options: dict[str, Any] = {"impl": "cce", "filter_eps": None} if device == "cuda" else {"impl": "torch_compile"}

    def score(hidden: Tensor, weight: Tensor, x: Problem) -> Tensor:
        labels = x.ids.where(x.active, IGNORED)
        negative: Tensor = linear_cross_entropy(
            hidden, weight, labels, ignore_index=IGNORED, reduction="none", **options
        )
        return -negative.float()

    return through_heads(case, score)


def through_heads(case: Case, score: HeadScorer) -> Forward:
    """An op from hidden states, by log-probs from hidden states and PyTorch operations."""

    def forward(x: Problem) -> tuple[Tensor, ...]:
        if case.op == "linear-pair":
            with torch.no_grad():
                hinted = score(required(x.teacher_hidden), required(x.teacher_weight), x)
                delta = hinted - score(required(x.hidden), required(x.weight), x)
                return (shaped(x.advantages, delta, x.active),)
        logprobs = score(required(x.hidden), required(x.weight), x).where(x.active, 0)
        if case.op == "linear-logprobs":
            return (logprobs,)
        _, active, advantages, old, ref = constants(x)
        return (grpo(logprobs, advantages, old, ref, active),)

    return forward


LEARNER_PEERS = (
    LearnerPeer("TRL functions", "pip install trl", trl_functions, ROW_OPS, ("cpu", "cuda"), rounds=True, workspace=16),
    LearnerPeer("Liger GRPO loss, no entropies", "pip install liger-kernel", liger_loss(inplace=False), ("loss",)),
    LearnerPeer(
        "Liger GRPO loss, in place, no entropies", "pip install liger-kernel", liger_loss(inplace=True), ("loss",)
    ),
    LearnerPeer(
        "Liger fused linear GRPO", "pip install liger-kernel", liger_linear_loss, ("linear-loss",), ("cpu", "cuda")
    ),
    LearnerPeer("TRL chunked log-probs", "pip install 'trl>=1.16'", trl_chunked, LINEAR_OPS, ("cpu", "cuda")),
    LearnerPeer("cut-cross-entropy", "pip install cut-cross-entropy", cut_cross_entropy, LINEAR_OPS, ("cpu", "cuda")),
)
