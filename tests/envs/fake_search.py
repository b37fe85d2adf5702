"""Retrievers that say what they are told, count what they are asked, and fail on demand."""

from __future__ import annotations

from collections.abc import Sequence

from stepopsd.envs.base import Task
from stepopsd.envs.searchqa import Question, make_question, task_of
from stepopsd.retrieval import Passage, RetrieverError

EMMA = make_question("7", "nq", "who wrote emma", ["Jane Austen"], support=("p1",))
PASSAGES = [
    Passage("p1", "Emma (novel)", "Emma is a novel by Jane Austen , published in 1815 ."),
    Passage("p2", "Emma Stone", "Emma Stone is an actress ."),
    Passage("p3", "Emma Watson", "Emma Watson is an actress ."),
    Passage("p4", "Emma Thompson", "Emma Thompson is an actress ."),
]


class FakeRetriever:
    """Answers every query with the same passages; ``broken`` queries fail, alone or with their whole batch."""

    def __init__(self, passages: Sequence[Passage] = PASSAGES, *, broken: str = "", partial: bool = False) -> None:
        self.passages, self.broken, self.partial = list(passages), broken, partial
        self.batches: list[list[str]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.batches.append(list(queries))
        if self.broken and any(self.broken in query for query in queries):
            known = [None if self.broken in query else self.passages[:k] for query in queries]
            raise RetrieverError("503 from http://127.0.0.1:8000/retrieve", known if self.partial else None)
        return [self.passages[:k] for _ in queries]


def task(question: Question = EMMA) -> Task:
    return task_of(question, "train")
