"""prime-rl, experimental: ``ALGORITHM_CLASSES["grpo"] = with_credit(ALGORITHM_CLASSES["grpo"], credit)``."""

from __future__ import annotations

from typing import Any

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied
from stepopsd.integrations.verifiers import shape_traces

TESTED = "git 559b447 (2026-08-21), read, not run"
_ALGORITHMS = "prime_rl.orchestrator.algo"
RELIED = (
    Relied(_ALGORITHMS, members=("ALGORITHM_CLASSES",)),
    Relied(f"{_ALGORITHMS}.base:Algorithm.score_group", ("self", "episodes"), called=False),
    Relied(f"{_ALGORITHMS}.base:iter_trainable_traces", ("episodes",)),
)


def with_credit(algorithm: type, credit: HostCredit) -> type:
    """A subclass of one of prime-rl's algorithms that shapes what its ``score_group`` assigned.

    ``node.reference_logprobs`` is the teacher's word; an override of ``score_episode`` puts it there. prime-rl tells
    its algorithms no update number: set ``stepopsd_update``, or ``lambda_decay_updates=0``.
    """

    class CreditAlgorithm(algorithm):
        stepopsd_update = 1

        async def score_group(self, episodes: list[Any]) -> None:
            await super().score_group(episodes)
            traces = [trace for episode in episodes for trace in episode.traces]
            usable = [t for t in traces if not t.has_error and t.agent.trainable and any(map(_sampled, t.nodes))]
            if usable:
                shape_traces(usable, credit, update=self.stepopsd_update)

    return CreditAlgorithm


def _sampled(node: Any) -> bool:
    return any(node.mask)
