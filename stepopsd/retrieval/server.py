"""A server of passages: POST /retrieve in both dialects, GET /health; every size and every wait has a bound."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from stepopsd.retrieval.base import MAX_K, Passage, Retriever, RetrieverError
from stepopsd.retrieval.lexical import INSTALL_HINT
from stepopsd.retrieval.wire import MAX_QUERY_CHARS, Dialect, encode_answer


@dataclass(frozen=True)
class ServerLimits:
    """What a request may ask for. Beyond a limit it is refused with a status and a sentence.

    Attributes:
        body_bytes: Size of a request (413).
        body_seconds: For a request's body to arrive (408).
        queries: In one request (422).
        query_chars: Of one query (422).
        topk: Passages per query (422).
        pending_queries: Accepted and not answered yet, over all requests (503, Retry-After: 1).
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 10.0
    queries: int = 4096
    query_chars: int = MAX_QUERY_CHARS
    topk: int = MAX_K
    pending_queries: int = 16_384

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.topk > MAX_K:
            raise ValueError(f"topk must be at most {MAX_K}, got {self.topk}")


class RefusedError(Exception):
    """A request that gets no passages, with its status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """Checks requests, searches in threads and counts; the web framework is around it.

    Args:
        retriever: What to search; called from several threads.
        topk: Passages per query where a request names no number.
        limits: See ``ServerLimits``.
        threads: Searches at a time; tantivy and FAISS work without the GIL.
        chunk: Queries that a thread takes at a time, so that large requests use all threads.
    """

    def __init__(
        self, retriever: Retriever, *, topk: int, limits: ServerLimits, threads: int, chunk: int | None = None
    ) -> None:
        if not 1 <= topk <= limits.topk:
            raise ValueError(f"topk must lie in [1, {limits.topk}], got {topk}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.retriever, self.topk, self.limits = retriever, topk, limits
        self._chunk: int = chunk or getattr(retriever, "preferred_batch", None) or 16
        self._threads = ThreadPoolExecutor(threads, "search")
        self._pending, self._counters, self._lock = 0, Counter[str](), threading.Lock()
        self._started = time.monotonic()

    async def answer(self, body: bytes) -> bytes:
        """The answer to one request. Raises RefusedError."""
        queries, k, scores = self._parse(body)
        if self._pending + len(queries) > self.limits.pending_queries:
            raise RefusedError(
                503, f"busy: {self._pending} queries are waiting, the limit is {self.limits.pending_queries}"
            )
        self._pending += len(queries)
        try:
            loop = asyncio.get_running_loop()
            parts = [queries[at : at + self._chunk] for at in range(0, len(queries), self._chunk)]
            waiting = [loop.run_in_executor(self._threads, self.retriever.search, part, k) for part in parts]
            done = await asyncio.gather(*waiting, return_exceptions=True)  # all, so that none is left running
            for result in done:
                if isinstance(result, BaseException):
                    raise result
            answers: list[list[Passage]] = [passages for part in done for passages in part]  # type: ignore[union-attr]
            encoded = await loop.run_in_executor(self._threads, lambda: encode_answer(answers, scores=scores))
        except RetrieverError as error:
            raise RefusedError(500, f"the index failed: {error}") from error
        finally:
            self._pending -= len(queries)
        self.count("answered_queries", len(queries))
        return encoded

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter of ``/health``."""
        with self._lock:
            self._counters[name] += number

    def health(self) -> dict[str, Any]:
        """What ``/health`` says: the index, the limits, and what has happened since the start."""
        return {
            "status": "ok",
            "fingerprint": getattr(self.retriever, "fingerprint", None),
            "passages": len(self.retriever) if isinstance(self.retriever, Sized) else None,
            "dialects": [dialect.value for dialect in Dialect],
            "topk": self.topk,
            "limits": asdict(self.limits),
            "pending_queries": self._pending,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "counters": dict(sorted(self._counters.items())),
        }

    def close(self) -> None:
        """Wait for the searches that run."""
        self._threads.shutdown()

    def _parse(self, body: bytes) -> tuple[list[str], int, bool]:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is not JSON") from None
        asked = [dialect for dialect in Dialect if isinstance(request, dict) and dialect.value in request]
        if len(asked) != 1:
            raise RefusedError(422, 'the body must be an object with either "queries", a list of strings, or "query"')
        [dialect] = asked
        queries = request[dialect.value] if dialect is Dialect.BATCH else [request[dialect.value]]
        self._check_queries(queries, dialect)
        k = request.get("topk")
        k = self.topk if k is None else k
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.limits.topk:
            raise RefusedError(422, f'"topk" must be an integer in [1, {self.limits.topk}], got {str(k)[:80]}')
        scores = request.get("return_scores", False)
        if not isinstance(scores, bool):
            raise RefusedError(422, f'"return_scores" must be true or false, got {str(scores)[:80]}')
        return queries, k, scores

    def _check_queries(self, queries: Any, dialect: Dialect) -> None:
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise RefusedError(422, f'"{dialect.value}" must hold strings only')
        if len(queries) > self.limits.queries:
            raise RefusedError(422, f'"queries" may hold {self.limits.queries} queries, got {len(queries)}')
        longest = max(map(len, queries), default=0)
        if longest > self.limits.query_chars:
            raise RefusedError(422, f"a query may have {self.limits.query_chars} characters, got {longest}")


def make_app(service: Service) -> Any:
    """The ASGI application around a service. Raises ImportError without Starlette."""
    try:
        from starlette.applications import Starlette
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(f"the server needs starlette and uvicorn: {INSTALL_HINT}") from error

    async def read(request: Request) -> bytes:
        limit, body = service.limits.body_bytes, bytearray()
        too_large = RefusedError(413, f"a request may have {limit} bytes")
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > limit:
            raise too_large
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise too_large
        return bytes(body)

    async def retrieve(request: Request) -> Response:
        service.count("requests")
        try:
            try:
                body = await asyncio.wait_for(read(request), service.limits.body_seconds)
            except asyncio.TimeoutError:
                raise RefusedError(408, f"no whole body within {service.limits.body_seconds:g} s") from None
            response = Response(await service.answer(body), media_type="application/json")
        except RefusedError as refused:
            headers = {"Retry-After": "1"} if refused.status == 503 else {}
            if refused.status in (408, 413):  # the rest of the body is not read
                headers["Connection"] = "close"
            response = JSONResponse({"error": str(refused)}, refused.status, headers=headers)
        except ClientDisconnect:
            service.count("gone")
            return Response(status_code=400)
        except Exception:
            service.count("status_500")
            raise  # the framework answers 500 and logs the traceback
        service.count(f"status_{response.status_code}")
        return response

    async def health(request: Request) -> Response:
        return JSONResponse(service.health())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        service.close()

    routes = [Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def serve(
    retriever: Retriever,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    topk: int = 3,
    limits: ServerLimits | None = None,
    threads: int | None = None,
    drain_s: float = 10.0,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight are answered first, for at most ``drain_s`` seconds.

    Args:
        retriever: What to search.
        host: Address to listen at. There is no authentication: other than loopback only in a network that you trust.
        port: 0 for any free one.
        topk: Passages per query where a request names no number.
        limits: See ``ServerLimits``.
        threads: Searches at a time; as many as cores by default.
        on_ready: Given the URL once the port is open.

    Raises:
        ValueError: an argument out of range, or an address that cannot be listened at.
        ImportError: Starlette or uvicorn is not installed.
        KeyboardInterrupt: after Ctrl-C. SIGTERM returns.
    """
    threads = threads if threads is not None else os.cpu_count() or 1
    service = Service(retriever, topk=topk, limits=limits or ServerLimits(), threads=threads)
    app = make_app(service)
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(f"the server needs uvicorn: {INSTALL_HINT}") from error
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    # Nothing is written per request: a slow terminal would be a slow server.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=max(1, round(drain_s))
    )
    on_ready(f"http://{shown}:{listening.getsockname()[1]}")
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again after a clean end
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, previous)
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ValueError(f"port must lie in [0, 65535], got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"host {host!r} is no address of this machine: {error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    return listening
