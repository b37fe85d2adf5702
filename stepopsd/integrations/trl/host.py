"""Is this a TRL that the trainer can stand on? Asked once, at import."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from packaging.version import Version

#: Oldest and newest release that the tests were run with.
TESTED = ("1.12.0", "1.16.0")

#: What is overridden or called, with the parameters that it must have.
METHODS = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
}
#: How TRL's loss says that it takes (B, T) advantages.
TWO_AXES = "advantages.dim() == 1"


def import_host() -> tuple[Any, str]:
    """``GRPOTrainer`` and TRL's version.

    Raises:
        ImportError: TRL is not installed.
    """
    try:
        trl = importlib.import_module("trl")
    except ImportError as error:
        raise ImportError("stepopsd.integrations.trl needs TRL: pip install 'stepopsd[trl]'") from error
    return trl.GRPOTrainer, str(trl.__version__)


def check_host(trainer: type, version: str) -> None:
    """Raise ImportError for a trainer that is patched or too old, or that lacks what the integration stands on.

    Args:
        trainer: ``GRPOTrainer`` as TRL exports it now.
        version: Of TRL, for the message.
    """
    if is_unsloth(trainer):
        raise ImportError(
            f"GRPOTrainer is Unsloth's ({trainer.__module__}.{trainer.__qualname__}): rewritten source with a loss of "
            "its own, which takes one advantage per row and would drop per-token credit without a word; import "
            "stepopsd.integrations.trl in a process without unsloth"
        )
    wrong = [problem for name, wanted in METHODS.items() if (problem := _problem(trainer, name, wanted))]
    if not wrong and TWO_AXES not in _source(trainer, "_compute_loss"):
        wrong = ["_compute_loss does not say that it takes advantages of shape (B, T)"]
    if wrong:
        raise ImportError(
            f"stepopsd.integrations.trl cannot stand on trl {version} ({TESTED[0]} to {TESTED[1]} were tested): "
            f"{'; '.join(wrong)}"
        )
    if Version(version) < Version(TESTED[0]):
        raise ImportError(
            f"stepopsd.integrations.trl needs trl {TESTED[0]} or later, got {version}: not all losses of older ones "
            "take (B, T) advantages as they take (B,)"
        )


def is_unsloth(trainer: type) -> bool:
    """Whether a class, or one that it is made of, is Unsloth's."""
    names = [f"{part.__module__}.{part.__qualname__}".lower() for part in trainer.__mro__]
    return any("unsloth" in name for name in names) or any(
        "unsloth" in str(getattr(inspect.unwrap(getattr(trainer, name, is_unsloth)), "__module__", "")).lower()
        for name in METHODS
    )


def _problem(trainer: type, name: str, wanted: tuple[str, ...]) -> str:
    method = getattr(trainer, name, None)
    if method is None:
        return f"GRPOTrainer.{name} is missing"
    parameters = inspect.signature(inspect.unwrap(method)).parameters
    missing = [p for p in wanted if p not in parameters]
    return f"GRPOTrainer.{name} has no parameter {', '.join(missing)}" if missing else ""


def _source(trainer: type, name: str) -> str:
    try:
        return inspect.getsource(inspect.unwrap(getattr(trainer, name)))
    except OSError:
        return TWO_AXES  # compiled without its source: the tests of the version have to do


# Before anything that takes seconds to import.
GRPOTrainer, VERSION = import_host()
check_host(GRPOTrainer, VERSION)
