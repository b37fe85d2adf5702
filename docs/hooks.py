"""The site's own rule: a page may link to any file of the repository, and the site carries what is linked to.

The same Markdown then works in a checkout and on the site. Files outside ``docs/`` keep their path in the repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Carry every file that a page links to, and every file that those link to."""
    waiting = [DOCS / page.src_uri for page in files.documentation_pages()]
    waiting += [ROOT / uri for uri in _outside(config["nav"])]
    seen: set[Path] = set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if not source.is_relative_to(DOCS):
            files.append(File.generated(config, source.relative_to(ROOT).as_posix(), abs_src_path=str(source)))
        if source.suffix == ".md":
            waiting += [target for target in _targets(source) if target.is_file()]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links between the two trees, as they are on the site; a link to nothing stays as it is and fails the build."""
    uri = page.file.src_uri
    source = DOCS / uri if (DOCS / uri).is_file() else ROOT / uri

    def moved(match: re.Match[str]) -> str:
        target = _resolve(source, match[2])
        if target is None or not target.is_file():
            return match[0]
        link = os.path.relpath(_site_path(target), Path(uri).parent)
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    return _LINK.sub(moved, markdown)


def _site_path(source: Path) -> Path:
    return source.relative_to(DOCS if source.is_relative_to(DOCS) else ROOT)


def _targets(source: Path) -> list[Path]:
    found = (_resolve(source, match[2]) for match in _LINK.finditer(source.read_text(encoding="utf-8")))
    return [target for target in found if target is not None]


def _resolve(source: Path, link: str) -> Path | None:
    """The file of the repository that a link means; None for addresses."""
    if ":" in link or link.startswith("/"):
        return None
    target = (source.parent / link).resolve()
    return target if target.is_relative_to(ROOT) else None


def _outside(nav: Any) -> Iterator[str]:
    """Entries of the navigation that are not below ``docs/``."""
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else [nav]:
        if not isinstance(entry, str):
            yield from _outside(entry)
        elif not (DOCS / entry).is_file() and (ROOT / entry).is_file():
            yield entry
