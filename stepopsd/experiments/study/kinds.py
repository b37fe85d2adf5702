"""A study's table by task type or question set, and published figures below it, each with how it was scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from stepopsd.experiments.published import AVERAGE, SCORED, Published, published
from stepopsd.experiments.report import plots, sections, text
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.page import figure
from stepopsd.experiments.report.summary import macro_of, panels, rates_by_kind, success_of
from stepopsd.experiments.report.text import ABSENT, html, table
from stepopsd.experiments.search_table import batch_means
from stepopsd.experiments.statistics import Interval
from stepopsd.experiments.study.records import Runs
from stepopsd.experiments.study.table import final_outcomes, last_episodes

#: Key of ``SCORED`` for means over validation batches.
BATCH_MEAN = "c"
_NAMES = {"all": "all", AVERAGE: "mean of sets", "2wikimultihopqa": "2wiki"}


def kinds_section(environment: str, methods: dict[str, list[Run]], out: Path) -> str:
    """Figure and tables of one environment.

    Args:
        environment: Its name, for the figure's file.
        methods: Of ``read_records``.
        out: Folder for the figure.
    """
    path = plots.draw_kinds(methods, out / f"task_types-{environment}.png")
    known = published(_world(methods))
    found = {(method, panel): _rates(runs, panel) for panel in panels(methods) for method, runs in methods.items()}
    kinds = sorted({k for own in found.values() for k in own} - {"all", AVERAGE}, key=text.kind_order)
    named = _columns(known)
    together = bool(kinds) and set(kinds) <= set(named)
    order = [k for k in named if k in kinds] if together else kinds
    averages = [AVERAGE, "all"] if any(AVERAGE in own for own in found.values()) else ["all"]
    columns = [*order, *averages]
    rows = list(_own_rows(found, methods, columns))
    drawn = figure(path, "Ring: first evaluation, filled: last, bar: 95 % interval of the last.",
                   absent=sections.NO_EVALUATIONS)  # fmt: skip
    if together:
        return drawn + _table(columns, rows, [_quoted(row, columns) for row in known])
    body = drawn + _table(columns, rows, [])
    if known:
        body += "<p>Published figures on the tasks that these are built after:</p>"
        body += _table(named, [], [_quoted(row, named) for row in known])
    return body


def scoring_notes(runs: Runs) -> str:
    """How the figures of the tables were scored, this study's first."""
    used = {key for methods in runs.values() for row in published(_world(methods)) for key in row.scored}
    first = next(run for methods in runs.values() for members in methods.values() for run in members)
    temperature = first.setting("eval.temperature")
    own = (
        "This study: per cent with 95 % limits, fixed panels, the last evaluation of every seed"
        + (f", sampled at temperature {temperature:g}" if isinstance(temperature, (int, float)) else "")
        + ". Its model and games are its own: published figures stand beside it for orientation, not for comparison."
    )
    notes = "".join(f"<li><sup>{key}</sup> {html(SCORED[key])}</li>" for key in sorted(used))
    return f'<p class="meta">{html(own)}</p>' + (f'<ul class="meta">{notes}</ul>' if notes else "")


def _own_rows(
    found: dict[tuple[str, str], dict[str, Interval]], methods: dict[str, list[Run]], columns: Sequence[str]
) -> Iterator[list[str]]:
    """One row per panel and method; below it the same by batch means where the environment has published ones."""
    for (method, panel), own in found.items():
        place = f"this study, {html(panel)} {'questions' if AVERAGE in own else 'games'}"
        yield [html(method), place, "", *(_cell(own[k]) if k in own else ABSENT for k in columns)]
        means = _batch_means(methods[method], panel) if AVERAGE in own else {}
        if means:
            cells = [f"{100 * means[k]:.1f}" if k in means else ABSENT for k in columns]
            yield [html(method), f"{place}, batch means", f"<sup>{BATCH_MEAN}</sup>", *cells]


def _rates(runs: Sequence[Run], panel: str) -> dict[str, Interval]:
    """Task type -> success at the last evaluation, with ``all``; of question sets with their plain mean."""
    played = [last_episodes(run, panel) for run in runs]
    rates = rates_by_kind(played)
    rates["all"] = success_of([final_outcomes(run, panel) for run in runs])
    if runs[0].setting("env.name") == "searchqa":
        rates[AVERAGE] = macro_of(played)
    return rates


def _batch_means(runs: Sequence[Run], panel: str) -> dict[str, float]:
    """Question set -> mean over seeds of what published tables would print; empty where questions came twice."""
    seeds = [batch_means(last_episodes(run, panel)) for run in runs]
    if not all(seeds):
        return {}
    means = {kind: fmean(seed[kind] for seed in seeds) for kind in seeds[0] if all(kind in seed for seed in seeds)}
    return {**means, AVERAGE: fmean(means.values())} if means else {}


def _table(columns: Sequence[str], rows: list[list[str]], quoted: list[list[str]]) -> str:
    head = ["method", "measured on", "scored", *(html(_NAMES.get(c, text.kind_name(c))) for c in columns)]
    return table(head, [*rows, *quoted], numeric_from=3, quoted_from=len(rows), tight=True)


def _quoted(row: Published, columns: Sequence[str]) -> list[str]:
    cells = []
    for name in columns:
        value = row.values.get(name)
        corrected = (row.corrected or {}).get(name)
        cell = ABSENT if value is None else f"{value:.1f}"
        cells.append(cell + (f" <small>[{corrected:.1f}]</small>" if corrected is not None else ""))
    scored = "".join(f"<sup>{html(key)}</sup>" for key in row.scored)
    return [html(row.method), f"{html(row.model)} <small>{html(row.source)}</small>", scored, *cells]


def _columns(known: Sequence[Published]) -> list[str]:
    return list(dict.fromkeys(name for row in known for name in row.values))


def _cell(rate: Interval) -> str:
    return f"{100 * rate.estimate:.1f} <small>{100 * rate.low:.0f}–{100 * rate.high:.0f}</small>"


def _world(methods: dict[str, list[Run]]) -> str:
    return str(next(iter(methods.values()))[0].setting("env.name", ""))
