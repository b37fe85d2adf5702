"""Whether the Triton kernels can run on a device, and if not, why."""

from __future__ import annotations

import functools
import os

MINIMUM_TRITON = (3, 3)  # tuples in kernels


def availability(device_type: str) -> str | None:
    """Say why the Triton kernels cannot run on a device type.

    Args:
        device_type: ``torch.device.type``; ``"cuda"`` covers NVIDIA and ROCm.

    Returns:
        ``None`` when they can run, else one sentence with the reason. On ``"cpu"`` they run only through
        Triton's interpreter, which is for tests.
    """
    if device_type not in ("cuda", "cpu"):
        return f"the Triton kernels run on 'cuda' devices (and on 'cpu' when interpreted), got {device_type!r}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type == "cpu" and not interpreted:
        return "on 'cpu' the Triton kernels run only in the interpreter: set TRITON_INTERPRET=1 before the start"
    try:
        version, compiling = _imported()
    except ImportError as error:
        return f"triton cannot be imported ({error}): install the triton that belongs to this torch"
    if version < MINIMUM_TRITON:
        return f"triton {'.'.join(map(str, version))} is too old: 3.3 or newer is needed"
    if interpreted and compiling:
        return "TRITON_INTERPRET=1 was set after triton had been imported: set it before the start"
    return None


@functools.cache
def _imported() -> tuple[tuple[int, ...], bool]:
    """The version, and whether Triton's own functions are compiled: their decorator decides that at import."""
    import triton
    import triton.language as tl

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return version, type(tl.sum).__name__ != "InterpretedFunction"
