"""Where the engine must be there, its tests may not skip themselves."""

from __future__ import annotations

import os
from importlib.util import find_spec


def test_required_engine_is_installed() -> None:
    if os.environ.get("STEPOPSD_REQUIRE_ENGINE"):
        assert find_spec("textworld") is not None
        assert find_spec("alfworld") is not None
