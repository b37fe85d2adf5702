"""Writes run directories of the shape that the trainer writes, with made-up numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import yaml

KINDS = (
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep", "pick_two_obj_and_place",
)  # fmt: skip
REPLY = ["<think>", "The", " mug", " is", " dirty", ".", "</think>", "<action>", "go", " to", " sink", "</action>"]


def write_run(
    path: Path, *, method: str = "stepopsd", seed: int = 0, updates: int = 20, every: int = 5, games: int = 24,
    final_rate: float = 0.6, turns: int = 9,
) -> Path:  # fmt: skip
    """One run directory with every file."""
    path.mkdir(parents=True)
    random = np.random.default_rng((seed, len(method)))
    config = {
        "seed": seed, "run_dir": str(path), "model": {"path": "models/tiny-qwen3"},
        "rollout": {"groups": 8, "group_size": 6}, "credit": {"name": method, "lambda_mix": 0.2},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "date": "2026-01-02T03:04:05", "git": "abc1234", "python": "3.11.9", "torch": "2.13.0", "parameters": 4_210_000,
        "device": "cpu", "command": f"stepopsd train --config demo.yaml --seed {seed} --credit.name {method}",
    }  # fmt: skip
    (path / "environment.json").write_text(json.dumps(environment))
    write_lines(path / "metrics.jsonl", [metrics(u, updates, method, random) for u in range(1, updates + 1)])
    played = evaluations(range(0, updates + 1, every), updates, games, final_rate, random)
    write_lines(path / "evaluations.jsonl", played)
    write_lines(path / "transcripts.jsonl", transcripts((1, updates // 2, updates), method, turns, random))
    return path


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def metrics(update: int, updates: int, method: str, random: np.random.Generator) -> dict:
    share = update / updates
    noise = random.normal
    record = {
        "update": update, "seconds": 11 + noise(0, 0.6), "rollout_seconds": 7.0, "train_seconds": 3.1,
        "success": 0.25 + 0.4 * share + noise(0, 0.05), "reward_mean": 3.0, "invalid_share": 0.3 * math.exp(-3 * share),
        "mixed_groups": int(random.integers(2, 8)) / 8, "loss": noise(0, 0.02), "ratio_mean": 1.0,
        "clip_share": abs(noise(0, 0.004)), "kl": 0.02 * share, "entropy": 0.8 - 0.4 * share,
        "grad_norm": abs(noise(0.8, 0.2)), "sampler_gap_max": 10 ** noise(-5.6, 0.2), "tokens/generated": 21000,
        "tokens/student": 60000,
    }  # fmt: skip
    if method == "stepopsd":
        spread = 0.5 * math.exp(-share) + abs(noise(0, 0.03))
        record |= {
            "teacher_seconds": 1.4, "lambda": 0.2 * max(0.0, 1 - update / (0.8 * updates)), "delta/count": 9000,
            "delta/mean": -0.02, "delta/std": spread, "delta/min": -4.0, "delta/max": 3.0,
            "delta/abs_mean": 0.6 * spread, "delta/p05": -1.6 * spread, "delta/p25": -0.5 * spread,
            "delta/median": -0.01, "delta/p75": 0.5 * spread, "delta/p95": 1.5 * spread, "delta/positive": 0.46,
            "delta/negative": 0.5, "delta/unchanged": 0.04, "weight/mean": 1.0, "weight/std": 0.1,
            "weight/at_low": 0.2 * spread, "weight/at_high": 0.25 * spread, "step_scale/min": 0.95 - 0.01 * noise(),
            "step_scale/max": 1.05 + 0.01 * noise(), "step_scale/clamped": 0.0, "advantage/cosine": 0.9997,
            "tokens/teacher": 64000,
        }  # fmt: skip
    return record


def evaluations(at: range, updates: int, games: int, final_rate: float, random: np.random.Generator) -> list[dict]:
    records = []
    for panel, drop in (("seen", 0.0), ("unseen", 0.1)):
        difficulty = np.random.default_rng(7).random(games) * 0.5
        for update in at:
            rate = 0.2 + (final_rate - drop - 0.2) * update / updates
            for game in range(games):
                won = bool(random.random() < rate + 0.25 - difficulty[game])
                records.append({
                    "update": update, "panel": panel, "task_id": f"{panel}/{game}", "kind": KINDS[game % len(KINDS)],
                    "sample": 0, "seed": 1000 + game, "success": won, "steps": 12 if won else 50, "invalid_actions": 1,
                    "status": "success" if won else "step_limit",
                })
    return records


def transcripts(at: tuple[int, ...], method: str, turns: int, random: np.random.Generator) -> list[dict]:
    records = []
    for update in at:
        for member, won in enumerate((True, False)):
            advantage = 0.94 if won else -0.71
            records.append({
                "update": update, "task_id": "train/pick_clean-Mug-3/trial_1", "kind": KINDS[2],
                "goal": "put a clean mug in <cabinet>.", "group": 3, "member": member, "reward": 10.0 * won,
                "success": won, "status": "success" if won else "step_limit", "advantage": advantage,
                "members": 2, "asked": method == "stepopsd",
                "turns": [turn(i, advantage, method, random) for i in range(turns - 3 * won)],
            })
    return records


def turn(index: int, advantage: float, method: str, random: np.random.Generator) -> dict:
    inside = [token >= 7 for token in range(len(REPLY))]
    logprobs = [-0.1 - 0.05 * token for token in range(len(REPLY))]
    delta = [float(random.normal(0, 0.4)) * here if method == "stepopsd" else 0.0 for here in inside]
    weights = [float(np.clip(2 / (1 + math.exp(-math.copysign(1, advantage) * d)), 0.8, 1.2)) for d in delta]
    return {
        "observation": "You arrive at sinkbasin 1. On it, you see " + "a mug 1, " * (60 if index == 0 else 2),
        "action": "go to sink", "is_valid": index != 2, "tokens": REPLY, "advantages": [advantage] * len(REPLY),
        "reward": 0.0, "logprobs": logprobs, "delta": delta, "weights": weights, "in_span": inside,
        "shaped": [advantage * (1 + 0.2 * (w - 1)) for w in weights],
    }  # fmt: skip
