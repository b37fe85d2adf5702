"""The page of a study: everything from its records, so that the same records give the same page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stepopsd.credit import registered
from stepopsd.experiments.published import SCORED, Published, published
from stepopsd.experiments.report import diagnostics, plots, sections, text
from stepopsd.experiments.report.browser import transcripts_html
from stepopsd.experiments.report.diagnostics import Chart
from stepopsd.experiments.report.load import Record, Run
from stepopsd.experiments.report.page import Section, figure, page
from stepopsd.experiments.report.recorded import Options, options_of
from stepopsd.experiments.report.summary import panels
from stepopsd.experiments.report.text import ABSENT, html, table
from stepopsd.experiments.statistics import Interval, success_by_kind, success_interval
from stepopsd.experiments.study.knobs import Setting, draw_knobs, settings
from stepopsd.experiments.study.plot import draw_curves
from stepopsd.experiments.study.records import Runs, baseline_of, read_records, title_of
from stepopsd.experiments.study.table import Line, last_episodes, lines, says

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
        Section("types", "Task types", _each(runs, lambda e, m: _kinds(e, m, out)) + _scoring(runs)),
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
    path = draw_curves(methods, out / f"curves-{environment}.png") if names else None
    caption = (
        "Mean over training seeds; bands: 95 %, from three seeds on the Student interval over seeds, never narrower "
        "than the Wilson interval of the episodes. Thin lines: single seeds."
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


def _kinds(environment: str, methods: dict[str, list[Run]], out: Path) -> str:
    path = plots.draw_kinds(methods, out / f"task_types-{environment}.png")
    found = {panel: _rates(methods, panel) for panel in panels(methods)}
    kinds = sorted({k for rows in found.values() for own in rows.values() for k in own} - {"all"}, key=text.kind_order)
    known = published(_world(methods))
    columns = [*kinds, "all"]
    together = bool(kinds) and all(set(kinds) <= set(_columns(known)) for _ in known[:1])
    if together and known:
        columns = [name for name in _columns(known) if name in kinds or name == "all"]
    rows = [
        [html(method), f"this study, {html(panel)} games", "", *(own.get(kind, ABSENT) for kind in columns)]
        for panel, methods_ in found.items() for method, own in methods_.items()
    ]  # fmt: skip
    quoted = [_quoted(row, columns if together else _columns(known)) for row in known]
    caption = "Ring: first evaluation, filled: last, bar: 95 % interval of the last."
    drawn = figure(path, caption, absent=sections.NO_EVALUATIONS)
    if together:
        return drawn + _kind_table(columns, rows, quoted)
    body = drawn + _kind_table(columns, rows, [])
    if quoted:
        body += "<p>Published figures on the tasks that these are built after:</p>"
        body += _kind_table(_columns(known), [], quoted)
    return body


def _kind_table(columns: Sequence[str], rows: list[list[str]], quoted: list[list[str]]) -> str:
    names = {"all": "all", "2wikimultihopqa": "2wiki"}
    head = ["method", "measured on", "scored", *(html(names.get(c, text.kind_name(c))) for c in columns)]
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


def _rates(methods: dict[str, list[Run]], panel: str) -> dict[str, dict[str, str]]:
    """Method -> task type -> success at the last evaluation, with ``all``."""
    rows = {}
    for method, members in methods.items():
        chosen = [last_episodes(run, panel) for run in members]
        flags = [[bool(e["success"]) for e in run] for run in chosen]
        own = success_by_kind([[e["kind"] for e in run] for run in chosen], flags)
        rows[method] = {kind: _cell(rate) for kind, rate in {**own, "all": success_interval(flags)}.items()}
    return rows


def _cell(rate: Interval) -> str:
    return f"{100 * rate.estimate:.1f} <small>{100 * rate.low:.0f}–{100 * rate.high:.0f}</small>"


def _scoring(runs: Runs) -> str:
    """How the figures of the table were scored, this study's first."""
    used = {key for methods in runs.values() for row in published(_world(methods)) for key in row.scored}
    settings_ = next(run for methods in runs.values() for members in methods.values() for run in members)
    temperature = settings_.setting("eval.temperature")
    own = (
        "This study: per cent with 95 % limits, fixed panels, the last evaluation of every seed"
        + (f", sampled at temperature {temperature:g}" if isinstance(temperature, (int, float)) else "")
        + ". Its model and games are its own: published figures stand beside it for orientation, not for comparison."
    )
    notes = "".join(f"<li><sup>{key}</sup> {html(SCORED[key])}</li>" for key in sorted(used))
    return f'<p class="meta">{html(own)}</p>' + (f'<ul class="meta">{notes}</ul>' if notes else "")


def _world(methods: dict[str, list[Run]]) -> str:
    return str(next(iter(methods.values()))[0].setting("env.name", ""))


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
