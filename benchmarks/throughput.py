"""Where the time of an update goes: ``python -m benchmarks.throughput`` (``--device cpu`` for the small shape).

One update of GRPO and one of StepOPSD on the same rows, through the trainer's own engine, policy, teacher, credit
method and optimiser step; the weights are random in the shapes of Qwen3-1.7B and Qwen2.5-3B. Rows are as long as
ALFWorld turns: about a thousand tokens, of which a tenth was sampled. The smallest of the rounds counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForCausalLM

from stepopsd.envs.base import Task
from stepopsd.experiments.bench.machine import describe
from stepopsd.experiments.tiny_model import build_tokenizer, vocabulary
from stepopsd.rollout.engines.base import Sampling
from stepopsd.rollout.engines.transformers import TransformersEngine
from stepopsd.rollout.records import Batch, Row, Trajectory, Turn
from stepopsd.rollout.rows import build_rows, collate
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.credit import Credit
from stepopsd.train.extras import Played
from stepopsd.train.policy import Policy
from stepopsd.train.shapes import SHAPES
from stepopsd.train.step import PolicyStep

SMALL = {
    "model_type": "qwen3", "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip
NAMES = {"qwen3-1.7b": "Qwen/Qwen3-1.7B", "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct"}
PHASES = ("generation", "student log-probs", "teacher log-probs", "shaping", "loss and backward", "optimiser")
SHAPING_LIMIT, SURCHARGE_LIMIT = 0.005, 0.15
WORDS = "you are in the middle of a room look around see desk drawer mug shelf go to take put open close heat cool"


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows of one update: ``groups`` of ``members`` episodes of ``turns`` calls, prompt and response in tokens."""

    groups: int = 4
    members: int = 8
    turns: int = 8
    prompt: tuple[int, int] = (600, 1100)
    response: tuple[int, int] = (60, 140)
    microbatch: int = 16384


SIZES = {"gpu": Size(), "cpu": Size(4, 4, 1, (150, 250), (12, 28), 2048)}


class Clock:
    """Seconds and peak memory of named phases; a phase inside another one is taken out of it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.peak = device, dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0)

    def time(self, phase: str, work: Callable[[], Any], *, inside: str = "") -> Any:
        self._wait()
        if self.device.type == "cuda" and not inside:
            torch.cuda.reset_peak_memory_stats()
        # On a CPU the process's own time: other processes cannot add to it.
        now = time.perf_counter if self.device.type == "cuda" else time.process_time
        begin = now()
        result = work()
        self._wait()
        spent = now() - begin
        self.seconds[phase] += spent
        if inside:
            self.seconds[inside] -= spent
        if self.device.type == "cuda":
            self.peak[phase] = max(self.peak[phase], torch.cuda.max_memory_allocated())
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def episodes(size: Size, policy: Policy, mixed: float, seed: int) -> list[Trajectory]:
    """Played-out groups with made-up words; of a share ``mixed`` of the groups half the members win."""
    draw, words = random.Random(seed), WORDS.split()
    out = []
    for group in range(size.groups):
        some = group < round(mixed * size.groups)
        for member in range(size.members):
            task = Task(f"task-{group}", "alfworld", "kind", "train", "")
            trajectory = Trajectory(task, "go", group, member, 0, "turn")
            for _ in range(size.turns):
                prompt = policy.tokenizer(" ".join(draw.choices(words, k=draw.randint(*size.prompt))))["input_ids"]
                answer = policy.tokenizer(" ".join(draw.choices(words, k=draw.randint(*size.response))))["input_ids"]
                span = {"action_only": (len(answer) // 2, len(answer) - 1)}
                trajectory.turns.append(
                    Turn(prompt, answer, [0.0] * len(answer), span, "look", " ".join(words[:6]), "look", True)
                )
            trajectory.success = some and member % 2 == 0
            trajectory.reward, trajectory.status = float(trajectory.success), "success"
            out.append(trajectory)
    return out


def run_config(method: str, size: Size, dtype: str, checkpointing: bool) -> RunConfig:
    """The published settings of a method at this size."""
    tree: dict[str, Any] = {
        "model": {"path": "random", "dtype": dtype, "gradient_checkpointing": checkpointing},
        "credit": {"name": method, "span": "action_only"},
        "optim": {"microbatch_tokens": size.microbatch, "lr": 1e-6},
        "rollout": {"groups": size.groups, "group_size": size.members},
    }
    return from_tree(RunConfig, tree)


def build(shape: dict[str, Any], config: RunConfig, device: torch.device, seed: int) -> Policy:
    """A policy of random weights and a tokenizer of words."""
    torch.manual_seed(seed)
    with device:
        model: Any = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**shape), dtype=getattr(torch, config.model.dtype)
        )
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return Policy(model.eval(), build_tokenizer(vocabulary([WORDS])))


class Study:
    """One update of one method, phase by phase.

    Args:
        method: ``grpo`` or ``stepopsd``.
        policy: Shared by the methods; its weights move a little with every update.
    """

    def __init__(self, method: str, config: RunConfig, policy: Policy, played: list[Trajectory]) -> None:
        self.method, self.config, self.policy, self.played = method, config, policy, played
        self.rows: list[Row] = build_rows(played, span=config.credit.span)
        self.credit = Credit(config, policy)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.optim.lr)
        accelerator = Accelerator(cpu=policy.device.type == "cpu")
        self.step = PolicyStep(policy, optimizer, accelerator, config)
        self.reference = policy.frozen_copy()

    def update(self, *, generate: bool) -> Clock:
        """All phases once."""
        clock, config, policy = Clock(self.policy.device), self.config, self.policy
        batch = collate(self.rows, self.played, pad_id=0, reward_scale=10.0, invalid_action_penalty=0.1)
        batch = batch.to(policy.device)
        if generate:
            prompts = [row.input_ids[: row.turn_starts[0]] for row in self.rows]
            longest = max(len(row.input_ids) - row.turn_starts[0] for row in self.rows)
            engine = TransformersEngine(policy.model)
            clock.time("generation", lambda: engine.generate(prompts, Sampling(longest), seeds=range(len(prompts))))
        plain = self._advantages(batch)
        everything = {"temperature": 1.0, "max_tokens": config.optim.microbatch_tokens}
        wanted = batch.response_mask
        fresh = clock.time(
            "student log-probs", lambda: policy.score(batch.input_ids, batch.attention_mask, wanted, **everything)
        )
        refs = clock.time(
            "student log-probs",
            lambda: self.reference.score(batch.input_ids, batch.attention_mask, wanted, **everything),
        )
        batch.old_logprobs[wanted] = fresh[wanted]
        view = Played(config, policy, batch, self.rows, self.played)
        base = self.credit.base(plain, view, 1)
        for part in self.credit.parts:
            if part.teacher is not None:
                self._time_inside(part.teacher, "score", clock, "teacher log-probs", "shaping")
        result = clock.time("shaping", lambda: self.credit.assign(base, view, 1))
        for part in self.credit.parts:
            if part.teacher is not None:
                del part.teacher.score
        batch = dataclasses.replace(batch, advantages=result.advantages)
        self._time_inside(self.step.optimizer, "step", clock, "optimiser", "loss and backward")
        clock.time("loss and backward", lambda: self.step.run(batch, refs, 1, result))
        del self.step.optimizer.step
        return clock

    def _advantages(self, batch: Batch) -> torch.Tensor:
        from stepopsd.credit.grpo import group_normalize

        return group_normalize(batch.rewards, batch.group_ids, batch.trajectory_ids, statistics="trajectory")

    def _time_inside(self, owner: Any, name: str, clock: Clock, phase: str, outer: str) -> None:
        work = getattr(owner, name)
        setattr(owner, name, lambda *a, **k: clock.time(phase, lambda: work(*a, **k), inside=outer))


def measure(shape_name: str, size: Size, device: torch.device, *, rounds: int, mixed: float, dtype: str,
            checkpointing: bool, generate: bool) -> dict[str, Any]:  # fmt: skip
    """Smallest seconds and largest peaks per phase of both methods, and the shares that are promised."""
    shape = SMALL if shape_name == "small" else SHAPES[NAMES[shape_name]]
    configs = {m: run_config(m, size, dtype, checkpointing) for m in ("grpo", "stepopsd")}
    policy = build(shape, configs["grpo"], device, seed=0)
    played = episodes(size, policy, mixed, seed=0)
    # One method at a time holds its optimiser state and copies, as in a run.
    clocks: dict[str, list[Clock]] = {}
    for method, config in configs.items():
        study = Study(method, config, policy, played)
        study.update(generate=generate)  # allocator, optimiser state
        clocks[method] = [study.update(generate=generate) for _ in range(rounds)]
        rows = study.rows
        del study
    phases = {
        method: {
            phase: {
                "seconds": min(c.seconds[phase] for c in of),
                "peak_gib": round(max(c.peak[phase] for c in of) / 2**30, 2) if device.type == "cuda" else None,
            }
            for phase in PHASES
        }
        for method, of in clocks.items()
    }
    own = {m: {p: v["seconds"] for p, v in table.items()} for m, table in phases.items()}
    without = sum(own["stepopsd"].values()) - own["stepopsd"]["generation"]
    added = own["stepopsd"]["teacher log-probs"] + own["stepopsd"]["shaping"]
    return {
        "shape": shape_name, "parameters": sum(p.numel() for p in policy.model.parameters()), "dtype": dtype,
        "gradient_checkpointing": checkpointing, "size": dataclasses.asdict(size), "mixed_groups": mixed,
        "rows": len(rows), "tokens": sum(len(row.input_ids) for row in rows), "rounds": rounds, "phases": phases,
        "shaping_share": own["stepopsd"]["shaping"] / without, "surcharge": added / (without - added),
    }  # fmt: skip


def table(about: dict[str, Any], cases: list[dict[str, Any]]) -> str:
    """The results as Markdown; shapes that were not run have no figures."""
    lines = [
        "# Where the time of an update goes", "",
        f"{about['chip']}, {about['device']}, {about['date']}; torch {about['versions']['torch']}"
        + (f", {about['threads']} thread(s), load {about['load']:.1f}" if about["device"] == "cpu" else "") + ".", "",
        "`python -m benchmarks.throughput`: random weights; seconds, least of the rounds, on a CPU the process's own.",
        "Student log-probs: old ones and the KL reference's. Gradient checkpointing is on, as in the presets.",
    ]  # fmt: skip
    for case in cases:
        rows = f"{case['rows']} rows, {case['tokens']:,} tokens, {case['mixed_groups']:.0%} of the groups mixed"
        rows += f", {case['rounds']} round(s)"
        lines += ["", f"## {case['shape']} ({case['parameters']:,} parameters, {case['dtype']})", "", f"{rows}.", ""]
        lines += ["| phase | GRPO | StepOPSD | peak, GiB |", "|:--|--:|--:|--:|"]
        for phase in PHASES:
            of = {m: case["phases"][m][phase] for m in ("grpo", "stepopsd")}
            peak = of["stepopsd"]["peak_gib"]
            shown = "not measured" if peak is None else f"{peak:.2f}"
            seconds = (f"{of[m]['seconds']:.3f}" if of[m]["seconds"] > 0 else "–" for m in of)
            lines.append(f"| {phase} | {' | '.join(seconds)} | {shown} |")
        for what, share, limit in (("Shaping", case["shaping_share"], SHAPING_LIMIT),
                                   ("StepOPSD over GRPO", case["surcharge"], SURCHARGE_LIMIT)):  # fmt: skip
            verdict = "within" if share < limit else "above"
            lines += ["", f"{what}: {share:.2%} of an update without generation, {verdict} {limit:.1%}."]
    missing = [name for name in NAMES if name not in {case["shape"] for case in cases}]
    if missing:
        lines += ["", "| shape | GPU |", "|:--|:--|", *(f"| {name} | not measured |" for name in missing)]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Measure, print and write the table and its figures."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--shapes", nargs="+", choices=("small", *NAMES), help="default: both on a GPU, small on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--mixed", type=float, nargs="+", default=[0.75, 1.0], help="shares of the groups whose members differ"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if args.rounds < 1 or not all(0 < share <= 1 for share in args.mixed):
        parser.error(f"--rounds must be at least 1 and --mixed lie in (0, 1], got {args.rounds} and {args.mixed}")
    cuda = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    device = torch.device("cuda" if cuda else "cpu")
    shapes = args.shapes or (list(NAMES) if cuda else ["small"])
    cases = [
        measure(
            name, SIZES["gpu" if cuda else "cpu"], device, rounds=args.rounds, mixed=mixed,
            dtype="bfloat16" if cuda else "float32", checkpointing=True, generate=True,
        )
        for name in shapes
        for mixed in args.mixed
    ]  # fmt: skip
    about = describe(device.type)
    args.results.mkdir(parents=True, exist_ok=True)
    stem = args.results / f"throughput-{device.type}"
    stem.with_suffix(".json").write_text(json.dumps({"machine": about, "cases": cases}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(about, cases))
    print(table(about, cases), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
