"""A corpus of the shape of wiki-18 by seed: passages of about 100 words with Zipf frequencies, five to an article."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCABULARY = 400_000
ARTICLE = 5  # passages
COMMON = 60  # words that a raw question is padded from


@dataclass(frozen=True)
class Query:
    """A question about one passage: rare words of it, and the common ones of any English question.

    Attributes:
        target: Id of the passage.
        raw: About nine words, four of them among the commonest.
        stopped: The same without these four.
    """

    target: str
    raw: str
    stopped: str


def spelling(ranks: np.ndarray) -> list[str]:
    """A made-up word for each frequency rank, short where it is common."""
    onsets, vowels = "b c d f g h j k l m n p r s t v w z br st".split(), "a e i o u ai ou".split()
    syllables = [a + b for a in onsets for b in vowels]
    words = []
    for rank in ranks.tolist():
        word, rest = "", rank + 1
        while rest:
            rest, digit = divmod(rest - 1, len(syllables))
            word += syllables[digit]
        words.append(word)
    return words


def write_corpus(path: Path, passages: int, *, seed: int = 0, queries: int = 2000) -> list[Query]:
    """Write ``passages`` rows in the wiki-18 layout and return queries whose answers are known.

    Words are drawn with probability ∝ 1 / (rank + 2.7); a quarter of each passage comes from its article's own 60
    words, so that passages of an article resemble each other as they do in an encyclopedia.
    """
    draw = np.random.default_rng(seed)
    words = np.array(spelling(np.arange(VOCABULARY)), dtype=object)
    weights = 1 / (np.arange(VOCABULARY) + 2.7)
    edges = np.cumsum(weights / weights.sum())
    targets = set(draw.choice(passages, min(queries, passages), replace=False).tolist())
    made = []
    with path.open("w") as out:
        for first in range(0, passages, ARTICLE):
            own = np.minimum(np.searchsorted(edges, draw.random(60)), VOCABULARY - 1)
            title = words[np.sort(own)[-3:]]  # its rarest words, as names are
            for row in range(first, min(first + ARTICLE, passages)):
                length = int(np.clip(draw.normal(96, 12), 40, 140))
                text = np.minimum(np.searchsorted(edges, draw.random(length)), VOCABULARY - 1)
                text = np.where(draw.random(length) < 0.25, own[draw.integers(0, 60, length)], text)
                out.write(
                    json.dumps({"id": str(row), "contents": f'"{" ".join(title)}"\n{" ".join(words[text])}'}) + "\n"
                )
                if row in targets:
                    distinct = np.unique(text)  # by rank: the last are the rarest
                    rare = draw.permutation(distinct[-20:])[: 3 + int(draw.integers(0, 2))]
                    middle = draw.permutation(distinct[COMMON:] if len(distinct) > COMMON else distinct)[:1]
                    sense = draw.permutation(np.unique(np.concatenate([rare, middle])))
                    padded = draw.permutation(np.concatenate([sense, draw.integers(0, COMMON, 4)]))
                    made.append(Query(str(row), " ".join(words[padded]), " ".join(words[sense])))
    return made
