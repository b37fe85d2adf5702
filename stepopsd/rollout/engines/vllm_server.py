"""vLLM's HTTP server as a transport: its token-in token-out endpoint, and its development endpoints for weights."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stepopsd.rollout.engines.results import EngineError
from stepopsd.rollout.engines.vllm import Answer, Request

GENERATE = "/inference/v1/generate"


class ServerTransport:
    """Talks to ``VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs``.

    The server reads the weights from a folder, so it must see the trainer's file system.

    Args:
        url: For example http://127.0.0.1:8000.
        timeout_s: Of one request, and of a hand-over of weights.
        concurrency: Requests in flight at a time.

    Raises:
        ImportError: httpx is missing; the message names the extra.
        EngineError: The server does not answer.
    """

    def __init__(self, url: str, *, timeout_s: float, concurrency: int) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ImportError("rollout.engine vllm_server needs httpx: pip install 'stepopsd[vllm]'") from error
        self.url, self.concurrency, self._errors = url.rstrip("/"), concurrency, httpx.HTTPError
        limits = httpx.Limits(max_connections=concurrency)
        transport = httpx.HTTPTransport(retries=3, limits=limits)  # of connections, never of a request that was sent
        self._client = httpx.Client(base_url=self.url, timeout=timeout_s, transport=transport)
        self._ask("GET", "/health")

    def send(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """See ``Transport.send``."""
        with ThreadPoolExecutor(max(1, min(self.concurrency, len(requests)))) as pool:
            return dict(pool.map(self._sample, requests))

    def _sample(self, request: Request) -> tuple[str, Answer]:
        body = {
            "request_id": request.name, "token_ids": request.ids, "sampling_params": request.params,
            "cache_salt": request.salt, "stream": False,
        }  # fmt: skip
        reply = self._ask("POST", GENERATE, json=body).json()
        if len(reply.get("choices", ())) != 1:
            raise EngineError(f"{self.url} answered request {request.name} with {str(reply)[:300]}")
        [choice] = reply["choices"]
        content = (choice.get("logprobs") or {}).get("content") or []
        logprobs = [float(token["logprob"]) for token in content]
        return reply["request_id"], Answer(list(choice["token_ids"] or ()), logprobs, choice["finish_reason"])

    def load(self, folder: Path) -> None:
        """See ``Transport.load``."""
        self._ask("POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self._ask("POST", "/reset_prefix_cache")

    def wake(self) -> bool:
        """A server has its own GPU and stays awake."""
        return False

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Close the connections; the server stays."""
        self._client.close()

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            reply = self._client.request(method, path, **options)
        except self._errors as error:
            raise EngineError(f"{method} {self.url}{path}: {type(error).__name__}: {error}") from error
        if reply.status_code == 404 and path in ("/collective_rpc", "/reset_prefix_cache"):
            raise EngineError(
                f"{self.url}{path} does not exist: start the server with VLLM_SERVER_DEV_MODE=1, which the hand-over "
                "of weights needs"
            )
        if reply.status_code >= 400:
            raise EngineError(f"{method} {self.url}{path}: {reply.status_code} {reply.text[:300]}")
        return reply
