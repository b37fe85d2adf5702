"""The table of a study: success with intervals, paired differences to the baseline, and what each run cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.summary import outcomes, panels, rates_by_kind, success_of
from stepopsd.experiments.report.text import amount, kind_name, kind_order, signed
from stepopsd.experiments.statistics import (
    MIN_SEEDS_FOR_SPREAD,
    Interval,
    detectable,
    paired_difference,
    success_matrix,
)
from stepopsd.experiments.study.records import Runs

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Line:
    """One method on one panel.

    Attributes:
        seeds: Training runs.
        episodes: Per run, at the last evaluation.
        first, last: Success before training and after it.
        difference: To the baseline, paired by seed and game; None for the baseline and without a common seed.
        adjusted: The same with the coverage that all comparisons of a panel have together (Bonferroni).
        detectable: True difference that would have been shown in four of five studies of this size.
        generated, student, teacher: Mean tokens per run: sampled, and forwarded by the trainer for each model.
        seconds: Mean training time per run, evaluations left out.
    """

    environment: str
    panel: str
    method: str
    seeds: int
    episodes: int
    first: Interval
    last: Interval
    difference: Interval | None
    adjusted: Interval | None
    detectable: float
    generated: float
    student: float
    teacher: float
    seconds: float

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def lines(runs: Runs, baseline: str) -> list[Line]:
    """The table's lines: environments and panels in the order of the runs, methods in the study's order.

    Args:
        runs: Of ``read_records``.
        baseline: Method that the others are compared with.
    """
    found = []
    for environment, methods in runs.items():
        for panel in panels(methods):
            others = sum(method != baseline for method in methods)
            for method, members in methods.items():
                compared = methods.get(baseline, []) if method != baseline else []
                found.append(_line(environment, panel, method, members, compared, others))
    return found


def _line(environment: str, panel: str, method: str, members: list[Run], compared: list[Run], others: int) -> Line:
    ends = [final_outcomes(run, panel) for run in members]
    starts = [outcomes(run, panel, min(_updates(run, panel))) for run in members if _updates(run, panel)]
    difference = final_difference(compared, members, panel)
    return Line(
        environment=environment, panel=panel, method=method, seeds=len(members),
        episodes=max((sum(map(len, end.values())) for end in ends), default=0),
        first=success_of(starts),
        last=success_of(ends),
        difference=difference,
        adjusted=final_difference(compared, members, panel, confidence=1 - (1 - CONFIDENCE) / max(1, others)),
        detectable=detectable(difference) if difference else math.nan,
        generated=_mean([run.total("tokens/generated") for run in members]),
        student=_mean([run.total("tokens/student") for run in members]),
        teacher=_mean([run.total("tokens/teacher") for run in members]),
        seconds=_mean([run.total("seconds") for run in members]),
    )  # fmt: skip


def final_outcomes(run: Run, panel: str) -> dict[str, list[bool]]:
    """Game -> success flags of the run's last evaluation."""
    updates = _updates(run, panel)
    return outcomes(run, panel, max(updates)) if updates else {}


def final_difference(
    baseline: Sequence[Run], candidate: Sequence[Run], panel: str, *, confidence: float = CONFIDENCE
) -> Interval | None:
    """Paired difference between the last evaluations; None without a common seed."""
    left, right = {run.seed: run for run in baseline}, {run.seed: run for run in candidate}
    common = sorted(left.keys() & right.keys())
    if not common:
        return None
    a = [final_outcomes(left[seed], panel) for seed in common]
    b = [final_outcomes(right[seed], panel) for seed in common]
    games = sorted(set.intersection(*(set(side) for side in a + b)))
    return paired_difference(success_matrix(a, games), success_matrix(b, games), confidence=confidence)


def markdown(runs: Runs, baseline: str, title: str) -> str:
    """The study's page: one table per environment and panel, one per task type, and what may be said."""
    parts = [f"# {title}", ""]
    table = lines(runs, baseline)
    for environment, methods in runs.items():
        for panel in panels(methods):
            shown = [line for line in table if (line.environment, line.panel) == (environment, panel)]
            parts += [f"## {environment}, {panel}", "", *_rows(shown), "", *says(shown, baseline), ""]
        parts += [f"## {environment}, by task type (last evaluation)", "", *_kind_rows(methods), ""]
    return "\n".join([*parts, *_legend(baseline)]) + "\n"


def _rows(shown: Sequence[Line]) -> list[str]:
    head = ["method", "seeds", "episodes each", "before", "after", "difference", "shows from", "sampled", "forwarded",
            "by the teacher", "time"]  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for line in shown:
        cells = [line.method, str(line.seeds), str(line.episodes), rate(line.first), rate(line.last),
                 points(line.difference), "–" if math.isnan(line.detectable) else f"{100 * line.detectable:.0f}",
                 amount(line.generated), amount(line.student), amount(line.teacher),
                 "–" if math.isnan(line.seconds) else f"{line.seconds / 60:.1f} min"]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def says(shown: Sequence[Line], baseline: str) -> list[str]:
    """What the panel's differences allow to say, several comparisons kept in mind."""
    compared = [line for line in shown if line.difference is not None and line.adjusted is not None]
    if not compared:
        return []
    alone = [line.method for line in compared if line.difference and not line.difference.contains(0.0)]
    together = [line for line in compared if line.adjusted and not line.adjusted.contains(0.0)]
    said = [f"Compared with {baseline}, {len(compared)} comparison{'s' * (len(compared) != 1)}:"]
    if not together:
        said.append("no method is shown to differ once the number of comparisons is allowed for.")
    for line in together:
        assert line.difference is not None
        side = "higher" if line.difference.estimate > 0 else "lower"
        said.append(f"{line.method} is {side} also when the number of comparisons is allowed for.")
    unsure = [name for name in alone if name not in {line.method for line in together}]
    if unsure:
        said.append(f"Taken alone, the interval of {', '.join(unsure)} excludes 0.")
    if min(line.seeds for line in shown) < MIN_SEEDS_FOR_SPREAD:
        said.append(f"Fewer than {MIN_SEEDS_FOR_SPREAD} seeds: nothing here says how another training run would end.")
    return [" ".join(said)]


def _kind_rows(methods: dict[str, list[Run]]) -> list[str]:
    names = panels(methods)
    kinds = sorted({e["kind"] for runs in methods.values() for run in runs for e in run.episodes}, key=kind_order)
    rows = ["| panel | method | " + " | ".join(map(kind_name, kinds)) + " |", "|---|---|" + "---:|" * len(kinds)]
    for panel in names:
        for method, runs in methods.items():
            found = rates_by_kind([last_episodes(run, panel) for run in runs])
            cells = [rate(found[kind]) if kind in found else "–" for kind in kinds]
            rows.append(f"| {panel} | {method} | " + " | ".join(cells) + " |")
    return rows


def _legend(baseline: str) -> list[str]:
    return [
        "Success in per cent with 95 % limits: from three seeds on the Student interval over training runs, never "
        "narrower than the Wilson interval in which episodes of one game count for as much as they differ. Difference: "
        "percentage points to "
        f"{baseline} at the last evaluation, paired by training seed and game, 95 % cluster bootstrap over games and "
        "seeds, from three seeds on never narrower than the Student interval over seeds. Shows from: the true "
        "difference in points that a study of this size would have shown with probability 0.8. Sampled, forwarded, by "
        "the teacher: mean tokens per run. Time: training without evaluations, per run.",
    ]


def rate(interval: Interval) -> str:
    """A success rate in per cent with its limits."""
    if math.isnan(interval.estimate):
        return "–"
    return f"{100 * interval.estimate:.1f} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def points(interval: Interval | None) -> str:
    """A difference in percentage points with its limits."""
    if interval is None or math.isnan(interval.estimate):
        return "–"
    low, high = signed(100 * interval.low, 1), signed(100 * interval.high, 1)
    return f"{signed(100 * interval.estimate, 1)} ({low} to {high})"


def _updates(run: Run, panel: str) -> list[int]:
    return sorted({e["update"] for e in run.episodes if e["panel"] == panel})


def last_episodes(run: Run, panel: str) -> list[dict[str, Any]]:
    updates = _updates(run, panel)
    return [e for e in run.episodes if updates and e["panel"] == panel and e["update"] == updates[-1]]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
