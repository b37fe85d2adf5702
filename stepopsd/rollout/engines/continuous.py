"""transformers' continuous batching as an engine: requests join and leave a running batch, prefixes share pages.

One manager per session, never a persistent one: a manager that lives on hands out keys and values of the weights
before. Its manager drops what fails, so results are counted here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from stepopsd.rollout.engines.base import Completion, Engine, Sampling, call_seed
from stepopsd.rollout.engines.model import eval_mode, max_context, require_attention
from stepopsd.rollout.engines.results import LostResults, check_calls, completion

POLL_S = 1.0
CPU_PAGE, CPU_BATCH_TOKENS = 64, 1024


class ContinuousEngine(Engine):
    """Samples through ``model.init_continuous_batching`` as the weights are when a session begins.

    What is sampled depends on the session's first call and on which requests share a batch, so it does not repeat bit
    for bit; log-probs are exact.

    Args:
        model: Causal LM on its device, with the ``sdpa`` or ``eager`` attention implementation, which it keeps.
        patience_s: Seconds without any result after which a call is given up.

    Raises:
        ImportError: The installed transformers has no continuous batching with log-probs.
        ValueError: The attention implementation is another one.

    Example:
        >>> engine = ContinuousEngine(model)                                     # doctest: +SKIP
        >>> [done] = engine.generate([[5, 6, 7]], Sampling(8), seeds=[0])       # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, *, patience_s: float = 600.0) -> None:
        self.model = model
        self.patience_s = patience_s
        self.max_context = max_context(model.config)
        require_attention(model, "continuous")
        _batching_config()  # raises before any work where it is missing

    def session(self) -> ContinuousSession:
        """See ``Engine.session``."""
        return ContinuousSession(self)

    def close(self) -> None:
        """See ``Engine.close``; there is nothing to give back."""


class ContinuousSession:
    """One manager from the first call to the end; see ``Session``. A call at another temperature begins a new one."""

    def __init__(self, engine: ContinuousEngine) -> None:
        self._engine = engine
        self._manager: Any = None
        self._temperature: float | None = None
        self._calls = 0

    def __enter__(self) -> ContinuousSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(hard=error is not None)

    def generate(
        self,
        contexts: Mapping[int, Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Mapping[int, int],
        budgets: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        """See ``Session.generate``.

        Raises:
            LostResults: A request failed or did not come back; the message has transformers' reason.
        """
        if not contexts:
            return {}
        most = check_calls(contexts, sampling, budgets, self._engine.max_context)
        with eval_mode(self._engine.model):
            manager = self._started(sampling.temperature, seeds, sum(map(len, contexts.values())) + sum(most.values()))
            self._calls += 1
            names = {f"{self._calls}/{key}": key for key in contexts}
            # Long prompts first: those that share a prefix with them then find it.
            for name, key in sorted(names.items(), key=lambda item: list(contexts[item[1]]), reverse=True):
                accepted = manager.add_request(
                    list(contexts[key]), request_id=name, max_new_tokens=most[key],
                    eos_token_id=sorted(sampling.stop_ids) or [-1],
                )  # fmt: skip
                if accepted != name:
                    raise LostResults(f"request {name} was refused: the manager has stopped")
            outputs = self._collect(manager, set(names))
        return {
            key: completion(key, outputs[name].generated_tokens, outputs[name].logprobs, most[key], sampling)
            for name, key in names.items()
        }

    def drop(self, keys: Sequence[int]) -> None:
        """See ``Session.drop``; pages that nobody uses are reused by themselves."""

    def _started(self, temperature: float, seeds: Mapping[int, int], tokens: int) -> Any:
        if self._manager is not None and self._temperature == temperature:
            return self._manager
        self._end()
        seed = call_seed(*(seeds[key] for key in sorted(seeds)))
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        model: Any = self._engine.model
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                **(sampled if temperature > 0 else {"do_sample": False}), eos_token_id=-1, num_return_sequences=1
            ),
            continuous_batching_config=_batching_config(seed=seed % 2**63, **self._room(len(seeds), tokens)),
        )
        self._temperature = temperature
        self._manager.start()
        return self._manager

    def _room(self, rows: int, tokens: int) -> dict[str, int]:
        """Pages on a CPU, where the default is most of the memory: twice the first call, as conversations grow."""
        if self._engine.model.device.type != "cpu":
            return {}
        return {
            "num_blocks": rows + 2 * -(-tokens // CPU_PAGE), "page_size": CPU_PAGE, "max_batch_tokens": CPU_BATCH_TOKENS
        }  # fmt: skip

    def _collect(self, manager: Any, waiting: set[str]) -> dict[str, Any]:
        """The finished outputs of all requests, or an error: nothing is ever left out."""
        outputs: dict[str, Any] = {}
        deadline = time.monotonic() + self._engine.patience_s
        while waiting:
            result = manager.get_result(timeout=POLL_S)
            if result is None:
                if not manager.is_running() or time.monotonic() > deadline:
                    why = "took too long" if manager.is_running() else "ended"
                    raise LostResults(f"{len(waiting)} of {len(waiting) + len(outputs)} results lost: batching {why}")
                continue
            if result.request_id not in waiting or not result.is_finished():
                continue
            if result.error is not None:
                raise LostResults(f"request {result.request_id} failed: {result.error}")
            waiting.remove(result.request_id)
            outputs[result.request_id] = result
            deadline = time.monotonic() + self._engine.patience_s
        return outputs

    def _end(self, *, hard: bool = False) -> None:
        if self._manager is not None:
            self._manager.stop(block=True, hard_stop=hard)
            self._manager.destroy()
        self._manager = self._temperature = None


def _batching_config(**options: Any) -> Any:
    try:
        from transformers import ContinuousBatchingConfig
    except ImportError as error:
        raise ImportError(
            "rollout.engine continuous needs transformers with ContinuousBatchingConfig (5.x): "
            "pip install -U 'transformers>=5.10', or take rollout.engine transformers"
        ) from error
    # Flash attention would be switched to behind our back; the trainer's kernels give the trainer's log-probs.
    return ContinuousBatchingConfig(return_logprobs=True, auto_switch_to_flash=False, **options)
