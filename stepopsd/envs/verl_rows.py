"""Tasks as rows of a verl data set: what the agent loop ``stepopsd`` finds in ``extra_info``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from stepopsd.envs.base import Task


def data_verl(
    out: Path, *, env: Literal["alfworld", "searchqa"] = "alfworld", data: str = "bundled",
    train: str = "train", evaluation: tuple[str, ...] = (), seed: int = 0,
) -> list[Path]:  # fmt: skip
    """Write parquet files for ``data.train_files`` and ``data.val_files`` of verl, one per split.

    Args:
        out: Folder to write.
        env: What is played.
        data: ``bundled``, or the folder of ALFWorld's games (``$ALFWORLD_DATA``) or of prepared questions
            (``stepopsd data searchqa``). It must be at the same place on every node.
        train: Split to train on.
        evaluation: Splits to validate on; none: ``seen`` and ``unseen`` of ALFWorld, every other split of a Search-QA
            folder.
        seed: Of the environments.

    Raises:
        FileNotFoundError: No such folder or split.
        ImportError: pyarrow, or the text engine of ALFWorld, is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("writing parquet needs pyarrow: pip install 'stepopsd[train]'") from error
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for split in (train, *(evaluation or _evaluation(env, data, train))):
        rows = verl_rows(_tasks(env, data, split), training=split == train, seed=seed, bundled=data == "bundled")
        path = out / f"{env}-{split}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        print(f"{path}: {len(rows):,} rows")
        written.append(path)
    return written


def verl_rows(tasks: Sequence[Task], *, training: bool, seed: int = 0, bundled: bool = False) -> list[dict[str, Any]]:
    """One row per task.

    Args:
        tasks: In order.
        training: Rows of the training split; the teacher is asked in no other.
        seed: Of the environments.
        bundled: Leave out where games are stored: every node has the bundled ones somewhere else.
    """
    rows = []
    for index, task in enumerate(tasks):
        fields = asdict(task)
        if bundled and task.env == "alfworld":
            fields["source"] = ""
        info = {
            "index": index, "split": "train" if training else task.split, "seed": seed,
            "task": json.dumps(fields, ensure_ascii=False),
        }  # fmt: skip
        rows.append(
            {
                # Only counted and filtered by verl: the loop writes its own prompts from what the environment says.
                "prompt": [{"role": "user", "content": task.task_id}],
                "data_source": f"{task.env}/{task.kind}",
                "agent_name": "stepopsd",
                "reward_model": {"style": "rule", "ground_truth": ""},
                "extra_info": info,
            }
        )
    return rows


def _tasks(env: str, data: str, split: str) -> list[Task]:
    if env == "alfworld":
        from stepopsd.envs.alfworld import list_tasks
        from stepopsd.envs.games.bundle import bundled_tasks

        return bundled_tasks(split) if data == "bundled" else list_tasks(data, split)
    from stepopsd.envs.searchqa import task_of
    from stepopsd.envs.searchqa.questions import read_questions
    from stepopsd.envs.searchqa.world import bundled_questions

    questions = bundled_questions(split) if data == "bundled" else read_questions(Path(data) / f"{split}.jsonl")
    return [task_of(question, split) for question in questions]


def _evaluation(env: str, data: str, train: str) -> tuple[str, ...]:
    if env == "alfworld":
        return ("seen", "unseen")
    if data == "bundled":
        from stepopsd.envs.searchqa.world.make import WORLD_SETS

        return WORLD_SETS
    return tuple(sorted(path.stem for path in Path(data).glob("*.jsonl") if path.stem not in (train, "corpus")))
