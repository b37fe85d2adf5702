"""Rows in the forms in which other people keep questions, written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def flashrag(key: str, question: str, answers: list[str]) -> dict[str, Any]:
    return {"id": key, "question": question, "golden_answers": answers, "metadata": {}}


def search_r1(source: str, index: int, question: str, answers: list[str]) -> dict[str, Any]:
    return {
        **flashrag(f"train_{index}", question, answers), "data_source": source, "ability": "fact-reasoning",
        "prompt": [{"role": "user", "content": f"Rules: <answer> Beijing </answer>. Question: {question}?\n"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"split": "train", "index": index},
    }  # fmt: skip


def verl_agent(source: str, index: int, question: str, answers: list[str]) -> dict[str, Any]:
    truth = {"target": answers}
    return {
        "data_source": f"searchR1_{source}", "ability": "fact-reasoning",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": index, "need_tools_kwargs": True},
        "env_kwargs": {"ground_truth": truth, "question": question, "data_source": f"searchR1_{source}"},
    }  # fmt: skip


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Needs pyarrow; a column that cannot be stored empty is left out."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{k: v for k, v in row.items() if v != {}} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
