"""Dense retrieval with a tiny random encoder: exact inner products, builds that go on, encoders that are checked."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from stepopsd.cli import main
from stepopsd.retrieval import Passage, RetrieverError, dense_building, open_retriever
from stepopsd.retrieval.dense import FaissIndex
from stepopsd.retrieval.dense_building import DenseOptions, build_dense_index
from stepopsd.retrieval.encoder import Encoder, EncoderOptions
from stepopsd.retrieval.manifest import read_manifest
from tests.extras import missing
from tests.retrieval.conftest import make_passages, make_queries, write_corpus

pytest.importorskip("faiss", reason=missing("faiss"))
transformers = pytest.importorskip("transformers", reason=missing("transformers"))

SMALL = DenseOptions(batch=16, commit_every=32)


def save_encoder(folder, seed=0):
    """A random BERT of two small layers that knows the words of the made-up passages."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789:\".,'")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage", "article", *(f"w{i}" for i in range(400))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*words, *letters, *(f"##{letter}" for letter in letters)]))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    # Without the pooler, as published encoders often are: what is drawn at loading must not matter.
    transformers.BertModel(shape, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "e5")


@pytest.fixture(scope="module")
def few():
    return make_passages(200)


@pytest.fixture(scope="module")
def small(few, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("dense") / "small.jsonl", few)


@pytest.fixture(scope="module")
def folder(small, encoder):
    build_dense_index(small, small.parent / "index", encoder, SMALL)
    return small.parent / "index"


@pytest.fixture(scope="module")
def index(folder):
    return FaissIndex(folder)


def by_hand(encoder, texts):
    """One text at a time without padding: mean of the last states, unit length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    rows = []
    for text in texts:
        with torch.inference_mode():
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
            states = model(**ids).last_hidden_state[0]
        rows.append((states.mean(0) / states.mean(0).norm()).numpy())
    return np.stack(rows)


def test_vectors_are_prefixed_mean_pooled_and_of_unit_length(encoder, few):
    made = Encoder(str(encoder), batch=7)
    some = few[:20]
    texts = [f'passage: "{p.title}"\n{p.text}' for p in some]
    np.testing.assert_allclose(made.passages(some), by_hand(encoder, texts), atol=2e-6)
    np.testing.assert_allclose(
        made.queries(["w1 w17", "w9"]), by_hand(encoder, ["query: w1 w17", "query: w9"]), atol=2e-6
    )
    np.testing.assert_allclose(np.linalg.norm(made.queries(["w1", "w2 w3"]), axis=1), 1, atol=1e-6)
    assert made.queries([]).shape == (0, 32)
    first = Encoder(str(encoder), options=EncoderOptions(pooling="cls"))
    assert np.abs(first.queries(["w1 w17"]) - made.queries(["w1 w17"])).max() > 1e-3
    plain = Encoder(str(encoder), options=EncoderOptions(query_prefix=""))
    assert np.abs(plain.queries(["w1 w17"]) - made.queries(["w1 w17"])).max() > 1e-3


def test_answers_are_the_largest_inner_products(index, encoder, few):
    made, queries = Encoder(str(encoder)), make_queries(40)
    products = made.queries(queries) @ made.passages(few).T
    for query, row, found in zip(queries, products, index.search(queries, 5), strict=True):
        best = np.lexsort((np.arange(len(few)), -np.round(row.astype(float), 5)))[:5]
        assert [passage.score for passage in found] == pytest.approx(sorted(row, reverse=True)[:5], abs=2e-5), query
        assert {p.text for p in found} == {few[at].text for at in best} or np.ptp(row[best[-2:]]) < 2e-5
        assert all(few[int(p.id[1:])].text == p.text for p in found)


def test_equal_scores_come_in_corpus_order(index, monkeypatch):
    class Close:
        def search(self, vectors, k):
            assert (len(vectors), k) == (1, 11)
            rows = [70, 30, 90, 10, 50, -1, -1, -1, -1, -1, -1]  # -1 is how FAISS says that there are no more
            return np.array([[0.5, 0.5000001, 0.5000002, 0.6, 0.4, *[-9] * 6]]), np.array([rows])

    monkeypatch.setattr(index, "_index", Close())
    assert [(p.id, p.score) for p in index.search(["w5"], 3)[0]] == [("p10", 0.6), ("p30", 0.5), ("p70", 0.5)]


def test_odd_queries_and_odd_requests(index):
    assert index.search(["", "  ", "w5"], 2)[:2] == [[], []]
    assert index.search(["w5 " * 5000], 2) == index.search([" ".join(["w5"] * 64)], 2)
    assert len(index.search(["\ud800 unheard-of"], 100)[0]) == 100
    assert index.search([], 3) == []
    with pytest.raises(ValueError, match=r"k must be an integer in \[1, 100\], got 0"):
        index.search(["w5"], 0)


def test_many_threads_get_the_same_answers(index):
    queries = make_queries(30)
    expected = index.search(queries, 3)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: index.search(queries, 3), range(16)):
            assert found == expected


def test_passages_come_back_unchanged(tmp_path, encoder):
    odd = [Passage("1", 'A "quoted" title', "line\nline\ttab \x00 </information> 日本 é"), Passage("ключ", "", "w5")]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in odd))
    build_dense_index(path, tmp_path / "index", encoder, SMALL)
    [found] = FaissIndex(tmp_path / "index").search(["w5"], 5)
    assert {(p.id, p.title, p.text) for p in found} == {(p.id, p.title, p.text) for p in odd}


def test_a_kind_that_must_be_trained_finds_the_same_when_it_looks_everywhere(small, folder, index, encoder, tmp_path):
    options = DenseOptions(faiss="IVF4,Flat", nprobe=4)
    build_dense_index(small, tmp_path / "ivf", encoder, options)
    queries = make_queries(20)
    found = FaissIndex(tmp_path / "ivf").search(queries, 3)
    assert [[p.score for p in passages] for passages in found] == [
        pytest.approx([p.score for p in passages], abs=2e-5) for passages in index.search(queries, 3)
    ]
    with pytest.raises(ValueError, match=r"has faiss 'IVF4,Flat', not 'Flat', nprobe 4, not 0; choose another folder"):
        build_dense_index(small, tmp_path / "ivf", encoder, SMALL)


# Builds


def test_an_interrupted_build_goes_on_and_equals_an_uninterrupted_one(small, folder, encoder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        add = dense_building._Building.add

        def interrupted(self, passages, vectors, sha):
            if self.rows == 96:  # the files have the block, the note does not count it
                with (self._folder / dense_building.VECTORS).open("ab") as out:
                    out.write(vectors.tobytes())
                raise KeyboardInterrupt
            add(self, passages, vectors, sha)

        patch.setattr(dense_building._Building, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_dense_index(small, tmp_path / "index", encoder, SMALL)
    with pytest.raises(FileNotFoundError, match="a build there has not finished"):
        open_retriever(tmp_path / "index")
    encoded = []
    passages = Encoder.passages
    monkeypatch.setattr(Encoder, "passages", lambda self, block: encoded.extend(block) or passages(self, block))
    manifest = build_dense_index(small, tmp_path / "index", encoder, SMALL)
    assert len(encoded) == 200 - 96
    assert manifest == read_manifest(folder)
    for name in ("vectors.faiss", "passages.jsonl", "offsets.u64"):
        assert (tmp_path / "index" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == sorted(p.name for p in folder.iterdir())


def test_a_killed_build_goes_on(small, folder, encoder, tmp_path):
    script = (
        "import sys, time; from stepopsd.retrieval import dense_building as d\n"
        "def tell(p): print('committed', flush=True); time.sleep(0.2)\n"
        "d.build_dense_index(*sys.argv[1:], d.DenseOptions(batch=16, commit_every=32), on_progress=tell)"
    )
    command = [sys.executable, "-c", script, str(small), str(tmp_path / "index"), str(encoder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        assert process.stdout.readline() == "committed\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    build_dense_index(small, tmp_path / "index", encoder, SMALL)
    assert (tmp_path / "index" / "vectors.faiss").read_bytes() == (folder / "vectors.faiss").read_bytes()


def test_another_corpus_or_encoder_is_refused_by_builds(small, folder, encoder, tmp_path, monkeypatch):
    other = write_corpus(tmp_path / "other.jsonl", make_passages(20, seed=3))
    with pytest.raises(ValueError, match="was made from another corpus than"):
        build_dense_index(other, folder, encoder, SMALL)
    changed = save_encoder(tmp_path / "changed", seed=1)
    with pytest.raises(ValueError, match=r"has encoder_sha256 '.*', not '.*'; choose another folder"):
        build_dense_index(small, folder, changed, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(dense_building, "_assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_dense_index(small, tmp_path / "half", encoder, SMALL)
    with pytest.raises(ValueError, match=r"the unfinished build in .* has encoder_sha256"):
        build_dense_index(small, tmp_path / "half", changed, SMALL)
    with pytest.raises(ValueError, match="has 20 passages, fewer than the 200"):
        build_dense_index(other, tmp_path / "half", encoder, SMALL)
    lines = small.read_text().splitlines(keepends=True)
    other.write_text("".join([lines[0].replace("w", "v"), *lines[1:]]))
    with pytest.raises(ValueError, match=r"is not the corpus that the unfinished build in .* began with"):
        build_dense_index(other, tmp_path / "half", encoder, SMALL)
    assert build_dense_index(small, tmp_path / "half", encoder, SMALL) == read_manifest(folder)
    assert build_dense_index(small, folder, encoder, SMALL) == read_manifest(folder)


def test_the_two_kinds_of_index_are_not_mixed_up(small, folder, index_folder, corpus, encoder, tmp_path):
    from stepopsd.retrieval.building import build_index

    with pytest.raises(ValueError, match="holds a finished faiss index"):
        build_index(small, folder)
    with pytest.raises(ValueError, match="holds a finished tantivy index"):
        build_dense_index(corpus, index_folder, encoder, SMALL)
    with pytest.raises(ValueError, match="is a tantivy index, not a faiss one"):
        FaissIndex(index_folder)
    (tmp_path / "build.json").write_text("[]")
    with pytest.raises(ValueError, match="is one of a lexical index"):
        build_dense_index(small, tmp_path, encoder, SMALL)
    (tmp_path / "build.json").write_text("{}")
    with pytest.raises(ValueError, match="is one of a dense index"):
        build_index(small, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"faiss": "Nonsense"}, "faiss knows no index 'Nonsense' of 32 dimensions"),
        ({"faiss": "IVF4,Flat"}, r"nprobe must be at least 1 .*, got 0 for 'IVF4,Flat'"),
        ({"nprobe": 2}, r"0 for others, got 2 for 'Flat'"),
        ({"commit_every": 0}, "commit_every must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"device": "abacus"}, "cannot run on device 'abacus'"),
        ({"faiss": "IVF512,Flat", "nprobe": 1}, "200 passages cannot train the index 'IVF512,Flat'"),
    ],
)
def test_bad_options_are_refused(small, encoder, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        build_dense_index(small, tmp_path / "index", encoder, DenseOptions(**options))


def test_what_is_no_encoder_is_refused_by_name(small, tmp_path):
    with pytest.raises(ValueError, match=r"the encoder '.*nowhere' cannot be loaded"):
        build_dense_index(small, tmp_path / "index", tmp_path / "nowhere", SMALL)
    assert not (tmp_path / "index").exists()
    for wrong, words in (({"pooling": "max"}, "pooling must be one of mean, cls"), ({"max_tokens": 3}, "at least 8")):
        with pytest.raises(ValueError, match=words):
            EncoderOptions(**wrong)


# Opening


def test_the_encoder_may_move_and_must_be_the_same(folder, index, encoder, tmp_path):
    moved = shutil.copytree(encoder, tmp_path / "moved")
    shutil.copytree(folder, tmp_path / "index")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"encoder": str(tmp_path / "gone")}
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"the encoder '.*gone' cannot be loaded"):
        open_retriever(tmp_path / "index")
    again = open_retriever(tmp_path / "index", encoder=moved)
    assert again.fingerprint == index.fingerprint
    assert again.search(["w5 w17"], 3) == index.search(["w5 w17"], 3)
    with pytest.raises(ValueError, match=r"was made with another encoder than .*other.*: sha256 .* against"):
        open_retriever(tmp_path / "index", encoder=save_encoder(tmp_path / "other", seed=1))


def test_damaged_folders_are_refused(folder, tmp_path):
    for name, words in (("vectors.faiss", "cannot be opened"), ("passages.jsonl", "does not hold the 200 passages"),
                        ("offsets.u64", "does not hold the 200 passages")):  # fmt: skip
        copy = shutil.copytree(folder, tmp_path / name)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2 // 8 * 8])
        with pytest.raises(ValueError, match=words):
            FaissIndex(copy)


def test_a_failing_engine_is_a_retriever_error(index, monkeypatch):
    class Broken:
        def search(self, *_):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(index, "_index", Broken())
    with pytest.raises(RetrieverError, match="the dense index failed: out of memory"):
        index.search(["w17"], 3)


def test_build_and_search_from_the_command_line(small, encoder, folder, tmp_path, capsys):
    command = ["retriever", "build", str(small), "--out", str(tmp_path / "index"), "--kind", "dense"]
    assert main(command) == 1
    assert "encoder is needed for kind dense" in capsys.readouterr().err
    assert main([*command, "--encoder", str(encoder), "--dense.commit-every", "64"]) == 0
    said = capsys.readouterr()
    assert f"made: 200 passages, {read_manifest(folder).fingerprint}" in said.out
    assert "128 passages" in said.err
    assert main(["retriever", "search", str(tmp_path / "index"), "w5 w17"]) == 0
    assert capsys.readouterr().out.count("\n") == 6


def test_the_server_serves_a_dense_index_like_any_other(folder, index):
    pytest.importorskip("starlette", reason=missing("starlette"))
    pytest.importorskip("uvicorn", reason=missing("uvicorn"))
    pytest.importorskip("tenacity", reason=missing("tenacity"))
    pytest.importorskip("tantivy", reason=missing("tantivy"))
    from stepopsd.retrieval.client import HttpRetriever
    from tests.retrieval.test_faults import serving

    queries = list(dict.fromkeys(make_queries(20)))
    with serving(folder) as (process, url):
        retriever = HttpRetriever([url], timeout_s=60)
        assert retriever.fingerprint == index.fingerprint
        assert retriever.search(queries, 3) == index.search(queries, 3)
        process.terminate()
        assert process.wait(60) == 0
