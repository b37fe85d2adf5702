"""Settings for all tests: the Triton interpreter where there is no GPU, and NaN in memory that nobody wrote."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._device import _device_constructors

# Triton reads the variable when a kernel is defined, so it must be set before any test module is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _filled(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``make`` with NaN in the result when our launchers call it, so that an element left unwritten shows."""

    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = make(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("stepopsd.ops.") and result.is_floating_point():
            result.fill_(float("nan"))
        return result

    return wrapper


@pytest.fixture(scope="session", autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    # Which functions a device context redirects is looked up once, and has to be torch's own: the wrappers call these.
    _device_constructors()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like", "empty_strided"):
            patch.setattr(torch, name, _filled(getattr(torch, name)))
        for name in ("new_empty",):
            patch.setattr(torch.Tensor, name, _filled(getattr(torch.Tensor, name)))
        yield
