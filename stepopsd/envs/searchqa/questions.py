"""Questions as plain records, and as tasks that carry everything an episode needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepopsd.envs.base import Task
from stepopsd.envs.searchqa.scoring import golden_answers

ENV = "searchqa"
#: The seven evaluation sets in the order of the published tables.
EVALUATION_SETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
#: Other people's names of the same sets.
ALIASES = {"2wiki": "2wikimultihopqa", "2wikimqa": "2wikimultihopqa", "hotpot": "hotpotqa", "nq_open": "nq",
           "trivia_qa": "triviaqa", "tqa": "triviaqa"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        question_id: Unique within its data source; a position in a file is no identity.
        data_source: Name of the data set, e.g. ``nq``.
        question: Its words, ending in a question mark.
        golden_answers: All accepted answers, at least one.
        hops: Searches that a reader needs, where that is known; 0 otherwise.
        support: Ids of the passages that hold the evidence, where they are known.
    """

    question_id: str
    data_source: str
    question: str
    golden_answers: tuple[str, ...]
    hops: int = 0
    support: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What makes it this question: groups of rollouts are told apart by this and nothing else."""
        return self.data_source, self.question_id


def make_question(
    question_id: Any, data_source: Any, question: Any, answers: Any, *, hops: int = 0, support: Sequence[str] = ()
) -> Question:
    """A checked record: names in one spelling, the question stripped and ending in a question mark.

    Raises:
        ValueError: Something is missing or blank; the message says which.
    """
    source = source_name(data_source)
    for name, value in (("question_id", question_id), ("question", question)):
        if value is None or not str(value).strip():
            raise ValueError(f"{source}: {name} must not be blank, got {value!r}")
    words = " ".join(str(question).split())
    words = words if words.endswith("?") else words + "?"
    return Question(str(question_id).strip(), source, words, golden_answers(answers), hops, tuple(support))


def source_name(name: Any) -> str:
    """Our spelling of a data source: ``searchR1_nq`` (verl-agent) and ``nq_open`` are ``nq``."""
    text = str(name or "").strip().lower().removeprefix("searchr1_")
    if not text:
        raise ValueError(f"data_source must not be blank, got {name!r}")
    return ALIASES.get(text, text)


def task_of(question: Question, split: str) -> Task:
    """The question as a task; its id names the split, the data source and the question, never a position."""
    source = json.dumps({k: v for k, v in asdict(question).items() if v}, ensure_ascii=False)
    return Task(f"{split}/{question.data_source}/{question.question_id}", ENV, question.data_source, split, source)


def question_of(task: Task) -> Question:
    """The question inside a task.

    Raises:
        ValueError: The task carries no question.
    """
    try:
        return from_record(json.loads(task.source))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{task.task_id}: the task carries no question ({error}); make it with task_of") from error


def from_record(record: dict[str, Any]) -> Question:
    """A question from what ``write_questions`` writes, one object a line."""
    return make_question(
        record["question_id"], record["data_source"], record["question"], record["golden_answers"],
        hops=record.get("hops", 0), support=record.get("support", ()),
    )  # fmt: skip


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            file.write(json.dumps({k: v for k, v in asdict(question).items() if v}, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_questions(path: Path) -> list[Question]:
    """What ``write_questions`` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A broken line, or two questions with one id; the message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prepared questions at {path}; `stepopsd data searchqa` or `data world` makes them")
    found: list[Question] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                found.append(from_record(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not a prepared question ({error})") from error
    require_distinct(found, str(path))
    return found


def require_distinct(questions: Iterable[Question], where: str) -> None:
    """Raises ValueError when two questions share data source and id, which would merge their groups."""
    seen: set[tuple[str, str]] = set()
    for question in questions:
        if question.key in seen:
            raise ValueError(f"{where}: two questions of {question.data_source} have the id {question.question_id!r}")
        seen.add(question.key)
