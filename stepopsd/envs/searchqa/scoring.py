"""How an answer is judged: the published exact match, and three measures to read beside it.

Source of the default: SQuAD's answer normalisation (arXiv 1606.05250) as Search-R1 applies it (arXiv 2503.09516).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Metric = Literal["em", "f1", "sub_em", "unicode_em"]
METRICS: tuple[Metric, ...] = ("em", "f1", "sub_em", "unicode_em")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: A number with its sign, separators and per cent sign; a hyphen that follows a word joins, it is no sign.
_NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d+(?:[.,]\d+)*|\.\d+)(?:\s?%)?")
_ABBREVIATION = re.compile(r"\b(?:[^\W\d_]\.){2,}")
#: Characters that compatibility normalisation leaves alone although people take them for the ASCII one.
_LOOKALIKES = str.maketrans(
    {**dict.fromkeys("‘’‚‛′`´", "'"), **dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}
)
#: Latin letters with a stroke, which have no decomposition.
_STROKES = str.maketrans({"ø": "o", "đ": "d", "ł": "l", "ħ": "h", "ŧ": "t", "ı": "i", "æ": "ae", "œ": "oe"})


@dataclass(frozen=True, slots=True)
class Scores:
    """One answer under every measure, each in [0, 1] and the best over the golden answers.

    Attributes:
        em: Equal after the published normalisation.
        f1: Harmonic mean of token precision and recall after the same normalisation.
        sub_em: A golden answer stands inside the prediction after the same normalisation.
        unicode_em: Equal after folding accents and typographic signs, with numbers kept as they are written.
        answered: There was an answer at all.
    """

    em: float = 0.0
    f1: float = 0.0
    sub_em: float = 0.0
    unicode_em: float = 0.0
    answered: bool = False


def score_answer(prediction: str | None, golden: Any) -> Scores:
    """Judge the policy's own final answer.

    Args:
        prediction: Text between the answer tags; None or blank means that nothing was answered and scores 0.
        golden: A text, or a list, tuple, set or array of texts; numbers count as their text.

    Raises:
        ValueError: ``golden`` holds no answer, or something that is neither text nor number.

    Example:
        >>> score_answer("The Beatles!", ["beatles"]).em
        1.0
    """
    answers = golden_answers(golden)
    if prediction is None or not prediction.strip():
        return Scores()
    return Scores(
        em=float(any(exact_match(prediction, answer) for answer in answers)),
        f1=max(f1(prediction, answer) for answer in answers),
        sub_em=float(any(contains(prediction, answer) for answer in answers)),
        unicode_em=float(any(unicode_match(prediction, answer) for answer in answers)),
        answered=True,
    )


def golden_answers(value: Any) -> tuple[str, ...]:
    """Golden answers as texts, in order and without repetition, from a text, a sequence or an array of any depth.

    Raises:
        ValueError: No answer is left, or one is neither text nor number.
    """
    found = tuple(dict.fromkeys(text for text in _texts(value) if text.strip()))
    if not found:
        raise ValueError(f"golden answers must hold at least one text that is not blank, got {value!r}")
    return found


def _texts(value: Any) -> Iterable[str]:
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        value = value.tolist()
    if isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in sorted(value, key=str) if isinstance(value, (set, frozenset)) else value:
            yield from _texts(item)
    else:
        raise ValueError(f"a golden answer must be a text, a number or a list of them, got {value!r}")


def normalize(text: str) -> str:
    """The published normal form: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Equal in the published normal form. Where nothing is left of both, the texts themselves are compared."""
    ours, theirs = normalize(prediction), normalize(answer)
    if not ours and not theirs:
        return prediction.strip().lower() == answer.strip().lower()
    return ours == theirs


def f1(prediction: str, answer: str) -> float:
    """Token F1 in the published normal form; a yes, no or noanswer on one side matches only itself (HotpotQA)."""
    ours, theirs = normalize(prediction), normalize(answer)
    if not ours or not theirs:
        return float(exact_match(prediction, answer))
    if ours != theirs and {ours, theirs} & {"yes", "no", "noanswer"}:
        return 0.0
    a, b = ours.split(), theirs.split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2.0 * common / (len(a) + len(b))


def contains(prediction: str, answer: str) -> bool:
    """The answer's normal form stands somewhere in the prediction's; an empty one stands nowhere."""
    theirs = normalize(answer)
    return theirs in normalize(prediction) if theirs else exact_match(prediction, answer)


def unicode_match(prediction: str, answer: str) -> bool:
    """Equal in ``unicode_normalize``'s form; see there for where it is stricter and where kinder."""
    ours, theirs = unicode_normalize(prediction), unicode_normalize(answer)
    if not ours and not theirs:
        return prediction.strip().casefold() == answer.strip().casefold()
    return ours == theirs


def unicode_normalize(text: str) -> str:
    """A normal form for every script: accents, widths, case and typographic signs folded, numbers kept.

    Kinder than the published form: ``Beyoncé`` is ``Beyonce`` and ``don’t`` is ``don't``. Stricter: ``-5``, ``3.5``
    and ``10%`` are not ``5``, ``35`` and ``10``; a hyphen parts words. Thousands separators are dropped, and the dots
    in ``U.S.``.
    """
    folded = unicodedata.normalize("NFKD", text.translate(_LOOKALIKES)).translate(_LOOKALIKES).casefold()
    # Classes below 200 are vowel signs and voicing marks, which make other letters.
    plain = "".join(c for c in folded if unicodedata.combining(c) < 200).translate(_STROKES)
    plain = _ABBREVIATION.sub(lambda match: match.group().replace(".", ""), plain)
    pieces, end = [], 0
    for number in _NUMBER.finditer(plain):
        pieces += [_words(plain[end : number.start()]), _number(number.group())]
        end = number.end()
    words = " ".join([*pieces, _words(plain[end:])]).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _words(text: str) -> str:
    """Letters, digits and marks; an apostrophe vanishes, every other sign parts words."""
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text.replace("'", ""))


def _number(text: str) -> str:
    """``1,234.50`` -> ``1234.50``: a comma between groups of three digits means nothing."""
    return re.sub(r",(?=\d{3}(?!\d))|\s", "", text).lstrip("+")
