"""The report of ``benchmarks.environments``: JSON, and a table beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: What the others are compared with.
BASE = "alfworld"


def write(report: dict[str, Any], path: Path) -> None:
    """``path`` and the same with ``.md``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n\n".join(_sections(report)) + "\n")


def _sections(report: dict[str, Any]) -> list[str]:
    about = report["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    sections = [
        "# ALFWorld environments side by side",
        f"{about['chip']}, {about['cores']} cores, {about['date']}; {versions}; games: {about['games']}. "
        "Made by `python -m benchmarks.environments`.",
    ]
    if report["speed"]:
        sections += [_speed_table(report["speed"]), _speed_words(report)]
    if report["memory"]:
        sections += ["## Memory over many episodes", _memory_words(report["memory"]), _memory_table(report["memory"])]
    return sections


def _speed_table(results: list[dict[str, Any]]) -> str:
    base = {result["size"]: result["steps_per_cpu_s"] for result in results if result["contender"] == BASE}
    lines = [
        "| environments | contender | resets/s per core, new game | known game | steps/s per core | × alfworld "
        "| MB per environment |",
        "|--:|:--|--:|--:|--:|--:|--:|",
    ]
    for result in sorted(results, key=lambda result: result["size"]):
        again = result.get("again_resets_per_cpu_s")
        times = result["steps_per_cpu_s"] / base[result["size"]] if result["size"] in base else None
        lines.append(
            f"| {result['size']} | {result['contender']} | {result['new_resets_per_cpu_s']:.2f} "
            f"| {'–' if again is None else f'{again:.1f}'} | {result['steps_per_cpu_s']:.1f} "
            f"| {'–' if times is None else f'{times:.1f}'} | {result['memory_mb']:.1f} |"
        )
    return "\n".join(lines)


def _speed_words(report: dict[str, Any]) -> str:
    about, loads = report["about"], [result["load"] for result in report["speed"]]
    episodes = sum(result["episodes"] for result in report["speed"])
    return (
        f"All contenders at a size played the same games with the same actions ({about['steps_per_episode']} at random "
        f"per episode, groups of {about['group']} share a game; {episodes} episodes in all) and said the same words: "
        "observations, commands, outcome. *Per core*: per second of CPU time of all processes. Load of the machine: "
        f"{min(loads):.1f} to {max(loads):.1f}. *process per environment*: our engine, one worker each; *alfworld*: "
        "AlfredTWEnv with its own batch environment, which keeps nothing about a game. Memory: proportional share of "
        "all workers."
    )


def _memory_words(memory: dict[str, Any]) -> str:
    series = memory["megabytes"]
    half = [megabytes for _, megabytes in series[len(series) // 2 :]]
    return (
        f"All workers of a pool of {memory['environments']} environments, none replaced; groups of {memory['group']}, "
        f"{memory['games']} games. Over the second half of the episodes between {min(half):.0f} and {max(half):.0f} "
        f"MB; from its beginning to its end {half[-1] - half[0]:+.0f} MB."
    )


def _memory_table(memory: dict[str, Any]) -> str:
    series = memory["megabytes"]
    chosen = series[:: max(1, len(series) // 8)]
    chosen = chosen if chosen[-1] == series[-1] else [*chosen, series[-1]]
    return "\n".join(
        [
            "| episodes | " + " | ".join(str(episodes) for episodes, _ in chosen) + " |",
            "|:--|" + "--:|" * len(chosen),
            "| MB | " + " | ".join(f"{megabytes:.0f}" for _, megabytes in chosen) + " |",
        ]
    )
