"""What each rank of the vocabulary-parallel tests computes; run in processes of its own, so it imports little."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stepopsd.ops import vocab_parallel

WORLD = 3
SIZES = {2: (16, 7), 3: (10, 4, 9)}  # uneven slices of 23
VOCAB = 23
INF = float("inf")
LOSSES: tuple[dict[str, Any], ...] = (
    {"loss": "grpo", "entropy_coef": 0.1, "dual_clip": 3.0, "kl_coef": 0.2},
    {"loss": "gspo"},
    {"loss": "cispo", "temperature": 0.8},
)


def case(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Logits (2, 6, 23) of two models, ids of every rank, and one number per token of the rest."""
    rng = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn((2, 6, VOCAB), generator=rng).mul(2) for _ in range(2))
    ids = torch.tensor([[0, 9, 10, 13, 14, 22], [16, 15, 3, 11, 20, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]]).bool()
    if kind == "offset":
        student += 1e4
    if kind == "holes":  # slices of -inf only, for the ranks of both worlds, around and beside the id
        student[0, 0, 10:] = -INF
        student[0, 1, :16] = -INF
        student[0, 2, 10:14] = -INF
        student[0, 3, :10] = student[0, 3, 14:] = -INF
        student[0, 4, :14] = -INF
        student[1, 0, 1:] = -INF
    if kind == "broken":
        student[0, 0, 22] = student[0, 1, 0] = float("nan")
        student[0, 2, 12] = INF
        student[0, 3] = -INF
        student[0, 4, 3] = -INF
        ids[0, 4] = 3  # an impossible token
    student[~mask], ids[~mask] = float("nan"), 2**40
    old, ref = (torch.randn((2, 6), generator=rng) - 3 for _ in range(2))
    return {
        "student": student.to(dtype), "teacher": teacher.to(dtype), "ids": ids, "mask": mask,
        "advantages": torch.randn((2, 6), generator=rng), "old": old, "ref": ref,
        "temperatures": torch.linspace(0.5, 2.0, 12).view(2, 6), "slopes": torch.randn((3, 2, 6), generator=rng),
        "steps": torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]).where(mask, -1),
    }  # fmt: skip


def logprob_rows(logits: Tensor, x: dict[str, Tensor], scored: Any) -> dict[str, Tensor]:
    """Values and the gradient of the logits, for random slopes of all three statistics."""
    rows = torch.stack((scored.logprobs, scored.lse, scored.entropy))
    total = (rows.where(x["mask"], 0) * x["slopes"].to(rows.dtype)).sum()
    return {"rows": rows.detach(), "gradient": torch.autograd.grad(total, logits)[0]}


def loss_rows(logits: Tensor, policy: Any) -> dict[str, Tensor]:
    """Loss, metrics, and the gradient of the logits for an upstream gradient that is not 1."""
    gradient = torch.autograd.grad(2.5 * policy.loss, logits)[0]
    return {"loss": policy.loss.detach(), "metrics": policy.metrics.packed, "gradient": gradient}


def loss_tensors(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return x["ids"], x["advantages"], x["old"], x["mask"]


def shaped_rows(shaped: Any) -> dict[str, Tensor]:
    rows = (shaped.advantages, shaped.student_logprobs, shaped.teacher_logprobs, *shaped.entropies)
    return {"rows": torch.stack(rows), "statistics": shaped.stats.packed}


def run(rank: int, folder: str) -> None:
    """Everything, in the group of all three ranks and in one of the first two; results go to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    pair = dist.new_group([0, 1])
    found: dict[Any, Any] = {3: _everything(rank, 3, None)}
    if rank < 2:
        found[2] = _everything(rank, 2, pair)
    else:
        found["outside"] = _message(
            lambda: vocab_parallel.token_logprobs(torch.zeros(1, 4), torch.tensor([0]), group=pair, vocab_start=0)
        )
    torch.save(found, f"{folder}/rank{rank}")
    dist.barrier()
    dist.destroy_process_group()


def _everything(rank: int, ranks: int, group: dist.ProcessGroup | None) -> dict[Any, Any]:
    start = sum(SIZES[ranks][:rank])
    columns = slice(start, start + SIZES[ranks][rank])
    place: dict[str, Any] = {"group": group, "vocab_start": start}
    found: dict[Any, Any] = {}
    for kind in ("normal", "offset", "holes", "broken"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = case(kind, dtype)
            logits = x["student"][..., columns].requires_grad_()
            scored = vocab_parallel.token_logprobs(
                logits, x["ids"], mask=x["mask"], temperature=x["temperatures"], entropy=True, **place
            )
            found["logprobs", kind, dtype] = logprob_rows(logits, x, scored)
    x = case("normal")
    logits = x["student"][..., columns].requires_grad_()
    copy = logits.clone()
    scored = vocab_parallel.token_logprobs(copy, x["ids"], mask=x["mask"], entropy=True, inplace_backward=True, **place)
    found["inplace"] = logprob_rows(logits, x, scored)
    found["overwritten"] = bool((copy.detach() == found["inplace"]["gradient"]).all())
    for number, options in enumerate(LOSSES):
        logits = x["student"][..., columns].requires_grad_()
        copy = logits.clone()
        policy = vocab_parallel.grpo_loss(
            copy, *loss_tensors(x), ref_logprobs=x["ref"], inplace=number == 0, **options, **place
        )
        found["loss", number] = loss_rows(logits, policy)
    with torch.no_grad():
        policy = vocab_parallel.grpo_loss(x["student"][..., columns], *loss_tensors(x), **place)
        found["no_grad"] = (policy.loss, policy.loss.requires_grad)
    pair = [x[name][..., columns] for name in ("student", "teacher")]
    steps = {"trajectory_ids": torch.arange(2), "entropy": True, "lambda_mix": 0.5}
    found["shaped"] = shaped_rows(
        vocab_parallel.shape_advantages(*pair, x["ids"], x["advantages"], x["steps"], **steps, **place)
    )
    x["ids"][0, 1] = VOCAB
    found["bad id"] = _message(lambda: vocab_parallel.token_logprobs(pair[0], x["ids"], mask=x["mask"], **place))
    place["vocab_start"] = start + rank
    found["bad start"] = _message(lambda: vocab_parallel.token_logprobs(pair[0], x["ids"], mask=x["mask"], **place))
    return found


def _message(call: Any) -> str:
    try:
        call()
    except (ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
