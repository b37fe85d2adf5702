"""Questions answered with a search engine: protocol, scoring, data, and a closed world of our own."""

from __future__ import annotations

from stepopsd.envs.searchqa.env import SearchPool, SearchQAEnv, SearchRules
from stepopsd.envs.searchqa.protocol import SearchPrompting, parse_response
from stepopsd.envs.searchqa.questions import EVALUATION_SETS, Question, make_question, question_of, task_of
from stepopsd.envs.searchqa.scoring import METRICS, Scores, score_answer

__all__ = [
    "EVALUATION_SETS",
    "METRICS",
    "Question",
    "Scores",
    "SearchPool",
    "SearchPrompting",
    "SearchQAEnv",
    "SearchRules",
    "make_question",
    "parse_response",
    "question_of",
    "score_answer",
    "task_of",
]
