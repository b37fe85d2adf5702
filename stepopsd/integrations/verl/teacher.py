"""Who scores a response with the hindsight block before it: the policy's own servers, or a frozen snapshot."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import uuid4

from stepopsd.integrations.verl.settings import TeacherSettings

_log = logging.getLogger(__name__)
#: A forward over given tokens; servers must sample one.
SCORING = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}


class Scorer(Protocol):
    """Log-probs of given tokens."""

    async def score(self, context: Sequence[int], response: Sequence[int]) -> list[float]:
        """log p of every token of ``response`` after ``context``; NaN where nobody answered."""
        ...


class LiveScorer:
    """The policy as it is while it samples, through verl's own client.

    Args:
        client: verl's ``LLMServerClient``.
        attempts: Tries before the tokens stay unscored: a server that is about to take new weights aborts requests.
        pause_s: Between them.
    """

    def __init__(self, client: Any, *, attempts: int = 3, pause_s: float = 1.0) -> None:
        self._generate, self._attempts, self._pause_s = _plain_generate(client), attempts, pause_s

    async def score(self, context: Sequence[int], response: Sequence[int]) -> list[float]:
        ids = [*context, *response]
        for attempt in range(self._attempts):
            output = await self._generate(
                request_id=uuid4().hex, prompt_ids=ids, sampling_params={**SCORING, "detokenize": False}
            )
            found = output.extra_fields
            if "prompt_logprobs" in found:
                return sliced(found["prompt_logprobs"], found["prompt_ids"], ids, len(response))
            if output.token_ids:
                raise RuntimeError(
                    "the rollout server answered without prompt_logprobs; the live teacher needs verl's vllm or sglang "
                    "server: set stepopsd.teacher.source to server or none"
                )
            if attempt + 1 < self._attempts:
                await asyncio.sleep(self._pause_s)
        return [math.nan] * len(response)


class ServerScorer:
    """A snapshot behind an OpenAI-compatible vLLM server, as ``vllm serve CHECKPOINT`` starts one.

    Args:
        settings: ``url`` and ``model``, time limit and attempts.
        client: An ``httpx.AsyncClient``; made on first use unless given.

    Raises:
        ImportError: httpx is not installed.
    """

    def __init__(self, settings: TeacherSettings, client: Any = None) -> None:
        self.settings = settings
        if client is None:
            try:
                import httpx
            except ImportError as error:
                raise ImportError("stepopsd.teacher.source=server needs httpx: pip install httpx") from error
            client = httpx.AsyncClient(timeout=settings.timeout_s)
        self._client = client

    async def score(self, context: Sequence[int], response: Sequence[int]) -> list[float]:
        ids = [*context, *response]
        body = {"model": self.settings.model, "prompt": ids, **SCORING}
        for attempt in range(self.settings.attempts):
            try:
                answer = await self._client.post(f"{self.settings.url.rstrip('/')}/v1/completions", json=body)
                answer.raise_for_status()
                told = answer.json()["choices"][0]["prompt_logprobs"]
            except Exception as error:  # whatever the network does, the rollout goes on
                _log.warning("teacher server, attempt %d: %s: %s", attempt + 1, type(error).__name__, error)
                continue
            return from_completion(told, ids, len(response))
        return [math.nan] * len(response)


def sliced(logprobs: Sequence[Any], seen: Sequence[Any], ids: Sequence[int], count: int) -> list[float]:
    """The last ``count`` tokens' log-probs out of verl's answer, in which entry i is about token i + 1.

    Args:
        logprobs: One list per token, the last a dummy.
        seen: Likewise the ids that the entries are about.
        ids: The ids that were sent.
        count: Tokens of the response.

    Raises:
        RuntimeError: The answer is about other tokens than were sent.

    Example:
        >>> sliced([[-1.0], [-2.0], [0.0]], [[5], [6], [0]], [4, 5, 6], 2)
        [-1.0, -2.0]
    """
    if len(logprobs) != len(ids) or [_first(x) for x in seen[:-1]] != list(ids[1:]):
        raise RuntimeError(
            f"the teacher's log-probs are about other tokens than were sent: {len(ids)} ids sent, {len(logprobs)} came "
            "back, or they differ"
        )
    start = len(ids) - count - 1
    return [float(_first(x)) for x in logprobs[start:-1]]


def from_completion(told: Sequence[Mapping[str, Any] | None], ids: Sequence[int], count: int) -> list[float]:
    """The same out of a completion's ``prompt_logprobs``: one mapping of id to its log-prob per token, None first.

    Raises:
        RuntimeError: The answer is about other tokens than were sent.

    Example:
        >>> from_completion([None, {"5": {"logprob": -1.0}}], [4, 5], 1)
        [-1.0]
    """
    if len(told) != len(ids):
        raise RuntimeError(f"the teacher scored {len(told)} tokens of {len(ids)} that were sent")
    out = []
    for token, entry in zip(ids[-count:] if count else (), told[len(ids) - count :], strict=True):
        if entry is None or str(token) not in entry:
            raise RuntimeError(f"the teacher's log-probs do not hold token {token} that was sent")
        out.append(float(entry[str(token)]["logprob"]))
    return out


def _first(entry: Any) -> Any:
    return entry[0] if isinstance(entry, (list, tuple)) else entry


def _plain_generate(client: Any) -> Any:
    """verl's plain request: the client of its asynchronous modes builds answers of its own, without prompt scores."""
    try:
        from verl.workers.rollout.llm_server import LLMServerClient
    except ImportError:
        return client.generate
    if not isinstance(client, LLMServerClient):
        return client.generate

    async def generate(**request: Any) -> Any:
        return await LLMServerClient.generate(client, **request)

    return generate
