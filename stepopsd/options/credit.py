"""The credit section of a run: which methods assign credit, and which go together; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from stepopsd.options.checks import Count, PositiveInt, PositiveShare, Share, check_fields
from stepopsd.options.methods import (
    AppoConfig,
    GigpoConfig,
    HindsightConfig,
    OarConfig,
    OpsdConfig,
    ResetsConfig,
    RlsdConfig,
    SdarConfig,
    TeacherKind,
)

Span = Literal["action_only", "clean_step_no_observation", "answer_only"]
Section: TypeAlias = "CreditConfig | RlsdConfig | SdarConfig | OpsdConfig"

#: Every method, and what it is: see ``CreditMethod.role``.
METHODS = {
    "appo": "base", "appo_future": "factor", "gigpo": "base", "grpo": "base", "oar_g": "factor", "oar_p": "factor",
    "opsd": "auxiliary", "rlsd": "factor", "rrpo": "base", "sdar": "auxiliary", "srpo": "base", "stepopsd": "factor",
}  # fmt: skip
#: Methods that compare whole distributions, for which no gap of a token exists.
READ_STATES = ("opsd",)


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
    alpha_clip: PositiveShare = 0.2
    lambda_mix: Share = 0.2
    lambda_decay_updates: Count = 50
    step_norm: Literal["equal_step_mean_abs", "equal_step_ratio", "none"] = "equal_step_mean_abs"
    teacher: TeacherKind = "stale"
    teacher_refresh_every: PositiveInt = 10
    diagnose_every: Count = 0
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
        check_fields("credit", self)
        _check_names(self)
        for name in self.names:
            _check_hindsight(name, self.teacher_options(name))
        _check_rewards(self)
        _check_control(self)

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


def _check_names(config: CreditConfig) -> None:
    """Raise ValueError for unknown methods and for methods that cannot work together."""
    names = config.names
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


def _check_rewards(config: CreditConfig) -> None:
    """Raise ValueError for what needs rewards where the method has none."""
    if config.names != ("opsd",):
        return
    if config.dynamic_sampling == "drop":
        raise ValueError("credit.dynamic_sampling drop needs rewards: credit.name opsd has none; use grpo+opsd, or off")
    if config.control == "shuffled_advantages":
        raise ValueError("credit.control shuffled_advantages needs rewards: credit.name opsd has none; use none")


def _check_control(config: CreditConfig) -> None:
    """Raise ValueError for a shuffled teacher where there is no gap of a token to deal out."""
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
