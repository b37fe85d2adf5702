"""Puts the report together: one HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from stepopsd.experiments.report.load import Run
from stepopsd.experiments.report.style import script, stylesheet
from stepopsd.experiments.report.text import html


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the page; ``anchor`` is its address, ``body`` HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, lead: list[str], sections: list[Section]) -> str:
    """The whole document.

    Args:
        title: Plain text.
        lead: HTML paragraphs under the title.
        sections: In reading order.

    Returns:
        HTML without any reference to another file.
    """
    links = "".join(f'<a href="#{s.anchor}">{html(s.title)}</a>' for s in sections)
    body = "".join(f'<h2 id="{s.anchor}">{html(s.title)}</h2>{s.body}' for s in sections)
    paragraphs = "".join(f'<p class="lead">{paragraph}</p>' for paragraph in lead)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html(title)}</title><style>{stylesheet()}</style></head>"
        f'<body><main><h1>{html(title)}</h1>{paragraphs}<nav aria-label="sections">{links}</nav>{body}'
        f"</main><script>{script()}</script></body></html>\n"
    )


def figure(path: Path | None, caption: str, *, absent: str) -> str:
    """An embedded PNG with its caption, or a sentence that says what is missing.

    Args:
        path: The PNG; None when there was nothing to draw.
        caption: HTML.
        absent: Plain text shown without a figure.
    """
    if path is None:
        return f'<p class="absent">{html(absent)}</p>'
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    alternative = html(path.stem.replace("_", " "))
    image = f'<img alt="{alternative}" src="data:image/png;base64,{data}">'
    return f"<figure><div>{image}</div><figcaption>{caption}</figcaption></figure>"


def provenance(runs: list[Run]) -> str:
    """Command, versions and files per run."""
    return "".join(_run_html(run) for run in runs)


def _run_html(run: Run) -> str:
    command = run.environment.get("command", "")
    text = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    versions = " · ".join(
        f"{html(name)} {html(value)}"
        for name, value in run.environment.items()
        if name != "command" and value not in (None, "")
    )
    parts = [f"<h3>{html(run.method)}, seed {run.seed}</h3>"]
    parts.append(f"<pre>{html(text)}</pre>" if text else '<p class="absent">The command was not recorded.</p>')
    if versions:
        parts.append(f'<p class="meta">{versions}</p>')
    if run.missing:
        parts.append(f'<p class="absent">Not in {html(run.path.name)}: {html(", ".join(run.missing))}</p>')
    return "".join(parts)
