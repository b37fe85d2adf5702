"""A small corpus of made-up articles, on disk and indexed, for the tests of this room."""

from __future__ import annotations

import json
import os
import random
import sys
from importlib.util import find_spec

import pytest

from stepopsd.retrieval.base import Passage
from tests.extras import missing

NEEDED = ("tantivy", "httpx", "tenacity", "starlette", "uvicorn")
if os.environ.get("STEPOPSD_REQUIRE_ENGINE"):  # set by `make test`: what is installed there may not be skipped
    # tantivy has no release for Python 3.10.
    needed = NEEDED if sys.version_info >= (3, 11) else NEEDED[1:]
    absent = [name for name in needed if find_spec(name) is None]
    assert not absent, f"the retrieval tests need {absent}: pip install '.[retrieval]'"


def make_passages(count: int, seed: int = 0, longest: int = 30) -> list[Passage]:
    """Passages of Zipf-like words, some of them twice, so that scores tie."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(400)]
    weights = [1 / (i + 2) for i in range(400)]
    passages: list[Passage] = []
    for row in range(count):
        if row % 7 == 3:
            twin = passages[draw.randrange(row)]
            passages.append(Passage(f"p{row}", twin.title, twin.text))
            continue
        text = draw.choices(vocabulary, weights, k=draw.randint(3, longest))
        passages.append(Passage(f"p{row}", f"Article {row // 5}", " ".join(text)))
    return passages


def make_queries(count: int, seed: int = 1) -> list[str]:
    """Queries of common and rare words, as those of a policy."""
    draw = random.Random(seed)
    return [
        " ".join(f"w{int(400 * draw.random() ** 2)}" for _ in range(draw.randint(1, 8)))
        + (f" article {draw.randrange(60)}" if draw.random() < 0.3 else "")
        for _ in range(count)
    ]


def write_corpus(path, passages):
    path.write_text("".join(json.dumps({"id": p.id, "contents": f'"{p.title}"\n{p.text}'}) + "\n" for p in passages))
    return path


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    return make_passages(1500)


@pytest.fixture(scope="session")
def corpus(passages, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", passages)


@pytest.fixture(scope="session")
def index_folder(corpus):
    """The corpus in several segments, as large ones are."""
    pytest.importorskip("tantivy", reason=missing("tantivy"))
    from stepopsd.retrieval.building import build_index

    build_index(corpus, corpus.parent / "index", commit_every=400)
    return corpus.parent / "index"
