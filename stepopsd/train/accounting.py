"""Tokens that went through a model, by what for: the unit in which methods of different cost are compared."""

from __future__ import annotations

from stepopsd.rollout.engines.base import Engine
from stepopsd.train.policy import Policy


class Forwards:
    """Counts since the last look; padding is not counted, a token that is computed twice is.

    Args:
        policy: The student; its scoring passes count, its training passes are counted by the step.
        reference: What the KL term anchors to, if it is a model of its own.
        engine: The sampler; one that does not count its own tokens (vLLM) is left out.
    """

    def __init__(self, policy: Policy, reference: Policy | None, engine: Engine) -> None:
        self._policies = {"student": policy, "reference": reference}
        self._engine = engine
        self._seen = self._now()

    def since(self) -> dict[str, int]:
        """``tokens/forward_<what>`` since the last call."""
        now = self._now()
        spent = {f"tokens/forward_{name}": count - self._seen.get(name, 0) for name, count in now.items()}
        self._seen = now
        return spent

    def _now(self) -> dict[str, int]:
        counts = {name: policy.scored for name, policy in self._policies.items() if policy is not None}
        sampled = getattr(self._engine, "forwarded", None)
        return counts if sampled is None else counts | {"generation": sampled}
