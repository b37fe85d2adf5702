"""The index on disk gives the answers of BM25 by its formula; the same from every build, thread and process."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.extras import missing

pytest.importorskip("tantivy", reason=missing("tantivy"))

from stepopsd.retrieval import Passage, RetrieverError, lexical, open_retriever
from stepopsd.retrieval.building import build_index
from stepopsd.retrieval.exact import ExactIndex
from stepopsd.retrieval.lexical import TantivyIndex
from tests.retrieval.conftest import make_passages, make_queries, write_corpus


@pytest.fixture
def index(index_folder):
    return TantivyIndex(index_folder)


@pytest.mark.parametrize("rare_share", [0.01, 0.0, 0.2, 1.0])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_answers_are_exact_bm25_whatever_is_left_out_of_the_candidates(index, passages, monkeypatch, rare_share, k):
    monkeypatch.setattr(lexical, "SMALL", 0)
    monkeypatch.setattr(lexical, "RARE_SHARE", rare_share)
    queries = make_queries(150)
    assert index.search(queries, k) == ExactIndex(passages).search(queries, k)  # scores to the last bit


def test_fewer_words_bring_candidates_in_than_are_asked_for(index, monkeypatch):
    """The shortcut is taken: common words are not looked through when they cannot matter."""
    monkeypatch.setattr(lexical, "SMALL", 0)
    planned = []
    plan = TantivyIndex._plan
    monkeypatch.setattr(
        TantivyIndex,
        "_plan",
        lambda self, found, common: planned.append((common, len(found))) or plan(self, found, common),
    )
    index.search(["w390 w1 w2 w391"], 1)
    assert planned
    assert planned[-1][0] < planned[-1][1] == 4


def test_passages_come_back_unchanged(tmp_path):
    odd = [Passage("1", 'A "quoted" title', "line\nline\ttab \x00 </information> <answer>Paris</answer> 日本 é"),
           Passage("ключ", "", "only text here")]  # fmt: skip
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in odd))
    build_index(path, tmp_path / "index")
    [[one], [two]] = TantivyIndex(tmp_path / "index").search(["quoted", "TEXT only"], 1)
    assert (one.id, one.title, one.text) == (odd[0].id, odd[0].title, odd[0].text)
    assert (two.id, two.title, two.text) == (odd[1].id, odd[1].title, odd[1].text)


@pytest.mark.parametrize(
    "query",
    ["", "  ", "\x00", "\ud800", '"', "a:b (", "C++ (", "AND", "NOT OR", "[x TO", "+ - ~ ^zz", "\\", "unknownword"],
)
def test_no_text_is_a_query_language(index, query):
    assert index.search([query], 3) == [[]]
    assert index.search([f"{query} w17"], 3) == index.search(["w17"], 3)


def test_a_runaway_query_costs_no_more_than_its_first_words(index):
    assert index.search(["w5 w17 " * 5000], 3) == index.search(["w5 w17"], 3)
    assert index.search(["unknown " * 64 + "w17"], 3) == [[]]


def test_more_passages_than_match_gives_those_that_match(index, passages):
    [found] = index.search(["w399"], 100)
    assert 0 < len(found) == sum("w399" in p.text.split() for p in passages) < 100


def test_two_builds_and_many_threads_give_the_same_answers(index, corpus, tmp_path):
    build_index(corpus, tmp_path / "other", commit_every=10_000, threads=2, memory_mb=64)
    other, queries = TantivyIndex(tmp_path / "other"), make_queries(100)
    assert other._searcher.num_segments < index._searcher.num_segments
    assert other.fingerprint == index.fingerprint
    expected = index.search(queries, 5)
    assert other.search(queries, 5) == expected
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: index.search(queries, 5), range(16)):
            assert found == expected


def test_another_process_answers_alike(index, index_folder):
    script = (
        "import sys; from stepopsd.retrieval import open_retriever\n"
        "print(repr(open_retriever(sys.argv[1]).search(['w3 w40 article 12'], 5)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(index_folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(index.search(["w3 w40 article 12"], 5))


@pytest.fixture(scope="module")
def long_passages(tmp_path_factory):
    """Far beyond 40 words, where tantivy rounds lengths, and the index of them."""
    folder = tmp_path_factory.mktemp("long")
    passages = make_passages(800, seed=5, longest=200)
    build_index(write_corpus(folder / "c.jsonl", passages), folder / "index", commit_every=300)
    return passages, folder / "index"


@pytest.mark.parametrize("k", [1, 3, 20])
def test_rounded_lengths_of_long_passages_change_nothing(long_passages, k):
    passages, folder = long_passages
    queries = [*make_queries(200, seed=6), "w0", "w1 w2", "article 3", "w0 w1 w2 w3 w4 w5 w6"]
    assert TantivyIndex(folder).search(queries, k) == ExactIndex(passages).search(queries, k)


def test_without_the_true_scores_some_answers_differ(long_passages, monkeypatch):
    """The test above tests something: tantivy's own order of its first k is not that of the formula."""
    passages, folder = long_passages
    monkeypatch.setattr(lexical, "_SPARE", 0)
    monkeypatch.setattr(lexical, "MOST_RESCORED", 3)
    queries = make_queries(200, seed=6)
    exact, found = ExactIndex(passages).search(queries, 3), TantivyIndex(folder).search(queries, 3)
    assert 0 < sum(want != got for want, got in zip(exact, found, strict=True)) < 200


def test_candidates_are_added_until_no_other_can_be_among_the_best(tmp_path, monkeypatch):
    """300 passages in which tantivy's score falls while the true one rises, and 50 equal ones at the end."""
    passages = [Passage(str(row), "", "rare " + "x " * (63 - row % 3) + f"y{row}") for row in range(300)]
    passages += [Passage(str(row), "", "rare " + "x " * 60) for row in range(300, 350)]
    build_index(write_corpus(tmp_path / "c.jsonl", passages), tmp_path / "index")
    asked = []
    best = TantivyIndex._best
    monkeypatch.setattr(
        TantivyIndex, "_best", lambda self, found, limit: asked.append(limit) or best(self, found, limit)
    )
    index = TantivyIndex(tmp_path / "index")
    assert index.search(["rare"], 3) == ExactIndex(passages).search(["rare"], 3)
    assert [passage.id for passage in index.search(["rare"], 3)[0]] == ["300", "301", "302"]
    assert asked[:4] == [5, 20, 80, 320]
    monkeypatch.setattr(lexical, "MOST_RESCORED", 32)
    asked.clear()
    assert len(index.search(["rare"], 3)[0]) == 3  # bounded: of the first 32
    assert asked == [5, 20, 32]


def test_open_retriever_opens_a_folder_and_compares_corpora(index_folder, corpus, tmp_path, index):
    assert open_retriever(index_folder, corpus=corpus).search(["w17"], 3) == index.search(["w17"], 3)
    other = write_corpus(tmp_path / "other.jsonl", make_passages(10))
    with pytest.raises(ValueError, match=r"was made from another corpus than .*other.jsonl: sha256 .*corpus.jsonl"):
        open_retriever(index_folder, corpus=other)
    with pytest.raises(ValueError, match="corpus can be compared with an index folder only"):
        open_retriever(corpus, corpus=corpus)


def test_what_is_no_index_is_refused_by_name(tmp_path, index_folder):
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing; make one with `stepopsd retriever build"):
        open_retriever(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        open_retriever(tmp_path)
    manifest = json.loads((index_folder / "manifest.json").read_text())
    for changed, words in (
        ({"format": 99}, "its format is 99, this version reads 2"),
        ({"passages": 0}, "is empty"),
        ({"kind": "other"}, "unknown kind 'other'"),
        ({}, "cannot be opened"),
        ({"settings": {}}, "does not say how many words"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | changed))
        with pytest.raises(ValueError, match=words):
            open_retriever(tmp_path)
    with pytest.raises(ValueError, match="retriever must be an index folder, http://host:port"):
        open_retriever("nowhere")


def test_an_index_that_lost_passages_is_refused(index_folder, tmp_path):
    (tmp_path / "tantivy").symlink_to(index_folder / "tantivy")
    manifest = json.loads((index_folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"passages": 1501}))
    with pytest.raises(ValueError, match="holds 1500 passages, its 1501 are promised"):
        TantivyIndex(tmp_path)


def test_a_failing_engine_is_a_retriever_error(index, monkeypatch):
    class Broken:
        def search(self, *_, **__):
            raise OSError("disk gone")

        doc_freq = index._searcher.doc_freq

    monkeypatch.setattr(index, "_searcher", Broken())
    with pytest.raises(RetrieverError, match="disk gone"):
        index.search(["w17"], 3)
