"""Transcripts as HTML: a won and a lost member of one group, tokens coloured by the credit they were given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepopsd.experiments.report.load import Record, Run
from stepopsd.experiments.report.summary import Method
from stepopsd.experiments.report.text import html, kind_name, signed

LEVELS = 6  # shades per sign; must match the classes in style.py
OPEN_TURNS = 6
LONG_OBSERVATION = 420
MODES = (
    ("shaped", "shaped advantage Ã", "s"),
    ("change", "change Ã/A − 1", "c"),
    ("delta", "teacher gap Δ", "d"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Trajectories shown side by side; ``mixed`` says that they are members of one group."""

    run: Run
    members: tuple[Record, ...]
    mixed: bool


def choose_pairs(methods: Method, *, per_method: int = 2) -> list[Pair]:
    """Pick what to show: for each method whose credit reshaped tokens, its first and last mixed group.

    Where no stored trajectory was reshaped (plain GRPO only) the newest mixed group of each method is shown; where
    there is no mixed group, the newest won and the newest lost trajectory, marked as not of one group.
    """
    reshaped = {label: runs for label, runs in methods.items() if any(_reshaped(t) for t in _stored(runs))}
    pairs = []
    for runs in (reshaped or methods).values():
        found = [pair for run in runs for pair in _mixed_pairs(run)]
        found = [pair for pair in found if any(_reshaped(member) for member in pair.members)] or found[-1:]
        if found:
            pairs += [found[0], found[-1]][:per_method] if found[0] is not found[-1] else [found[0]]
        else:
            pairs += [pair for run in runs for pair in _loose_pair(run)][:1]
    return pairs


def transcripts_html(methods: Method) -> str:
    """The section's body: colour switch, legend and pairs; a sentence when nothing was stored."""
    pairs = choose_pairs(methods)
    if not pairs:
        return '<p class="absent">No transcripts were stored (<code>transcripts_every</code> was 0?).</p>'
    switch = "".join(
        f'<input type="radio" name="tint" id="tint-{mode}"{" checked" * (i == 0)}>'
        f'<label for="tint-{mode}">{name}</label>'
        for i, (mode, name, _) in enumerate(MODES)
    )
    scale = "".join(f'<i class="t x{level}"></i>' for level in range(-LEVELS, LEVELS + 1))
    legend = (
        f'<p class="legend">negative {scale} positive · dimmed: outside the scored span · hover for numbers<br>'
        "Shaping moves A by little, which the first view hardly shows; the second shows nothing else.</p>"
    )
    return f'<div class="transcripts">{switch}{legend}<div>{"".join(_pair_html(p) for p in pairs)}</div></div>'


def _stored(runs: list[Run]) -> list[Record]:
    return [t for run in runs for t in run.transcripts]


def _reshaped(trajectory: Record) -> bool:
    """Whether any token's advantage was changed by the method."""
    return any(
        abs(shaped - plain) > 1e-9 * max(1.0, abs(plain))
        for turn in trajectory["turns"]
        for shaped, plain in zip(turn.get("shaped") or (), turn.get("advantages") or (), strict=False)
    )


def _mixed_pairs(run: Run) -> list[Pair]:
    groups: dict[tuple[int, int], list[Record]] = {}
    for trajectory in run.transcripts:
        groups.setdefault((trajectory["update"], trajectory["group"]), []).append(trajectory)
    pairs = []
    for members in groups.values():
        won = [m for m in members if m["success"]]
        lost = [m for m in members if not m["success"]]
        if won and lost:
            pairs.append(Pair(run, (won[0], lost[0]), mixed=True))
    return pairs


def _loose_pair(run: Run) -> list[Pair]:
    newest = run.transcripts[::-1]
    chosen = [next((t for t in newest if bool(t["success"]) is won), None) for won in (True, False)]
    members = tuple(t for t in chosen if t is not None)
    return [Pair(run, members, mixed=False)] if members else []


def _pair_html(pair: Pair) -> str:
    first = pair.members[0]
    relation = "members of one group" if pair.mixed else "not of one group: none of the stored groups was mixed"
    scales = {mode: _scale([_values(t, mode) for m in pair.members for t in m["turns"]]) for mode, _, _ in MODES}
    ranges = ", ".join(f"{name} ±{scales[mode]:.3g}" for mode, name, _ in MODES)
    goal = html(first.get("goal") or first["task_id"])
    return (
        f'<article><h3>{html(pair.run.method)}, update {html(first["update"])}: {goal}</h3>'
        f'<p class="meta">{html(kind_name(str(first.get("kind", ""))))} · {html(first["task_id"])} · {relation} · '
        f"full colour at {ranges}</p>"
        f'<div class="pair">{"".join(_member_html(m, scales) for m in pair.members)}</div></article>'
    )


def _member_html(member: Record, scales: dict[str, float]) -> str:
    badge = '<b class="won">won</b>' if member["success"] else '<b class="lost">lost</b>'
    facts = [f"member {html(member['member'])}", f"{len(member['turns'])} turns"]
    if not member["success"] and member.get("status"):
        facts.append(html(str(member["status"]).replace("_", " ")))
    if member.get("reward") is not None:
        facts.append(f"reward {float(member['reward']):g}")
    if isinstance(member.get("advantage"), (int, float)):
        facts.append(f"A&nbsp;=&nbsp;{signed(float(member['advantage']))}")
    turns = [_turn_html(i, turn, scales) for i, turn in enumerate(member["turns"], start=1)]
    body = "".join(turns[:OPEN_TURNS])
    if len(turns) > OPEN_TURNS:
        label = f"turns {OPEN_TURNS + 1} to {len(turns)}"
        body += f"<details><summary>{label}</summary>{''.join(turns[OPEN_TURNS:])}</details>"
    return f'<section class="member"><p>{badge} {" · ".join(facts)}</p><ol>{body}</ol></section>'


def _turn_html(number: int, turn: Record, scales: dict[str, float]) -> str:
    observation = html(turn.get("observation", ""))
    if len(observation) > LONG_OBSERVATION:
        head = html(str(turn["observation"])[:90].replace("\n", " "))
        observation = f"<details><summary>{head} …</summary>{observation}</details>"
    invalid = "" if turn.get("is_valid", True) else ' <span class="lost">invalid</span>'
    return (
        f'<li value="{number}"><div class="obs">{observation}</div>'
        f'<div class="say">{_tokens_html(turn, scales)}{invalid}</div></li>'
    )


def _tokens_html(turn: Record, scales: dict[str, float]) -> str:
    tokens = turn.get("tokens") or []
    if not tokens:
        return html(turn.get("action", ""))
    inside = turn.get("in_span") or [True] * len(tokens)
    shades = [[_level(v, scales[mode]) for v in _values(turn, mode)] for mode, _, _ in MODES]
    pieces = []
    for i, token in enumerate(tokens):
        tint = " ".join(f"{letter}{shade[i]}" for (_, _, letter), shade in zip(MODES, shades, strict=True) if shade[i])
        classes = f"t {tint}".strip() + ("" if inside[i] else " out")
        pieces.append(f'<span class="{classes}" title="{_tooltip(turn, i)}">{html(token)}</span>')
    return "".join(pieces)


def _tooltip(turn: Record, index: int) -> str:
    names = (("A", "advantages"), ("Δ", "delta"), ("w", "weights"), ("Ã", "shaped"))
    parts = [f"{name} {signed(_number(turn[key][index]), 4)}" for name, key in names if turn.get(key)]
    return html("  ".join(parts).replace("w +", "w "))


def _values(turn: Record, mode: str) -> list[float]:
    """Per token the value that a mode colours by; 0 where it was not stored."""
    count = len(turn.get("tokens") or ())
    plain = [_number(v) for v in turn.get("advantages") or [0.0] * count]
    shaped = [_number(v) for v in turn.get("shaped") or plain]
    if mode == "shaped":
        return shaped
    if mode == "change":
        return [s / a - 1 if a else 0.0 for s, a in zip(shaped, plain, strict=True)]
    return [_number(v) for v in turn.get("delta") or [0.0] * count]


def _scale(values: Sequence[list[float]]) -> float:
    """Value of full colour: the 98th percentile of the magnitudes that are not 0, so that one outlier dims nothing."""
    magnitudes = np.abs([v for turn in values for v in turn if v and math.isfinite(v)])
    return float(np.quantile(magnitudes, 0.98)) if magnitudes.size else 1.0


def _level(value: float, scale: float) -> int:
    if not math.isfinite(value):
        return 0
    return round(max(-1.0, min(1.0, value / scale)) * LEVELS)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
