"""The page in a real browser: its script runs, tokens are coloured and named, nothing sticks out, light and dark."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from stepopsd.experiments.report import write_report
from tests.experiments.chromium import document, picture, require_chromium, widths
from tests.experiments.synthetic_runs import REPLY, write_run

PHONE, DESKTOP = 390, 1280


class Rendered(HTMLParser):
    """Attributes of the document and its tokens: (classes, title, text) per pane."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.root: dict[str, str | None] = {}
        self.ready = ""
        self.panes: list[list[list[str]]] = []
        self._into = ""
        self.readout = re.search(r'data-part="readout".*?</div>', source, re.DOTALL)[0]
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        classes = (given.get("class") or "").split()
        self._into = ""
        if tag == "html":
            self.root = given
        if given.get("id") == "browser":
            self.ready = given.get("data-ready") or ""
        if "pane" in classes:
            self.panes.append([])
        if "t" in classes and self.panes:
            self.panes[-1].append([given["class"] or "", given.get("title") or "", ""])
            self._into = "token"

    def handle_data(self, data):
        if self._into == "token":
            self.panes[-1][-1][2] += data

    def handle_endtag(self, tag):
        if self._into == "token":
            self._into = ""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    require_chromium()
    root = tmp_path_factory.mktemp("page")
    runs = {
        "GRPO": [write_run(root / "grpo", method="grpo", updates=4, every=2, games=6)],
        "StepOPSD": [write_run(root / "step", updates=4, every=2, games=6)],
    }
    return write_report(runs, root / "report", title="Two runs")


def test_nothing_sticks_out_from_phone_to_desktop(page):
    rooms = (320, PHONE, 768, DESKTOP)
    assert widths(page, rooms) == {room: (room, room) for room in rooms}


@pytest.mark.parametrize(("width", "dark"), [(500, True), (DESKTOP, False)])
def test_page_opens_with_coloured_transcripts(page, width, dark):
    shown = Rendered(document(page, width=width, dark=dark))
    assert "data-script-error" not in shown.root
    assert shown.ready == "yes"
    assert [len(pane) for pane in shown.panes] == [6 * 12, 9 * 12], "a won member of 6 steps, a lost one of 9"
    for pane in shown.panes:
        assert "".join(text for _, _, text in pane[:12]) == "".join(REPLY)
        assert all(re.match(r"A [+−]\d\.\d{4}  Ã [+−]\d\.\d{4}  w \d\.\d{4}  Δ", title) for _, title, _ in pane)
        assert sum("out" in classes.split() for classes, _, _ in pane) == 7 * len(pane) // 12
        assert any("plus" in classes or "minus" in classes for classes, _, _ in pane)
    assert shown.root["data-colour"].startswith("rgba(" if not dark else "rgb")
    assert float(shown.root["data-strength"]) == (0.62 if dark else 0.6)
    assert "log p" in shown.readout, "arrow keys show a token's numbers"


def test_address_selects_trajectory_method_and_colour(page):
    shown = Rendered(document(page, width=DESKTOP, address="#t=1.2.delta.1.0.1.2"))
    trained, grpo = shown.panes
    assert len(trained) == len(grpo) == 9 * 12
    gaps = [float(re.search(r"Δ ([+−]?[\d.]+)", title)[1].replace("−", "-")) for _, title, _ in trained]
    signs = [("plus" in classes) - ("minus" in classes) for classes, _, _ in trained]
    assert all(sign in (0, np.sign(gap)) for gap, sign in zip(gaps, signs, strict=True))
    assert sum(map(abs, signs)) > 20
    for (_, one, _), (_, other, _) in zip(trained, grpo, strict=True):
        plain, shaped = re.match(r"A (\S+)  Ã (\S+)", other).groups()
        assert plain == shaped, "GRPO leaves every advantage as it is"
        assert one.startswith(f"A {plain}  ")


@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (DESKTOP, True)])
def test_picture_is_not_blank(page, tmp_path, width, dark):
    image = picture(page, tmp_path / "page.png", width=width, dark=dark, address="#t=1.0.shaped.0.0.1.0")
    assert image.shape[:2] == (900, width)
    paper = np.median(image.reshape(-1, 3), axis=0)
    assert (paper.mean() < 0.2) == dark
    marked = (np.abs(image - paper).max(axis=2) > 0.15).mean()
    assert 0.02 < marked < 0.7
    assert len(np.unique((image * 15).astype(int).reshape(-1, 3), axis=0)) > 20
