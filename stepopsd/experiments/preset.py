"""Presets by name, and command lines that start from them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from stepopsd.train.config_layers import Resolved, dump_with_sources, read_layers

PRESETS = Path(__file__).with_name("presets")
PARTS = "parts"  # folders of files that presets are made of


def preset_names() -> list[str]:
    """Every preset, sorted, e.g. ``alfworld/qwen3-1.7b-stepopsd``."""
    files = [file.relative_to(PRESETS) for file in PRESETS.rglob("*.yaml")]
    return sorted(file.with_suffix("").as_posix() for file in files if PARTS not in file.parts)


def preset_path(name: str) -> Path:
    """The file of a preset. Raises ValueError with the known names for an unknown one."""
    known = preset_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"unknown preset {name}; {hint}known presets: {', '.join(known)}")
    return PRESETS / f"{name}.yaml"


def from_arguments(args: Sequence[str]) -> tuple[Resolved, list[str]]:
    """The configuration that ``--preset NAME`` and ``--config FILE`` ask for, in their order, and the other arguments.

    Raises:
        ValueError: An unknown preset, a missing name or path, or a mistake in a file.
        FileNotFoundError: No such file.
    """
    files: list[Path] = []
    rest: list[str] = []
    waiting = iter(args)
    for arg in waiting:
        flag, equals, value = arg.partition("=")
        if flag not in ("--preset", "--config"):
            rest.append(arg)
            continue
        value = value if equals else next(waiting, "")
        if not value or value.startswith("--"):
            what = "name of a preset" if flag == "--preset" else "path of a YAML file"
            raise ValueError(f"{flag} needs the {what}")
        files.append(preset_path(value) if flag == "--preset" else Path(value))
    return read_layers(files, presets=PRESETS), rest


def dry_run(args: Sequence[str], resolve: Callable[[list[str]], Resolved]) -> int:
    """Print the resolved configuration, the source of each value beside it, and what the run will need.

    Args:
        args: With ``--dry-run`` and perhaps ``--tflops N``, operations per second for the estimate of time.
        resolve: Makes the configuration of the other arguments.

    Raises:
        ValueError: ``--tflops`` without a number greater than 0.
    """
    from stepopsd.train.estimate import lines

    rest, tflops = [arg for arg in args if arg != "--dry-run"], 0.0
    if "--tflops" in rest:
        at = rest.index("--tflops")
        given = rest[at + 1] if at + 1 < len(rest) else ""
        try:
            tflops = float(given)
        except ValueError:
            tflops = 0.0
        if not 0 < tflops < float("inf"):
            raise ValueError(f"--tflops needs a number greater than 0, got {given!r}")
        del rest[at : at + 2]
    resolved = resolve(rest)
    print(dump_with_sources(resolved), end="")
    print("\n".join(lines(resolved.config, tflops=tflops)))
    return 0
