"""The transcript browser's half of the page: which recorded groups, as compact data, and the controls around them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from stepopsd.experiments.report.load import Record, Run
from stepopsd.experiments.report.recorded import Options, Recomputed, credit_of_record, methods_of
from stepopsd.experiments.report.summary import Method
from stepopsd.experiments.report.text import kind_name

TRAINED = "as trained"
MODES = (("shaped", "advantage Ã"), ("change", "Ã/A − 1"), ("weight", "weight w"), ("delta", "gap Δ"))
#: Bytes of a page that transcripts may fill: with its figures it stays below 10 MB.
BUDGET = 7_500_000
Others = Callable[[Run], Mapping[str, Options]]


@dataclass(frozen=True, slots=True)
class Group:
    """Recorded members of one group in one update.

    Attributes:
        members: In ascending order; at least one.
    """

    run: Run
    members: tuple[Record, ...]

    @property
    def mixed(self) -> bool:
        """Whether some members won and some lost."""
        return len({bool(m["success"]) for m in self.members}) == 2

    @property
    def reshaped(self) -> bool:
        """Whether the method changed any token's advantage."""
        return any(
            abs(shaped - plain) > 1e-6 * max(1.0, abs(plain))
            for m in self.members
            for turn in m["turns"]
            for shaped, plain in zip(turn.get("shaped") or (), turn.get("advantages") or (), strict=False)
        )


def transcripts_html(
    methods: Method, *, others: Others = methods_of, same: bool = False, budget: int = BUDGET
) -> str:
    """The section's body: controls, two panes and the data; a sentence when nothing was recorded.

    Args:
        methods: The runs.
        others: Run -> label -> ``credit`` section of methods whose credit is computed for what it recorded.
        same: Open with one trajectory in both panes, as trained and under another method, instead of a won and a lost
            member of a group.
        budget: Bytes that the data may take; what has no room is left out, and the page says so.
    """
    groups = [group for runs in methods.values() for run in runs for group in groups_of(run)]
    if not groups:
        return '<p class="absent">No transcripts were stored (<code>transcripts_every</code> was 0?).</p>'
    chosen = _within(groups, budget, others)
    if not chosen:
        return f'<p class="absent">Every recorded trajectory alone takes more than {budget / 1e6:.1f} MB.</p>'
    data = _data(groups, chosen, same)
    return _PAGE.format(
        modes="".join(
            f'<label><input type="radio" name="mode" value="{value}"><span>{name}</span></label>'
            for value, name in MODES
        ),
        left_out=_left_out(groups, chosen),
        panes="".join(_PANE.format(side=side) for side in ("left", "right")),
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def groups_of(run: Run) -> list[Group]:
    """The recorded groups of a run, ascending by update and group."""
    found: dict[tuple[int, int], list[Record]] = {}
    for record in run.transcripts:
        found.setdefault((record["update"], record["group"]), []).append(record)
    return [Group(run, tuple(sorted(found[key], key=lambda m: m["member"]))) for key in sorted(found)]


def _within(groups: Sequence[Group], budget: int, others: Others) -> dict[int, dict[str, Any]]:
    """Index of a group -> its data, as many as have room: of each run in turn, telling ones first."""
    chosen: dict[int, dict[str, Any]] = {}
    for index in _order(groups):
        group = groups[index]
        won, lost = ([m for m in group.members if bool(m["success"]) is side] for side in (True, False))
        for members in (group.members, (*won[:1], *lost[:1]), (*lost, *won)[:1]):
            plain = _group_data(group, members, others)
            size = len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
            if size <= budget:
                chosen[index] = plain
                budget -= size
                break
    return chosen


def _order(groups: Sequence[Group]) -> Iterator[int]:
    by_run: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        by_run.setdefault(id(group.run), []).append(index)
    for own in by_run.values():
        own.sort(key=lambda i: (not groups[i].reshaped, not groups[i].mixed))
    return (index for turn in zip_longest(*by_run.values()) for index in turn if index is not None)


def _group_data(group: Group, members: Sequence[Record], others: Others) -> dict[str, Any]:
    run, first = group.run, members[0]
    found = credit_of_record(members, others(run), run)
    computed = [f for f in found if not f.absent]
    size = first.get("members")
    return {
        "update": first["update"], "group": first["group"], "goal": str(first.get("goal") or first["task_id"]),
        "kind": kind_name(str(first.get("kind", ""))), "task": str(first["task_id"]), "whole": size == len(members),
        "credits": [TRAINED, *(f.method for f in computed)],
        "absent": [[f.method, f.absent] for f in found if f.absent],
        "members": [_member_data(m, i, computed) for i, m in enumerate(members)],
    }  # fmt: skip


def _member_data(member: Record, index: int, computed: Sequence[Recomputed]) -> dict[str, Any]:
    turns, at = [], 0
    for turn in member["turns"]:
        count = len(turn.get("tokens") or ())
        turns.append(_turn_data(turn, slice(at, at + count), index, computed))
        at += count
    advantage = member.get("advantage")
    return {
        "id": member["member"], "won": bool(member["success"]), "status": str(member.get("status") or ""),
        "reward": _short(member.get("reward")), "a": _short(advantage), "turns": turns,
    }  # fmt: skip


def _turn_data(turn: Record, where: slice, index: int, computed: Sequence[Recomputed]) -> dict[str, Any]:
    """Per token: text t, log-prob l, plain advantage A, gap d, in the span n; per credit s and w (null: A and none)."""
    count = where.stop - where.start
    plain = _packed(turn.get("advantages") or [0.0] * count)
    shaped = [_packed(turn.get("shaped") or turn.get("advantages") or [0.0] * count)]
    weights = [_packed(turn.get("weights"))]
    for credit in computed:
        shaped.append(_packed(credit.shaped[index][where]))
        weights.append(_packed(credit.weights[index][where]) if credit.weights else None)
    return {
        "o": str(turn.get("observation", "")), "v": bool(turn.get("is_valid", True)),
        "t": [str(token) for token in turn.get("tokens") or ()],
        "l": _packed(turn.get("logprobs")), "A": plain, "d": _packed(turn.get("delta")),
        "n": "".join("1" if inside else "0" for inside in turn.get("in_span") or [True] * count),
        "s": [None if own == plain else own for own in shaped], "w": weights,
    }  # fmt: skip


def _packed(values: Sequence[float] | None) -> list[float | None] | float | None:
    """Four digits; one number where all are alike."""
    if values is None:
        return None
    short = [_short(v) for v in values]
    return short[0] if short and all(v == short[0] for v in short) else short


def _short(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _data(groups: Sequence[Group], chosen: Mapping[int, dict[str, Any]], same: bool) -> dict[str, Any]:
    runs: dict[int, dict[str, Any]] = {}
    place: dict[int, tuple[int, int]] = {}
    for index in sorted(chosen):
        run = groups[index].run
        entry = runs.setdefault(id(run), {"name": f"{run.method}, seed {run.seed}", "groups": []})
        place[index] = (list(runs).index(id(run)), len(entry["groups"]))
        entry["groups"].append(chosen[index])
    telling = {i: (groups[i].reshaped, groups[i].mixed, same * len(chosen[i]["credits"])) for i in chosen}
    first = max((i for i in _order(groups) if i in chosen), key=telling.__getitem__)  # the first of the best
    members, credits = chosen[first]["members"], chosen[first]["credits"]
    won, lost = (next((i for i, m in enumerate(members) if m["won"] is side), 0) for side in (True, False))
    panes = [{"member": lost if same else won, "credit": 0}, {"member": lost, "credit": 0}]
    if same:
        panes[0]["credit"] = credits.index("grpo") if "grpo" in credits else 0
    run_at, group_at = place[first]
    return {
        # Shaping moves A by little: what it did shows in the change alone.
        "start": {"run": run_at, "group": group_at, "mode": "change" if groups[first].reshaped else "shaped",
                  "same": same, "panes": panes},
        "runs": list(runs.values()),
    }  # fmt: skip


def _left_out(groups: Sequence[Group], chosen: Mapping[int, dict[str, Any]]) -> str:
    recorded = sum(len(group.members) for group in groups)
    shown = sum(len(group["members"]) for group in chosen.values())
    if shown == recorded:
        return f"All {recorded} recorded trajectories are here."
    return (
        f"{shown} of {recorded} recorded trajectories are here: the page is kept below 10 MB, and groups that were "
        "reshaped and hold both outcomes come first. The rest is in <code>transcripts.jsonl</code>."
    )


_PANE = """
<section class="pane" aria-label="{side} transcript"><div class="pick">
<label>trajectory<select data-part="member"></select></label>
<label>credit<select data-part="credit"></select></label></div>
<p class="outcome" data-part="outcome"></p><div class="strip" data-part="strip" aria-hidden="true"></div>
<div class="words" data-part="words" tabindex="0" role="application" aria-label="tokens of the {side} transcript: arrow
keys move from token to token and from step to step"></div></section>"""

_PAGE = """
<noscript><p class="absent">The transcripts need JavaScript; nothing is fetched.</p></noscript>
<div id="browser"><div class="controls">
<label>run<select data-part="run"></select></label>
<label>update<select data-part="update"></select></label>
<label>group<select data-part="group"></select></label>
<fieldset><legend>colour by</legend>{modes}</fieldset></div>
<p class="meta" data-part="about"></p>
<div class="scale"><span data-part="low"></span><i></i><span data-part="high"></span><span data-part="middle"></span>
<span>· dimmed: outside the scored span</span></div>
<div class="readout" data-part="readout" aria-live="polite">Point at a token, or focus a transcript and use the arrow
keys, for its numbers.</div>
<div class="panes">{panes}</div>
<p class="meta" data-part="absent"></p><p class="meta">{left_out}</p></div>
<script type="application/json" id="transcript-data">{data}</script>"""
