"""What a page holds, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def browser_data(page: str | Path) -> Any:
    """The transcript browser's data."""
    text = page if isinstance(page, str) else page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="transcript-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None, "the page has no transcript data"
    return json.loads(found.group(1))
