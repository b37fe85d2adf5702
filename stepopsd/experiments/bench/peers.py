"""Adapters to other packages' kernels for selected log-probs; each is loaded only where its package is installed.

None of them computes the pair op: ``pair`` calls each twice and shapes with PyTorch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stepopsd.experiments.bench.contenders import Contender, Scorer, from_scorer
from stepopsd.experiments.bench.rows import Case, Rows

IGNORED = -100


@dataclass(frozen=True)
class Peer:
    """One kernel of another package.

    Args:
        name: As printed.
        install: What brings it.
        load: Imports it; ImportError where it is missing.
        devices: Device types that it computes on.
        rounds: Whether 16-bit logits give 16-bit log-probs.
        workspace: Bytes per logit that it may allocate.
        capture: Whether it may be captured in a CUDA graph.
    """

    name: str
    install: str
    load: Callable[[], Scorer]
    devices: tuple[str, ...] = ("cuda",)
    rounds: bool = False
    workspace: int = 0
    capture: bool = True


def find_peers(case: Case, device: str) -> tuple[list[Contender], dict[str, str]]:
    """The peers that can run here, and for each other one the reason."""
    found, absent = [], {}
    for peer in PEERS:
        if device not in peer.devices:
            absent[peer.name] = f"computes {' and '.join(peer.devices)} tensors only"
            continue
        try:
            scorer = peer.load()
        except Exception as error:  # a broken installation must not end the run either
            first = (str(error).splitlines() or [type(error).__name__])[0]
            absent[peer.name] = f"{first}; {peer.install}"
            continue
        rounds = peer.rounds and case.dtype != "fp32"
        properties = {"rounds": rounds, "workspace": peer.workspace, "capture": peer.capture}
        found.append(from_scorer(peer.name, case, scorer, **properties))
    return found, absent


def trl_fused() -> Scorer:
    """TRL's Triton kernel; it computes the entropy whether asked or not."""
    from trl.kernels import selective_log_softmax_and_entropy

    @torch.no_grad()
    def score(store: Tensor, x: Rows) -> Tensor:
        return selective_log_softmax_and_entropy(store[:, :-1], x.ids, 1.0, x.active)[0]

    return score


def trl_eager() -> Scorer:
    """TRL's function without the kernel. On a CPU it gets one row per step of its loop, where it is fastest; on a GPU,
    where rows one by one would be launches one by one, a trailing dimension keeps it from taking the kernel."""
    from trl.trainer.utils import selective_log_softmax

    @torch.no_grad()
    def score(store: Tensor, x: Rows) -> Tensor:
        if store.device.type == "cpu":
            return selective_log_softmax(store[0, :-1], x.ids[0])[None]
        return selective_log_softmax(store[:, :-1], x.ids[..., None])[..., 0]

    return score


def liger() -> Scorer:
    """Liger's kernel of its GRPO loss; scores all but the last position."""
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax

    def score(store: Tensor, x: Rows) -> Tensor:
        return fused_selective_log_softmax(store, x.ids, 1.0, x.active)

    return score


def flash_attention() -> Scorer:
    """flash-attention's Triton cross-entropy; ignored rows are read all the same."""
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    @torch.no_grad()
    def score(store: Tensor, x: Rows) -> Tensor:
        return -cross_entropy_loss(store[0, :-1], labels(x)[0])[0][None]

    return score


def quack() -> Scorer:
    """QuACK's CuTe cross-entropy."""
    from quack.cross_entropy import cross_entropy_fwd

    @torch.no_grad()
    def score(store: Tensor, x: Rows) -> Tensor:
        return -cross_entropy_fwd(store[0, :-1], labels(x)[0], ignore_index=IGNORED)[None]

    return score


def labels(x: Rows) -> Tensor:
    """The ids, -100 where masked: what cross-entropy kernels ignore."""
    return x.ids.where(x.active, IGNORED)


PEERS = (
    Peer("TRL fused kernel", "pip install 'trl>=1.16'", trl_fused),
    Peer("TRL selective_log_softmax", "pip install trl", trl_eager, ("cpu", "cuda"), rounds=True, workspace=4),
    Peer("Liger selective_log_softmax", "pip install liger-kernel", liger),
    Peer("flash-attention cross-entropy", "pip install flash-attn --no-build-isolation", flash_attention),
    # it launches through a runtime of its own, whose stream we cannot vouch for
    Peer("QuACK cross-entropy", "pip install quack-kernels", quack, capture=False),
)
