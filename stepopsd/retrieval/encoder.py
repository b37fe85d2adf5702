"""Text to unit vectors with any encoder from transformers, as E5 wants it: prefixes, mean pooling, L2 norm."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stepopsd.retrieval.base import Passage
from stepopsd.retrieval.corpus import join_contents

DENSE_HINT = "pip install 'stepopsd[dense]'"


@dataclass(frozen=True)
class EncoderOptions:
    """How texts become vectors. The defaults are those of E5 (arXiv 2212.03533).

    Attributes:
        query_prefix: Before every query.
        passage_prefix: Before every passage, which is its title in double quotes, a line end and its text.
        pooling: Mean of the last hidden states of all tokens, or the first token's.
        max_tokens: Of a text; longer ones are cut, at what the encoder takes in any case.
    """

    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    pooling: Literal["mean", "cls"] = "mean"
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be one of mean, cls, got {self.pooling!r}")
        if self.max_tokens < 8:
            raise ValueError(f"max_tokens must be at least 8, got {self.max_tokens}")


class Encoder:
    """A model and its tokenizer, in fp32. May be called from several threads, one of which works at a time.

    Args:
        path: Folder of a model with a tokenizer, or a name on the hub.
        options: See ``EncoderOptions``.
        device: Where the model runs, e.g. ``cpu`` or ``cuda:1``.
        batch: Texts at a time, of similar length.

    Attributes:
        dimension: Of a vector.
        sha256: Of the weights, the vocabulary and how a probe is split; wherever the files lie.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no such model, no tokenizer, no such device, or an argument out of range.

    Example:
        >>> Encoder("intfloat/e5-base-v2").queries(["who discovered radium"]).shape  # doctest: +SKIP
        (1, 768)
    """

    def __init__(
        self, path: str, *, options: EncoderOptions | None = None, device: str = "cpu", batch: int = 64
    ) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ImportError(f"an encoder needs torch and transformers: {DENSE_HINT}") from error
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.path, self.options = path, options or EncoderOptions()
        self._torch, self._batch, self._lock = torch, batch, threading.Lock()
        told = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # a pooler that is missing is no news
        transformers.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            model, loading = transformers.AutoModel.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"the encoder {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        finally:
            transformers.logging.set_verbosity(told)
        positions = getattr(model.config, "max_position_embeddings", None) or self.options.max_tokens
        self._max_tokens = min(self.options.max_tokens, self._tokenizer.model_max_length, positions)
        self.dimension: int = model.config.hidden_size
        # Parts that the checkpoint lacks (a pooler, often) are drawn at random and play no part in the vectors.
        self.sha256 = self._digest(model.state_dict(), set(loading["missing_keys"]))
        try:
            self._model = model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"the encoder cannot run on device {device!r}: {str(error).splitlines()[0]}") from None
        self._device = device

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dimension) fp32, unit rows. Raises ValueError where the model gives a vector that is not finite."""
        return self._encode([self.options.query_prefix + text for text in texts])

    def passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """(n, dimension) fp32, unit rows. Raises ValueError where the model gives a vector that is not finite."""
        return self._encode([self.options.passage_prefix + join_contents(passage) for passage in passages])

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dimension), np.float32)
        with self._lock, self._torch.inference_mode():  # tokenizers keep the length limit in shared state
            ids = self._tokenizer(texts, truncation=True, max_length=self._max_tokens)["input_ids"] if texts else []
            order = sorted(range(len(texts)), key=lambda at: len(ids[at]))
            for start in range(0, len(order), self._batch):
                rows = order[start : start + self._batch]
                vectors[rows] = self._pooled([ids[row] for row in rows])
        if not np.isfinite(vectors).all():
            raise ValueError(f"the encoder {self.path!r} gave a vector that is not finite")
        return vectors

    def _pooled(self, ids: list[list[int]]) -> np.ndarray:
        torch = self._torch
        longest = max(map(len, ids))
        inputs = torch.zeros(len(ids), longest, dtype=torch.long)  # (B, T); what is padded is masked
        mask = torch.zeros(len(ids), longest, dtype=torch.long)  # (B, T)
        for row, tokens in enumerate(ids):
            inputs[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        inputs, mask = inputs.to(self._device), mask.to(self._device)
        states = self._model(input_ids=inputs, attention_mask=mask).last_hidden_state  # (B, T, D)
        if self.options.pooling == "cls":
            pooled = states[:, 0]
        else:
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()

    def _digest(self, weights: dict[str, Any], left_out: set[str]) -> str:
        digest = hashlib.sha256()
        for name in sorted(weights.keys() - left_out):
            tensor = weights[name].contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(memoryview(tensor.numpy().reshape(-1)).cast("B"))
        probe = self._tokenizer("Ünïted STATES of 1901: don't, 東京")["input_ids"]
        digest.update(json.dumps([sorted(self._tokenizer.get_vocab().items()), probe]).encode())
        return digest.hexdigest()
