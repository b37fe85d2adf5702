"""The HTTP client against servers of both dialects that hang, drop, break and lie."""

from __future__ import annotations

import socket
import time

import pytest

from tests.extras import missing

pytest.importorskip("httpx", reason=missing("httpx"))
pytest.importorskip("tenacity", reason=missing("tenacity"))

from stepopsd.retrieval import Passage, RetrieverError, open_retriever
from stepopsd.retrieval.client import HttpRetriever
from tests.retrieval.fake_servers import batch, running, single


def after_probe(answer):
    """The batch dialect for the probe, then ``answer``."""
    return lambda request, number: batch(request) if number == 1 else answer(request, number)


@pytest.mark.parametrize("dialect", [batch, single])
def test_both_dialects_are_found_and_spoken(dialect):
    with running(dialect) as (url, seen):
        retriever = HttpRetriever([url])
        assert list(retriever.dialects.values()) == ["queries" if dialect is batch else "query"]
        probes = len(seen)
        found = retriever.search(["a", "b", "a"], 2)
        assert found[0] == found[2] == [Passage("a/0", "a", "about a 0", 2.0), Passage("a/1", "a", "about a 1", 1.0)]
        assert found[1][0].id == "b/0"
        assert len(seen) - probes == (1 if dialect is batch else 2)
        retriever.close()


def test_batches_are_cut_deduplicated_and_remembered():
    with running(batch) as (url, seen):
        retriever = HttpRetriever([url])
        queries = [f"q{i % 300}" for i in range(1000)]
        found = retriever.search(queries, 1)
        assert [answer[0].title for answer in found] == queries
        sent = [request["queries"] for request in seen[1:]]
        assert sorted(map(len, sent)) == [44, 128, 128]
        assert len({query for chunk in sent for query in chunk}) == 300
        assert retriever.search(queries, 1) == found
        assert len(seen) == 4
        retriever.search(["q1"], 2)  # another k is another question
        assert len(seen) == 5
        said = retriever.statistics()
        assert (said["queries"], said["distinct"], said["remembered"], said["answered"]) == (2001, 601, 300, 301)
        assert said["p50_s"] <= said["p99_s"]


def test_answers_are_forgotten_beyond_the_limit():
    with running(batch) as (url, seen):
        retriever = HttpRetriever([url], remember=2)
        for query in ("a", "b", "a", "c", "a", "b"):
            retriever.search([query], 1)
        assert [request["queries"][0] for request in seen[1:]] == ["a", "b", "c", "b"]


def test_changing_an_answer_does_not_change_what_is_remembered():
    with running(batch) as (url, _):
        retriever = HttpRetriever([url])
        retriever.search(["a"], 1)[0].clear()
        assert len(retriever.search(["a"], 1)[0]) == 1


def test_queries_are_clipped_and_empty_ones_are_not_sent():
    with running(batch) as (url, seen):
        retriever = HttpRetriever([url])
        found = retriever.search(["", " \n ", "lone \ud800 half", "w " * 5000, "x" * 9000], 1)
        assert found[:2] == [[], []]
        assert seen[1]["queries"] == ["lone ? half", " ".join(["w"] * 64), "x" * 4096]


def test_servers_are_asked_in_turn():
    with running(batch) as (first, seen), running(batch) as (second, others):
        retriever = open_retriever(f"{first}, {second}/retrieve")
        for i in range(10):
            retriever.search([f"q{i}"], 1)
        assert len(seen) == len(others) == 6  # one of each is the probe


def test_failing_requests_are_repeated_until_nothing_is_missing():
    def flaky(request, number):
        return batch(request) if number % 3 else [(500, b"oops"), (429, b"slow"), None][number // 3 % 3]

    with running(after_probe(flaky)) as (url, seen):
        retriever = HttpRetriever([url], attempts=20, chunk=20)
        queries = [f"q{i}" for i in range(300)]
        assert [found[0].title for found in retriever.search(queries, 1)] == queries
        assert retriever.statistics()["retries"] == len(seen) - 1 - 15 > 4


def test_a_dead_server_is_made_up_for_by_the_others():
    with running(batch) as (living, _):
        with running(batch) as (dying, _):
            retriever = HttpRetriever([living, dying], chunk=1)
            retriever.search(["a", "b", "c", "d"], 1)
        found = retriever.search([f"q{i}" for i in range(20)], 1)
        assert [answer[0].title for answer in found] == [f"q{i}" for i in range(20)]


def test_a_hanging_server_ends_in_an_error_within_the_bound():
    def hang(request, number):
        time.sleep(5)
        return None

    with running(after_probe(hang)) as (url, _):
        retriever = HttpRetriever([url], timeout_s=0.3, deadline_s=1.0)
        started = time.monotonic()
        with pytest.raises(RetrieverError, match=r"1 of 1 queries have no answer: .* gave no answer within .* tries\)"):
            retriever.search(["a"], 1)
        assert time.monotonic() - started < 2.5


def test_a_dripping_server_ends_in_an_error_within_the_bound():
    with socket.create_server(("127.0.0.1", 0)) as listening, running(batch) as (url, _):
        retriever = HttpRetriever([url], timeout_s=0.4, deadline_s=0.8, attempts=1)
        retriever.urls = [f"http://127.0.0.1:{listening.getsockname()[1]}/retrieve"]
        retriever.dialects = dict.fromkeys(retriever.urls, retriever.dialects.popitem()[1])
        started = time.monotonic()
        pending = retriever._threads.submit(retriever.search, ["a"], 1)
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not pending.done() and time.monotonic() - started < 5:
                connection.sendall(b" ")
                time.sleep(0.1)
        with pytest.raises(RetrieverError, match=r"gave no whole answer within 0\.4 s"):
            pending.result()
        assert time.monotonic() - started < 2


def test_what_did_arrive_is_kept_beside_the_error():
    def poisoned(request, number):
        return (500, b"bad luck") if "poison" in request["queries"] else batch(request)

    with running(after_probe(poisoned)) as (url, _):
        retriever = HttpRetriever([url], attempts=2, chunk=1)
        with pytest.raises(
            RetrieverError, match=r"2 of 4 queries have no answer: .*500: 'bad luck' \(2 tries\)"
        ) as caught:
            retriever.search(["a", "poison", "b", "poison"], 1)
        assert [found and found[0].title for found in caught.value.partial] == ["a", None, "b", None]
        assert retriever.statistics()["failures"] == 1


def test_a_refusal_is_final_and_not_repeated():
    with running(after_probe(lambda request, number: (413, b"too large"))) as (url, seen):
        with pytest.raises(RetrieverError, match="answered 413: 'too large'"):
            HttpRetriever([url]).search(["a"], 1)
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ({"results": []}, 'no "result" that is a list of lists'),
        ({"result": [{"document": {}}]}, 'no "result" that is a list of lists'),
        ({"result": []}, "holds 0 results for 1 queries"),
        ({"result": [[], []]}, "holds 2 results for 1 queries"),
        ({"result": [["text"]]}, "a result must be"),
        ({"result": [[{"document": {"id": "1", "contents": "x"}, "score": "high"}]]}, "a result must be"),
        ({"result": [[{"document": {"id": "1"}, "score": 1}]]}, "a result is no passage"),
        (b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": NaN}]]}', "must be finite"),
    ],
)
def test_nonsense_is_an_error_not_a_passage(body, words):
    with running(after_probe(lambda request, number: (200, body))) as (url, seen):
        with pytest.raises(RetrieverError, match=words):
            HttpRetriever([url]).search(["a"], 3)
        assert len(seen) == 2


def test_documents_without_id_are_named_by_their_content_and_surplus_ones_are_dropped():
    def bare(request, number):
        contents = ['"T"\nx', '"T"\ny', '"T"\nx']
        return 200, {"result": [[{"document": {"contents": text, "title": "T", "text": text[4:]}} for text in contents]]
                               * len(request["queries"])}  # fmt: skip

    with running(bare) as (url, _):
        [found] = HttpRetriever([url]).search(["a"], 2)
        assert [p.text for p in found] == ["x", "y"]
        assert found[0].id != found[1].id
        assert HttpRetriever([url]).search(["b"], 1)[0][0].id == found[0].id


def test_a_dead_server_is_an_error_at_the_start():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(
        RetrieverError, match=rf"127.0.0.1:{port}/retrieve cannot be reached: .*is the server running\?"
    ):
        open_retriever(f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < 5


def test_a_server_of_neither_dialect_is_an_error_at_the_start():
    with (
        running(lambda request, number: (422, {"detail": "prompt: field required"})) as (url, _),
        pytest.raises(RetrieverError, match=r"speaks neither dialect.*queries.*422.*prompt.*query.*422"),
    ):
        open_retriever(url)


def test_a_server_that_answers_only_the_first_of_a_batch_is_asked_one_by_one():
    def first_only(request, number):
        query = request["query"] if "query" in request else request["queries"][0]
        return single({**request, "query": query})

    with running(first_only) as (url, _):
        retriever = HttpRetriever([url])
        assert [found[0].title for found in retriever.search(["a", "b"], 1)] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"urls": []}, "urls must name at least one"),
        ({"urls": ["localhost:8000"]}, "must begin with http"),
        ({"urls": ["http://"]}, "name a host"),
        ({"timeout_s": 0}, "timeout_s must be positive and finite, got 0"),
        ({"deadline_s": float("inf")}, "deadline_s must be positive and finite, got inf"),
        ({"attempts": 0}, r"attempts must lie in \[1, 20\], got 0"),
        ({"chunk": 129}, r"chunk must lie in \[1, 128\], got 129"),
        ({"connections": 0}, r"connections must lie in \[1, 256\], got 0"),
        ({"remember": -1}, "remember must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        HttpRetriever(**({"urls": ["http://127.0.0.1:1"]} | arguments))
