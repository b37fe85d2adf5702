"""Passages from servers that speak the Search-R1 API: probed before use, asked in batches, within a bounded time."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any

from stepopsd.retrieval.base import MAX_QUERY_WORDS, Passage, RetrieverError, check_request
from stepopsd.retrieval.lexical import INSTALL_HINT
from stepopsd.retrieval.wire import Dialect, clip_query, decode_answer, encode_request

MAX_CHUNK = 128
MAX_ANSWER_BYTES = 64 << 20
_PROBES = ["capital of France", "author of Hamlet"]  # two, so that a server that answers only the first shows


class _Transient(Exception):
    """Worth another try: the network, a time-out, or a server that says it is busy."""


class HttpRetriever:
    """Asks one server or several equal ones in turn.

    Repeated queries are sent once and then remembered; a batch goes out in chunks over a few connections at a time.
    Time-outs, broken connections, 408, 429 and 5xx are tried again, at the next server, with growing pauses; other
    errors are final. Whatever happens, ``search`` ends within ``deadline_s``.

    Args:
        urls: Of the servers, with or without ``/retrieve`` at the end.
        timeout_s: For one request.
        deadline_s: For one ``search`` with all its tries.
        attempts: Tries per request.
        chunk: Queries per request, in [1, 128]; servers of the single dialect get one.
        connections: Requests at a time.
        remember: Answers kept, the least recently used forgotten first; 0 for none.
        max_query_words: Words of a query that are sent.

    Raises:
        ValueError: an argument out of range or a malformed URL.
        RetrieverError: a server cannot be reached, speaks neither dialect, answers nonsense, or differs from the
            others.
        ImportError: httpx or tenacity is not installed.

    Example:
        >>> retriever = HttpRetriever(["http://127.0.0.1:8000"])
        >>> retriever.search(["who discovered radium"], k=3)
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = 10.0,
        deadline_s: float = 60.0,
        attempts: int = 4,
        chunk: int = MAX_CHUNK,
        connections: int = 8,
        remember: int = 100_000,
        max_query_words: int = MAX_QUERY_WORDS,
    ) -> None:
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise ImportError(f"a retrieval server is asked with httpx and tenacity: {INSTALL_HINT}") from error
        self._httpx, self._tenacity = httpx, tenacity
        for name, value in (("timeout_s", timeout_s), ("deadline_s", deadline_s)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name, value, most in (
            ("attempts", attempts, 20), ("chunk", chunk, MAX_CHUNK), ("connections", connections, 256),
            ("max_query_words", max_query_words, 1024),
        ):  # fmt: skip
            if not 1 <= value <= most:
                raise ValueError(f"{name} must lie in [1, {most}], got {value}")
        if remember < 0:
            raise ValueError(f"remember must be at least 0, got {remember}")
        self.urls = [_endpoint(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls:
            raise ValueError("urls must name at least one server")
        self._timeout_s, self._deadline_s, self._attempts = timeout_s, deadline_s, attempts
        self._chunk, self._remember, self._max_query_words = chunk, remember, max_query_words
        self._memory: OrderedDict[tuple[str, int], list[Passage]] = OrderedDict()
        self._turn, self._lock = itertools.count(), threading.Lock()
        self._counters, self._seconds = Counter[str](), deque[float](maxlen=10_000)
        # A proxy from the environment would be asked for the servers of one's own network.
        self._http = httpx.Client(
            trust_env=False, limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        )
        self._threads = ThreadPoolExecutor(connections, "retriever")
        try:
            dialects = {url: self._probe(url) for url in self.urls}
            self.dialects = dialects
            self.fingerprint = self._common_fingerprint()
        except BaseException:
            self.close()
            raise

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """See ``Retriever.search``; the ``partial`` of a RetrieverError holds the answers that did arrive."""
        check_request(queries, k)
        clipped = [clip_query(query, self._max_query_words) for query in queries]
        known: dict[str, list[Passage]] = {"": []}  # nothing is asked for no words
        wanted = [query for query in dict.fromkeys(clipped) if query]
        with self._lock:
            for query in wanted:
                if (query, k) in self._memory:
                    self._memory.move_to_end((query, k))
                    known[query] = self._memory[query, k]
            self._counters.update(queries=len(queries), distinct=len(wanted), remembered=len(known) - 1)
        failures = self._fetch([query for query in wanted if query not in known], k, known)
        if failures:
            partial = [list(known[query]) if query in known else None for query in clipped]
            missing = sum(passages is None for passages in partial)
            raise RetrieverError(f"{missing} of {len(queries)} queries have no answer: {failures[0]}", partial)
        return [list(known[query]) for query in clipped]

    def statistics(self) -> dict[str, float]:
        """Queries, how many were distinct, remembered or sent; requests, retries, failures; seconds per request."""
        with self._lock:
            counters: dict[str, float] = dict(self._counters)
            seconds = sorted(self._seconds)
        for percent in (50, 95, 99):
            if seconds:
                counters[f"p{percent}_s"] = seconds[min(len(seconds) - 1, len(seconds) * percent // 100)]
        return counters

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def _fetch(self, queries: list[str], k: int, known: dict[str, list[Passage]]) -> list[RetrieverError]:
        """Ask for ``queries``, add the answers to ``known`` and remember them; returns what went wrong."""
        ends = time.monotonic() + self._deadline_s
        size = self._chunk if all(dialect is Dialect.BATCH for dialect in self.dialects.values()) else 1
        chunks = [queries[at : at + size] for at in range(0, len(queries), size)]
        waiting = [self._threads.submit(self._ask, chunk, k, ends) for chunk in chunks]
        failures = []
        for chunk, future in zip(chunks, waiting, strict=True):
            try:
                answers = future.result(timeout=max(0.0, ends - time.monotonic()) + 1)
            except RetrieverError as error:
                failures.append(error)
                continue
            except Late:  # e.g. a server that drips its headers; the thread ends when the connection does
                future.cancel()
                failures.append(RetrieverError(f"no answer within the deadline of {self._deadline_s:g} s"))
                continue
            known.update(zip(chunk, answers, strict=True))
            with self._lock:
                self._counters["answered"] += len(chunk)
                self._memory.update(((query, k), found) for query, found in zip(chunk, answers, strict=True))
                while len(self._memory) > self._remember:
                    self._memory.popitem(last=False)
        with self._lock:
            self._counters["failures"] += len(failures)
        return failures

    def _ask(self, queries: list[str], k: int, ends: float) -> list[list[Passage]]:
        """One request with its tries, each at the next server. Raises RetrieverError."""
        tenacity = self._tenacity
        first = next(self._turn)
        tried = 0

        def attempt() -> list[list[Passage]]:
            nonlocal tried
            url = self.urls[(first + tried) % len(self.urls)]
            tried += 1
            return self._post(url, self.dialects[url], queries, k, min(self._timeout_s, ends - time.monotonic()))

        def pause(state: Any) -> float:
            drawn = tenacity.wait_random_exponential(multiplier=0.2, max=5)(state)
            return min(drawn, max(0.0, ends - time.monotonic()) / 2)  # leave time for the try

        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_Transient),
                stop=tenacity.stop_after_attempt(self._attempts) | (lambda _: ends - time.monotonic() < 0.02),
                wait=pause,
                reraise=True,
            )(attempt)
        except _Transient as error:
            raise RetrieverError(f"{error} ({tried} {'try' if tried == 1 else 'tries'})") from error
        finally:
            with self._lock:
                self._counters["retries"] += max(0, tried - 1)

    def _post(self, url: str, dialect: Dialect, queries: list[str], k: int, timeout: float) -> list[list[Passage]]:
        status, body = self._exchange(url, encode_request(dialect, queries, k), timeout)
        if status in (408, 429) or status >= 500:
            raise _Transient(f"{url} answered {status}: {_shortened(body)}")
        if status != 200:
            raise RetrieverError(f"{url} answered {status}: {_shortened(body)}")
        try:
            return decode_answer(body, len(queries), k)
        except ValueError as error:
            raise RetrieverError(f"{url}: {error}") from None

    def _exchange(self, url: str, content: bytes | None, timeout: float) -> tuple[int, bytes]:
        """POST the content, or GET where there is none. Raises _Transient, also when ``timeout`` is over."""
        if timeout <= 0:
            raise _Transient(f"{url} was not asked: the deadline of {self._deadline_s:g} s is over")
        started, body = time.monotonic(), bytearray()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        method = "GET" if content is None else "POST"
        try:
            with self._http.stream(method, url, content=content, headers=headers, timeout=timeout) as response:
                for part in response.iter_bytes():
                    body += part
                    # httpx bounds each wait; here the sum is bounded, so that dripping servers are late too.
                    if time.monotonic() - started > timeout:
                        raise _Transient(f"{url} gave no whole answer within {timeout:.3g} s")
                    if len(body) > MAX_ANSWER_BYTES:
                        raise RetrieverError(f"{url} sent more than {MAX_ANSWER_BYTES >> 20} MiB")
        except self._httpx.TimeoutException:
            raise _Transient(f"{url} gave no answer within {timeout:.3g} s") from None
        except self._httpx.TransportError as error:
            raise _Transient(f"{url} cannot be reached: {error or type(error).__name__}") from None
        finally:
            with self._lock:
                self._counters["requests"] += 1
                self._seconds.append(time.monotonic() - started)
        return response.status_code, bytes(body)

    def _probe(self, url: str) -> Dialect:
        """Which dialect a server speaks, from its answers to two real queries. Raises RetrieverError."""
        refusals = []
        for dialect in Dialect:
            asked = _PROBES if dialect is Dialect.BATCH else _PROBES[:1]
            try:
                self._post(url, dialect, asked, 1, min(self._timeout_s, self._deadline_s))
            except _Transient as error:
                if "answered 5" not in str(error):
                    raise RetrieverError(f"{error}: is the server running?") from None
                refusals.append(str(error))
            except RetrieverError as error:
                refusals.append(str(error))
            else:
                return dialect
        raise RetrieverError(
            f'{url} speaks neither dialect of the Search-R1 API. Asked {{"queries": [...]}}: {refusals[0]}. '
            f'Asked {{"query": "..."}}: {refusals[1]}'
        )

    def _common_fingerprint(self) -> str:
        """What the servers serve, where they say so at /health; servers that differ are an error."""
        found = {url: self._served(url) for url in self.urls}
        if len(set(found.values())) > 1:
            raise RetrieverError(f"the servers serve different indexes: {found}")
        return next(iter(found.values())) or f"http-{','.join(self.urls)}"

    def _served(self, url: str) -> str | None:
        try:
            status, body = self._exchange(url.removesuffix("/retrieve") + "/health", None, self._timeout_s)
            said = json.loads(body).get("fingerprint") if status == 200 else None
        except (_Transient, RetrieverError, ValueError, AttributeError, RecursionError):
            return None  # only our own server promises to say
        return said if isinstance(said, str) else None


def _endpoint(url: str) -> str:
    if not url.startswith(("http://", "https://")) or len(url.split("//", 1)[1].strip("/")) == 0:
        raise ValueError(f"a server's URL must begin with http:// or https:// and name a host, got {url!r}")
    url = url.rstrip("/")
    return url if url.endswith("/retrieve") else url + "/retrieve"


def _shortened(body: bytes) -> str:
    return repr(body[:200].decode("utf-8", "replace"))
