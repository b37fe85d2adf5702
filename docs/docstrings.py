"""Our docstrings have one example each, under ``Example:``; the site sets doctests as code under ``Examples:``."""

from __future__ import annotations

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
