"""What the methods of a run need and the run may lack; no torch here. Asked before any work starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepopsd.train.config import RunConfig


def check_needs(config: RunConfig) -> None:
    """Compare every method of ``credit.name`` with the run.

    Raises:
        ValueError: Something is missing; the message names the method, what it needs and the keys to change.
    """
    for name in config.credit.names:
        for need in NEEDS.get(name, ()):
            if lacking := _CHECKS[need](config):
                raise ValueError(f"credit.name {name} needs {lacking}")


def _steps(config: RunConfig) -> str:
    """Episodes that can have more than one step."""
    search = config.env.search
    turns = config.env.max_steps if config.env.name == "alfworld" else search.max_searches + search.final_answer_turn
    if turns > 1 or config.credit.resets.delimiter:
        return ""
    key = "env.max_steps" if config.env.name == "alfworld" else "env.search.max_searches"
    return (
        f"attempts of several steps: {key} allows one turn, and credit.resets.delimiter, which would divide a turn "
        "into steps, is empty"
    )


def _scalar(config: RunConfig) -> str:
    """Scalar advantages that are left as they are: the method makes its own."""
    if config.credit.control == "shuffled_advantages":
        return "its own advantages: credit.control shuffled_advantages deals out those of grpo; set it to none"
    return ""


_CHECKS: dict[str, Callable[[RunConfig], str]] = {"steps": _steps, "scalar": _scalar}
NEEDS = {"rrpo": ("steps", "scalar"), "srpo": ("steps", "scalar")}
