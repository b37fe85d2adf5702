"""``GRPOTrainer`` with step-aware credit: the advantages that its loss sees are (B, T), all else is TRL's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from stepopsd.credit import CreditMethod
from stepopsd.credit.base import broadcast_advantages
from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.steps import ACTION_TAGS, Steps, find_steps
from stepopsd.integrations.teacher import HindsightTeacher, HostRow, prefix_position
from stepopsd.integrations.trl.host import GRPOTrainer
from stepopsd.integrations.turns import turn_extras
from stepopsd.options.credit import CreditConfig
from stepopsd.text.hindsight import first_successes, number_actions
from stepopsd.text.spans import decode

#: Entries of a batch that credit needs again at the loss, where advantages follow the policy.
KEPT = "credit_"


class StepOPSDGRPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` with one of our credit methods between the rewards and the loss.

    Generation, environments, tools, rewards, group advantages, losses and their aggregation stay TRL's. After TRL has
    made its (B,) advantages, the steps of every row are found, the teacher is asked where the method wants one, and
    ``HostCredit`` turns the advantages into (B, T) ones. With λ = 0, and wherever nothing is known, they are TRL's.

    Args:
        args, kwargs: ``GRPOTrainer``'s own.
        credit: ``stepopsd``, ``rlsd``, ``appo_future``, ``gigpo``, ``oar_p``, ``oar_g``, ``grpo``, or several joined by
            ``+``.
        credit_options: Keys of a run's ``credit`` section, see ``options/credit.py``: ``alpha_clip``, ``span``,
            ``teacher``, ``hindsight``, ...; how rewards become advantages is TRL's ``scale_rewards``.
        action_tags: Blocks in a turn that hold its action; with the span ``clean_step_no_observation`` no block is
            looked for, and a step is a run of sampled tokens between tool or environment output.
        success_reward: Rows whose weighted reward reaches it count as won where the rollout does not say ``success``.
        extras: Called with the trainer, the examples and the batch; returns what ``HostCredit.needs`` names, first
            axis B.

    A ``rollout_func`` may return more per row, all optional: ``success`` (bool), ``step_ids`` (per completion token, -1
    outside), ``actions`` (texts, for the peer's block), ``turn_rewards`` and ``turn_states`` (per turn, for ``gigpo``).

    Raises:
        ValueError: A method that plans rollouts of its own or adds a loss term, a teacher under FSDP or ZeRO-3, or
            Liger's loss, which takes one advantage per row.

    Example:
        >>> trainer = StepOPSDGRPOTrainer(                                       # doctest: +SKIP
        ...     model, reward_funcs=won, args=GRPOConfig(...), train_dataset=tasks, rollout_func=episodes,
        ...     credit="stepopsd", credit_options={"alpha_clip": 0.2, "teacher": "stale"},
        ... )

    Source: StepOPSD, arXiv 2605.27140.
    """

    def __init__(
        self, *args: Any, credit: str = "stepopsd", credit_options: Mapping[str, Any] | CreditConfig | None = None,
        action_tags: Sequence[str] = ACTION_TAGS, success_reward: float = 1.0,
        extras: Callable[[Any, list[dict[str, Any]], dict[str, Any]], Mapping[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self.credit = HostCredit(credit, credit_options)
        _refuse(self.credit)
        self._factors = self.credit.factors
        self.action_tags, self.success_reward, self.credit_extras = tuple(action_tags), success_reward, extras
        self._scores: Tensor | None = None  # (all rows, reward functions) of the newest batch
        self._live: dict[str, Any] | None = None  # the micro-batch whose loss is being computed
        super().__init__(*args, **kwargs)
        if getattr(self.args, "use_liger_kernel", False) and hasattr(self, "compute_liger_loss"):
            raise ValueError("use_liger_kernel must be False: Liger's GRPO loss takes one advantage per row")
        processing: Any = self.processing_class
        tokenizer = self.credit_tokenizer = getattr(processing, "tokenizer", processing)
        self.teacher: HindsightTeacher | None = None
        if (section := self.credit.teacher) is not None:
            if self.is_fsdp_enabled or _is_sharded(self.accelerator):
                raise ValueError(
                    f"credit {credit} asks a teacher that needs whole weights on every process: FSDP and ZeRO-3 are "
                    "not supported; use DDP, ZeRO-1 or ZeRO-2"
                )
            self.teacher = HindsightTeacher(
                self.accelerator.unwrap_model(self.model), tokenizer, section, temperature=self.temperature,
                rows=self.args.per_device_train_batch_size, autocast=self.accelerator.autocast,
            )  # fmt: skip
            self.add_callback(_Refresh(self.teacher))

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        self._scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        return self._with_credit(inputs, output) if self.model.training else output

    def _with_credit(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> dict[str, Any]:
        update = int(self.state.global_step) + 1
        mask = _response_mask(output)
        first = self.accelerator.process_index * len(inputs)
        group_ids = torch.arange(first, first + len(inputs), device=mask.device) // self.num_generations
        assert self._scores is not None
        rewards = (self._scores * self.reward_weights.to(self._scores.device)).nansum(1)[first : first + len(inputs)]
        steps = [self._steps(i, inputs[i], output, mask[i]) for i in range(len(inputs))]
        step_ids = _padded([s.step_ids for s in steps], mask)
        turn_ids = _padded([s.turn_ids for s in steps], mask)
        given: dict[str, Any] = {"response_mask": mask, "step_ids": step_ids, "update": update}
        told: dict[str, float] = {}
        if self.credit.wants_student(update):
            given["student_logprobs"] = output.get("old_per_token_logps")
        if self.teacher is not None and self.credit.wants_teacher(update):
            rows = self._rows(inputs, output, steps, rewards)
            given["teacher_logprobs"], told = self.teacher.teacher(rows, mask.shape[1])
            if given["student_logprobs"] is None:
                given["student_logprobs"] = self.teacher.student(rows, mask.shape[1])
        elif self.credit.wants_student(update) and given["student_logprobs"] is None:
            given["student_logprobs"] = self._own_logprobs(output)
        shaped = self.credit.advantages(
            **given, advantages=output["advantages"], rewards=rewards, group_ids=group_ids,
            extras=self._extras(inputs, output, turn_ids),
        )  # fmt: skip
        if self.credit.moves:
            base = shaped.base
            kept = {**given, "advantages": base, "update": torch.tensor(update)}
            output |= {KEPT + name: value for name, value in kept.items() if value is not None}
        plain = broadcast_advantages(output["advantages"], mask)
        assert isinstance(shaped.advantages, Tensor)
        if not torch.equal(shaped.advantages, plain):  # else TRL's own (B,), for the same sums in the same order
            output["advantages"] = shaped.advantages
        for name, value in {**shaped.metrics, **told}.items():
            self._metrics["train"][f"credit/{name}"].append(value)
        return output

    def _steps(self, row: int, example: Mapping[str, Any], output: Mapping[str, Any], mask: Tensor) -> Steps:
        length = int(output["completion_mask"][row].sum())
        ids = output["completion_ids"][row, :length].tolist()
        found = find_steps(
            self.credit_tokenizer, ids, mask[:length].tolist(), span=self.credit.config.span, tags=self.action_tags,
            stop_ids=self._stop_ids(),
        )  # fmt: skip
        if (own := example.get("step_ids")) is not None:
            if len(own) != length and length:  # 0: a truncated row that is masked out
                raise ValueError(f"step_ids of row {row} must hold {length} values, one per token, got {len(own)}")
            found = replace(found, step_ids=list(own)[:length])
        return found if (told := example.get("actions")) is None else replace(found, actions=list(told))

    def _stop_ids(self) -> frozenset[int]:
        ends = getattr(self, "eos_token_ids", None) or [self.credit_tokenizer.eos_token_id]
        return frozenset(int(i) for i in ends if i is not None)

    def _rows(
        self, inputs: list[dict[str, Any]], output: Mapping[str, Any], steps: Sequence[Steps], rewards: Tensor
    ) -> list[HostRow]:
        """What the teacher is asked; rows without advantage have nothing to score: the sign of 0 is 0."""
        assert self.teacher is not None
        told = self.teacher.options.hindsight
        won = [
            bool(x["success"]) if x.get("success") is not None else float(r) >= self.success_reward
            for x, r in zip(inputs, rewards, strict=True)
        ]
        peers: dict[int, str] = {}
        if told.peer:
            full = told.render == "full"
            texts = [self._peer(i, steps[i], output, full=full) if success else "" for i, success in enumerate(won)]
            everyone = gather_object(list(zip(won, texts, strict=True)))
            first = self.accelerator.process_index * len(inputs)
            groups = [i // self.num_generations for i in range(len(everyone))]
            chosen = first_successes(groups, range(len(everyone)), [success for success, _ in everyone])
            peers = {i - first: everyone[peer][1] for i, peer in chosen.items()}
        rows = []
        for i, example in enumerate(inputs):
            prompt = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
            own = steps[i].turn_ids if self.credit.teacher_tokens == "response" else steps[i].step_ids
            live = bool(output["advantages"][i] != 0)
            at = 0
            if told.placement == "prefix":
                at = prefix_position(self.credit_tokenizer, example.get("prompt"), prompt)
            ids = output["completion_ids"][i, : len(own)].tolist()
            rows.append(HostRow(prompt, ids, own if live else [-1] * len(own), won[i], peers.get(i), at))
        return rows

    def _peer(self, row: int, steps: Steps, output: Mapping[str, Any], *, full: bool) -> str:
        if not full:
            return number_actions(steps.actions)
        return decode(self.credit_tokenizer, output["completion_ids"][row, : len(steps.step_ids)].tolist())

    def _own_logprobs(self, output: Mapping[str, Any]) -> Tensor:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        with torch.no_grad():
            return self._get_per_token_logps_and_entropies(
                self.model, ids, mask, output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
            )[0]  # fmt: skip

    def _extras(
        self, inputs: list[dict[str, Any]], output: dict[str, Any], turn_ids: Tensor
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        wanted = self.credit.needs()
        if "turn_anchors" in wanted:
            if len(inputs) % self.num_generations:
                raise ValueError(
                    f"credit gigpo compares turns of whole groups: a process's {len(inputs)} completions must be a "
                    f"multiple of num_generations {self.num_generations}"
                )
            missing = [key for key in ("turn_rewards", "turn_states") if inputs[0].get(key) is None]
            if missing:
                raise ValueError(f"credit gigpo needs {' and '.join(missing)} of every turn from rollout_func")
            found |= turn_extras([x["turn_rewards"] for x in inputs], [x["turn_states"] for x in inputs], turn_ids)
        if self.credit_extras is not None:
            found |= self.credit_extras(self, inputs, output)
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if KEPT + "advantages" not in inputs:
            return super()._compute_loss(model, inputs)
        self._live = dict(inputs)
        try:
            return super()._compute_loss(model, self._live)
        finally:
            self._live = None

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._live is not None:  # called by the loss, which reads the advantages after it
            kept = {name[len(KEPT) :]: value for name, value in self._live.items() if name.startswith(KEPT)}
            update = int(kept.pop("update"))
            self._live["advantages"] = self._factors.advantages(
                **kept, update=update, current_logprobs=found[0].detach()
            ).advantages
        return found


class _Refresh(TrainerCallback):
    """Lets a stale teacher catch up, and start from the weights of a resumed run."""

    def __init__(self, teacher: HindsightTeacher) -> None:
        self.teacher = teacher

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            self.teacher.catch_up()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.teacher.refresh(state.global_step)


def _refuse(credit: HostCredit) -> None:
    for name, method in credit.methods.items():
        if type(method).plan is not CreditMethod.plan or method.branching:
            raise ValueError(
                f"credit {name} plans rollouts of its own, and TRL samples num_generations plain ones; use stepopsd's "
                "own trainer"
            )
    asking = [name for name in credit.methods if credit.config.teacher_options(name) is not None]
    if len(asking) > 1:
        raise ValueError(f"credit may hold one method with a teacher, got {' and '.join(asking)}")
    if credit.moves and credit.factors.needs():
        names = ", ".join(sorted(credit.factors.needs()))
        raise ValueError(f"credit {credit.config.name} would need {names} again before every optimiser step")


def _is_sharded(accelerator: Any) -> bool:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and int(plugin.zero_stage) == 3


def _response_mask(output: Mapping[str, Any]) -> Tensor:
    """(B, T) bool, the tokens that TRL's loss counts."""
    mask = output["completion_mask"]
    return (mask if output.get("tool_mask") is None else mask * output["tool_mask"]).bool()


def _padded(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    out = torch.full(like.shape, -1, dtype=torch.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(list(row), dtype=torch.int32)
    return out.to(like.device)
