"""What every engine checks of its calls and of what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from stepopsd.rollout.engines.base import Completion, Sampling


class EngineError(RuntimeError):
    """The sampler cannot go on; a run that meets it stops, saved."""


class LostResults(EngineError):
    """Fewer or other results came back than were asked for."""


def check_calls(
    contexts: Mapping[int, Sequence[int]], sampling: Sampling, budgets: Mapping[int, int] | None, max_context: int
) -> dict[int, int]:
    """Longest completion of every context.

    Raises:
        ValueError: A context is empty, its budget is less than 1, or both are too long for the model.
    """
    most = dict.fromkeys(contexts, sampling.max_new_tokens) | dict(budgets or {})
    for key, context in contexts.items():
        if not context:
            raise ValueError(f"context {key} is empty; a model call needs at least one token")
        if most[key] < 1:
            raise ValueError(f"the budget of context {key} must be at least 1, got {most[key]}")
        if len(context) + most[key] > max_context:
            raise ValueError(
                f"context {key} has {len(context)} tokens; with max_new_tokens={most[key]} it "
                f"exceeds the model's {max_context} positions"
            )
    return most


def completion(key: int, ids: Sequence[int], logprobs: Sequence[float], budget: int, sampling: Sampling) -> Completion:
    """A completion as sampled by somebody else's engine, or an error where it cannot be one.

    Raises:
        LostResults: Tokens and log-probs differ in number, there are none, or the text ends before its end.
        FloatingPointError: A log-prob is NaN.
    """
    if not ids or len(ids) != len(logprobs):
        raise LostResults(f"context {key}: {len(ids)} tokens came back with {len(logprobs)} log-probs")
    if any(value != value for value in logprobs):
        raise FloatingPointError(f"the engine gave NaN log-probs for context {key}")
    finish: Literal["stop", "length"] = "stop" if ids[-1] in sampling.stop_ids else "length"
    inner = any(token in sampling.stop_ids for token in ids[:-1])
    if inner or len(ids) > budget or (finish == "length" and len(ids) < budget):
        raise LostResults(f"context {key}: {len(ids)} tokens of at most {budget} came back, and no stop id ends them")
    return Completion([int(t) for t in ids], [min(0.0, float(p)) for p in logprobs], finish)
