"""BM25 in memory against the formula written out, and what it does with odd queries."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepopsd.retrieval import Passage, open_retriever
from stepopsd.retrieval.exact import ExactIndex
from stepopsd.retrieval.tokens import query_words, words

CORPUS = [
    Passage("a", "Mercury", "Mercury is the planet closest to the sun"),
    Passage("b", "Venus", "Venus is the hottest planet"),
    Passage("c", "Beyoncé", "Beyoncé Knowles sang 'Halo' in C++ (a joke): AND OR NOT"),
    Passage("d", "", "sun sun sun"),
]


def formula(passages, query, k1=1.2, b=0.75):
    """(id, score) by falling score, ties in order: the definition, in plain Python."""
    texts = [words(f"{p.title} {p.text}") for p in passages]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for row, text in enumerate(texts):
        counts, score = Counter(text), 0.0
        for word in dict.fromkeys(words(query)):
            holding = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            f = counts[word]
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(text) / mean))
        if score > 0:
            scores.append((-score, row))
    return [(passages[row].id, -score) for score, row in sorted(scores)]


def test_scores_are_the_formula_on_random_corpora():
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(30)]
    passages = [Passage(str(i), draw.choice(vocabulary), " ".join(draw.choices(vocabulary, k=draw.randint(1, 20))))
                for i in range(60)]  # fmt: skip
    index = ExactIndex(passages)
    for _ in range(30):
        query = " ".join(draw.choices(vocabulary, k=draw.randint(1, 5)))
        want = formula(passages, query)[:7]
        got = index.search([query], k=7)[0]
        assert [p.score for p in got] == pytest.approx([score for _, score in want], rel=1e-12)
        assert {p.id for p in got if p.score > want[-1][1] + 1e-9} == {
            key for key, score in want if score > want[-1][1] + 1e-9
        }


def test_ties_come_in_corpus_order():
    index = ExactIndex([Passage(str(i), "", "same words") for i in (3, 1, 2)])
    assert [p.id for p in index.search(["words"], k=3)[0]] == ["3", "1", "2"]


def test_passages_come_back_unchanged_with_a_score():
    [[best, *_]] = ExactIndex(CORPUS).search(["beyonce"], k=2)
    assert (best.id, best.title, best.text) == (CORPUS[2].id, CORPUS[2].title, CORPUS[2].text)
    assert best.score > 0


@pytest.mark.parametrize("query", ["", "   ", "???", "unknownword", "\x00", "'\"([{"])
def test_a_query_without_a_known_word_finds_nothing(query):
    assert ExactIndex(CORPUS).search([query], k=3) == [[]]


@pytest.mark.parametrize(
    "query", ['"halo', "a:halo", "halo AND (", "C++ (halo", "halo*", "-halo", "+halo~2 ^", "[halo"]
)
def test_query_syntax_is_plain_text(query):
    assert ExactIndex(CORPUS).search([query], k=1)[0][0].id == "c"


def test_only_the_first_words_of_a_query_count():
    index = ExactIndex(CORPUS, max_query_words=3)
    assert index.search(["x y z halo", "x y halo z"], k=1) == [[], index.search(["halo"], k=1)[0]]


def test_repeated_words_count_once():
    index = ExactIndex(CORPUS)
    assert index.search(["sun sun sun planet"], k=4) == index.search(["sun planet"], k=4)


@pytest.mark.parametrize("k", [0, -1, 101, 1.0, True, None])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be an integer in \[1, 100\], got"):
        ExactIndex(CORPUS).search(["sun"], k=k)


def test_queries_of_the_wrong_type_are_refused():
    with pytest.raises(ValueError, match=r"queries\[1\] must be a string, got NoneType"):
        ExactIndex(CORPUS).search(["sun", None], k=1)
    with pytest.raises(ValueError, match="got one string: 'sun'"):
        ExactIndex(CORPUS).search("sun", k=1)


def test_no_queries_give_no_answers():
    assert ExactIndex(CORPUS).search([], k=3) == []


def test_an_empty_corpus_and_a_repeated_id_are_refused():
    with pytest.raises(ValueError, match="holds no passage"):
        ExactIndex([])
    with pytest.raises(ValueError, match="passage 1: the id 'a' is already taken"):
        ExactIndex([CORPUS[0], CORPUS[0]])


def test_the_fingerprint_names_the_content():
    assert ExactIndex(CORPUS).fingerprint == ExactIndex(list(CORPUS)).fingerprint
    assert ExactIndex(CORPUS).fingerprint != ExactIndex(CORPUS[::-1]).fingerprint


def test_open_retriever_takes_passages_and_corpora(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in CORPUS))
    queries = ["hottest planet", "halo", "nothing"]
    assert open_retriever(path).search(queries, k=3) == open_retriever(CORPUS).search(queries, k=3)
    with pytest.raises(FileNotFoundError, match="no corpus at"):
        open_retriever(str(tmp_path / "other.jsonl"))


@given(st.text())
def test_words_are_lower_case_without_accents_and_stable(text):
    found = words(text)
    assert all(word and len(word) <= 64 for word in found)
    assert words(" ".join(found)) == found
    assert len(query_words(text, 5)) <= 5


def test_accents_width_and_case_are_folded():
    assert words("ℌalo") == ["halo"]
    assert words("Beyoncé’s ＡＢＣ naïve_Straße 3.5%") == ["beyonce", "s", "abc", "naive", "strasse", "3", "5"]
