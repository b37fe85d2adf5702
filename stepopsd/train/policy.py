"""The policy: a causal LM with its tokenizer, read at chosen positions; logits exist a chunk at a time."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from stepopsd.train.config import ModelConfig
from stepopsd.train.lora_config import LoraConfig
from stepopsd.train.memory import halving
from stepopsd.train.packing import flash_attention, pack, packed_microbatches, takes_rows_of_any_length
from stepopsd.train.readout import Readout


class Policy:
    """A causal LM that scores chosen tokens.

    Attributes:
        model: transformers causal LM.
        tokenizer: Its tokenizer; needs a chat template.
        pad_id: Id that fills padded positions.
        packed: Rows of a micro-batch share bins instead of being padded to the longest; see ``train.packing``.
        forwarded, real: Positions that ``read_targets`` has forwarded so far, and those of them that were no padding.
        scored: Tokens that ``score`` and ``measure`` have forwarded so far, without padding.
    """

    packed = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self.scored = 0
        self._head_only = _head_is_plain(model)
        self.forwarded = self.real = 0
        self._fitting_tokens = sys.maxsize  # padded tokens per micro-batch of scoring, less once memory has run out

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def frozen_copy(self) -> Policy:
        """A detached copy of the weights that never trains."""
        twin = Policy(copy.deepcopy(self.model).eval().requires_grad_(False), self.tokenizer)
        twin.packed = self.packed
        return twin

    def starting_copy(self) -> Policy:
        """As ``frozen_copy``, of a policy that has not been trained yet."""
        return self.frozen_copy()

    def save(self, folder: Path) -> None:
        """Model and tokenizer as a transformers directory."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Take over the weights of a directory that ``save`` wrote."""
        # Through transformers, because save_pretrained shards large models and leaves tied weights out.
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        self.copy_weights_from(Policy(saved, self.tokenizer))

    def save_weights(self, file: Path) -> None:
        """The weights alone, in one file."""
        save_model(self.model, str(file))

    def load_weights(self, file: Path) -> None:
        """What ``save_weights`` wrote."""
        load_model(self.model, str(file))

    def copy_weights_from(self, other: Policy) -> None:
        """Hard copy of another policy's weights into this one."""
        with torch.no_grad():
            for mine, theirs in zip(self.model.parameters(), other.model.parameters(), strict=True):
                mine.copy_(theirs)

    def read_at(
        self, input_ids: Tensor, attention_mask: Tensor | None, read: Tensor, position_ids: Tensor | None = None
    ) -> Readout:
        """Run the model and keep what predicts the next token at chosen positions.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) for causal rows, or an additive (B, 1, T, T) float mask; None where rows follow one
                another and positions tell them apart.
            read: (B, T) bool; position t predicts token t+1.
            position_ids: (B, T) int64, or None for 0..T-1.

        Returns:
            ``Readout`` of M positions, in row-major order of ``read``.
        """
        states = states_of(self.model, self._head_only, input_ids, attention_mask, position_ids)
        return Readout(states[read], self.model.get_output_embeddings() if self._head_only else None)

    def read_targets(self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Readout:
        """What predicts the M tokens marked in ``targets`` (B, T) bool; position 0 cannot be a target."""
        if bool(targets[:, 0].any()):
            raise ValueError("targets must be False at position 0: nothing precedes the first token of a row")
        read, lengths = torch.roll(targets, -1, dims=1), attention_mask.sum(1)
        self.real += int(lengths.sum())
        if self.packed and len(lengths) > 1:
            return self._read_packed(input_ids, lengths, read)
        self.forwarded += input_ids.numel()
        return self.read_at(input_ids, attention_mask, read)

    def _read_packed(self, input_ids: Tensor, lengths: Tensor, read: Tensor) -> Readout:
        """``read_at`` of rows that share bins; answers in row-major order of the rows."""
        varlen = takes_rows_of_any_length(self.model)
        bins = pack(input_ids, lengths, self.pad_id, flat=varlen)
        self.forwarded += bins.ids.numel()
        chosen = bins.at[read]  # (M,)
        wanted = torch.zeros(bins.ids.numel(), dtype=torch.bool, device=chosen.device)
        wanted[chosen] = True
        with flash_attention(self.model) if varlen else nullcontext():
            mask = None if varlen else bins.mask(self.model.dtype)
            seen = self.read_at(bins.ids, mask, wanted.view_as(bins.ids), bins.positions)
        return Readout(seen.states[(wanted.cumsum(0) - 1)[chosen]], seen.head)

    def microbatches(self, lengths: Tensor, max_tokens: int) -> Iterator[tuple[Tensor, int]]:
        """Rows and width of each micro-batch, as this policy forwards them within ``max_tokens`` positions."""
        return packed_microbatches(lengths, max_tokens) if self.packed else microbatches(lengths, max_tokens)

    def score(
        self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor, *, temperature: float, max_tokens: int
    ) -> Tensor:
        """Log-probs of target tokens in micro-batches of at most ``max_tokens`` padded tokens.

        Returns:
            (N, T) float32, 0 where ``targets`` is False. Rows without targets are not forwarded.
        """
        found = self._read_tokens(
            input_ids, attention_mask, targets, max_tokens, lambda seen, ids: [seen.logprobs(ids, temperature)], 1
        )
        return found[0]

    def measure(
        self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor, *, temperature: float, max_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of target tokens, and entropies in nats of the distributions that they were drawn from.

        Returns:
            (N, T) float32 each, as of ``score``.
        """
        logprobs, entropies = self._read_tokens(
            input_ids, attention_mask, targets, max_tokens, lambda seen, ids: seen.measured(ids, temperature), 2
        )
        return logprobs, entropies

    @torch.no_grad()
    def _read_tokens(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        max_tokens: int,
        read: Callable[[Readout, Tensor], list[Tensor]],
        count: int,
    ) -> list[Tensor]:
        lengths = torch.where(targets.any(1), attention_mask.sum(1), 0)
        out = [torch.zeros(input_ids.shape, dtype=torch.float32, device=input_ids.device) for _ in range(count)]

        def fill(tokens: int) -> None:
            for rows, width in self.microbatches(lengths, tokens):
                chosen = targets[rows, :width]
                ids = input_ids[rows, :width]
                readout = self.read_targets(ids, attention_mask[rows, :width], chosen)
                for whole, values in zip(out, read(readout, ids[chosen]), strict=True):
                    part = torch.zeros(chosen.shape, dtype=torch.float32, device=ids.device)
                    part[chosen] = values
                    whole[rows, :width] = part

        was_training = self.model.training
        self.model.eval()
        try:
            tokens = min(max_tokens, self._fitting_tokens)
            least = int(lengths.max()) if lengths.numel() else 1
            _, fitting = halving(fill, tokens, least=least, what="scoring")
            if fitting < tokens:
                self._fitting_tokens = fitting
            self.scored += int(lengths.sum())
        finally:
            self.model.train(was_training)
        return out


def states_of(
    model: Any, head_only: bool, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Tensor:
    """(B, T, H) last hidden states of a causal LM; (B, T, V) logits without ``head_only``."""
    extra = {} if position_ids is None else {"position_ids": position_ids}
    if not head_only:
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra).logits
        return logits
    base = getattr(model, model.base_model_prefix)
    hidden: Tensor = base(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra
    ).last_hidden_state
    return hidden


def microbatches(lengths: Tensor, max_tokens: int) -> Iterator[tuple[Tensor, int]]:
    """Row indices and padded width of each micro-batch: longest rows first, padded area at most ``max_tokens``.

    Rows of length 0 are left out; a row longer than ``max_tokens`` gets a micro-batch of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    order = order[lengths[order] > 0]
    start = 0
    while start < order.numel():
        width = int(lengths[order[start]])
        count = max(1, max_tokens // width)
        yield order[start : start + count], width
        start += count


def load_policy(config: ModelConfig, device: torch.device | str, lora: LoraConfig | None = None) -> Policy:
    """Load model and tokenizer from ``config.path``; with ``lora`` of a rank above 0, put adapters in.

    Raises:
        ImportError: transformers is missing; the message names the extra.
        ValueError: no path, no such directory, or a tokenizer without chat template.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("training needs transformers: pip install 'stepopsd[train]'") from error
    if not config.path:
        raise ValueError("model.path must name a model directory or hub model, got an empty string")
    if config.path.startswith((".", "/")) and not Path(config.path).is_dir():
        raise ValueError(f"model.path: no such directory: {config.path}")
    tokenizer = AutoTokenizer.from_pretrained(config.path)
    if not tokenizer.chat_template:
        raise ValueError(
            f"model.path: the tokenizer of {config.path} has no chat template; "
            "set tokenizer.chat_template and save it beside the model"
        )
    model: Any = AutoModelForCausalLM.from_pretrained(config.path, dtype=getattr(torch, config.dtype))
    model.to(device)
    if config.gradient_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:  # transformers 4; frozen inputs, as below adapters, need the other kind than its default
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora is not None and lora.rank:
        from stepopsd.train.lora import LoraPolicy

        return LoraPolicy(model, tokenizer, lora)
    return Policy(model, tokenizer)


@torch.no_grad()
def _head_is_plain(model: nn.Module) -> bool:
    """Whether logits are exactly the output embedding of the last hidden state (no soft cap, no scale)."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if base is None or base is model or head is None:
        return False
    was_training = model.training
    model.eval()
    probe = torch.arange(4, device=next(model.parameters()).device)[None]
    full = model(input_ids=probe, use_cache=False).logits
    short = head(base(input_ids=probe, use_cache=False).last_hidden_state)
    model.train(was_training)
    return bool(torch.allclose(full, short, rtol=1e-3, atol=1e-3))
