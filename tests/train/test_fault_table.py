"""The fault table: every injected fault ends as its policy says."""

from __future__ import annotations

import pytest

from tests.train.fault_table import rows


@pytest.mark.slow
def test_every_fault_ends_as_its_policy_says(tmp_path):
    outcomes = {fault.name: outcome for fault, outcome, held in rows(tmp_path) if not held}
    assert outcomes == {}
