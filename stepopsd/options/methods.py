"""The options of each credit-assignment method: one section below ``credit`` each; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from stepopsd.options.checks import (
    Count,
    NonNegativeFloat,
    PositiveFloat,
    PositiveShare,
    Share,
    check_fields,
    closed,
    within,
)

#: A teacher is a snapshot of the policy, renewed now and then, or the policy itself.
TeacherKind = Literal["stale", "live"]


@dataclass(frozen=True, slots=True)
class HindsightConfig:
    """The teacher's extra context.

    Attributes:
        label: Add the trajectory's own outcome.
        peer: Give failed members of a mixed group the first successful member (by member index).
        peer_of: ``group``, or ``other`` for a control: the peer is a success of another group, so the hint is as long
            and as well formed as a right one and wrong.
        placement: ``suffix`` right before the scored span, ``prefix`` in the user prompt.
        render: Peer as numbered ``actions`` or as ``full`` turns.
        max_tokens: Longest block in tokens, at the cost of the end of the peer's text; 0 means no cut but to what the
            model can hold. Cuts are counted in the metrics.
        rows_without_peer: ``score`` them (label and drift of the stale teacher) or ``skip`` (Δ = 0).
    """

    label: bool = True
    peer: bool = True
    peer_of: Literal["group", "other"] = "group"
    placement: Literal["suffix", "prefix"] = "suffix"
    render: Literal["actions", "full"] = "actions"
    max_tokens: Annotated[int, within(0, 1 << 20)] = 0
    rows_without_peer: Literal["score", "skip"] = "score"

    def __post_init__(self) -> None:
        check_fields("credit.hindsight", self)


def _prefix() -> HindsightConfig:
    return HindsightConfig(placement="prefix")


def _peer_only() -> HindsightConfig:
    return HindsightConfig(label=False, placement="prefix", rows_without_peer="skip")


@dataclass(frozen=True, slots=True)
class RlsdConfig:
    """RLSD (arXiv 2604.03128).

    Attributes:
        clip: ε, half-width of the weights' range around 1.
        lambda_mix, lambda_decay_updates, diagnose_every: As of stepopsd.
        teacher, teacher_refresh_every, hindsight: As of stepopsd; the teacher scores every sampled token.
    """

    clip: PositiveShare = 0.2
    lambda_mix: Share = 0.5
    lambda_decay_updates: Count = 100
    diagnose_every: Count = 0
    teacher: TeacherKind = "live"
    teacher_refresh_every: Count = 10
    hindsight: HindsightConfig = field(default_factory=_prefix)

    def __post_init__(self) -> None:
        check_fields("credit.rlsd", self)


@dataclass(frozen=True, slots=True)
class SdarConfig:
    """SDAR (arXiv 2605.15155).

    Attributes:
        coefficient: Weight of the gated term.
        beta: Sharpness of the gate; 0 makes it ½ everywhere (GRPO + OPSD).
        teacher, teacher_refresh_every, hindsight: As of stepopsd; the teacher scores every sampled token. A pull
            towards a teacher that was only told of a failure would teach the failure: rows without peer are skipped.
    """

    coefficient: PositiveFloat = 0.01
    beta: NonNegativeFloat = 5.0
    teacher: TeacherKind = "live"
    teacher_refresh_every: Count = 10
    hindsight: HindsightConfig = field(default_factory=_peer_only)

    def __post_init__(self) -> None:
        check_fields("credit.sdar", self)


@dataclass(frozen=True, slots=True)
class OpsdConfig:
    """OPSD (arXiv 2601.18734). Alone it learns from no reward; ``grpo+opsd`` does both.

    Attributes:
        coefficient: Weight of the divergence in the loss.
        beta: β of the generalised Jensen-Shannon divergence; 0 is KL(teacher | student), 1 KL(student | teacher).
        top_k: Compare the teacher's k likeliest tokens only; 0 takes the whole vocabulary.
        entry_clip: Upper bound of one vocabulary entry's term; 0 takes none.
        teacher, teacher_refresh_every, hindsight: As of sdar; by default the teacher is the starting policy, for good.
    """

    coefficient: PositiveFloat = 1.0
    beta: Share = 0.5
    top_k: Count = 0
    entry_clip: NonNegativeFloat = 0.0
    teacher: TeacherKind = "stale"
    teacher_refresh_every: Count = 0
    hindsight: HindsightConfig = field(default_factory=_peer_only)

    def __post_init__(self) -> None:
        check_fields("credit.opsd", self)


@dataclass(frozen=True, slots=True)
class GigpoConfig:
    """GiGPO (arXiv 2505.10978).

    Attributes:
        gamma: Discount of the step returns.
        step_advantage_w: ω, weight of the step part; 0 is GRPO.
        norm: ``mean_std_norm`` or ``mean_norm``, of the step part; null follows ``credit.divide_by_std``.
        similarity: Observations that resemble each other by at least so much (``difflib``'s ratio) are one anchor; 1
            takes identical ones only.
    """

    gamma: Share = 0.95
    step_advantage_w: NonNegativeFloat = 1.0
    norm: Literal["mean_std_norm", "mean_norm"] | None = None
    similarity: PositiveShare = 1.0

    def __post_init__(self) -> None:
        check_fields("credit.gigpo", self)


@dataclass(frozen=True, slots=True)
class OarConfig:
    """Outcome-grounded reshaping.

    Attributes:
        probe: ``last``: the next-token distribution where the answer begins; ``answer_mean``: that of the mean logits
            over the answer; ``answer_joint``: the answer's mean log-prob. ``auto`` is ``last`` for oar_p and
            ``answer_mean`` for oar_g.
        sigma, draws, seed: Noise of oar_g on embeddings; sigma 0 with ``answer_joint`` only.
        reduce: ``abs_dot`` of gradient and embedding, or ``l2`` norm of the gradient (oar_g).
        stride: oar_p replaces every so-manieth reasoning token only, an approximation above 1.
        quantile, beta, floor, cut, preserve, min_tokens: See ``stepopsd.ops.oar_reshape``.
    """

    probe: Literal["auto", "last", "answer_mean", "answer_joint"] = "auto"
    sigma: float = 1e-3
    draws: Annotated[int, within(1, 1 << 10)] = 1
    seed: Count = 0
    reduce: Literal["abs_dot", "l2"] = "abs_dot"
    stride: Annotated[int, within(1, 1 << 20)] = 1
    quantile: Share = 0.25
    beta: NonNegativeFloat = 1.0
    floor: PositiveShare = 0.1
    cut: Literal["quantile", "absolute"] = "quantile"
    preserve: bool = True
    min_tokens: Count = 4

    def __post_init__(self) -> None:
        check_fields("credit.oar", self)
        closed("credit.oar.sigma", self.sigma, 0.0, 1.0, low_open=self.probe != "answer_joint")

    def probe_or(self, own: Literal["last", "answer_mean"]) -> str:
        """``probe``, ``auto`` being the scorer's own."""
        return own if self.probe == "auto" else self.probe


@dataclass(frozen=True, slots=True)
class AppoConfig:
    """APPO (arXiv 2606.12384); its scaling alone is ``appo_future``, which reads b to decay.

    Attributes:
        when: When to branch: before every ``minibatch``, or once per update by the drift since the update before
            (``lagged``) or by the entropy alone (``rollout``).
        branches: Branches per attempt; an update samples groups x group_size x (1 + branches) episodes.
        per: Choose the best positions per ``row`` (attempt) or pooled per ``prompt``.
        mode: ``eq6`` standardises a reward by attempts and by branches, ``own`` by attempts only.
        resample: Draw the token at the position again; false keeps it, as released.
        gate, min_gap: See ``stepopsd.ops`` ``branching_score`` and ``topk_branch``.
        b: Weight of the future value.
        center: Divide by 1 + b, so that the scale is that of GRPO.
        half_life: Tokens in which the weight of a log-ratio halves.
        low, high: Bounds of the future value.
        max_log_ratio: Tokens with a log-ratio above it add nothing; 0 keeps all.
        decay: ``position``: tokens in between that were not sampled count as distance; ``valid``: they do not.
    """

    when: Literal["minibatch", "lagged", "rollout"] = "minibatch"
    branches: Annotated[int, within(1, 4096)] = 3
    per: Literal["row", "prompt"] = "row"
    mode: Literal["eq6", "own"] = "eq6"
    resample: bool = True
    gate: bool = True
    min_gap: Annotated[int, within(0, 1 << 20)] = 0
    b: NonNegativeFloat = 0.5
    center: bool = False
    half_life: Annotated[float, within(0.0, 1e6, low_open=True)] = 32.0
    low: Annotated[float, within(1e-30, 1.0)] = 1.0
    high: Annotated[float, within(1.0, 1e30)] = 1.2
    max_log_ratio: NonNegativeFloat = 0.0
    decay: Literal["position", "valid"] = "position"

    def __post_init__(self) -> None:
        check_fields("credit.appo", self)


@dataclass(frozen=True, slots=True)
class ResetsConfig:
    """RRPO and SRPO (arXiv 2605.25507).

    Attributes:
        n_fresh: Fresh attempts per prompt that are trained on; null takes ``rollout.group_size``.
        n_reset: Continuations per prompt, divided among the parents; a multiple of ``n_parents``.
        n_parents: Failed attempts per prompt to continue.
        parents: ``iid``: drawn among the failed fresh attempts, which stay in their group. ``code``: the first
            failures, which leave it, as released.
        n_probes: Further attempts that may be sampled to find a failure.
        delimiter: Ends a step inside a turn; empty: a step is a turn.
        localiser_tokens, localiser_temperature: Of the reply that names a step (srpo).
    """

    n_fresh: Annotated[int, within(0, 4096)] | None = None
    n_reset: Annotated[int, within(1, 4096)] = 4
    n_parents: Annotated[int, within(1, 4096)] = 1
    parents: Literal["iid", "code"] = "iid"
    n_probes: Annotated[int, within(0, 4096)] = 8
    delimiter: str = ""
    localiser_tokens: Annotated[int, within(1, 1 << 20)] = 512
    localiser_temperature: Annotated[float, within(0.0, 100.0)] = 0.3

    def __post_init__(self) -> None:
        check_fields("credit.resets", self)
        if self.n_reset % self.n_parents:
            raise ValueError(
                f"credit.resets.n_reset must be a multiple of n_parents {self.n_parents}, got {self.n_reset}"
            )
