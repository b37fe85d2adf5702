"""verifiers: per-token advantages on the nodes of traces, for whatever trainer compiles them (prime-rl among them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied

TESTED = "git a60a606 (2026-08-21, 0.4.0)"
RELIED = (
    Relied(
        "verifiers.v1.graph:MessageNode", members=("token_ids", "mask", "logprobs", "advantages", "reference_logprobs")
    ),
    Relied("verifiers.v1.trace:Trace", members=("nodes", "reward")),
)


def shape_traces(
    traces: Sequence[Any], credit: HostCredit, *, update: int, group_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """Write ``node.advantages`` of every sampled node: one float per sampled token, laid out as ``node.logprobs``.

    Args:
        traces: Episodes: ``nodes`` with ``mask`` and ``logprobs`` (sampled tokens alone), and a ``reward``.
            ``node.reference_logprobs`` is the teacher's word; None: nobody was asked.
        credit: The method.
        update: Counted from 1.
        group_ids: (N,) int, traces of one prompt; None: all of one, as in a call of prime-rl's ``score_group``.

    Returns:
        Metrics.

    A sampled node is a step and, in our sense, a row. Nodes that have advantages already keep them as the start; else
    all of them begin with their trace's group-normalised reward.

    Raises:
        ValueError: ``group_ids`` of another length, or a node whose lists do not fit its mask.
    """
    groups = [0] * len(traces) if group_ids is None else [int(group) for group in group_ids]
    if len(groups) != len(traces):
        raise ValueError(f"group_ids must hold {len(traces)} values, one per trace, got {len(groups)}")
    rows = [(i, node) for i, trace in enumerate(traces) for node in trace.nodes if any(node.mask)]
    if not rows:
        return {}
    nodes = [node for _, node in rows]
    sizes = [sum(node.mask) for node in nodes]
    given = all(node.advantages is not None for node in nodes)
    told = any(node.reference_logprobs is not None for node in nodes)
    shaped = credit.advantages(
        response_mask=[[True] * size for size in sizes],
        advantages=[list(node.advantages) for node in nodes] if given else None,
        rewards=[float(traces[i].reward) for i, _ in rows],
        group_ids=[groups[i] for i, _ in rows],
        trajectory_ids=[i for i, _ in rows],
        student_logprobs=[list(node.logprobs) for node in nodes],
        teacher_logprobs=[
            [float("nan")] * size if node.reference_logprobs is None else list(node.reference_logprobs)
            for node, size in zip(nodes, sizes, strict=True)
        ] if told else None,
        update=update,
    )  # fmt: skip
    for node, values in zip(nodes, shaped.advantages, strict=True):
        node.advantages = [float(value) for value in values]
    return shaped.metrics
