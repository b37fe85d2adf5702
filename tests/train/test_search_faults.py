"""Retrievers that cannot work end a run before it starts; ones that fail in the middle of an update lose nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import zlib

import pytest

from tests.extras import missing

pytest.importorskip("tantivy", reason=missing("tantivy"))
pytest.importorskip("httpx", reason=missing("httpx"))
pytest.importorskip("tenacity", reason=missing("tenacity"))
pytest.importorskip("starlette", reason=missing("starlette"))
pytest.importorskip("uvicorn", reason=missing("uvicorn"))

from stepopsd.cli import main
from stepopsd.envs.searchqa.protocol import SearchPrompting, parse_response
from stepopsd.envs.searchqa.world import bundled_passages
from stepopsd.retrieval.building import build_index
from stepopsd.train.config_io import dump_config
from tests.retrieval.conftest import write_corpus
from tests.retrieval.fake_servers import running
from tests.retrieval.test_faults import serving
from tests.train.search_toy import config, save_model

MEASURED = ("seconds", "retriever/", "memory")  # what differs between equal runs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), bundled_passages())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", bundled_passages())


@pytest.fixture(scope="module")
def index(corpus):
    build_index(corpus, corpus.parent / "index")
    return corpus.parent / "index"


def run_file(folder, model, retriever, *, splits=(), **search):
    """The YAML file of a run of three updates in ``folder``."""
    search = {"max_searches": 2, "observation_tokens": 60, "metric": "f1", "retriever": str(retriever), **search}
    env = {"name": "searchqa", "prompt_style": "compact", "eval_splits": list(splits), "search": search}
    run = config(
        folder / "run", model, env=env, credit={"name": "grpo"}, optim={"lr": 1e-3, "updates": 3},
        checkpoint_every=0, transcripts_every=0,
    )  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(dump_config(run))
    return path


def metrics(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same(folder, other):
    """Whether two runs computed the same, to the last digit."""
    kept = [
        [{k: v for k, v in record.items() if not any(part in k for part in MEASURED)} for record in metrics(run)]
        for run in (folder, other)
    ]
    return kept[0] == kept[1]


# What cannot work


@contextlib.contextmanager
def dead(tmp_path, index):
    yield "http://127.0.0.1:9", "is the server running"


@contextlib.contextmanager
def other_dialect(tmp_path, index):
    with running(lambda request, number: (422, {"detail": "field required: text"})) as (url, _):
        yield url, "speaks neither dialect"


@contextlib.contextmanager
def nonsense(tmp_path, index):
    with running(lambda request, number: (200, {"result": []})) as (url, _):
        yield url, "0 results for 2 queries"


@contextlib.contextmanager
def empty(tmp_path, index):
    manifest = json.loads((index / "manifest.json").read_text())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps(manifest | {"passages": 0}))
    yield tmp_path / "empty", "is empty"


@contextlib.contextmanager
def damaged(tmp_path, index):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text((index / "manifest.json").read_text())
    yield tmp_path / "damaged", "cannot be opened"


@contextlib.contextmanager
def unfinished(tmp_path, index):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "build.json").write_text("[]")
    yield tmp_path / "unfinished", "has not finished"


@contextlib.contextmanager
def malformed(tmp_path, index):
    (tmp_path / "bad.jsonl").write_text('{"id": 1, "contents": "x"}\n{"id": 2}\n')
    yield tmp_path / "bad.jsonl", 'bad.jsonl:2: "text" must be a string'


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("fault", [dead, other_dialect, nonsense, empty, damaged, unfinished, malformed])
def test_a_retriever_that_cannot_work_ends_the_run_before_the_model_is_loaded(
    fault, command, index, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("stepopsd.train.trainer.load_policy", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr("stepopsd.train.policy.load_policy", lambda *_: pytest.fail("the model was loaded"))
    with fault(tmp_path, index) as (retriever, said):
        path = run_file(tmp_path, tmp_path / "nowhere", retriever, splits=["world_nq"])
        assert main([command, "--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"stepopsd {command}: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "eval"])
def test_an_index_of_another_corpus_is_refused(command, index, corpus, tmp_path, capsys):
    other = write_corpus(tmp_path / "other.jsonl", bundled_passages()[:10])
    for retriever, said in ((index, "was made from another corpus than"), ("bundled", "got a list of passages")):
        path = run_file(tmp_path, tmp_path / "nowhere", retriever, splits=["world_nq"], corpus=str(other))
        assert main([command, "--config", str(path)]) == 1
        assert said in capsys.readouterr().err
    # Of the right corpus it goes on to the next thing that is missing.
    path = run_file(tmp_path, tmp_path / "nowhere", index, splits=["world_nq"], corpus=str(corpus))
    assert main([command, "--config", str(path)]) == 1
    assert "nowhere" in capsys.readouterr().err


# What fails in the middle of an update


class Searching:
    """Every response is a search; before one of them, something happens."""

    def __init__(self, monkeypatch):
        self.turns, self.at, self.happens = 0, -1, lambda: None

        def parse(prompting, response):
            self.turns += 1
            if self.turns == self.at:
                self.happens()
            return parse_response(f"<search>{zlib.crc32(response.encode()) % 97} of the</search>")

        monkeypatch.setattr(SearchPrompting, "parse", parse)
        monkeypatch.setattr("stepopsd.rollout.loop.step_spans", lambda tokenizer, ids, chars, is_answer: {})

    def plan(self, at, happens):
        self.turns, self.at, self.happens = 0, at, happens


@pytest.fixture
def searching(monkeypatch):
    return Searching(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(model, index, tmp_path_factory):
    """The same run with the index in its own process, and how many turns it plays."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        searching = Searching(patch)
        assert main(["train", "--config", str(run_file(folder, model, index))]) == 0
    assert len(metrics(folder)) == 3
    facts = json.loads((folder / "run" / "environment.json").read_text())
    assert facts["retriever"].startswith("tantivy-")
    return folder, searching.turns


def test_a_server_that_hangs_in_the_middle_of_an_update_costs_only_time(searching, undisturbed, model, index, tmp_path):
    expected, turns = undisturbed
    with serving(index) as (process, url):

        def hang():
            os.kill(process.pid, signal.SIGSTOP)
            threading.Timer(3, os.kill, (process.pid, signal.SIGCONT)).start()

        searching.plan(turns // 2 + 1, hang)
        assert main(["train", "--config", str(run_file(tmp_path, model, url, timeout_s=2.0))]) == 0
    assert searching.turns == turns
    assert same(tmp_path, expected)
    logged = metrics(tmp_path)
    assert [record["env_failures"] for record in logged] == [0, 0, 0]
    assert sum(record["retriever/retries"] for record in logged) > 0
    assert all(record["retriever/failures"] == 0 for record in logged)
    assert all(record["retriever/answered"] + record["retriever/remembered"] == record["retriever/distinct"] > 0
               for record in logged)  # fmt: skip


def test_one_of_two_servers_killed_in_the_middle_of_an_update_loses_nothing(
    searching, undisturbed, model, index, tmp_path
):
    expected, turns = undisturbed
    with serving(index) as (killed, first), serving(index) as (_, second):
        searching.plan(turns // 2 + 1, killed.kill)
        assert main(["train", "--config", str(run_file(tmp_path, model, f"{first},{second}"))]) == 0
        assert killed.wait() == -signal.SIGKILL
    assert same(tmp_path, expected)
    assert sum(record["env_failures"] for record in metrics(tmp_path)) == 0


def test_the_only_server_killed_in_the_middle_of_an_update_stops_the_run_and_the_next_one_carries_on(
    searching, undisturbed, model, index, tmp_path, capfd
):
    expected, turns = undisturbed
    with serving(index) as (process, url):
        path = run_file(tmp_path, model, url)
        searching.plan(turns // 2 + 1, lambda: (process.kill(), process.wait()))
        assert main(["train", "--config", str(path)]) == 1
    said = capfd.readouterr()
    assert "episodes lost the retriever" in said.err
    assert "cannot be reached" in said.err
    assert "Traceback" not in said.err
    assert "continues after update-" in said.out
    finished = len(metrics(tmp_path))
    assert 1 <= finished < 3  # the update in which it happened is not among them
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    with serving(index, port=int(url.rsplit(":", 1)[1])):
        searching.plan(-1, lambda: None)
        assert main(["train", "--config", str(path)]) == 0
    assert searching.turns == turns * (3 - finished) // 3  # finished updates were not played again
    assert same(tmp_path, expected)


def test_an_evaluation_that_loses_the_retriever_ends_with_an_error(searching, model, index, tmp_path, capsys):
    with serving(index) as (process, url):
        path = run_file(tmp_path, model, url, splits=["world_nq"])
        searching.plan(3, lambda: (process.kill(), process.wait()))
        assert main(["eval", "--config", str(path)]) == 1
    assert "episodes lost the retriever" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert process.returncode == -signal.SIGKILL
