"""Without the packages of the dense extra, what needs them says which extra that is."""

from __future__ import annotations

import sys

import pytest

from stepopsd.retrieval.dense import FaissIndex
from stepopsd.retrieval.dense_building import build_dense_index
from stepopsd.retrieval.encoder import Encoder
from tests.retrieval.conftest import make_passages, write_corpus


def test_what_is_missing_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    corpus = write_corpus(tmp_path / "c.jsonl", make_passages(5))
    for use in (
        lambda: FaissIndex(tmp_path),
        lambda: build_dense_index(corpus, tmp_path / "index", "nowhere"),
        lambda: Encoder("nowhere"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'stepopsd\[dense\]'"):
            use()
    assert not (tmp_path / "index").exists()
