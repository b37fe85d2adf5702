"""The site builds without a warning, so every link, anchor and documented name exists; and it opens in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.chromium import document, picture, require_chromium, widths
from tests.extras import missing

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", "benchmarks/results/README.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    links = [link for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")) if ":" not in link]
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason=missing("mkdocs"))
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_every_page_and_every_method_is_on_the_site(site):
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / name.with_name("index.html") if name.stem == "README" else site / name).is_file(), source
    reference = (site / "api/ops.html").read_text(encoding="utf-8")
    for name in ("shape_advantages", "token_logprobs", "grpo_loss", "shape_and_loss", "linear_grpo_loss"):
        assert f"{name}(" in re.sub(r"<[^>]+>", "", reference), name


def test_nothing_is_fetched_from_elsewhere(site):
    for page in ("index.html", "performance.html", "api/ops.html"):
        text = (site / page).read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="((?:https?:)?//[^"]*)"', text)
        assert [address for address in loaded if address.endswith((".js", ".css", ".woff2", ".png", ".svg"))] == []


def test_the_front_page_opens(site, tmp_path):
    require_chromium()
    front = site / "index.html"
    assert "Quick start" in document(front, width=1280)
    assert widths(front, (390, 1280)) == {390: (390, 390), 1280: (1280, 1280)}
    shot = picture(front, tmp_path / "front.png", width=1280)
    assert shot.std() > 0.05, "a blank page"
