"""What a word is, for every index in this room: one definition, so that queries and passages always agree."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+")
_MARKS = re.compile("[\u0300-\u036f]+")
_LONGEST = 64  #: characters; what is longer (keys, hashes, base64) is cut here


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case, accents removed: ``Beyoncé's`` gives ``beyonce``, ``s``.

    No stemming and no stop words: names are made of common words, and the index skips what cannot matter anyway.
    """
    folded = text.lower() if text.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", text).casefold())
    return [word[:_LONGEST] for word in _WORD.findall(folded)]


def query_words(query: str, limit: int) -> list[str]:
    """The distinct words among the first ``limit`` words of a query, in the order of their first use.

    Each counts once: a generation that repeats itself asks the same question and costs no more.
    """
    return list(dict.fromkeys(words(query)[:limit]))
