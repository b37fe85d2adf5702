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


def _rounds(config: RunConfig) -> str:
    """What branching in the middle of an update takes: whole groups, and nobody who has used the advantages before."""
    if config.credit.appo.when != "minibatch":
        return ""
    for key, value, allowed in (
        ("credit.dynamic_sampling", config.credit.dynamic_sampling, "off"),
        ("optim.minibatch_rows", config.optim.minibatch_rows, 0),
        ("credit.name", config.credit.name, "appo"),
    ):
        if value != allowed:
            return (
                "advantages that may change before every mini-batch, credit.appo.when being minibatch: "
                f"{key} must be {allowed}, got {value}; or set credit.appo.when to lagged or rollout"
            )
    return ""


_CHECKS: dict[str, Callable[[RunConfig], str]] = {"rounds": _rounds, "scalar": _scalar, "steps": _steps}
NEEDS = {"appo": ("rounds", "scalar"), "rrpo": ("steps", "scalar"), "srpo": ("steps", "scalar")}
#: Methods whose rollouts continue others: their environment must repeat itself, word for word.
REPLAYING = ("appo", "rrpo", "srpo")


def check_replay(config: RunConfig, env: object) -> None:
    """Raise ValueError where a method continues episodes and the environment says that it cannot repeat them.

    Args:
        config: The run.
        env: What plays the run's episodes; ``replays = False`` on it says so.
    """
    for name in config.credit.names:
        if name in REPLAYING and not getattr(env, "replays", True):
            raise ValueError(
                f"credit.name {name} needs an environment that can replay: env.name {config.env.name} does not repeat "
                "an episode from its task, its seed and its actions"
            )
