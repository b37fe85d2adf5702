"""vLLM as an engine, in this process or behind its HTTP server: token ids in, token ids and log-probs out.

Weights are handed over as a folder of safetensors, which both know how to load. They are sent when a session begins
and the policy's parameters have changed since the last one. Every request carries the version as cache salt: keys and
values of other weights can then never match, whatever became of a reset of the prefix cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from transformers import PreTrainedModel

from stepopsd.rollout.engines.base import Completion, Engine, Sampling
from stepopsd.rollout.engines.results import LostResults, check_calls, completion

SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Request:
    """One call as both transports send it.

    Attributes:
        name: Unique in the run; comes back with the result.
        ids: The whole context.
        params: Keyword arguments of ``vllm.SamplingParams``.
        salt: See the module.
    """

    name: str
    ids: list[int]
    params: dict[str, Any]
    salt: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request: sampled ids and their log-probs, and vLLM's reason to end."""

    ids: list[int]
    logprobs: list[float]
    reason: str | None


class Transport(Protocol):
    """How requests and weights reach vLLM."""

    def send(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """Answers by request name; one that is missing is found by the caller."""
        ...

    def load(self, folder: Path) -> None:
        """Take the weights of ``folder`` and forget what was computed with others."""
        ...

    def wake(self) -> bool:
        """Before a rollout; True where the weights were given up meanwhile."""
        ...

    def rest(self) -> None:
        """After a rollout."""
        ...

    def close(self) -> None: ...


class VllmEngine(Engine):
    """An engine over a transport.

    Args:
        model: The policy that is trained; its weights are what vLLM samples with.
        transport: See ``vllm_colocated`` and ``vllm_server``.
        max_context: Positions that vLLM was started with.
        folder: Where weights are handed over; both sides must see it. "" takes shared memory, else the temporary
            folder.

    Example:
        >>> engine = VllmEngine(model, Colocated("Qwen/Qwen3-1.7B", ...), max_context=4096)   # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, transport: Transport, *, max_context: int, folder: str = "") -> None:
        if hasattr(model, "peft_config"):
            raise ValueError(
                "rollout.engine vllm takes whole weights; with LoRA adapters take rollout.engine transformers"
            )
        self.model, self.transport, self.max_context = model, transport, max_context
        self.folder = folder or ("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
        self.version = 0  # of the weights that vLLM holds; 0 before the first hand-over
        self._sent: tuple[int, ...] = ()
        self._calls = 0

    def session(self) -> VllmSession:
        """See ``Engine.session``."""
        return VllmSession(self)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.transport.close()

    def sync(self, *, lost: bool) -> None:
        """Hand the weights over where they have changed, or where vLLM has given its own up."""
        now = fingerprint(self.model)
        if now == self._sent and not lost:
            return
        folder = Path(tempfile.mkdtemp(prefix="stepopsd-weights-", dir=self.folder))
        try:
            self.model.save_pretrained(folder)
            self.transport.load(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.version += now != self._sent
        self._sent = now

    def call(self, contexts: Mapping[int, Sequence[int]], most: Mapping[int, int], sampling: Sampling,
             seeds: Mapping[int, int]) -> dict[int, Completion]:  # fmt: skip
        """One batch of requests and its checked answers."""
        self._calls += 1
        requests = {
            key: Request(
                f"{self.version}-{self._calls}-{key}", list(context),
                sampling_params(sampling, most[key], seeds[key]), f"weights-{self.version}",
            )
            for key, context in contexts.items()
        }  # fmt: skip
        answers = self.transport.send(list(requests.values()))
        names = {request.name for request in requests.values()}
        if lost := sorted(names - set(answers)):
            raise LostResults(f"vLLM lost {len(lost)} of {len(names)} results, {lost[0]} among them")
        out = {}
        for key, request in requests.items():
            answer = answers[request.name]
            if answer.reason not in ("stop", "length"):
                raise LostResults(f"vLLM ended request {request.name} with {answer.reason!r}")
            out[key] = completion(key, answer.ids, answer.logprobs, most[key], sampling)
        return out


class VllmSession:
    """One rollout: vLLM awake, with the policy's weights. What contexts share is found by its prefix cache."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __enter__(self) -> VllmSession:
        lost = self._engine.transport.wake()
        self._engine.sync(lost=lost)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.transport.rest()

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
            LostResults: Fewer answers than requests, one that was aborted, or one without its log-probs.
        """
        if not contexts:
            return {}
        most = check_calls(contexts, sampling, budgets, self._engine.max_context)
        return self._engine.call(contexts, most, sampling, seeds)

    def drop(self, keys: Sequence[int]) -> None:
        """See ``Session.drop``; vLLM evicts what is not asked for."""


def sampling_params(sampling: Sampling, budget: int, seed: int) -> dict[str, Any]:
    """Arguments of ``vllm.SamplingParams`` for one call: the model's own distribution, ended by our stop ids alone."""
    return {
        "max_tokens": budget, "temperature": sampling.temperature, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "seed": seed % 2**SEED_BITS, "logprobs": 0, "detokenize": False,
        "stop_token_ids": sorted(sampling.stop_ids), "ignore_eos": True,
    }  # fmt: skip


def fingerprint(model: Any) -> tuple[int, ...]:
    """Changes with every write to a parameter; torch counts them. Reads nothing from the device."""
    return tuple(x for p in model.parameters() for x in (p.data_ptr(), p._version))
