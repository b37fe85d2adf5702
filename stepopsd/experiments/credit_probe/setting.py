"""The probe's runs: one configuration per method, all on the same episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree

#: What knows better: a policy that was taught to copy a peer's doors, one that was taught which of them matters, or
#: nobody's model, see ``oracle``.
Kind = Literal["copies", "understands", "oracle"]
Section: TypeAlias = dict[str, Any]

STRONG: Section = {"name": "stepopsd", "alpha_clip": 0.5, "lambda_mix": 1.0, "lambda_decay_updates": 0}

#: Label -> part of the ``credit`` section; what is left out has the method's default.
METHODS: dict[str, Section] = {
    "grpo": {"name": "grpo"},
    "grpo, shuffled": {"name": "grpo", "control": "shuffled_advantages"},
    "gigpo": {"name": "gigpo"},
    "oar_g": {"name": "oar_g"},
    "oar_p": {"name": "oar_p"},
    "appo": {"name": "appo"},
    "rrpo": {"name": "rrpo"},
    "srpo": {"name": "srpo", "resets": {"localiser_tokens": 16}},
    "stepopsd": {"name": "stepopsd"},
    "stepopsd, no step norm": {"name": "stepopsd", "step_norm": "none"},
    "stepopsd, strong": STRONG,
    "stepopsd, strong, no step norm": {**STRONG, "step_norm": "none"},
    "stepopsd, strong, no step norm, shuffled": {**STRONG, "step_norm": "none", "control": "shuffled_teacher"},
    "rlsd": {"name": "rlsd"},
    "sdar": {"name": "sdar"},
    "grpo+opsd": {"name": "grpo+opsd"},
    "opsd": {"name": "opsd"},
}


def methods_of(kind: Kind, labels: tuple[str, ...], *, first: bool) -> dict[str, Section]:
    """The chosen methods that a kind of teacher says something about, GRPO beside them.

    Args:
        kind: Of teacher.
        labels: Chosen methods.
        first: The kind that also carries the methods without a teacher, which need no repetition.
    """
    heard = [n for n in labels if consults(METHODS[n])]
    if kind == "oracle":  # it has no whole distributions
        heard = [n for n in heard if "opsd" not in METHODS[n]["name"].split("+")]
    return {n: METHODS[n] for n in labels if n in heard or n == "grpo" or (first and not consults(METHODS[n]))}


def consults(section: Section) -> bool:
    """Whether a method has a teacher."""
    return any(name in ("stepopsd", "rlsd", "sdar", "opsd") for name in section["name"].split("+"))


def probe_config(
    model: Path, run_dir: Path, credit: Section, *, length: int, groups: int, group_size: int, seed: int
) -> RunConfig:
    """The configuration of one method's batch; its learning rate is that of the step that a method may want to see."""
    return from_tree(RunConfig, {
        "run_dir": str(run_dir), "seed": seed, "device": "cpu", "transcripts_every": 0, "model": {"path": str(model)},
        "env": {"name": "chain", "max_steps": length, "workers": 0, "think": False, "prompt_style": "compact",
                "eval_splits": []},
        "rollout": {"context": "dialogue", "groups": groups, "group_size": group_size, "batch_size": 512,
                    "max_prompt_tokens": 700, "max_response_tokens": 8},
        "credit": {"span": "action_only", **credit},
        "loss": {"kl_coef": 0.0, "invalid_action_penalty": 0.0, "reward_scale": 1.0},
        "optim": {"updates": 1, "lr": 1e-3},
    })  # fmt: skip
