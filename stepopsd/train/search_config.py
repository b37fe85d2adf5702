"""The ``env.search`` section: what an episode of Search-QA allows; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from stepopsd.options.checks import PositiveFloat, PositiveInt, Share, check_fields, within


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Question answering with searches (``env.name: searchqa``).

    Attributes:
        data: Folder with prepared questions, ``<split>.jsonl`` each (``stepopsd data``); "bundled" for the small
            closed world that ships with the package. Environment variables are filled in.
        retriever: Where searches go, see ``retrieval.open_retriever``; "bundled" for that world's passages.
        corpus: Refuse an index that was not made from this file; empty for no check.
        encoder: Of a dense index, where it is not where it was when the index was built; the same weights are required.
        encoder_device: Where the encoder of a dense index turns questions into vectors, e.g. "cpu" or "cuda:1".
        timeout_s: Longest wait for one answer of a server.
        deadline_s: Longest wait for the searches of one turn, tries and pauses included.
        top_k: Passages per search.
        max_searches: Turns in which the policy may search.
        final_answer_turn: One more turn after these, in which nothing but an answer counts. Search-R1: 4 and true;
            verl-agent: 4 and false, so four model calls in all. ``env.max_steps`` plays no part.
        query_words: Longer queries are cut.
        observation_tokens: Longest block of passages of one search, in whole passages; 0 for no bound of its own.
        metric: The reward; success is exact match whatever it is.
        stop_at_action: Drop what is sampled after a closed action, as stop strings do. Without it a response is
            trained on as a whole, and a second action makes it invalid (verl-agent).
        max_infra_share: Stop the run when more than this share of the episodes played together lost the retriever.
    """

    data: str = "bundled"
    retriever: str = "bundled"
    corpus: str = ""
    encoder: str = ""
    encoder_device: str = "cpu"
    timeout_s: PositiveFloat = 10.0
    deadline_s: PositiveFloat = 60.0
    top_k: Annotated[int, within(1, 100)] = 3
    max_searches: Annotated[int, within(0, 1000)] = 4
    final_answer_turn: bool = True
    query_words: PositiveInt = 64
    observation_tokens: Annotated[int, within(0, 1 << 20)] = 500
    metric: Literal["em", "f1", "sub_em", "unicode_em"] = "em"
    stop_at_action: bool = True
    max_infra_share: Share = 0.05

    def __post_init__(self) -> None:
        check_fields("env.search", self)
        if not self.max_searches and not self.final_answer_turn:
            raise ValueError("env.search.max_searches is 0 and env.search.final_answer_turn false: no turn is left")
