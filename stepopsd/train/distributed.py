"""Several processes as one run: who plays which group, what they agree on, and how their gradients are added.

Ranks work alone between votes. What goes wrong on one of them is known to all at the next vote, so that none waits for
a rank that has given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepopsd.retrieval import RetrieverError
from stepopsd.rollout.engines.results import EngineError
from stepopsd.train.config import RunConfig
from stepopsd.train.deadline import DeadlineReached
from stepopsd.train.interrupts import Interrupts, Stop

T = TypeVar("T")
#: A vote waits for the rank with the longest episodes; one that died is noticed at once, by its closed connection.
PATIENCE = timedelta(hours=24)
BUCKET_BYTES = 1 << 26
#: What ends a run in order and saved; the other ranks end in the same way. Everything else is an error.
_ORDERLY: dict[str, Callable[[str, int], BaseException]] = {
    "stop": lambda text, signum: Stop(signum) if signum else KeyboardInterrupt(text),
    "deadline": lambda text, _: DeadlineReached(text),
    "retriever": lambda text, _: RetrieverError(text),
    "engine": lambda text, _: EngineError(text),
}


class RankFailed(RuntimeError):
    """Another process of the run failed; its own message has the cause."""


class Ranks:
    """The processes of one run, as torchrun or ``accelerate launch`` started them; one process is a group of one.

    Every method but ``own`` is called by all ranks at the same point. With one process none of them communicates.

    Args:
        rank, world: Of this process; the default process group must exist where ``world`` is greater than 1.
        interrupts: Signals are heeded where this rank works alone (``together``), else they wait.

    Example:
        >>> ranks = Ranks()
        >>> ranks.own(["a", "b"]), ranks.totals([1.0]), ranks.is_main
        (['a', 'b'], [1.0], True)
    """

    def __init__(self, rank: int = 0, world: int = 1, interrupts: Interrupts | None = None) -> None:
        self.rank, self.world, self.interrupts = rank, world, interrupts
        # Not the accelerator's: votes have to wait for episodes, and objects need no device.
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """This rank's part: every ``world``-th, so that consecutive items go to different ranks."""
        return list(items[self.rank :: self.world])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each rank does alone, and a vote at its end: what one of them raises, all raise.

        The rank that failed raises its own error; the others raise the same where it ends a run in order (a signal, the
        deadline, a lost retriever), else ``RankFailed``. Errors come before what is orderly, so that all do the same.
        """
        if self.world == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            with self.interrupts.heeded() if self.interrupts is not None else nullcontext():
                yield
        except BaseException as error:
            failure = error
        votes = self.gathered(_told(failure))
        failed = [(vote, rank) for rank, vote in enumerate(votes) if vote is not None]
        if not failed:
            return
        (kind, text, signum), rank = min(failed, key=lambda f: f[0][0] in _ORDERLY)
        if failure is not None and _told(failure)[0] == kind:  # type: ignore[index]
            raise failure
        if kind in _ORDERLY:
            raise _ORDERLY[kind](text, signum)
        raise RankFailed(f"rank {rank} of {self.world} failed: {text}") from failure

    def gathered(self, thing: T) -> list[T]:
        """What every rank gave, in the order of ranks; anything that can be pickled."""
        if self.world == 1:
            return [thing]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, thing, group=self._control)
        return everyone

    def told(self, thing: T) -> T:
        """What rank 0 gave."""
        if self.world == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def union(self, numbers: Iterable[int]) -> list[int]:
        """What any rank has, ascending, once."""
        return sorted({number for part in self.gathered(sorted(set(numbers))) for number in part})

    def places(self, groups: Sequence[int]) -> tuple[list[int], int]:
        """Where this rank's rows are in the whole batch, and how many rows that has.

        Args:
            groups: Group of each of its rows; a group is on one rank. The whole batch is sorted by them.
        """
        if self.world == 1:
            return list(range(len(groups))), len(groups)
        keys = sorted((g, i) for part in self.gathered(list(enumerate(groups))) for i, g in part)
        order = {key: place for place, key in enumerate(keys)}
        return [order[g, i] for i, g in enumerate(groups)], len(keys)

    def totals(self, values: Iterable[float]) -> list[float]:
        """Sums over ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def total(self, value: float) -> float:
        """One sum over ranks."""
        return self.totals([value])[0]

    def most(self, value: float) -> float:
        """The largest over ranks."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def _reduced(self, values: Iterable[float], operation: Any) -> list[float]:
        numbers = list(values)
        if self.world == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, operation, group=self._control)
        return list(tensor.tolist())

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of trained parameters by their sum over ranks, in buckets.

        A parameter without a gradient on any rank keeps none, as in one process; on some ranks, it counts as 0 there.
        """
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        device = trained[0].device
        touched = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=device)
        dist.all_reduce(touched, dist.ReduceOp.MAX)
        grads = []
        for parameter, used in zip(trained, touched.tolist(), strict=True):
            if used:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                grads.append(parameter.grad)
        for bucket in _buckets(grads):
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat)
            for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))


def launched_ranks(accelerator: Any, config: RunConfig, interrupts: Interrupts) -> Ranks:
    """The processes that the launcher started, with the accelerator that found them.

    Raises:
        ValueError: More processes than groups, or settings of accelerate that the trainer has keys of its own for.
    """
    world, groups = int(accelerator.num_processes), config.rollout.groups
    if world > groups:
        raise ValueError(f"rollout.groups must be at least the number of processes, {world}, got {groups}")
    steps = accelerator.gradient_accumulation_steps
    if steps != 1:
        raise ValueError(
            f"accelerate's gradient_accumulation_steps must be 1, got {steps}: gradients are accumulated over "
            "micro-batches of optim.microbatch_tokens, and optim.minibatch_rows or minibatch_groups set the step"
        )
    if world > 1 and config.rollout.engine.startswith("vllm"):
        raise ValueError(
            "rollout.engine must be transformers or continuous with several processes (each samples from its own "
            f"weights), got {config.rollout.engine}"
        )
    precision = accelerator.mixed_precision
    if precision != "no":
        raise ValueError(
            f"accelerate's mixed_precision must be no, got {precision}: model.dtype says what is computed in"
        )
    return Ranks(int(accelerator.process_index), world, interrupts)


def leave() -> None:
    """Take leave of the other processes, where there are any, at the end of a run that went well."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one dtype, about ``BUCKET_BYTES`` each."""
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        if bucket and (grad.dtype != bucket[0].dtype or size + grad.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket


def _told(failure: BaseException | None) -> tuple[str, str, int] | None:
    """Kind, text and signal of a failure, for the other ranks."""
    if failure is None:
        return None
    kinds = {
        KeyboardInterrupt: "stop", DeadlineReached: "deadline", RetrieverError: "retriever", EngineError: "engine",
    }  # fmt: skip
    kind = next((name for cls, name in kinds.items() if isinstance(failure, cls)), "error")
    text = str(failure) if kind != "error" else f"{type(failure).__name__}: {failure}"
    return kind, text, int(getattr(failure, "signum", 0))
