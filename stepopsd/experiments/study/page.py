"""The page of a study: everything from its records, so that the same records give the same page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stepopsd.credit import registered
from stepopsd.experiments.report import diagnostics, sections, text
from stepopsd.experiments.report.browser import transcripts_html
from stepopsd.experiments.report.diagnostics import Chart
from stepopsd.experiments.report.load import Record, Run
from stepopsd.experiments.report.page import Section, figure, page
from stepopsd.experiments.report.recorded import Options, options_of
from stepopsd.experiments.report.summary import panels
from stepopsd.experiments.report.text import ABSENT, html, table
from stepopsd.experiments.study.kinds import kinds_section, scoring_notes
from stepopsd.experiments.study.knobs import Setting, draw_knobs, settings
from stepopsd.experiments.study.plot import draw_curves
from stepopsd.experiments.study.records import Runs, baseline_of, read_records, title_of
from stepopsd.experiments.study.table import Line, lines, says

SPREAD = (
    Chart("Std(Δ)", (("delta/std", ""),)),
    Chart("Variance of A over rows", (("advantage/variance", ""),)),
    Chart("Variance of Ã over tokens", (("shaped/variance", ""),)),
    Chart("Mean |w − 1|", (("weight/abs_change", ""),)),
    Chart("Mean change of an advantage", (("advantage/relative_change", ""),), share=True),
    Chart("Mixing coefficient λ", (("lambda", ""),)),
)


def write_study_page(records: Path, out: Path, *, probes: Sequence[Path] = ()) -> Path:
    """Write ``report.html`` and its figures as PNG.

    Args:
        records: Folder of ``write_records``.
        out: Folder for the page; made when it does not exist.
        probes: JSON files of the credit probe, shown beside the study.

    Returns:
        Path of ``report.html``, a page of less than 10 MB that needs no other file.

    Raises:
        FileNotFoundError: ``records`` lacks a file, or a probe does not exist.
        ValueError: A probe is not what the credit probe writes.
    """
    probed = "".join(map(_probe, probes))
    runs, baseline = read_records(records), baseline_of(records)
    out.mkdir(parents=True, exist_ok=True)
    found = lines(runs, baseline)
    parts = [
        Section("results", "Results", _each(runs, lambda e, m: _results(e, m, found, baseline, out))),
        Section("types", "Task types", _each(runs, lambda e, m: kinds_section(e, m, out)) + scoring_notes(runs)),
        Section("spread", "Gaps and advantages", _each(runs, lambda e, m: _spread(e, m, out))),
        Section("knobs", "Two knobs", _each(runs, lambda e, m: _knobs(e, m, baseline, out))),
        Section("cost", "Tokens and seconds", _each(runs, lambda e, m: _cost(e, m, out))),
        Section("probe", "Credit probe", probed or _NO_PROBE),
        Section("transcripts", "Transcripts", _transcripts(runs)),
        Section("provenance", "How it ran", _each(runs, lambda e, m: sections.how_it_ran(m))),
    ]
    cells = sum(len(members) for methods in runs.values() for members in methods.values())
    lead = [
        f"{cells} training runs: {', '.join(map(html, _methods(runs)))}; compared with {html(baseline)}.",
        f"Every number comes from the study's records: <code>stepopsd report {html(records.name)}</code> writes "
        "this page again.",
    ]
    path = out / "report.html"
    path.write_text(page(title_of(records), lead, parts), encoding="utf-8")
    return path


def _each(runs: Runs, section: object) -> str:
    """One part per environment, with its name where there are several."""
    assert callable(section)
    several = len(runs) > 1
    return "".join((f"<h3>{html(e)}</h3>" if several else "") + section(e, m) for e, m in runs.items())


def _methods(runs: Runs) -> list[str]:
    return list(dict.fromkeys(method for methods in runs.values() for method in methods))


def _results(environment: str, methods: dict[str, list[Run]], found: Sequence[Line], baseline: str, out: Path) -> str:
    names = panels(methods)
    path = draw_curves(methods, out / f"curves-{environment}.png", baseline=baseline) if names else None
    caption = (
        "Mean over training seeds; bands: 95 %, from three seeds on the Student interval over seeds, never narrower "
        "than the Wilson interval in which episodes of one game count for as much as they differ. Thin lines: single "
        "seeds."
    )
    parts = [figure(path, caption, absent=sections.NO_EVALUATIONS)]
    for panel in names:
        shown = [line for line in found if (line.environment, line.panel) == (environment, panel)]
        rows = [
            [html(n.method), str(n.seeds), str(n.episodes), text.rate(n.first), text.rate(n.last),
             text.points(n.difference) if n.difference else ABSENT,
             text.points(n.adjusted) if n.adjusted and n.difference else ABSENT,
             ABSENT if math.isnan(n.detectable) else f"{100 * n.detectable:.0f}"]
            for n in shown
        ]  # fmt: skip
        head = [f"{html(panel)} games", "seeds", "episodes each", "before", "after", f"minus {html(baseline)}",
                "all comparisons", "shows from"]  # fmt: skip
        said = "".join(f"<li>{html(sentence)}</li>" for sentence in says(shown, baseline))
        parts += [table(head, rows), f'<ul class="verdicts">{said}</ul>' if said else ""]
    note = (
        "Small figures: 95 % limits. The difference is paired by training seed and game, in points, at the last "
        "evaluation, never the best one; “all comparisons” allows for their number (Bonferroni); “shows from” is the "
        "true difference that a study of this size would have shown four times in five."
    )
    return "".join(parts) + f'<p class="meta">{note}</p>'


def _spread(environment: str, methods: dict[str, list[Run]], out: Path) -> str:
    squared = {method: [_with_variances(run) for run in members] for method, members in methods.items()}
    path = diagnostics.draw_charts(squared, SPREAD, out / f"spread-{environment}.png")
    caption = (
        "Per update; thin lines: single seeds. Variance of what the group's rewards give each training row, and of "
        "what the tokens are trained with after the method. Δ is known where a teacher was asked."
    )
    return figure(path, caption, absent="No run recorded gaps or advantages.")


def _with_variances(run: Run) -> Run:
    names = {"advantage/std": "advantage/variance", "shaped/std": "shaped/variance"}
    metrics = [
        {**row, **{new: float(row[old]) ** 2 for old, new in names.items() if row.get(old) is not None}}
        for row in run.metrics
    ]
    return replace(run, metrics=metrics)


def _knobs(environment: str, methods: dict[str, list[Run]], baseline: str, out: Path) -> str:
    points = {panel: settings(methods, baseline, panel) for panel in panels(methods)}
    path = draw_knobs(points, baseline, out / f"knobs-{environment}.png")
    caption = (
        "Methods of the study that differ in nothing but the two knobs: difference to the baseline at the last "
        "evaluation with its 95 % interval. Hatched: not run."
    )
    drawn = figure(path, caption, absent="No run of StepOPSD and the baseline have a seed in common.")
    known: list[Setting] = next(iter(points.values()), [])
    rows = [
        [html(p.method), f"{p.alpha:g}", f"{p.mix:g}", f"{100 * p.most:.2g} %", f"{p.saturates_at:.3g}"] for p in known
    ]
    head = ["method", "α", "λ0", "largest change λ0·α", "weight clipped from |Δ|"]
    return drawn + (table(head, rows) if rows else "")


def _cost(environment: str, methods: dict[str, list[Run]], out: Path) -> str:
    tokens = next(iter(methods.values()))[0].setting("optim.generated_tokens", 0)
    equal = "sampled tokens" if tokens else "updates"
    return sections.cost(methods, out / f"cost-{environment}.png", equal=equal)


def _transcripts(runs: Runs) -> str:
    several = len(runs) > 1
    labelled = {
        f"{environment}, {method}" if several else method: members
        for environment, methods in runs.items() for method, members in methods.items()
    }  # fmt: skip
    of_run = {id(run): methods for methods in runs.values() for members in methods.values() for run in members}
    note = (
        '<p class="meta">Both panes open with one trajectory, as GRPO and as its own run credited it. Any other method '
        "of the study, or known here, can be chosen: its own code on what the run recorded.</p>"
    )
    return note + transcripts_html(labelled, others=lambda run: _others(of_run[id(run)], run), same=True)


def _others(methods: Mapping[str, list[Run]], run: Run) -> dict[str, Options]:
    """The study's methods by their names, then every registered one that none of them is."""
    study = {method: options_of(members[0]) for method, members in methods.items()}
    plain = {name: options_of(run, name=name, control="none") for name in registered()}
    return study | {name: own for name, own in plain.items() if name not in {s["name"] for s in study.values()}}


_NO_PROBE = (
    '<p class="absent">No result of the credit probe lies beside these records (<code>credit-probe-*.json</code>).</p>'
)


def _probe(path: Path) -> str:
    """Share of credit on the turn that decided, and agreement with Monte-Carlo advantages, per method."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, list[Record]] = found["findings"]
        rows = [
            [html(kind), html(own["method"]), _share(own["share"]), _correlation(own["agreement"]), str(own["rows"])]
            for kind, members in kinds.items() for own in members
        ]  # fmt: skip
        length = int(found["setting"]["length"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result of the credit probe: {error!r}") from error
    head = ["teacher", "method", "credit on the deciding turn", "correlation with the truth", "rows"]
    picture = path.with_suffix(".png")
    caption = (
        f"Episodes of {length} turns of which exactly one, known to the environment, decides; an even spread puts "
        f"{100 / length:.0f} % of |advantage| on it. Truth: advantages from episodes re-rolled before and behind every "
        "token. 95 % bootstrap intervals over games."
    )
    drawn = figure(picture, html(caption), absent="") if picture.is_file() else f'<p class="meta">{html(caption)}</p>'
    return f"<h3>{html(path.stem)}</h3>{drawn}{table(head, rows, numeric_from=2)}"


def _share(own: Record) -> str:
    if own["estimate"] is None or math.isnan(own["estimate"]):
        return ABSENT
    return f"{100 * own['estimate']:.1f} % <small>{100 * own['low']:.0f} to {100 * own['high']:.0f}</small>"


def _correlation(own: Record) -> str:
    if own["estimate"] is None or math.isnan(own["estimate"]):
        return ABSENT
    return f"{own['estimate']:.3f} <small>{own['low']:.2f} to {own['high']:.2f}</small>"
