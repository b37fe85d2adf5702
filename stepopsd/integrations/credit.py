"""Our credit methods on somebody else's batch: tensors or lists in, advantages of the same form out."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit import CreditInputs, CreditMethod, CreditResult, compose, create
from stepopsd.credit.base import REWARDS, broadcast_advantages
from stepopsd.credit.grpo import group_normalize
from stepopsd.integrations.forms import Form, Rows
from stepopsd.options.credit import METHODS, CreditConfig, Section

#: Keys of ``CreditConfig`` that say how our own trainer samples; a host has its own ways.
NOT_HERE = {"control": "none", "dynamic_sampling": "off"}


@dataclass(frozen=True, slots=True)
class HostAdvantages:
    """What a host gets back.

    Attributes:
        advantages: float32, detached, 0 outside responses: (N, T), or N one-dimensional tensors.
        metrics: Name -> number; with several methods, names begin with their method's.
        tokens: Name -> per-token values in the same form, e.g. ``delta`` and ``weights``.
        base: The advantages that factors multiplied, in the same form.
    """

    advantages: Tensor | list[Tensor]
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, Tensor | list[Tensor]] = field(default_factory=dict)
    base: Tensor | list[Tensor] | None = None


class HostCredit:
    """One credit method, or several joined by ``+``, for batches that another trainer made.

    Stateless: what changes from update to update is the number of the update alone.

    Args:
        method: As ``credit.name`` of a run: ``grpo``, ``stepopsd``, ``rlsd``, ``appo_future``, ``gigpo``, ``oar_p``,
            ``grpo+stepopsd``, ...
        options: Keys of the ``credit`` section by name, sections as mappings; or a ready ``CreditConfig``.
        auxiliary: The host has a place for a loss term beside its own; see ``auxiliaries``.

    Raises:
        ValueError: An unknown method or option, a value out of range, or a method that a batch of tensors is not enough
            for: ``opsd`` compares whole distributions, ``sdar`` adds a loss term.

    Example:
        >>> credit = HostCredit("stepopsd", {"step_norm": "none", "lambda_mix": 1.0, "lambda_decay_updates": 0})
        >>> out = credit.advantages(
        ...     response_mask=[[True, True], [True]], advantages=[1.0, -1.0],
        ...     student_logprobs=[[-1.0, -1.0], [-1.0]], teacher_logprobs=[[-1.0, -0.8], [-9.0]],
        ... )
        >>> [[round(float(a), 4) for a in row] for row in out.advantages]
        [[1.0, 1.0997], [-1.2]]
    """

    def __init__(
        self, method: str = "stepopsd", options: Mapping[str, Any] | CreditConfig | None = None, *,
        auxiliary: bool = False,
    ) -> None:  # fmt: skip
        self.config = options if isinstance(options, CreditConfig) else credit_config(method, options or {})
        if self.config.name != method:
            raise ValueError(f"method must be the options' own name {self.config.name!r}, got {method!r}")
        for key, only in NOT_HERE.items():
            if getattr(self.config, key) != only:
                raise ValueError(f"options {key} must be {only}: it belongs to stepopsd's own trainer, not to a host's")
        tree = dataclasses.asdict(self.config)
        self.methods: dict[str, CreditMethod] = {name: create(name, tree) for name in self.config.names}
        for name, made in self.methods.items():
            if made.reads_teacher_states:
                raise ValueError(
                    f"method {name} compares whole distributions and needs the teacher's hidden states in the loss; "
                    "use stepopsd's own trainer"
                )
            if made.role == "auxiliary" and not auxiliary:
                raise ValueError(
                    f"method {name} leaves advantages alone and adds a loss term, for which this host has no place"
                )

    @property
    def auxiliaries(self) -> dict[str, CreditMethod]:
        """The methods that come as a loss term."""
        return {name: method for name, method in self.methods.items() if method.role == "auxiliary"}

    @property
    def moves(self) -> bool:
        """Whether advantages change with the policy, so that they are worth making again with ``current_logprobs``."""
        return any(method.per_minibatch for method in self.methods.values())

    def wants_teacher(self, update: int) -> bool:
        """Whether teacher log-probs matter in this update, counted from 1; where not, none need be made."""
        return any(method.wants_teacher(update) for method in self.methods.values())

    def wants_student(self, update: int) -> bool:
        """Whether student log-probs are read in this update."""
        return self.wants_teacher(update) or bool(self._readers())

    def _readers(self) -> list[str]:
        """Methods that read student log-probs without a teacher's beside them."""
        alone = (n for n in self.methods if self.config.teacher_options(n) is None)
        return [n for n in alone if self.methods[n].role == "factor" or self.methods[n].per_minibatch]

    @property
    def factors(self) -> HostCredit:
        """The methods that multiply advantages, alone: for another call with ``current_logprobs``, see ``moves``."""
        names = [name for name, method in self.methods.items() if method.role == "factor"]
        name = "+".join(names or ["grpo"])
        return self if name == self.config.name else HostCredit(name, replace(self.config, name=name))

    @property
    def teacher_tokens(self) -> str:
        """What a teacher scores: the ``span`` of each step, or the whole ``response``."""
        asked = [m.teacher_tokens for n, m in self.methods.items() if self.config.teacher_options(n) is not None]
        return "response" if "response" in asked else "span"

    @property
    def teacher(self) -> Section | None:
        """The section of the method with a teacher: which teacher, how often it is refreshed, what it is told."""
        found = (self.config.teacher_options(name) for name in self.config.names)
        return next((section for section in found if section is not None), None)

    def needs(self, update: int = 1) -> frozenset[str]:
        """Names of ``extras`` that the host must bring."""
        return frozenset().union(*(m.needs(update) for m in self.methods.values())) - {REWARDS}

    def advantages(
        self,
        *,
        response_mask: Rows,
        advantages: Tensor | Sequence[Any] | None = None,
        rewards: Tensor | Sequence[float] | None = None,
        group_ids: Tensor | Sequence[int] | None = None,
        trajectory_ids: Tensor | Sequence[int] | None = None,
        step_ids: Rows | None = None,
        student_logprobs: Rows | None = None,
        teacher_logprobs: Rows | None = None,
        current_logprobs: Rows | None = None,
        extras: Mapping[str, Any] | None = None,
        update: int = 1,
    ) -> HostAdvantages:
        """Advantages of every sampled token of N rows.

        Per-token arguments have the form of ``response_mask``: an (N, T) tensor, or a list of N one-dimensional tensors
        or lists.

        Args:
            response_mask: bool or 0/1, sampled tokens. Tokens of tools and of the environment are 0.
            advantages: (N,) or per token, those of the host; or None, and ``rewards`` instead.
            rewards: (N,), normalised within groups as the options ``statistics`` and ``divide_by_std`` say. With both,
                the host's advantages count, and rewards are there for methods that ask for them.
            group_ids: (N,) int, rows of one prompt; needed with ``rewards``.
            trajectory_ids: (N,) int, rows of one episode; None: every row is an episode.
            step_ids: int, the step of the trajectory, -1 outside; None: each row is one step.
            student_logprobs: float, of the policy that is about to be updated; needed by methods with a teacher or
                a ratio.
            teacher_logprobs: float, NaN where there is none; None where nobody was asked.
            current_logprobs: float, of the policy as it is now, in a call between optimiser steps; see ``moves``.
            extras: What ``needs`` names, first axis N; per-token ones in the form of ``response_mask``.
            update: Number of the update, counted from 1.

        Returns:
            ``HostAdvantages``. Without a teacher's word, and at λ = 0, the given advantages come back bit for bit.
            Tokens whose student or teacher log-prob is not finite are not scored and keep theirs;
            ``host/unscored_tokens`` counts those of steps.

        Raises:
            ValueError: A missing argument, or one of another form, shape or range; the message has its name.
        """
        form = Form("response_mask", response_mask)
        mask = form.padded("response_mask", response_mask, fill=0, dtype=torch.bool)
        if update < 1:
            raise ValueError(f"update must be at least 1, got {update}")
        groups = None if group_ids is None else form.per_row("group_ids", group_ids, dtype=torch.int64)
        owners = torch.arange(form.rows, device=form.device)
        if trajectory_ids is not None:
            owners = form.per_row("trajectory_ids", trajectory_ids, dtype=torch.int64)
        paid = None if rewards is None else form.per_row("rewards", rewards, dtype=torch.float32)
        if groups is None and (readers := [n for n, m in self.methods.items() if m.role == "base" and m.needs(update)]):
            raise ValueError(f"group_ids must be given: method {readers[0]} compares rows of one group")
        plain = self._plain(form, advantages, paid, groups, owners)
        steps = _steps(form, mask, owners, step_ids)
        student, teacher, unscored = self._logprobs(form, mask, steps, student_logprobs, teacher_logprobs)
        inputs = CreditInputs(
            advantages=broadcast_advantages(plain, mask),
            response_mask=mask,
            step_ids=steps,
            trajectory_ids=owners,
            old_logprobs=student,
            teacher_logprobs=teacher,
            update=update,
            group_ids=groups,
            extras=self._extras(form, extras or {}, paid, update),
            current_logprobs=None
            if current_logprobs is None
            else form.padded("current_logprobs", current_logprobs, fill=0.0, dtype=torch.float32),
        )
        return self._assign(form, inputs, plain, unscored)

    def _assign(self, form: Form, inputs: CreditInputs, plain: Tensor, unscored: int) -> HostAdvantages:
        base, results = inputs.advantages, {}
        # A base method's advantages are what the others start from.
        for name, method in sorted(self.methods.items(), key=lambda item: item[1].role != "base"):
            given = plain if method.role == "base" else base
            result = results[name] = method.assign(replace(inputs, advantages=given))
            base = result.advantages if method.role == "base" else base
        metrics: dict[str, float] = {"host/unscored_tokens": float(unscored)}
        tokens: dict[str, Tensor] = {}
        for name, result in results.items():
            prefix = f"{name}/" if len(results) > 1 else ""
            metrics |= {prefix + key: float(value) for key, value in result.metrics.items()}
            tokens = result.tokens | tokens
        together = _compose(base, [results[n] for n, m in self.methods.items() if m.role == "factor"])
        shown = {name: form.back(value) for name, value in tokens.items() if value.shape == together.shape}
        return HostAdvantages(form.back(together), metrics, shown, form.back(base))

    def _plain(
        self, form: Form, advantages: Any, rewards: Tensor | None, groups: Tensor | None, owners: Tensor
    ) -> Tensor:
        """(N,) or (N, T) advantages to start from."""
        if advantages is not None:
            if _is_per_row(advantages):
                return form.per_row("advantages", advantages, dtype=torch.float32)
            return form.padded("advantages", advantages, fill=0.0, dtype=torch.float32)
        if rewards is None:
            raise ValueError("advantages or rewards must be given, got neither")
        if groups is None:
            raise ValueError("group_ids must be given with rewards: they say which rows are compared")
        return group_normalize(
            rewards, groups, owners, statistics=self.config.statistics, divide_by_std=self.config.divide_by_std
        )

    def _logprobs(
        self, form: Form, mask: Tensor, steps: Tensor, student: Rows | None, teacher: Rows | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """Student log-probs, 0 where there are none, the teacher's, NaN there, and how many of steps lack one."""
        if student is None:
            reads = self._readers()
            if teacher is not None or reads:
                why = f"method {reads[0]} reads them" if reads else "teacher_logprobs are compared with them"
                raise ValueError(f"student_logprobs must be given: {why}")
            return torch.zeros(mask.shape, device=mask.device), None, 0
        own = form.padded("student_logprobs", student, fill=0.0, dtype=torch.float32)
        known = own.isfinite() & mask
        own = own.where(known, 0.0)
        if teacher is None:
            return own, None, 0
        told = form.padded("teacher_logprobs", teacher, fill=float("nan"), dtype=torch.float32)
        told = told.where(known & told.isfinite(), float("nan"))
        return own, told, int(((steps >= 0) & mask & told.isnan()).sum())

    def _extras(self, form: Form, given: Mapping[str, Any], rewards: Tensor | None, update: int) -> dict[str, Tensor]:
        out = {}
        for name, method in self.methods.items():
            for key in sorted(method.needs(update)):
                value = rewards if key == REWARDS else given.get(key)
                if value is None:
                    what = "rewards" if key == REWARDS else f"extras[{key!r}]"
                    raise ValueError(f"{what} must be given: method {name} reads {', '.join(method.needs(update))}")
                out[key] = _extra(form, key, value)
        return out


def credit_config(method: str, options: Mapping[str, Any]) -> CreditConfig:
    """The ``credit`` section of a run from plain values; sections (``appo``, ``hindsight``, ...) may be mappings.

    Raises:
        ValueError: An unknown key, with the closest known one, or a value out of range.

    Example:
        >>> credit_config("stepopsd", {"alpha_clip": 0.05, "hindsight": {"render": "full"}}).hindsight.render
        'full'
    """
    if "name" in options:
        raise ValueError("options must not hold name: the method is an argument of its own")
    return _filled(CreditConfig(name=method), options, "options")


def _filled(default: Any, values: Mapping[str, Any], prefix: str) -> Any:
    known = [f.name for f in dataclasses.fields(default)]
    changes = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"{prefix} holds an unknown key {key!r}; {hint}")
        old = getattr(default, key)
        nested = dataclasses.is_dataclass(old) and isinstance(value, Mapping)
        changes[key] = _filled(old, value, f"{prefix}[{key!r}]") if nested else value
    return replace(default, **changes)


def _steps(form: Form, mask: Tensor, owners: Tensor, step_ids: Rows | None) -> Tensor:
    """(N, T) int32; by default a row is one step, numbered among the rows of its trajectory."""
    if step_ids is not None:
        return form.padded("step_ids", step_ids, fill=-1, dtype=torch.int32).where(mask, -1)
    earlier = (owners[None, :] == owners[:, None]).tril(-1).sum(1)  # (N,)
    return torch.where(mask, earlier[:, None].int(), -1)


def _is_per_row(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim != 2
    return all(not isinstance(x, (Sequence, Tensor)) or (isinstance(x, Tensor) and x.ndim == 0) for x in value)


def _extra(form: Form, name: str, value: Any) -> Tensor:
    label = f"extras[{name!r}]"
    if not isinstance(value, Tensor):
        fill = -1 if name == "turn_of_token" else float("nan")
        return form.padded(label, value, fill=fill, dtype=torch.int64 if name == "turn_of_token" else torch.float32)
    if value.ndim == 0 or value.shape[0] != form.rows:
        raise ValueError(f"{label} must have the first axis {form.rows}, got shape {tuple(value.shape)}")
    return value.detach().to(form.device)


def _compose(base: Tensor, factors: Sequence[CreditResult]) -> Tensor:
    return compose(base, factors) if factors else base


#: Methods whose advantages a host's batch is enough for, by name; see ``HostCredit``.
USABLE = tuple(sorted(name for name, role in METHODS.items() if role != "auxiliary"))
