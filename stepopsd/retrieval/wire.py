"""The Search-R1 API on the wire: POST /retrieve in its two dialects, and how passages look in an answer.

Batch dialect (Search-R1):              {"queries": [...], "topk": 3, "return_scores": true}
Single dialect (verl-agent, SkyRL-gym): {"query": "...",   "topk": 3, "return_scores": true}

Both are answered by {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}, one inner list per query;
without return_scores an inner list holds the bare documents. Servers add fields to a document and leave ids out, so
only "contents", or "title" and "text", is relied on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

from stepopsd.retrieval.base import MAX_QUERY_WORDS, Passage
from stepopsd.retrieval.corpus import join_contents, parse_passage

MAX_QUERY_CHARS = 4096


class Dialect(str, Enum):
    """How a server wants to be asked."""

    BATCH = "queries"
    SINGLE = "query"


def clip_query(query: str, words: int = MAX_QUERY_WORDS) -> str:
    """What of a query is sent: its first words, single spaces, at most ``MAX_QUERY_CHARS``, valid Unicode."""
    return " ".join(query.split()[:words])[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode("utf-8")


def encode_request(dialect: Dialect, queries: Sequence[str], k: int) -> bytes:
    """The body of one request; the single dialect takes one query."""
    asked = list(queries) if dialect is Dialect.BATCH else queries[0]
    return json.dumps({dialect.value: asked, "topk": k, "return_scores": True}).encode()


def encode_answer(answers: Sequence[Sequence[Passage]], *, scores: bool) -> bytes:
    """The body of an answer."""
    result = [[_hit(passage, scores) for passage in passages] for passages in answers]
    return json.dumps({"result": result}, ensure_ascii=False).encode()


def decode_answer(body: bytes, queries: int, k: int) -> list[list[Passage]]:
    """The passages of an answer to ``queries`` queries, at most ``k`` each.

    Raises:
        ValueError: it is not an answer of this API, or not to this many queries.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"the answer is not JSON: {_shortened(body)}") from None
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list) or not all(isinstance(hits, list) for hits in result):
        raise ValueError(f'the answer has no "result" that is a list of lists: {_shortened(body)}')
    if len(result) != queries:
        raise ValueError(f"the answer holds {len(result)} results for {queries} queries")
    return [[_read_hit(hit) for hit in hits[:k]] for hits in result]


def _hit(passage: Passage, scores: bool) -> dict[str, Any]:
    document = {
        "id": passage.id,
        "contents": join_contents(passage),
        "title": passage.title,
        "text": passage.text,
    }
    return {"document": document, "score": passage.score} if scores else document


def _read_hit(hit: Any) -> Passage:
    document = hit.get("document", hit) if isinstance(hit, dict) else None
    score = hit.get("score", 0.0) if isinstance(hit, dict) else None
    if not isinstance(document, dict) or isinstance(score, bool) or not isinstance(score, (int, float)):
        raise ValueError(f'a result must be {{"document": {{...}}, "score": number}}, got {str(hit)[:200]!r}')
    if not math.isfinite(score):
        raise ValueError(f"a result's score must be finite, got {score}")
    if document.get("id") is None:  # some servers send none; the content then names the passage
        content = str(document.get("contents", document))
        document = document | {"id": "sha1-" + hashlib.sha1(content.encode("utf-8", "replace")).hexdigest()[:16]}
    try:
        return replace(parse_passage(document), score=float(score))
    except ValueError as error:
        raise ValueError(f"a result is no passage: {error}") from None


def _shortened(body: bytes) -> str:
    return repr(body[:200].decode("utf-8", "replace"))
