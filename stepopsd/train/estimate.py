"""What a run will need, from its configuration and the model's shape alone: parameters, memory, tokens, compute.

Nothing is loaded: the model is built without storage. Memory that no formula gives, such as a kernel's workspace or the
allocator's leftovers, is not in the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepopsd.train.config import RunConfig
from stepopsd.train.shapes import SHAPES

BYTES = {"float32": 4, "bfloat16": 2}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes, counts and operations of one run; what is per update is an upper bound.

    Attributes:
        parameters: Of the policy, tied weights once.
        memory: Part -> bytes; ``activations`` are of the largest micro-batch, ``cache`` of a whole rollout batch.
        rows, row_tokens, generated: Most rows, tokens in them and sampled tokens of an update.
        forwards: What reads all rows -> passes of 2 · parameters operations per token.
    """

    parameters: int
    memory: dict[str, int]
    rows: int
    row_tokens: int
    generated: int
    forwards: dict[str, int]

    @property
    def training_bytes(self) -> int:
        """While the optimiser's step runs."""
        return sum(size for part, size in self.memory.items() if part != "cache")

    @property
    def rollout_bytes(self) -> int:
        """While episodes are sampled with the trainer's own model; gradients and activations are gone."""
        return sum(size for part, size in self.memory.items() if part not in ("gradients", "activations"))

    @property
    def operations(self) -> float:
        """Floating-point operations of an update without generation: matrix products with the parameters alone."""
        return 2.0 * self.parameters * self.row_tokens * sum(self.forwards.values())


def estimate(config: RunConfig) -> Estimate:
    """Bounds for one run.

    Raises:
        ImportError: transformers is missing.
        OSError, ValueError: ``model.path`` has no configuration on this machine that transformers can read.
    """
    shape, model = _model(config.model.path)
    parameters = sum(p.numel() for p in model.parameters())
    adapters = config.lora.rank * _ends_of_layers(model, config.lora.targets)
    trained = adapters or parameters
    size = BYTES[config.model.dtype]
    exact = 4 if config.optim.master_weights else size  # bytes of a number that AdamW moves
    whole = parameters * size
    rollout = config.rollout
    turns = _turns(config)
    episodes = rollout.groups * rollout.group_size
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    rows = episodes * (turns if rollout.context == "turn" else 1)
    memory = {"weights": whole + adapters * size, "gradients": trained * size, "optimiser": 2 * trained * exact}
    if exact > size:
        memory["exact weights, sums of gradients"] = 2 * trained * exact
    anchored = config.loss.kl_coef > 0
    if anchored and config.loss.kl_reference == "start" and not adapters:
        memory["reference"] = whole
    if config.credit.has_stale_teacher:
        memory["teacher"] = adapters * size or whole
    tokens = max(config.optim.microbatch_tokens, longest)
    kept = activations_per_token(shape, checkpointing=config.model.gradient_checkpointing)
    memory["activations"] = tokens * size * kept
    if rollout.engine == "transformers":
        memory["cache"] = min(rollout.batch_size or episodes, episodes) * longest * size * _cache_per_token(shape)
    epochs = config.optim.epochs
    forwards = {"loss": 3 * epochs, "recomputation": epochs if config.model.gradient_checkpointing else 0}
    forwards["old log-probs"] = int(config.optim.old_logprobs == "recompute")
    forwards["reference"] = int(anchored)
    forwards["teacher"] = sum(config.credit.teacher_options(name) is not None for name in config.credit.names)
    generated = episodes * turns * rollout.max_response_tokens
    return Estimate(parameters, memory, rows, rows * longest, generated, forwards)


def activations_per_token(shape: Any, *, checkpointing: bool) -> int:
    """Numbers per token that the backward of a gated decoder keeps, a layer's attention being fused.

    With checkpointing: one residual per layer, and one layer in full.
    """
    hidden, heads, inner = shape.hidden_size, shape.num_attention_heads, shape.intermediate_size
    width = _head_dim(shape)
    queries, keys = heads * width, _kv_heads(shape) * width
    # Residual and normed input of both blocks; projections before and after rotation; gate, up and their products.
    layer = 6 * hidden + 4 * queries + 3 * keys + 4 * inner
    layers, last = shape.num_hidden_layers, 2 * hidden  # the final norm
    return last + (layers * hidden + layer if checkpointing else layers * layer)


def lines(config: RunConfig, *, tflops: float = 0.0) -> list[str]:
    """The estimate as comment lines for ``--dry-run``.

    Args:
        tflops: Sustained 10¹² operations per second that the time is to assume; 0 estimates no time.
    """
    try:
        found = estimate(config)
    except (ImportError, OSError, ValueError) as error:
        return [f"# estimate: none, {str(error).splitlines()[0]}"]
    parts = " · ".join(f"{part} {size / GIB:.2f}" for part, size in found.memory.items())
    passes = " · ".join(f"{what} {count}" for what, count in found.forwards.items() if count)
    seconds = f"{found.operations / tflops / 1e12:,.0f} s at {tflops:g} TFLOP/s" if tflops else "not estimated"
    engine = config.rollout.engine
    rollout = f"{found.rollout_bytes / GIB:.2f} GiB" if engine == "transformers" else f"{engine}'s own, not estimated"
    return [
        f"# estimate, from shapes alone; kernels' workspaces are not in it ({config.model.dtype})",
        f"# parameters: {found.parameters:,}",
        f"# memory, GiB: {parts}",
        f"# memory at most, while training: {found.training_bytes / GIB:.2f} GiB; while sampling: {rollout}",
        f"# an update at most: {found.rows:,} rows, {found.row_tokens:,} tokens in them, {found.generated:,} sampled",
        f"# compute of an update at most, without sampling: {found.operations:.2e} operations (passes: {passes})",
        f"# time of an update at most, without sampling: {seconds}",
    ]


def _turns(config: RunConfig) -> int:
    search = config.env.search
    return config.env.max_steps if config.env.name == "alfworld" else search.max_searches + search.final_answer_turn


def _model(path: str) -> tuple[Any, Any]:
    """Shape and storageless twin of a model on this machine, or of one whose shape is known by name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not path:
        raise ValueError("model.path must name a model directory or hub model, got an empty string")
    if path in SHAPES:
        shape = AutoConfig.for_model(**SHAPES[path])
    else:
        shape = AutoConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    return shape.get_text_config(), model


def _ends_of_layers(model: Any, targets: Sequence[str]) -> int:
    """Inputs and outputs, added up, of the linear layers that get an adapter; times the rank, its size."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = model.get_output_embeddings()
    chosen = [m for n, m in layers.items() if m is not head and (not targets or n.endswith(tuple(targets)))]
    return sum(m.in_features + m.out_features for m in chosen)


def _head_dim(shape: Any) -> int:
    return int(getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads)


def _kv_heads(shape: Any) -> int:
    return int(getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads)


def _cache_per_token(shape: Any) -> int:
    return int(2 * shape.num_hidden_layers * _kv_heads(shape) * _head_dim(shape))
