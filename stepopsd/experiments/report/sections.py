"""The report's sections: each takes the runs, draws what it needs and returns its HTML."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from stepopsd.experiments.report import diagnostics, plots, text
from stepopsd.experiments.report.diagnostics import Chart
from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.page import figure, provenance
from stepopsd.experiments.report.summary import (
    Comparison,
    Method,
    compare,
    differing_settings,
    evaluated_updates,
    gain,
    kind_rates,
    panels,
    success_curve,
)
from stepopsd.experiments.report.text import html, table
from stepopsd.experiments.statistics import MIN_SEEDS_FOR_SPREAD, verdict

NO_EVALUATIONS = "No evaluation episodes: evaluations.jsonl is absent or empty in every run."


def headline(methods: Method) -> str:
    """What ran, in one line of HTML."""
    run = next(iter(methods.values()))[0]
    model = Path(str(run.setting("model.path", ""))).name or "unnamed model"
    size = run.environment.get("parameters")
    updates = [int(r.metrics[-1]["update"]) for runs in methods.values() for r in runs if r.metrics]
    facts = [f"{html(model)}" + (f" ({text.amount(float(size))} parameters)" if size else "")]
    facts += [f"{html(label)} × {len(runs)} seed{'s' * (len(runs) != 1)}" for label, runs in methods.items()]
    if updates:
        span = str(max(updates)) if min(updates) == max(updates) else f"{min(updates)} to {max(updates)}"
        facts.append(f"{span} updates of {html(run.setting('rollout.groups', '?'))} games × "
                     f"{html(run.setting('rollout.group_size', '?'))} rollouts")
    for panel in panels(methods):
        games = {e["task_id"] for runs in methods.values() for r in runs for e in r.episodes if e["panel"] == panel}
        facts.append(f"{len(games)} {html(panel)} games")
    return " · ".join(facts)


def success(methods: Method, folder: Path) -> str:
    """Curves and the table of first and last evaluation."""
    path = plots.draw_success(methods, folder / "success.png")
    if path is None:
        return figure(None, "", absent=NO_EVALUATIONS)
    several = any(len(runs) >= MIN_SEEDS_FOR_SPREAD for runs in methods.values())
    bands = ("Bands: 95 % Wilson intervals of the panel's episodes, those of one game for as much as they differ; "
             "they do not cover a repeat of the training.")
    if several:
        bands = ("Bands: 95 % Student intervals over seeds where a method has three or more, else Wilson intervals of "
                 "its episodes. Thin lines: single seeds.")
    rows = []
    for panel in panels(methods):
        for label, runs in methods.items():
            updates, intervals = success_curve(runs, panel)
            if not updates:
                continue
            change = gain(runs, panel)
            rows.append([
                html(panel), html(label), str(intervals[-1].n), f"{updates[0]} → {updates[-1]}",
                text.rate(intervals[0]), text.rate(intervals[-1]), text.points(change) if change else text.ABSENT,
            ])
    head = ["panel", "method", "episodes", "updates", "first", "last", "change in points"]
    return figure(path, bands, absent="") + table(head, rows, numeric_from=2) + (
        '<p class="meta">Small figures: 95 % limits. First and last evaluation, never the best one; the change is '
        "paired by game.</p>"
    )


def kinds(methods: Method, folder: Path) -> str:
    """Success per task type at the first and the last evaluation."""
    path = plots.draw_kinds(methods, folder / "task_types.png")
    if path is None:
        return figure(None, "", absent=NO_EVALUATIONS)
    rows = []
    for panel in panels(methods):
        rates = {}
        for label, runs in methods.items():
            updates = evaluated_updates(runs, panel)
            if updates:
                rates[label] = (kind_rates(runs, panel, updates[0]), kind_rates(runs, panel, updates[-1]))
        for kind in sorted({kind for _, last in rates.values() for kind in last}, key=text.kind_order):
            for label, (first, last) in rates.items():
                if kind in last:
                    start = text.rate(first[kind]) if kind in first else text.ABSENT
                    rows.append([html(panel), html(text.kind_name(kind)), html(label), str(last[kind].n), start,
                                 text.rate(last[kind])])
    caption = "Success per task type. A type with few games has a wide interval: read single cells with care."
    head = ["panel", "task type", "method", "episodes", "first", "last"]
    return figure(path, caption, absent="") + table(head, rows, numeric_from=3)


def comparison(methods: Method, folder: Path) -> str:
    """Paired differences to the first method and what they allow to say."""
    labels = list(methods)
    if len(labels) < 2:
        return figure(None, "", absent="One method only: there is nothing to compare it with.")
    baseline, found, items, rows = labels[0], [], [], []
    for candidate in labels[1:]:
        for panel in panels(methods):
            points = compare(methods, baseline, candidate, panel)
            if not points:
                items.append(f"{candidate} and {baseline} have no training seed in common that played {panel}: "
                             "nothing can be compared.")
                continue
            found += points
            last = points[-1]
            items.append(verdict(last.difference, candidate=candidate, baseline=baseline, panel=panel,
                                 seeds=last.seeds))
            rows.append(_comparison_row(last))
    path = plots.draw_differences(found, labels, folder / "difference.png")
    caption = ("Same games, same training seeds; 95 % bootstrap intervals over games and seeds, from three seeds on "
               "no narrower than the Student interval over seeds. Each evaluation has its own interval: with many of "
               "them some exclude 0 by chance.")
    head = ["panel", "methods", "update", "difference in points", "both won", "first only", "second only", "neither"]
    verdicts = "".join(f"<li>{html(item)}</li>" for item in items)
    return (
        f'<ul class="verdicts">{verdicts}</ul>'
        + figure(path, caption, absent=NO_EVALUATIONS)
        + (table(head, rows, numeric_from=2) if rows else "")
    )


def credit(methods: Method, folder: Path) -> str:
    """Statistics of the teacher gap, the weights and the step budget."""
    delta = diagnostics.draw_charts(methods, diagnostics.DELTA, folder / "delta.png")
    steps = diagnostics.draw_charts(methods, diagnostics.STEPS, folder / "step_budget.png")
    return figure(
        delta,
        "Δ is the teacher's minus the policy's log-probability of a sampled token, over scored tokens."
        + _without(methods, diagnostics.DELTA),
        absent="No run recorded statistics of Δ (no method with a teacher, or λ was 0 throughout).",
    ) + figure(
        steps,
        "The factor that gives each step of a trajectory the same mean |Ã|, clamped to ½ … 2." +
        _without(methods, diagnostics.STEPS),
        absent="No run recorded statistics of the step budget.",
    )


def optimisation(methods: Method, folder: Path) -> str:
    """How the optimiser and the sampler behaved."""
    path = diagnostics.draw_charts(methods, diagnostics.OPTIMISATION, folder / "optimisation.png")
    caption = "Training metrics per update." + _without(methods, diagnostics.OPTIMISATION)
    return figure(path, caption, absent="No training metrics: metrics.jsonl is absent or empty in every run.")


def cost(methods: Method, path: Path, *, equal: str = "updates") -> str:
    """Time and tokens; methods are compared at something equal, so cost that is not must be in sight."""
    drawn = diagnostics.draw_cost(methods, path)
    seconds_keys = ["seconds", *(key for key, _ in diagnostics.TIME)]
    token_keys = [key for key, _ in diagnostics.TOKENS]
    reference = _mean_total(next(iter(methods.values())), "seconds")
    rows = []
    for label, runs in methods.items():
        total = _mean_total(runs, "seconds")
        ratio = total / reference if reference else math.nan
        rows.append([html(label), str(len(runs)), *(text.seconds(_mean_total(runs, key)) for key in seconds_keys),
                     text.ABSENT if math.isnan(ratio) else f"× {ratio:.2f}",
                     *(text.amount(_mean_total(runs, key)) for key in token_keys)])
    head = ["per run", "runs", "total time", "rollout", "training", "teacher", "time ratio", "tokens generated",
            "student", "teacher"]
    caption = f"Methods are compared at equal {equal}; where their bars differ they were not given equal time."
    return figure(drawn, caption, absent="Neither time nor tokens were recorded.") + table(head, rows)


def how_it_ran(methods: Method) -> str:
    """Settings that differ, commands and versions."""
    rows = [[f"<code>{html(name)}</code>", *map(html, cells)] for name, cells in differing_settings(methods)]
    settings = table(["setting", *map(html, methods)], rows, numeric_from=9) if rows else (
        '<p class="absent">The configurations do not differ, or were not recorded.</p>'
    )
    return f"<h3>Settings that differ</h3>{settings}" + provenance([run for runs in methods.values() for run in runs])


def _comparison_row(last: Comparison) -> list[str]:
    names = f"{html(last.candidate)} − {html(last.baseline)}"
    return [html(last.panel), names, str(last.update), text.points(last.difference), *map(str, last.wins)]


def _without(methods: Method, charts: tuple[Chart, ...]) -> str:
    absent = [key for chart in charts for key in diagnostics.chart_keys_absent(methods, chart)]
    return f" Not recorded: <code>{html(', '.join(absent))}</code>." if absent else ""


def _mean_total(runs: list[Run], key: str) -> float:
    totals = [run.total(key) for run in runs]
    known = [total for total in totals if not math.isnan(total)]
    return float(np.mean(known)) if known else math.nan
