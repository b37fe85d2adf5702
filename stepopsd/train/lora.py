"""Low-rank adapters: one model, trained in a few small matrices; teacher and reference are other ones, or none.

The layers are put into the model itself, so that sampling, scoring and shards know nothing of them (arXiv 2106.09685).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepopsd.train.lora_config import LoraConfig
from stepopsd.train.policy import Policy
from stepopsd.train.readout import Readout

TRAINED = "trained"
_PREFIX = "base_model.model."  # of names in peft's files


class LoraPolicy(Policy):
    """A policy whose adapters are trained.

    Args:
        model: Causal LM without adapters; frozen, but for the ones that are put in.
        tokenizer: Its tokenizer.
        config: The ``lora`` section.

    Raises:
        ImportError: peft is missing; the message names the extra.
        ValueError: No layer of the model answers to ``lora.targets``.
    """

    adapter: str | None = TRAINED

    def __init__(self, model: Any, tokenizer: Any, config: LoraConfig) -> None:
        self._options = _peft_options(model, config)
        try:
            model.add_adapter(self._options, TRAINED)
        except ValueError as error:
            raise ValueError(f"lora.targets {list(config.targets)}: {error}") from error
        super().__init__(model, tokenizer)
        self._copies = 0

    def frozen_copy(self) -> Policy:
        """A frozen adapter with the weights of this one, beside it."""
        self._copies += 1
        name = f"frozen_{self._copies}"
        training = self.model.training
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
            self.model.add_adapter(self._options, name)
        self.model.set_adapter(TRAINED)
        self.model.train(training)
        twin = _Beside(self, name)
        twin.copy_weights_from(self)
        return twin

    def starting_copy(self) -> Policy:
        """The model without adapters."""
        return _Beside(self, None)

    def copy_weights_from(self, other: Policy) -> None:
        """Hard copy of another adapter."""
        with torch.no_grad():
            for mine, theirs in zip(own_weights(self).values(), own_weights(other).values(), strict=True):
                mine.copy_(theirs)

    def save(self, folder: Path) -> None:
        """The trained adapter in peft's format, and the tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Take over an adapter that ``save`` wrote."""
        self.load_weights(folder / "adapter_model.safetensors")

    def save_weights(self, file: Path) -> None:
        """The adapter alone; a file without tensors where there is none."""
        save_file({name: weight.detach().contiguous() for name, weight in own_weights(self).items()}, file)

    def load_weights(self, file: Path) -> None:
        """What ``save_weights`` or peft wrote."""
        saved = load_file(file)
        with torch.no_grad():
            for name, weight in own_weights(self).items():
                weight.copy_(saved[name])


class _Beside(LoraPolicy):
    """Another adapter of the same model, or none, that never trains."""

    def __init__(self, owner: LoraPolicy, adapter: str | None) -> None:
        Policy.__init__(self, owner.model, owner.tokenizer)
        self.adapter, self.packed = adapter, owner.packed
        for weight in own_weights(self).values():
            weight.requires_grad_(False)

    def read_at(
        self, input_ids: Tensor, attention_mask: Tensor | None, read: Tensor, position_ids: Tensor | None = None
    ) -> Readout:
        """See ``Policy.read_at``; without gradients."""
        with torch.no_grad(), self._shown():
            return super().read_at(input_ids, attention_mask, read, position_ids)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        if self.adapter is None:
            self.model.disable_adapters()
        else:
            self.model.set_adapter(self.adapter)
        try:
            yield
        finally:
            if self.adapter is None:
                self.model.enable_adapters()
            self.model.set_adapter(TRAINED)  # and its weights require gradients again, the others' none


def own_weights(policy: Policy) -> dict[str, nn.Parameter]:
    """Name in peft's files -> weight of the policy's own adapter."""
    mark = f".{getattr(policy, 'adapter', TRAINED)}."
    named = policy.model.named_parameters()
    return {_PREFIX + name.replace(mark, "."): weight for name, weight in named if mark in name}


def _peft_options(model: Any, config: LoraConfig) -> Any:
    try:
        from peft import LoraConfig as Options
    except ImportError as error:
        raise ImportError("lora.rank needs peft: pip install 'stepopsd[lora]'") from error
    options: Any = Options  # peft annotates alpha as a whole number and takes any
    return options(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=list(config.targets) or "all-linear", base_model_name_or_path=model.config.name_or_path,
    )  # fmt: skip
