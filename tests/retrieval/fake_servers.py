"""Servers that misbehave on purpose, on the standard library alone."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[dict, int], "tuple[int, object] | None"]


@contextlib.contextmanager
def running(answer: Answer) -> Iterator[tuple[str, list[dict]]]:
    """Serve ``answer(request, number)``: a status and a JSON body or raw bytes, or None to close without a word.

    Yields the URL and the requests seen so far.
    """
    seen: list[dict] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(request)
                number = len(seen)
            answered = answer(request, number)
            if answered is None:
                self.close_connection = True
                return
            status, body = answered
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(OSError):  # the client may have given up
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def hits(query: str, k: int) -> list[dict]:
    """What every well-behaved fake finds: passages that name the query."""
    return [
        {"document": {"id": f"{query}/{i}", "contents": f'"{query}"\nabout {query} {i}'}, "score": 2.0 - i}
        for i in range(k)
    ]


def batch(request: dict, number: int = 0) -> tuple[int, object]:
    """The batch dialect, which does not know the other."""
    if "queries" not in request:
        return 422, {"detail": "queries: field required"}
    assert request["return_scores"] is True
    return 200, {"result": [hits(query, request["topk"]) for query in request["queries"]]}


def single(request: dict, number: int = 0) -> tuple[int, object]:
    """The single dialect, which does not know the other."""
    if "query" not in request:
        return 422, {"detail": "query: field required"}
    return 200, {"result": [hits(request["query"], request["topk"])]}
