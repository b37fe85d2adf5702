"""How much the wording of a query decides in a world: recall of the first fact, and what one search can solve."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stepopsd.envs.searchqa.questions import Question
from stepopsd.envs.searchqa.scoring import contains
from stepopsd.envs.searchqa.world.make import World, draw_facts, tell
from stepopsd.envs.searchqa.world.relations import RELATIONS
from stepopsd.retrieval import Retriever, open_retriever


def wording_recall(
    world: World, *, sample: int = 300, k: int = 3, retriever: Retriever | None = None
) -> dict[str, float]:
    """Share of facts whose passage is among the best ``k``, by how one asks.

    Args:
        world: Its facts are drawn again from its configuration.
        sample: Facts to try.
        k: Passages that count.
        retriever: Over the world's passages; exact BM25 unless given.

    Returns:
        ``name`` (the subject alone), ``question`` (a question's wording), ``passage`` (the corpus's own words) and
        ``no_name`` (the corpus's words without the subject), each in [0, 1].
    """
    facts = draw_facts(world.config)
    tell(world.config, facts)
    chosen = random.Random("probe").sample(sorted(facts.values), min(sample, len(facts.values)))
    searcher = retriever or open_retriever(world.passages)
    found = {}
    for how in ("name", "question", "passage", "no_name"):
        queries = [_words(how, key, subject) for key, subject in chosen]
        hits = searcher.search(queries, k)
        right = [facts.told_in[fact] in {p.id for p in hit} for fact, hit in zip(chosen, hits, strict=True)]
        found[how] = sum(right) / len(right)
    return found


def one_search(questions: Sequence[Question], retriever: Retriever, *, k: int = 3) -> dict[str, float]:
    """What searching for the question itself brings.

    Returns:
        ``support``: share of questions with all of their passages among the best ``k``; ``answer``: share with a
        golden answer in the text of these. A yes or no counts as found.
    """
    hits = retriever.search([q.question for q in questions], k)
    support = answer = 0
    for question, hit in zip(questions, hits, strict=True):
        support += set(question.support) <= {p.id for p in hit}
        text = " ".join(f"{p.title} {p.text}" for p in hit)
        answer += any(a in ("yes", "no") or contains(text, a) for a in question.golden_answers)
    return {"support": support / len(questions), "answer": answer / len(questions)}


def _words(how: str, key: str, subject: str) -> str:
    relation = RELATIONS[key]
    told = relation.tells[0].format(s=subject, o="")
    return {
        "name": subject,
        "question": relation.asks[0].format(s=subject),
        "passage": told,
        "no_name": told.replace(subject, ""),
    }[how]
