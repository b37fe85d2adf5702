"""The pages' one look and one script: plain files beside this one, written into every page."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def stylesheet() -> str:
    """All rules, light and dark; nothing is fetched."""
    return (ASSETS / "page.css").read_text(encoding="utf-8")


def script() -> str:
    """The transcript browser; a page without one may hold it, too."""
    return (ASSETS / "browser.js").read_text(encoding="utf-8")
