"""Answers that are easy to judge wrongly, under every measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepopsd.envs.searchqa.scoring import (
    Scores,
    exact_match,
    golden_answers,
    normalize,
    score_answer,
    unicode_normalize,
)

# prediction, golden, em, f1, sub_em, unicode_em
TRICKY = [
    ("The Beatles", "beatles", 1, 1, 1, 1),
    ("beatles.", "The Beatles!", 1, 1, 1, 1),
    ("An apple a day", "apple day", 1, 1, 1, 1),
    ("Theatre", "atre", 0, 0, 1, 0),  # an article is a word, not a prefix; containment is by characters
    ("U.S.", "us", 1, 1, 1, 1),
    ("U.S.A", "usa", 1, 1, 1, 1),
    ("  New   York\tCity ", "new york city", 1, 1, 1, 1),
    ("Jane Austen wrote it", "Jane Austen", 0, 2 / 3, 1, 0),
    ("Austen", "Jane Austen", 0, 2 / 3, 0, 0),
    ("Austen Jane", "Jane Austen", 0, 1, 0, 0),
    ("yes", "yes, it is", 0, 0, 0, 0),
    ("no", "No.", 1, 1, 1, 1),
    ("yes", "no", 0, 0, 0, 0),
    # what the published form cannot tell apart, and the stricter one can
    ("-5", "5", 1, 1, 1, 0),
    ("3.5", "35", 1, 1, 1, 0),
    ("10%", "10", 1, 1, 1, 0),
    ("10 %", "10%", 1, 1, 1, 1),
    ("1,234", "1234", 1, 1, 1, 1),
    ("covid-19", "Covid 19", 0, 0, 0, 1),
    ("3 November 1929", "3 november 1929", 1, 1, 1, 1),
    # what the published form takes for different, and the folding one does not
    ("don’t", "don't", 0, 0, 0, 1),
    ("Beyonce", "Beyoncé", 0, 0, 0, 1),
    ("A Sangre Fria", "A Sangre Fría", 0, 0.5, 0, 1),
    ("54 Mbit/s", "54\u00a0Mbit/s", 1, 1, 1, 1),
    ("Łódź", "Lodz", 0, 0, 0, 1),
    ("ＡＢＣ", "abc", 0, 0, 0, 1),
    ("が", "か", 0, 0, 0, 0),  # a voicing mark makes another letter
    ("कि", "का", 0, 0, 0, 0),
    # nothing left after normalisation
    ("the", "a", 0, 0, 0, 0),
    ("!!!", "the", 0, 0, 0, 0),
    ("!!!", "!!!", 1, 1, 1, 1),
    ("The The", "the the", 1, 1, 1, 1),
    ("vitamin C", "A", 0, 0, 0, 0),
    ("", "", 0, 0, 0, 0),
]


@pytest.mark.parametrize(("prediction", "golden", "em", "f1", "sub_em", "unicode_em"), TRICKY)
def test_tricky_answers(prediction, golden, em, f1, sub_em, unicode_em):
    if not golden:
        with pytest.raises(ValueError, match="golden answers"):
            score_answer(prediction, golden)
        return
    scores = score_answer(prediction, golden)
    assert (scores.em, scores.sub_em, scores.unicode_em) == (em, sub_em, unicode_em)
    assert scores.f1 == pytest.approx(f1)
    assert scores.answered


@pytest.mark.parametrize("blank", [None, "", "  \n"])
def test_unanswered_scores_nothing_whatever_the_gold(blank):
    assert score_answer(blank, ["the", "!!!", "Paris"]) == Scores()


@pytest.mark.parametrize(
    "golden",
    ["1999", ["1999"], ("1999",), {"1999"}, np.array(["1999"], dtype=object), np.array("1999"), 1999, [[1999]],
     np.array([1999]), ["1999", "1999", " "]],
)  # fmt: skip
def test_golden_answers_as_text_list_or_array(golden):
    assert golden_answers(golden) == ("1999",)
    assert score_answer("1999", golden).em == 1


@pytest.mark.parametrize("golden", [None, [], "", [" "], True, {"target": "x"}, [None]])
def test_golden_answers_that_are_none_are_refused(golden):
    with pytest.raises(ValueError, match="golden answer"):
        golden_answers(golden)


def test_best_golden_answer_counts():
    scores = score_answer("Bob Russell", ["Bobby Scott", "Bob Russell and others", "bob russell"])
    assert scores == Scores(1.0, 1.0, 1.0, 1.0, True)


def test_published_normal_form():
    assert normalize("An  answer: the 'Big-Apple' (NYC).") == "answer bigapple nyc"


@given(st.text(max_size=30), st.text(max_size=30))
def test_measures_are_bounded_and_symmetric_where_they_should_be(a, b):
    if not a.strip() or not b.strip():
        return
    one, other = score_answer(a, [b]), score_answer(b, [a])
    assert (one.em, one.f1, one.unicode_em) == (other.em, other.f1, other.unicode_em)
    assert 0 <= one.f1 <= 1
    assert one.f1 >= one.em
    assert one.sub_em >= one.em
    assert score_answer(a, [a]) == Scores(1.0, 1.0, 1.0, 1.0, True)


@given(st.text(max_size=30))
def test_normal_forms_are_stable(text):
    assert normalize(normalize(text)) == normalize(text)
    assert exact_match(text, text)
    assert unicode_normalize(text).split() == unicode_normalize(text).split(" ") or not unicode_normalize(text)
