"""FSDP2 for the optimiser's step: parameters, gradients and optimiser state in pieces, one per rank (arXiv 2304.11277).

A sharded forward is a conversation between ranks, so all of them have to make the same number of them. Sampling and
scoring cannot: each rank plays its own episodes. They run in a plain copy of the model that is filled from the shards
after every step and emptied before the next one, so that it takes no memory while gradients do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from stepopsd.train.policy import Policy, states_of
from stepopsd.train.readout import Readout


@dataclass(frozen=True, slots=True)
class Shards:
    """How weights are cut.

    Attributes:
        reshard: A layer's weights are dropped after its forward and gathered again for its backward.
        blocks: Classes of the modules that are gathered one at a time; empty for what transformers does not split.
        masters: Pieces of a half-precision model are fp32, and rounded when they are gathered.
        offload: torch's ``CPUOffloadPolicy``, or None.
    """

    reshard: bool = True
    blocks: tuple[str, ...] = ()
    masters: bool = True
    offload: Any = None


class _Root(nn.Module):
    """The forward that all shards are gathered for: hidden states, or logits where the head is more than a product."""

    def __init__(self, model: nn.Module, head_only: bool) -> None:
        super().__init__()
        self.model, self.head_only = model, head_only

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        return states_of(self.model, self.head_only, input_ids, attention_mask, position_ids)


class Sharded(Policy):
    """The trained weights of ``policy`` in pieces; reads like a policy, on all ranks at once.

    Args:
        policy: Whole on every rank, with equal weights; its model is what ``fill`` writes to.
        shards: What to gather when, in which precision.
    """

    def __init__(self, policy: Policy, shards: Shards) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(copy.deepcopy(policy.model), policy.tokenizer)
        half = policy.model.dtype
        if shards.masters and half != torch.float32:
            self.model.float()
        self.whole, self.packed = policy.model, policy.packed
        self.root = _Root(self.model, self._head_only)
        device = policy.device
        options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (dist.get_world_size(),))}
        if shards.masters and half != torch.float32:
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        if shards.offload is not None:
            options["offload_policy"] = shards.offload
        for block in _blocks(self.model, shards.blocks):
            fully_shard(block, reshard_after_forward=shards.reshard, **options)
        # The head is read outside of the forward, so the root's own parameters stay gathered until the backward.
        fully_shard(self.root, reshard_after_forward=False, **options)

    def read_at(
        self, input_ids: Tensor, attention_mask: Tensor | None, read: Tensor, position_ids: Tensor | None = None
    ) -> Readout:
        """See ``Policy.read_at``; every rank has to call it."""
        states = self.root(input_ids, attention_mask, position_ids)[read]
        return Readout(states, self.model.get_output_embeddings() if self._head_only else None)

    def anchor(self) -> Tensor:
        """A loss of 0 that reaches every parameter, for a rank that has no rows left while others have."""
        one = torch.full((1, 1), self.pad_id, device=self.whole.device)
        seen = self.read_at(one, torch.ones_like(one), torch.ones_like(one, dtype=torch.bool))
        return sum((t.float().sum() * 0.0 for t in (seen.states, *seen.parameters) if t is not None), torch.zeros(()))

    @contextmanager
    def stepping(self, *, keep: bool = False) -> Iterator[None]:
        """The plain copy is empty inside, or with ``keep`` as it was; at the end it is filled with the new weights."""
        for parameter in () if keep else self.whole.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.new_empty(0)
        yield
        self.fill()  # not after an error: the other ranks might not be there

    def clip_gradients(self, most: float) -> float:
        """Scale the gradients down to a norm of ``most`` over all pieces; returns what it was."""
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.root.parameters() if p.grad is not None], most)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @torch.no_grad()
    def fill(self) -> None:
        """Gather the shards into the plain copy, parameter by parameter."""
        for mine, piece in self._pairs():
            mine.data = mine.data.new_empty(piece.shape)
            mine.copy_(piece.full_tensor())  # in place, for those who watch the version of the weights

    def exact(self) -> list[Tensor]:
        """The trained weights for a checkpoint, whole and on the CPU; all ranks call it."""
        return [piece.full_tensor().detach().cpu() for _, piece in self._pairs()]

    @torch.no_grad()
    def restore(self, saved: Sequence[Tensor] | None) -> None:
        """Take over ``exact`` weights; without any, those of the plain copy as rank 0 has them."""
        for at, (mine, piece) in enumerate(self._pairs()):
            whole = (mine if saved is None else saved[at]).to(piece.device, piece.dtype)
            piece.copy_(distribute_tensor(whole, piece.device_mesh, piece.placements))
        self.fill()

    def _pairs(self) -> Iterator[tuple[nn.Parameter, DTensor]]:
        """Trained weights; what is frozen stays in the plain copy."""
        for mine, piece in zip(self.whole.parameters(), self.root.parameters(), strict=True):
            assert isinstance(piece, DTensor)
            if mine.requires_grad:
                yield mine, piece


def _blocks(model: nn.Module, named: Iterable[str]) -> list[nn.Module]:
    """The modules to gather one at a time: of the named classes, or those that transformers says not to split."""
    names = set(tuple(named) or getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state dictionary with every piece gathered; on every rank, and the same for any number of them."""
    return {key: _mapped(value) for key, value in state.items()}


def _mapped(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    return {key: _mapped(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def pieces_of(state: dict[str, Any], parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """The state of ``whole_state`` cut as the parameters are; unchanged where these are whole."""
    cut = {}
    for index, parameter in enumerate(parameters):
        own = state["state"].get(index, {})
        if isinstance(parameter, DTensor):
            own = {
                name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
                if value.ndim else value
                for name, value in own.items()
            }  # fmt: skip
        cut[index] = own
    return {**state, "state": {index: own for index, own in cut.items() if own}}


def wants_sharding(accelerator: Any, *, masters: bool = True) -> Shards | None:
    """What the launch asked for, by accelerate's FSDP or DeepSpeed settings; None without either.

    Args:
        accelerator: Of the launch.
        masters: See ``Shards``.

    DeepSpeed's stages are carried out by FSDP2: 1 and 2 gather a layer once, 3 again in the backward.

    Raises:
        ValueError: It asked for FSDP1, or for DeepSpeed's offloading.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils import parse_flag_from_env

    if accelerator.num_processes == 1:
        return None
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None:
        return _shards_of_deepspeed(deepspeed, masters)
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    # On CPU accelerate keeps no plugin; it reads the same variables.
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_config.fsdp_version must be 2, got {plugin.fsdp_version}")
    on_gpu = accelerator.device.type != "cpu"
    return Shards(
        bool(plugin.reshard_after_forward), tuple(plugin.transformer_cls_names_to_wrap or ()),
        masters, plugin.cpu_offload if on_gpu and plugin.cpu_offload else None,
    )  # fmt: skip


def _shards_of_deepspeed(plugin: Any, masters: bool) -> Shards | None:
    for key in ("offload_optimizer_device", "offload_param_device"):
        if getattr(plugin, key, None) not in (None, "none"):
            raise ValueError(f"deepspeed_config.{key} must be none, got {getattr(plugin, key)}; fsdp2.yaml can offload")
    stage = int(plugin.zero_stage)
    return Shards(reshard=stage == 3, masters=masters) if stage else None
