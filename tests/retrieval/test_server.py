"""The server: both dialects, every bound, what it counts, how it ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from tests.extras import missing

pytest.importorskip("starlette", reason=missing("starlette"))
pytest.importorskip("httpx", reason=missing("httpx"))

import httpx

from stepopsd.retrieval import Passage, RetrieverError
from stepopsd.retrieval.exact import ExactIndex
from stepopsd.retrieval.server import RefusedError, ServerLimits, Service, make_app, serve
from stepopsd.retrieval.wire import encode_answer

PASSAGES = [
    Passage("1", "Mercury", "closest to the sun"),
    Passage("2", "Venus", 'the hottest, "evening star" é 日'),
    Passage("3", "Sun", "the sun itself"),
]
LIMITS = ServerLimits(body_bytes=4000, body_seconds=0.5, queries=5, query_chars=100, topk=10, pending_queries=8)


class Asked:
    """A service without a network: the application is called as a web server calls it."""

    def __init__(self, retriever=None, limits=LIMITS):
        self.service = Service(retriever or ExactIndex(PASSAGES), topk=2, limits=limits, threads=2)
        self.app = make_app(self.service)

    def __call__(self, content, method="POST", path="/retrieve"):
        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
                body = content if isinstance(content, (bytes, type(None))) or hasattr(content, "__aiter__") else None
                body = json.dumps(content).encode() if body is None and content is not None else body
                return await client.request(method, path, content=body)

        return asyncio.run(ask())


@pytest.fixture
def ask():
    return Asked()


def test_the_batch_dialect_answers_every_query_in_order(ask):
    answer = ask({"queries": ["hottest", "zzz", "sun"], "topk": 3, "return_scores": True})
    assert answer.status_code == 200
    hottest, nothing, sun = answer.json()["result"]
    assert nothing == []
    assert hottest[0]["document"] == {
        "id": "2",
        "title": "Venus",
        "text": PASSAGES[1].text,
        "contents": f'"Venus"\n{PASSAGES[1].text}',
    }
    assert [hit["document"]["id"] for hit in sun] == ["3", "1"]
    assert sun[0]["score"] > sun[1]["score"] > 0


def test_the_single_dialect_answers_with_a_list_of_one(ask):
    answer = ask({"query": "sun", "topk": 1, "return_scores": True}).json()
    assert [[hit["document"]["id"] for hit in hits] for hits in answer["result"]] == [["3"]]


def test_without_scores_documents_are_bare_and_topk_has_a_default(ask):
    [found] = ask({"queries": ["the sun"]}).json()["result"]
    assert [document["id"] for document in found] == ["3", "1"]
    assert ask({"queries": ["the sun"], "topk": None}).json()["result"] == [found]


def test_no_queries_give_no_results(ask):
    assert ask({"queries": []}).json() == {"result": []}


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 3000, 400, "not JSON"),
        ([], 422, "either"),
        ({}, 422, "either"),
        ({"queries": ["a"], "query": "a"}, 422, "either"),
        ({"queries": "a"}, 422, "strings only"),
        ({"queries": ["a", 1]}, 422, "strings only"),
        ({"query": None}, 422, "strings only"),
        ({"query": ["a"]}, 422, "strings only"),
        ({"query": "a", "topk": 0}, 422, r"[1, 10], got 0"),
        ({"query": "a", "topk": 11}, 422, r"[1, 10], got 11"),
        ({"query": "a", "topk": True}, 422, r"got True"),
        ({"query": "a", "topk": "3"}, 422, r"got 3"),
        ({"query": "a", "return_scores": "yes"}, 422, "got yes"),
        ({"queries": ["a"] * 6}, 422, "may hold 5 queries, got 6"),
        ({"query": "a" * 101}, 422, "may have 100 characters, got 101"),
        ({"query": "a" * 5000}, 413, "may have 4000 bytes"),
    ],
)
def test_bad_requests_are_refused_with_a_reason_and_counted(ask, content, status, words):
    answer = ask(content)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert ask.service.health()["counters"] == {"requests": 1, f"status_{status}": 1}
    assert ask({"query": "sun"}).status_code == 200


def test_a_body_of_unannounced_size_is_cut_off(ask):
    async def endless():
        while True:
            yield b"x" * 1000

    assert ask(endless()).status_code == 413


def test_a_body_that_does_not_come_is_given_up(ask):
    async def slow():
        yield b"{"
        await asyncio.sleep(3)
        yield b"}"

    started = time.monotonic()
    assert ask(slow()).status_code == 408
    assert time.monotonic() - started < 2


def test_other_paths_and_methods_are_unknown(ask):
    assert ask(None, "GET").status_code == 405
    assert ask({"query": "a"}, path="/search").status_code == 404


def test_health_names_the_index_the_limits_and_the_counts(ask):
    for content in ({"queries": ["a", "sun"]}, {"query": "sun"}, {"query": 1}):
        ask(content)
    said = ask(None, "GET", "/health").json()
    assert said["status"] == "ok"
    assert said["fingerprint"] == ExactIndex(PASSAGES).fingerprint
    assert said["passages"] == 3
    assert said["limits"]["topk"] == 10
    assert said["pending_queries"] == 0
    assert said["counters"] == {"requests": 3, "answered_queries": 3, "status_200": 2, "status_422": 1}


class Slow:
    """Waits until it is let go."""

    def __init__(self):
        self.go = threading.Event()

    def search(self, queries, k):
        self.go.wait(10)
        return [[] for _ in queries]


def test_more_than_may_wait_is_sent_away_and_accepted_later():
    slow = Slow()
    service = Service(slow, topk=1, limits=LIMITS, threads=1)
    body = json.dumps({"queries": ["a"] * 4}).encode()

    async def crowd():
        waiting = [asyncio.ensure_future(service.answer(body)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(RefusedError, match="busy: 8 queries are waiting, the limit is 8") as caught:
            await service.answer(body)
        assert caught.value.status == 503
        slow.go.set()
        assert await asyncio.gather(*waiting) == [encode_answer([[]] * 4, scores=False)] * 2
        await service.answer(body)

    asyncio.run(crowd())
    assert service.health()["pending_queries"] == 0


def test_an_index_that_fails_is_an_error_and_the_server_lives_on():
    class Failing:
        broken = True

        def search(self, queries, k):
            if self.broken:
                raise RetrieverError("disk gone")
            return [[PASSAGES[0]] for _ in queries]

    ask = Asked(Failing())
    answer = ask({"query": "a"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "the index failed: disk gone"}
    ask.service.retriever.broken = False
    assert ask({"query": "a"}).status_code == 200
    assert ask.service.health()["counters"] == {
        "requests": 2, "status_500": 1, "status_200": 1, "answered_queries": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ServerLimits(queries=0), "queries must be positive, got 0"),
        (lambda: ServerLimits(topk=101), "topk must be at most 100, got 101"),
        (lambda: Service(None, topk=11, limits=LIMITS, threads=1), r"topk must lie in \[1, 10\], got 11"),
        (lambda: Service(None, topk=1, limits=LIMITS, threads=0), "threads must be at least 1, got 0"),
        (lambda: serve(ExactIndex(PASSAGES), port=70000), r"port must lie in \[0, 65535\], got 70000"),
        (lambda: serve(ExactIndex(PASSAGES), host="256.1.1.1"), "is no address of this machine"),
    ],
)
def test_arguments_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
