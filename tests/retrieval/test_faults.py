"""The real server in its own process under load, faults and signals: nothing lost, counters and exit codes right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.extras import missing

pytest.importorskip("tantivy", reason=missing("tantivy"))
pytest.importorskip("httpx", reason=missing("httpx"))
pytest.importorskip("tenacity", reason=missing("tenacity"))
pytest.importorskip("starlette", reason=missing("starlette"))
pytest.importorskip("uvicorn", reason=missing("uvicorn"))

import httpx

from stepopsd.retrieval import RetrieverError
from stepopsd.retrieval.client import HttpRetriever
from stepopsd.retrieval.lexical import TantivyIndex
from tests.retrieval.conftest import make_passages, make_queries, write_corpus

COMMAND = [sys.executable, "-m", "stepopsd.cli", "retriever"]


@contextlib.contextmanager
def serving(folder, *arguments, port=0):
    """`stepopsd retriever serve` on a free port: the process and its URL."""
    process = subprocess.Popen(
        [*COMMAND, "serve", str(folder), "--port", str(port), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # also where the tests run in the background
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), process.stderr.read()
        yield process, line.split()[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def health(url):
    return httpx.get(f"{url}/health", trust_env=False).json()


def test_64_clients_lose_nothing_between_malformed_and_oversized_requests(index_folder):
    """Every client mixes good requests of both dialects with bad ones; answers and counters must all be right."""
    index, queries = TantivyIndex(index_folder), make_queries(64 * 6, seed=9)
    expected = [[p.id for p in found] for found in index.search(queries, 3)]
    bad = [
        (b"{oops", 400),
        (b'{"queries": "text"}', 422),
        (json.dumps({"query": "w1", "topk": 99}).encode(), 422),
        (json.dumps({"query": "w " * 1000}).encode(), 422),
        (b"x" * 60_000, 413),
    ]
    statuses: Counter[int] = Counter()
    limits = ["--limits.body-bytes", "50000", "--limits.query-chars", "1000", "--limits.topk", "10"]
    with serving(index_folder, *limits) as (process, url):

        def client(number):
            wrong, own = [], Counter()
            with httpx.Client(trust_env=False, timeout=60) as http:
                mine = range(number * 6, number * 6 + 6)
                for at in mine:
                    answer = http.post(f"{url}/retrieve", json={"query": queries[at], "topk": 3, "return_scores": True})
                    own[answer.status_code] += 1
                    found = [hit["document"]["id"] for hit in answer.json()["result"][0]]
                    wrong += [at] if found != expected[at] else []
                    body, status = bad[at % len(bad)]
                    refused = http.post(f"{url}/retrieve", content=body)
                    own[refused.status_code] += 1
                    wrong += [at] if refused.status_code != status or not refused.json()["error"] else []
                answer = http.post(f"{url}/retrieve", json={"queries": [queries[at] for at in mine]})
                own[answer.status_code] += 1
                batch = [[document["id"] for document in found] for found in answer.json()["result"]]
                wrong += [-1] if batch != [expected[at] for at in mine] else []
            return wrong, own

        with ThreadPoolExecutor(64) as threads:
            for wrong, own in threads.map(client, range(64)):
                assert wrong == []
                statuses += own
        said = health(url)
        assert said["counters"] == {
            "requests": 64 * 13,
            "answered_queries": 64 * 12,
            **{f"status_{status}": count for status, count in statuses.items()},
        }
        assert statuses[200] == 64 * 7
        assert set(statuses) == {200, 400, 413, 422}
        assert said["pending_queries"] == 0
        process.terminate()
        assert process.wait(20) == 0


def test_a_client_that_leaves_in_the_middle_harms_nobody(index_folder):
    with serving(index_folder, "--limits.body-seconds", "1") as (_, url):
        port = int(url.rsplit(":", 1)[1])
        head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        for bytes_sent in (b"POST", head, head + b'{"query"'):
            with socket.create_connection(("127.0.0.1", port)) as half:
                half.sendall(bytes_sent)
        with socket.create_connection(("127.0.0.1", port)) as silent:  # says nothing for longer than is allowed
            silent.sendall(head + b"{")
            silent.settimeout(10)
            assert b" 408 " in silent.recv(4096)
        retriever = HttpRetriever([url])
        assert len(retriever.search(make_queries(50), 3)) == 50
        deadline = time.monotonic() + 5
        while health(url)["counters"].get("gone", 0) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert health(url)["counters"]["gone"] == 2
        assert health(url)["counters"]["status_408"] == 1


def test_a_hang_and_a_kill_in_the_middle_lose_nothing_while_one_server_lives(index_folder):
    index, queries = TantivyIndex(index_folder), list(dict.fromkeys(make_queries(600, seed=3)))
    expected = [[p.id for p in found] for found in index.search(queries, 3)]
    with (
        serving(index_folder) as (hanging, first),
        serving(index_folder) as (killed, second),
        serving(index_folder) as (_, third),
    ):
        retriever = HttpRetriever([first, second, third], timeout_s=1.0, deadline_s=60, attempts=6, chunk=4)
        assert retriever.fingerprint == index.fingerprint
        answered = threading.Event()
        fetch = retriever._post

        def post(*arguments):
            answered.set()
            return fetch(*arguments)

        retriever._post = post
        with ThreadPoolExecutor(1) as background:
            pending = background.submit(retriever.search, queries, 3)
            assert answered.wait(10)
            os.kill(hanging.pid, signal.SIGSTOP)
            killed.kill()
            found = pending.result(120)
        assert [[p.id for p in passages] for passages in found] == expected
        assert killed.wait() == -signal.SIGKILL
        said = retriever.statistics()
        assert said["answered"] == said["distinct"] == len(queries)
        assert said["retries"] > 0
        assert said.get("failures", 0) == 0


def test_when_the_only_server_is_killed_the_error_keeps_what_arrived_and_a_new_server_carries_on(index_folder):
    queries = list(dict.fromkeys(make_queries(200, seed=4)))
    with serving(index_folder) as (process, url):
        retriever = HttpRetriever([url], timeout_s=1, deadline_s=5, attempts=2, chunk=8)
        before = retriever.search(queries[:50], 3)
        process.kill()
        process.wait()
        with pytest.raises(
            RetrieverError, match=rf"{len(queries) - 50} of {len(queries)} queries have no answer"
        ) as caught:
            retriever.search(queries, 3)
        assert caught.value.partial[:50] == before
        assert caught.value.partial[50:] == [None] * (len(queries) - 50)
    with serving(index_folder, port=int(url.rsplit(":", 1)[1])):
        assert retriever.search(queries, 3) == TantivyIndex(index_folder).search(queries, 3)


def test_sigterm_answers_what_is_in_flight_and_exits_with_0(index_folder):
    with serving(index_folder, "--threads", "1") as (process, url):
        body = {"queries": make_queries(400), "topk": 10}
        with ThreadPoolExecutor(1) as background:
            pending = background.submit(httpx.post, f"{url}/retrieve", json=body, timeout=60, trust_env=False)
            deadline = time.monotonic() + 20
            while not health(url)["pending_queries"] and not pending.done() and time.monotonic() < deadline:
                time.sleep(0.002)
            process.terminate()
            answer = pending.result()
        assert answer.status_code == 200
        assert len(answer.json()["result"]) == 400
        assert process.wait(20) == 0


def test_ctrl_c_exits_with_130(index_folder):
    with serving(index_folder) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def run(*arguments):
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_server_that_cannot_start_says_why_and_exits_with_1(index_folder, tmp_path):
    code, _, said = run("serve", tmp_path)
    assert (code, "no index in" in said) == (1, True)
    other = write_corpus(tmp_path / "other.jsonl", make_passages(5))
    code, _, said = run("serve", index_folder, "--corpus", other)
    assert (code, "was made from another corpus" in said) == (1, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, said = run("serve", index_folder, "--port", port)
    assert code == 1
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in said
    code, _, said = run("probe", f"http://127.0.0.1:{port}")
    assert (code, "is the server running?" in said) == (1, True)


def test_build_search_and_probe_from_the_command_line(tmp_path):
    passages = make_passages(40)
    corpus = write_corpus(tmp_path / "c.jsonl", passages)
    with corpus.open("a") as out:
        out.write("oops\n")
    code, _, said = run("build", corpus, "--out", tmp_path / "index")
    assert code == 1
    assert f"{corpus}:41: not JSON" in said
    code, out, said = run("build", corpus, "--out", tmp_path / "index", "--skip-bad")
    assert code == 0
    assert "made: 40 passages, 1 malformed rows left out, tantivy-" in out
    assert f"left out {corpus}:41: not JSON" in said
    assert "is there already" in run("build", corpus, "--out", tmp_path / "index", "--skip-bad")[1]
    code, out, _ = run("search", tmp_path / "index", passages[0].text, "--k", "1")
    assert code == 0
    assert passages[0].text in out
    with serving(tmp_path / "index") as (_, url):
        code, out, _ = run("probe", url)
    assert code == 0
    assert f'{url}/retrieve: {{"queries": …}}' in out
    assert "fingerprint tantivy-" in out
    assert run("unknown")[0] == 2
