"""What a tiny model learns to play from: a demonstration, the row that it becomes, and the training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from stepopsd.experiments.sft import FitConfig, WeightedRow, fit
from stepopsd.experiments.tiny_model import END, TinyModelConfig, build_model, save
from stepopsd.text.chat import ChatFormat


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One won episode of a dialogue.

    Attributes:
        messages: What the agent reads before each action, the opening first.
        actions: What was played, one per message.
        imitated: Whether the action is an example to follow.
        hint: Hindsight block, or empty.
        hint_turn: The block stands right before this turn's action; -1 puts it at the start of the opening message.
    """

    kind: str
    messages: list[str]
    actions: list[str]
    imitated: list[bool]
    hint: str = ""
    hint_turn: int = -1


def training_row(
    chat: ChatFormat, demonstration: Demonstration, *, observation_weight: float, form: str = "<action>{}</action>"
) -> WeightedRow:
    """A demonstration as the ids that a dialogue rollout would hold, with the loss weight of each.

    Imitated actions, with the id that ends the turn, weigh 1; the environment's words ``observation_weight``;
    actions that are not imitated and the hindsight block 0.
    """
    tokenizer = chat.tokenizer
    ids: list[int] = []
    weights: list[float] = []

    def add(new: list[int], weight: float) -> None:
        ids.extend(new)
        weights.extend([weight] * len(new))

    hint = tokenizer(demonstration.hint, add_special_tokens=False)["input_ids"]
    response: list[int] = []
    for turn, message in enumerate(demonstration.messages):
        add(chat.followup(message, response) if turn else chat.opening(message), observation_weight)
        if turn == demonstration.hint_turn:
            add(hint, 0.0)
        action = form.format(demonstration.actions[turn])
        response = tokenizer(f"{action}{END}", add_special_tokens=False)["input_ids"]
        add(response, float(demonstration.imitated[turn]))
    if demonstration.hint_turn < 0:  # where a teacher with prefix placement puts it: before the user's first words
        ids[1:1] = hint
        weights[1:1] = [0.0] * len(hint)
    return WeightedRow(ids, weights)


def teach(
    out: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Iterable[tuple[Sequence[WeightedRow], FitConfig]],
    *,
    model: TinyModelConfig,
    seed: int,
    threads: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Path:
    """Draw a tiny model, teach it one lesson after the other and save it in bfloat16, with its tokenizer.

    Args:
        out: Folder to write; what ``from_pretrained`` reads.
        lessons: Rows, and how they are learned; one without rows is passed over.
        model: Size of the model.
        seed: Seeds its parameters.
        threads: Threads of the training; 0 leaves torch's own number.
        device: Where it learns; the parameters are drawn on the CPU.
        say: Receives progress lines.

    Returns:
        The folder.
    """
    policy = build_model(tokenizer, model, seed=seed)
    torch.nn.Module.to(policy, device)
    say(f"{sum(p.numel() for p in policy.parameters()):,} parameters, {len(tokenizer)} words")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for rows, options in lessons:
            if rows:
                fit(policy, rows, options, pad_id=tokenizer.pad_token_id, say=say)
    finally:
        torch.set_num_threads(before)
    torch.nn.Module.to(policy, "cpu", torch.bfloat16)
    save(policy, tokenizer, out)
    return Path(out)


def add_training_options(parser: argparse.ArgumentParser, model: TinyModelConfig, *, lr: float, threads: int) -> None:
    """Command-line options of a warm start that say what learns, how fast and where."""
    parser.add_argument("--threads", type=int, default=threads, help="of the training; 0: torch's own number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lr", type=float, default=lr)
    for size in _SIZES:
        parser.add_argument(f"--{size}", type=int, default=getattr(model, size))


def chosen_model(model: TinyModelConfig, chosen: argparse.Namespace) -> TinyModelConfig:
    """``model`` with the sizes that were chosen by ``add_training_options``."""
    return replace(model, **{size: getattr(chosen, size) for size in _SIZES})


_SIZES = ("width", "layers", "heads", "mlp")
