"""The credit section of a run: which method assigns credit, and the options of each; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from stepopsd.options.checks import choice, closed, positive

Span = Literal["action_only", "clean_step_no_observation", "answer_only"]


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
    max_tokens: int = 0
    rows_without_peer: Literal["score", "skip"] = "score"

    def __post_init__(self) -> None:
        choice("credit.hindsight.peer_of", self.peer_of, ("group", "other"))
        choice("credit.hindsight.placement", self.placement, ("suffix", "prefix"))
        choice("credit.hindsight.render", self.render, ("actions", "full"))
        choice("credit.hindsight.rows_without_peer", self.rows_without_peer, ("score", "skip"))
        closed("credit.hindsight.max_tokens", self.max_tokens, 0, 1 << 20)


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

    clip: float = 0.2
    lambda_mix: float = 0.5
    lambda_decay_updates: int = 100
    diagnose_every: int = 0
    teacher: Literal["live", "stale"] = "live"
    teacher_refresh_every: int = 10
    hindsight: HindsightConfig = field(default_factory=_prefix)

    def __post_init__(self) -> None:
        closed("credit.rlsd.clip", self.clip, 0.0, 1.0, low_open=True)
        closed("credit.rlsd.lambda_mix", self.lambda_mix, 0.0, 1.0)
        closed("credit.rlsd.lambda_decay_updates", self.lambda_decay_updates, 0, 1 << 30)
        closed("credit.rlsd.diagnose_every", self.diagnose_every, 0, 1 << 30)
        _check_teacher("credit.rlsd", self)


@dataclass(frozen=True, slots=True)
class SdarConfig:
    """SDAR (arXiv 2605.15155).

    Attributes:
        coefficient: Weight of the gated term.
        beta: Sharpness of the gate; 0 makes it ½ everywhere (GRPO + OPSD).
        teacher, teacher_refresh_every, hindsight: As of stepopsd; the teacher scores every sampled token. A pull
            towards a teacher that was only told of a failure would teach the failure: rows without peer are skipped.
    """

    coefficient: float = 0.01
    beta: float = 5.0
    teacher: Literal["live", "stale"] = "live"
    teacher_refresh_every: int = 10
    hindsight: HindsightConfig = field(default_factory=_peer_only)

    def __post_init__(self) -> None:
        positive("credit.sdar.coefficient", self.coefficient)
        closed("credit.sdar.beta", self.beta, 0.0, 1e6)
        _check_teacher("credit.sdar", self)


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

    coefficient: float = 1.0
    beta: float = 0.5
    top_k: int = 0
    entry_clip: float = 0.0
    teacher: Literal["live", "stale"] = "stale"
    teacher_refresh_every: int = 0
    hindsight: HindsightConfig = field(default_factory=_peer_only)

    def __post_init__(self) -> None:
        positive("credit.opsd.coefficient", self.coefficient)
        closed("credit.opsd.beta", self.beta, 0.0, 1.0)
        closed("credit.opsd.top_k", self.top_k, 0, 1 << 30)
        closed("credit.opsd.entry_clip", self.entry_clip, 0.0, 1e6)
        _check_teacher("credit.opsd", self)


Section: TypeAlias = "CreditConfig | RlsdConfig | SdarConfig | OpsdConfig"


def _check_teacher(prefix: str, options: Section) -> None:
    choice(f"{prefix}.teacher", options.teacher, ("stale", "live"))
    closed(f"{prefix}.teacher_refresh_every", options.teacher_refresh_every, 0, 1 << 30)


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

    gamma: float = 0.95
    step_advantage_w: float = 1.0
    norm: Literal["mean_std_norm", "mean_norm"] | None = None
    similarity: float = 1.0

    def __post_init__(self) -> None:
        closed("credit.gigpo.gamma", self.gamma, 0.0, 1.0)
        closed("credit.gigpo.step_advantage_w", self.step_advantage_w, 0.0, 1e6)
        closed("credit.gigpo.similarity", self.similarity, 0.0, 1.0, low_open=True)
        if self.norm is not None:
            choice("credit.gigpo.norm", self.norm, ("mean_std_norm", "mean_norm"))


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
    draws: int = 1
    seed: int = 0
    reduce: Literal["abs_dot", "l2"] = "abs_dot"
    stride: int = 1
    quantile: float = 0.25
    beta: float = 1.0
    floor: float = 0.1
    cut: Literal["quantile", "absolute"] = "quantile"
    preserve: bool = True
    min_tokens: int = 4

    def __post_init__(self) -> None:
        choice("credit.oar.probe", self.probe, ("auto", "last", "answer_mean", "answer_joint"))
        choice("credit.oar.reduce", self.reduce, ("abs_dot", "l2"))
        choice("credit.oar.cut", self.cut, ("quantile", "absolute"))
        closed("credit.oar.sigma", self.sigma, 0.0, 1.0, low_open=self.probe != "answer_joint")
        closed("credit.oar.draws", self.draws, 1, 1 << 10)
        closed("credit.oar.seed", self.seed, 0, 1 << 30)
        closed("credit.oar.stride", self.stride, 1, 1 << 20)
        closed("credit.oar.quantile", self.quantile, 0.0, 1.0)
        closed("credit.oar.beta", self.beta, 0.0, 1e6)
        closed("credit.oar.floor", self.floor, 0.0, 1.0, low_open=True)
        closed("credit.oar.min_tokens", self.min_tokens, 0, 1 << 30)

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
    branches: int = 3
    per: Literal["row", "prompt"] = "row"
    mode: Literal["eq6", "own"] = "eq6"
    resample: bool = True
    gate: bool = True
    min_gap: int = 0
    b: float = 0.5
    center: bool = False
    half_life: float = 32.0
    low: float = 1.0
    high: float = 1.2
    max_log_ratio: float = 0.0
    decay: Literal["position", "valid"] = "position"

    def __post_init__(self) -> None:
        choice("credit.appo.when", self.when, ("minibatch", "lagged", "rollout"))
        choice("credit.appo.per", self.per, ("row", "prompt"))
        choice("credit.appo.mode", self.mode, ("eq6", "own"))
        closed("credit.appo.branches", self.branches, 1, 4096)
        closed("credit.appo.min_gap", self.min_gap, 0, 1 << 20)
        choice("credit.appo.decay", self.decay, ("position", "valid"))
        closed("credit.appo.b", self.b, 0.0, 1e6)
        closed("credit.appo.half_life", self.half_life, 0.0, 1e6, low_open=True)
        closed("credit.appo.low", self.low, 1e-30, 1.0)
        closed("credit.appo.high", self.high, 1.0, 1e30)
        closed("credit.appo.max_log_ratio", self.max_log_ratio, 0.0, 1e6)


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

    n_fresh: int | None = None
    n_reset: int = 4
    n_parents: int = 1
    parents: Literal["iid", "code"] = "iid"
    n_probes: int = 8
    delimiter: str = ""
    localiser_tokens: int = 512
    localiser_temperature: float = 0.3

    def __post_init__(self) -> None:
        choice("credit.resets.parents", self.parents, ("iid", "code"))
        closed("credit.resets.n_fresh", self.n_fresh or 0, 0, 4096)
        closed("credit.resets.n_reset", self.n_reset, 1, 4096)
        closed("credit.resets.n_parents", self.n_parents, 1, 4096)
        closed("credit.resets.n_probes", self.n_probes, 0, 4096)
        closed("credit.resets.localiser_tokens", self.localiser_tokens, 1, 1 << 20)
        closed("credit.resets.localiser_temperature", self.localiser_temperature, 0.0, 100.0)
        if self.n_reset % self.n_parents:
            raise ValueError(
                f"credit.resets.n_reset must be a multiple of n_parents {self.n_parents}, got {self.n_reset}"
            )


@dataclass(frozen=True, slots=True)
class CreditConfig:
    """Who gets the blame: the method, and how rewards become scalar group advantages.

    Attributes:
        name: Credit-assignment method, or several joined by ``+``, whose factors multiply.
        statistics: Unit of the group mean and std: ``row`` (verl-agent's default) or ``trajectory``.
        divide_by_std: GRPO's division by the group's standard deviation.
        dynamic_sampling: ``drop`` leaves groups in which nobody has an advantage out of the batch before any forward
            pass; they count in no average then (DAPO, arXiv 2503.14476, without refilling the batch).
        span: Tokens that make up a step.
        weight_fn, alpha_clip, step_norm: See ``stepopsd.shape_advantages`` (these and the next six: stepopsd only).
        lambda_mix: Initial mixing coefficient λ0.
        lambda_decay_updates: Updates until λ is exactly 0 (λ_t = λ0·max(0, 1 - t/T), t from 1); 0 keeps it constant.
        teacher: ``stale`` snapshot or the ``live`` policy.
        teacher_refresh_every: Updates between hard copies of the policy into the stale snapshot.
        diagnose_every: Score the teacher every so many updates although λ is 0; 0 never.
        control: ``shuffled_advantages`` deals the scalar advantages out to random rows, and gigpo's step advantages to
            random turns (rewards teach nothing), ``shuffled_teacher`` deals the teacher's gaps out to random scored
            tokens (same Δ distribution, no information), for every method that reads the teacher's log-probs.
    """

    name: str = "grpo"
    statistics: Literal["row", "trajectory"] = "trajectory"
    divide_by_std: bool = True
    dynamic_sampling: Literal["off", "drop"] = "off"
    span: Span = "action_only"
    weight_fn: Literal["sigmoid", "exp"] = "sigmoid"
    alpha_clip: float = 0.2
    lambda_mix: float = 0.2
    lambda_decay_updates: int = 50
    step_norm: Literal["equal_step_mean_abs", "equal_step_ratio", "none"] = "equal_step_mean_abs"
    teacher: Literal["stale", "live"] = "stale"
    teacher_refresh_every: int = 10
    diagnose_every: int = 0
    control: Literal["none", "shuffled_advantages", "shuffled_teacher"] = "none"
    hindsight: HindsightConfig = field(default_factory=HindsightConfig)
    appo: AppoConfig = field(default_factory=AppoConfig)
    gigpo: GigpoConfig = field(default_factory=GigpoConfig)
    oar: OarConfig = field(default_factory=OarConfig)
    resets: ResetsConfig = field(default_factory=ResetsConfig)
    rlsd: RlsdConfig = field(default_factory=RlsdConfig)
    sdar: SdarConfig = field(default_factory=SdarConfig)
    opsd: OpsdConfig = field(default_factory=OpsdConfig)

    def __post_init__(self) -> None:
        _check_names(self.names, self)
        for name in self.names:
            _check_hindsight(name, self.teacher_options(name))
        choice("credit.statistics", self.statistics, ("row", "trajectory"))
        choice("credit.dynamic_sampling", self.dynamic_sampling, ("off", "drop"))
        if self.dynamic_sampling == "drop" and self.names == ("opsd",):
            raise ValueError(
                "credit.dynamic_sampling drop needs rewards: credit.name opsd has none; use grpo+opsd, or off"
            )
        choice("credit.span", self.span, ("action_only", "clean_step_no_observation", "answer_only"))
        choice("credit.weight_fn", self.weight_fn, ("sigmoid", "exp"))
        choice("credit.step_norm", self.step_norm, ("equal_step_mean_abs", "equal_step_ratio", "none"))
        choice("credit.control", self.control, ("none", "shuffled_advantages", "shuffled_teacher"))
        _check_control(self)
        choice("credit.teacher", self.teacher, ("stale", "live"))
        closed("credit.lambda_mix", self.lambda_mix, 0.0, 1.0)
        closed("credit.alpha_clip", self.alpha_clip, 0.0, 1.0, low_open=True)
        closed("credit.lambda_decay_updates", self.lambda_decay_updates, 0, 1 << 30)
        positive("credit.teacher_refresh_every", self.teacher_refresh_every)
        closed("credit.diagnose_every", self.diagnose_every, 0, 1 << 30)

    @property
    def names(self) -> tuple[str, ...]:
        """The methods of ``name``."""
        return tuple(self.name.split("+"))

    def teacher_options(self, name: str) -> Section | None:
        """The section with the teacher of a method, or None where it has none."""
        section = self if name == "stepopsd" else getattr(self, name, None)
        return section if hasattr(section, "hindsight") else None

    @property
    def has_stale_teacher(self) -> bool:
        """Whether some method keeps a snapshot of the policy."""
        options = [self.teacher_options(name) for name in self.names]
        return any(o is not None and o.teacher == "stale" for o in options)


#: Every method, and what it is: see ``CreditMethod.role``.
METHODS = {
    "appo": "base", "appo_future": "factor", "gigpo": "base", "grpo": "base", "oar_g": "factor", "oar_p": "factor",
    "opsd": "auxiliary", "rlsd": "factor", "rrpo": "base", "sdar": "auxiliary", "srpo": "base", "stepopsd": "factor",
}  # fmt: skip


def _check_names(names: tuple[str, ...], config: CreditConfig) -> None:
    """Raise ValueError for unknown methods and for methods that cannot work together."""
    for name in names:
        if name not in METHODS:
            known = ", ".join(sorted(METHODS))
            raise ValueError(f"credit.name must be one of {known}, or several joined by '+', got {config.name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"credit.name must name a method once, got {config.name!r}")
    bases = [name for name in names if METHODS[name] == "base"]
    if len(bases) > 1:
        raise ValueError(f"credit.name must hold at most one method that makes advantages, got {' and '.join(bases)}")
    stale = [n for n in names if (options := config.teacher_options(n)) is not None and options.teacher == "stale"]
    if len(stale) > 1:
        raise ValueError(
            f"credit.name {config.name}: at most one method may keep a stale teacher, got {' and '.join(stale)}; "
            "set the other's teacher to live"
        )


#: Methods that compare whole distributions, for which no gap of a token exists.
READ_STATES = ("opsd",)


def _check_control(config: CreditConfig) -> None:
    """Raise ValueError for a control that would change nothing, or not what it says."""
    if config.control == "shuffled_advantages" and config.names == ("opsd",):
        raise ValueError("credit.control shuffled_advantages needs rewards: credit.name opsd has none; use none")
    if config.control != "shuffled_teacher":
        return
    if not any(config.teacher_options(name) for name in config.names):
        raise ValueError(
            f"credit.control shuffled_teacher needs a teacher: credit.name {config.name} has none; use none"
        )
    for name in READ_STATES:
        if name in config.names:
            raise ValueError(
                f"credit.control shuffled_teacher deals out gaps of single tokens: credit.name {name} compares whole "
                "distributions; use none"
            )


def _check_hindsight(name: str, options: Section | None) -> None:
    """Raise ValueError where a method's teacher would never know more than the policy."""
    if options is None:
        return
    told, section = options.hindsight, "credit" if name == "stepopsd" else f"credit.{name}"
    if told.rows_without_peer == "skip" and not told.peer:
        raise ValueError(
            f"{section}.hindsight.peer must be true where rows_without_peer is skip: no row would have a teacher"
        )
    if options.teacher == "live" and not (told.label or told.peer):
        raise ValueError(
            f"credit.name {name} needs a privileged context: {section}.hindsight.label and .peer are both false, and a "
            "live teacher that is told nothing is the policy itself"
        )
