"""The command line: stepopsd train | eval | sft | demo | bench | report | doctor | games | study | retriever | data."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

_FILES = (
    "--preset NAME and --config FILE, each as often as wanted, go over one another, later ones last; the keys below go "
    "over them."
)
_ABOUT = {
    "train": f"Train one run. {_FILES} --dry-run prints every value with its source and estimates what the run needs "
    "(--tflops N: also its time), and trains nothing.",
    "eval": f"Play every game of env.eval_splits with model.path and write the episodes to run_dir. {_FILES} For "
    "paired differences of two evaluations: stepopsd eval --compare A B, see stepopsd eval --compare --help.",
    "sft": f"Warm start: train model.path on an expert's episodes, with the prompts of the run to come. {_FILES}",
}


def train(args: Sequence[str]) -> int:
    """Train: --preset NAME or --config FILE, any key as --credit.alpha-clip 0.05; --dry-run prints and estimates."""
    if "--dry-run" in args:
        from stepopsd.experiments.preset import dry_run

        return dry_run(args, lambda rest: _resolved(rest, "train"))
    resolved = _resolved(args, "train")
    from stepopsd.train.deadline import DeadlineReached
    from stepopsd.train.distributed import leave
    from stepopsd.train.trainer import Trainer

    try:
        Trainer(resolved.config).run()
    except DeadlineReached:
        return os.EX_TEMPFAIL
    leave()
    return 0


def evaluate(args: Sequence[str]) -> int:
    """Play whole panels with a model or checkpoint; --compare A B gives paired differences of two such evaluations."""
    if "--compare" in args:
        from stepopsd.experiments.compare import compare_evaluations

        asked = ["--help"] if {"-h", "--help"} & set(args) else args
        _typed(compare_evaluations, asked, "stepopsd eval")
        return 0
    from stepopsd.experiments.evaluate import evaluate

    print(f"\nwritten to {evaluate(_resolved(args, 'eval').config)}")
    return 0


def sft(args: Sequence[str]) -> int:
    """Warm start: train a model on an expert's episodes, with the prompts, records and masks of the run to come."""
    from stepopsd.experiments.expert_sft import SftRun, warm_start_on_expert
    from stepopsd.experiments.preset import from_arguments

    resolved, rest = from_arguments(args)
    default = SftRun(resolved.config)
    chosen = _tyro().cli(SftRun, default=default, args=rest, prog="stepopsd sft", description=_ABOUT["sft"])
    warm_start_on_expert(chosen.run, chosen.sft)
    return 0


def demo(args: Sequence[str]) -> int:
    """GRPO and StepOPSD from one warm start, then a report: bundled games, or --env searchqa."""
    from stepopsd.experiments.demo import run_demo

    _typed(run_demo, args, "stepopsd demo")
    return 0


def bench(args: Sequence[str]) -> int:
    """Time the op on this machine beside eager PyTorch, torch.compile, other packages and a mere read."""
    tyro = _tyro()
    from stepopsd.experiments.bench.command import bench

    tyro.cli(bench, args=list(args), prog="stepopsd bench")
    return 0


def report(args: Sequence[str]) -> int:
    """A page from runs: stepopsd report RUN, or stepopsd report grpo=runs/a stepopsd=runs/b --out DIR."""
    from stepopsd.experiments.report import report_from_arguments

    _typed(report_from_arguments, args, "stepopsd report")
    return 0


def doctor(args: Sequence[str]) -> int:
    """What this installation can do, what is missing and why."""
    from stepopsd.doctor import main

    return main(list(args))


def games(args: Sequence[str]) -> int:
    """Games for ALFWorld: make | check | stats | download."""
    _tyro()
    from stepopsd.envs.games.command_line import main

    return main(args)


def study(args: Sequence[str]) -> int:
    """Methods × seeds × environments from one file: run | status | table."""
    from stepopsd.experiments.study.command import run, status, table

    commands: dict[str, Callable[..., Any]] = {"run": run, "status": status, "table": table}
    if not args or args[0] not in commands:
        print("usage: stepopsd study {run,status,table} [--help]", file=sys.stderr)
        return 2
    return int(_typed(commands[args[0]], args[1:], f"stepopsd study {args[0]}") or 0)


def retriever(args: Sequence[str]) -> int:
    """Passages for Search-QA: build | serve | search | probe."""
    from stepopsd.retrieval.commands import build, probe, search, serve_index

    commands: dict[str, Callable[..., Any]] = {"build": build, "serve": serve_index, "search": search, "probe": probe}
    if not args or args[0] not in commands:
        print("usage: stepopsd retriever {build,serve,search,probe} [--help]", file=sys.stderr)
        return 2
    _typed(commands[args[0]], args[1:], f"stepopsd retriever {args[0]}")
    return 0


def data(args: Sequence[str]) -> int:
    """Questions for Search-QA, and tasks as a verl data set: searchqa | world | verl."""
    from stepopsd.envs.searchqa.commands import data_searchqa, data_world
    from stepopsd.envs.verl_rows import data_verl

    commands: dict[str, Callable[..., Any]] = {"searchqa": data_searchqa, "world": data_world, "verl": data_verl}
    if not args or args[0] not in commands:
        print("usage: stepopsd data {searchqa,world,verl} [--help]", file=sys.stderr)
        return 2
    try:
        _typed(commands[args[0]], args[1:], f"stepopsd data {args[0]}")
    except RuntimeError as error:
        print(f"stepopsd data {args[0]}: {error}", file=sys.stderr)
        return 1
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "sft": sft,
    "demo": demo,
    "bench": bench,
    "report": report,
    "doctor": doctor,
    "games": games,
    "study": study,
    "retriever": retriever,
    "data": data,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Expected mistakes print one line, not a traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help") or args[0] not in COMMANDS:
        _usage()
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        return COMMANDS[args[0]](args[1:])
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"stepopsd {args[0]}: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        from stepopsd.retrieval import RetrieverError
        from stepopsd.rollout.engines.results import EngineError

        # By name: what is no run of several processes need not import torch for it.
        named = type(error).__name__ in ("RankFailed", "OutOfMemoryError")
        if not isinstance(error, (RetrieverError, EngineError)) and not named:
            raise
        print(f"stepopsd {args[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        return 128 + getattr(stopped, "signum", signal.SIGINT)


def _usage() -> None:
    print("usage: stepopsd COMMAND [--help]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:9} {(command.__doc__ or '').splitlines()[0]}")


def _resolved(args: Sequence[str], command: str) -> Any:
    """The run that files and keys on the command line ask for, with the source of each value."""
    from stepopsd.experiments.preset import from_arguments
    from stepopsd.train.config import RunConfig

    tyro = _tyro()
    resolved, rest = from_arguments(args)
    prog, about = f"stepopsd {command}", _ABOUT[command]
    return resolved.over(tyro.cli(RunConfig, default=resolved.config, args=rest, prog=prog, description=about))


def _typed(function: Callable[..., Any], args: Sequence[str], prog: str) -> Any:
    return _tyro().cli(function, args=list(args), prog=prog)


def _tyro() -> Any:
    try:
        import tyro
    except ImportError as error:
        raise ImportError("the command line needs tyro: pip install 'stepopsd[train]'") from error
    return tyro


if __name__ == "__main__":
    sys.exit(main())
