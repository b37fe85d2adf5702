"""What ``stepopsd data`` runs: searchqa, world. Plain functions; the command line wraps them."""

from __future__ import annotations

from pathlib import Path

from stepopsd.envs.searchqa.prepare import (
    PUBLISHED_EVALUATION,
    PUBLISHED_TRAIN,
    Prepared,
    hub_files,
    prepare,
)
from stepopsd.envs.searchqa.world import WorldConfig, make_world, write_world
from stepopsd.envs.searchqa.world.make import Level
from stepopsd.envs.searchqa.world.probe import one_search, wording_recall
from stepopsd.retrieval import open_retriever


def data_searchqa(
    out: Path, *, train: tuple[str, ...] = (), evaluation: tuple[str, ...] = (), strict: bool = False,
    skip_bad: bool = False,
) -> Prepared:  # fmt: skip
    """Prepare training and evaluation questions for ``env.search.data``.

    Args:
        out: Folder to write.
        train: Files with training questions (parquet of Search-R1 or verl-agent, FlashRAG's JSON lines), each a path
            or ``data source=path``. Without any file both parts are taken from the hub.
        evaluation: The same for evaluation; one split per data source comes of it.
        strict: Fail when a count is not the published one.
        skip_bad: Report malformed rows and leave them out, instead of stopping at the first.

    Raises:
        ValueError: A broken file, or with ``strict`` a count that differs.
        RuntimeError: No file was named and the hub cannot be reached.
    """
    if not train and not evaluation:
        files = hub_files()
        train, evaluation = (str(files["train"]),), (str(files["evaluation"]),)
    result = prepare(out, train=train, evaluation=evaluation, skip_bad=skip_bad)
    for title, counts, published in (
        ("train", result.train, PUBLISHED_TRAIN), ("evaluation", result.evaluation, PUBLISHED_EVALUATION)
    ):  # fmt: skip
        total = sum(counts.values())
        print(f"{title}: {total:,} questions (published {sum(published.values()):,})")
        for name, count in counts.items():
            told = result.overlap.get(name, 0) if title == "evaluation" else 0
            print(f"  {name:18} {count:7,}" + (f"  {told:,} are asked in train too" if told else ""))
    for line in result.differences:
        print(f"differs: {line}")
    if strict and result.differences:
        raise ValueError("counts differ from the published ones: " + "; ".join(result.differences))
    print(f"written to {out}; now: --env.name searchqa --env.search.data {out}")
    return result


def data_world(
    out: Path, *, persons: int = 120, level: Level = "easy", train: int = 400, per_set: int = 40, seed: int = 0
) -> Path:
    """Make a closed world: corpus, questions, manifest with the closed-book floors.

    Args:
        out: Folder to write.
        persons: Size of the world.
        level: ``easy``, ``medium`` or ``hard``: how much the wording of a query decides.
        train: Training questions.
        per_set: Questions of each evaluation set.
        seed: The same values give the same files, byte for byte.
    """
    world = make_world(WorldConfig(persons, level, train, per_set, seed))
    write_world(world, out)
    retriever = open_retriever(world.passages)
    recall = wording_recall(world, retriever=retriever)
    print(f"{len(world.passages):,} passages; a fact is among the best 3 for")
    print(
        f"  its subject's name {recall['name']:.2f}, a question's wording {recall['question']:.2f}, "
        f"the passage's own {recall['passage']:.2f}"
    )
    print(f"{'set':18} {'questions':>9} {'closed book':>12} {'one search':>11}")
    for name, questions in world.questions.items():
        floor, found = world.floors()[name], one_search(questions, retriever)["answer"]
        print(f"{name:18} {len(questions):9,} {floor:12.3f} {found:11.3f}")
    print(f"written to {out}; now: --env.search.data {out} --env.search.retriever {out / 'corpus.jsonl'}")
    return out
