"""Builds: interrupted ones go on, other corpora are refused, bad rows are named."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys

import pytest

from tests.extras import missing

pytest.importorskip("tantivy", reason=missing("tantivy"))

from stepopsd.retrieval import building
from stepopsd.retrieval.building import build_index
from stepopsd.retrieval.corpus import CorpusError
from stepopsd.retrieval.lexical import TantivyIndex
from stepopsd.retrieval.manifest import read_manifest
from tests.retrieval.conftest import make_passages, make_queries, write_corpus


@pytest.fixture
def small(tmp_path):
    return write_corpus(tmp_path / "small.jsonl", make_passages(90))


class Interrupted(Exception):
    pass


def interrupt_at(rows, monkeypatch, *, after_commit=True):
    commit = building._commit

    def wrapper(writer, folder, state, new):
        if new.rows == rows and not after_commit:
            building.write_json(folder / building.STATE, [*state, new])
            raise Interrupted
        commit(writer, folder, state, new)
        if new.rows == rows:
            raise Interrupted

    monkeypatch.setattr(building, "_commit", wrapper)


@pytest.mark.parametrize("after_commit", [True, False])
def test_an_interrupted_build_goes_on_and_equals_an_uninterrupted_one(
    small, index_folder, tmp_path, corpus, monkeypatch, after_commit
):
    with monkeypatch.context() as patch:
        interrupt_at(800, patch, after_commit=after_commit)
        with pytest.raises(Interrupted):
            build_index(corpus, tmp_path / "index", commit_every=200)
    with pytest.raises(FileNotFoundError, match="a build there has not finished"):
        read_manifest(tmp_path / "index")
    added = []
    words = building.words
    monkeypatch.setattr(building, "words", lambda text: added.append(text) or words(text))
    manifest = build_index(corpus, tmp_path / "index", commit_every=200)
    assert len(added) == 1500 - (800 if after_commit else 600)
    assert manifest == read_manifest(index_folder)
    queries = make_queries(60)
    assert TantivyIndex(tmp_path / "index").search(queries, 5) == TantivyIndex(index_folder).search(queries, 5)
    assert not (tmp_path / "index" / "build.json").exists()


def test_a_killed_build_goes_on(corpus, tmp_path, index_folder):
    script = (
        "import sys, time; from stepopsd.retrieval import building\n"
        "def slow(progress): pass\n"
        "commit = building._commit\n"
        "def wrapper(*a):\n    commit(*a); print('committed', flush=True); time.sleep(0.2)\n"
        "building._commit = wrapper\n"
        "building.build_index(sys.argv[1], sys.argv[2], commit_every=200)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(corpus), str(tmp_path / "index")], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "committed\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    build_index(corpus, tmp_path / "index", commit_every=200)
    queries = make_queries(60)
    assert TantivyIndex(tmp_path / "index").search(queries, 5) == TantivyIndex(index_folder).search(queries, 5)


def test_an_unfinished_build_of_another_corpus_is_refused(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(60, patch)
        with pytest.raises(Interrupted):
            build_index(small, tmp_path / "index", commit_every=20)
    changed = tmp_path / "changed.jsonl"
    lines = small.read_text().splitlines(keepends=True)
    changed.write_text("".join([lines[0].replace("w", "v"), *lines[1:]]))
    with pytest.raises(ValueError, match=r"changed.jsonl is not the corpus that the unfinished build in .* began with"):
        build_index(changed, tmp_path / "index", commit_every=20)
    changed.write_text("".join(lines[:30]))
    with pytest.raises(ValueError, match="has 30 passages, fewer than the 60 that are indexed"):
        build_index(changed, tmp_path / "index", commit_every=20)
    assert build_index(small, tmp_path / "index", commit_every=20).passages == 90


def test_a_finished_index_stays_and_another_corpus_is_refused(small, tmp_path):
    manifest = build_index(small, tmp_path / "index")
    stamp = (tmp_path / "index" / "manifest.json").stat().st_mtime_ns
    packed = tmp_path / "small.jsonl.gz"
    packed.write_bytes(gzip.compress(small.read_bytes()))
    assert build_index(small, tmp_path / "index") == build_index(packed, tmp_path / "index") == manifest
    assert (tmp_path / "index" / "manifest.json").stat().st_mtime_ns == stamp
    other = write_corpus(tmp_path / "other.jsonl", make_passages(91))
    with pytest.raises(ValueError, match="was made from another corpus than"):
        build_index(other, tmp_path / "index")


def test_a_malformed_row_stops_the_build_and_is_left_out_only_on_request(small, tmp_path):
    lines = small.read_text().splitlines(keepends=True)
    lines[49:49] = ['{"id": "x"}\n', "oops\n"]
    small.write_text("".join(lines))
    with pytest.raises(CorpusError, match=r"small.jsonl:50: \"text\" must be a string"):
        build_index(small, tmp_path / "index", commit_every=20)
    bad = []
    manifest = build_index(small, tmp_path / "index", commit_every=20, skip_bad=True, on_bad=bad.append)
    assert (manifest.passages, manifest.skipped) == (90, 2)
    assert [str(error).split(": ")[0] for error in bad] == [f"{small}:50", f"{small}:51"]
    assert len(TantivyIndex(tmp_path / "index")) == 90


def test_a_corpus_without_passages_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty.jsonl holds no passage"):
        build_index(tmp_path / "empty.jsonl", tmp_path / "index")


def test_a_folder_with_other_files_is_left_alone(small, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no index"):
        build_index(small, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threads": 0}, r"threads must lie in \[1, 8\], got 0"),
        ({"memory_mb": 15}, r"memory_mb must lie in \[16, 4096\], got 15"),
        ({"memory_mb": 64, "threads": 8}, r"memory_mb must lie in \[120, 4096\], got 64"),
        ({"commit_every": 0}, "commit_every must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused_before_work_starts(small, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        build_index(small, tmp_path / "index", **arguments)
    assert not (tmp_path / "index").exists()


def test_a_missing_corpus_leaves_no_folder_behind(tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus at"):
        build_index(tmp_path / "nothing.jsonl", tmp_path / "index")
    assert not (tmp_path / "index").exists()
