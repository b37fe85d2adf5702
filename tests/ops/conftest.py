"""Backends as test parameters: one that this machine lacks is skipped with the reason that dispatch gives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from stepopsd.ops import dispatch


@dataclass(frozen=True)
class BackendUnderTest:
    """A backend and the device its tensors must be on."""

    name: str
    device: str


@pytest.fixture(params=dispatch.BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    name = str(request.param)
    device = "cuda" if name == "cuda" or (name == "triton" and torch.cuda.is_available()) else "cpu"
    reason = dispatch.unavailable(name, device)
    if reason is not None:
        pytest.skip(reason)
    return BackendUnderTest(name, device)
