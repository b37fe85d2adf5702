"""Everything a run depends on, as frozen dataclasses; no torch here. YAML and command line fill the same tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from stepopsd.options.checks import (
    Count,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_fields,
    within,
)
from stepopsd.options.credit import CreditConfig
from stepopsd.options.methods import HindsightConfig
from stepopsd.train.engine_config import VllmConfig
from stepopsd.train.logging_config import LoggingConfig
from stepopsd.train.lora_config import LoraConfig
from stepopsd.train.loss_config import LossConfig
from stepopsd.train.needs import check_needs
from stepopsd.train.search_config import SearchConfig

__all__ = [
    "CreditConfig", "EnvConfig", "EvalConfig", "HindsightConfig", "LossConfig", "ModelConfig", "OptimConfig",
    "RolloutConfig", "RunConfig", "SearchConfig", "VllmConfig",
]  # fmt: skip

Context = Literal["turn", "dialogue"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The policy.

    Attributes:
        path: Directory of a transformers causal LM with its tokenizer (or a hub name).
        dtype: Of the weights that are sampled from and computed with; see ``optim.master_weights``.
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    path: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_fields("model", self)


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """Where episodes come from.

    Attributes:
        name: Environment: ``alfworld``, ``searchqa``, whose own settings are ``search``, or ``chain``, corridors of
            ``max_steps`` rooms in which one known turn decides (a yardstick, see docs/credit_probe.md).
        games: Root of the games; "bundled" for the set shipped with the package, else a folder in ALFWorld's layout
            (``$ALFWORLD_DATA`` style).
        train_split: Split that training draws groups from.
        train_games: Train on so many of its games, spread evenly; 0 takes all. An evaluation panel of the training
            split is drawn from the same games.
        eval_splits: Fixed evaluation panels, one per split.
        workers: Environment processes; 0 plays in this process, -1 takes one per usable core.
        max_steps: Actions per episode.
        step_timeout_s: Wall-clock limit for one environment step.
        episode_timeout_s: Wall-clock limit for one episode's environment time.
        crash_retries: How often an episode whose worker process died under it is restored by replay and goes on, for
            each step; 0 ends it with ``env_error``.
        history: Past steps shown in a windowed prompt.
        think: The prompt asks for <think></think>; ALFWorld's format check demands it.
        template_thinking: What templates with such a switch (Qwen3) are told: ``on``, ``off``, or ``auto`` for what
            ``think`` says. ``off`` puts an empty think block into the prompt, behind which answers may still reason.
        think_check: ``auto`` demands no think block of a response whose prompt already holds one; ``always`` does,
            which makes every action of a non-thinking Qwen3 invalid, as in the published lineage.
        prompt_style: ``full`` sentences for instruction-tuned models, ``compact`` for tiny models with short contexts.
        invalid: What counts as an invalid action: a broken ``format`` (verl-agent's rule), or also an ``inadmissible``
            one, which the environment did not offer.
    """

    name: Literal["alfworld", "searchqa", "chain"] = "alfworld"
    games: str = "bundled"
    train_split: str = "train"
    train_games: Count = 0
    eval_splits: tuple[str, ...] = ("seen", "unseen")
    workers: Annotated[int, within(-1, 512)] = -1
    max_steps: PositiveInt = 50
    step_timeout_s: float = 30.0
    episode_timeout_s: float = 600.0
    crash_retries: Annotated[int, within(0, 100)] = 2
    history: Annotated[int, within(0, 1000)] = 2
    think: bool = True
    template_thinking: Literal["auto", "on", "off"] = "auto"
    think_check: Literal["auto", "always"] = "auto"
    prompt_style: Literal["full", "compact"] = "full"
    invalid: Literal["format", "inadmissible"] = "format"
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        check_fields("env", self)


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How episodes are sampled.

    Attributes:
        context: ``turn``: one row per model call with a windowed prompt (verl-agent's protocol); ``dialogue``: one
            growing conversation per episode.
        groups: Tasks per update.
        group_size: Rollouts per task.
        temperature: Sampling temperature; log-probs are taken at the same temperature.
        max_prompt_tokens: Longest context of a call; an episode that outgrows it ends with ``context_limit``.
        max_response_tokens: Longest model turn.
        batch_size: Episodes generated side by side; 0 means all of an update.
        engine: What samples (docs/engines.md): ``transformers``, our decode loop, whose samples depend on nothing but
            their seeds; ``continuous``, transformers' continuous batching; ``vllm`` on the trainer's GPU,
            ``vllm_server`` on another.
        vllm: Settings of the last two.
    """

    context: Context = "turn"
    groups: PositiveInt = 16
    group_size: Annotated[int, within(2, 4096)] = 8
    temperature: PositiveFloat = 1.0
    max_prompt_tokens: PositiveInt = 2048
    max_response_tokens: PositiveInt = 512
    batch_size: int = 0
    engine: Literal["transformers", "continuous", "vllm", "vllm_server"] = "transformers"
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def __post_init__(self) -> None:
        check_fields("rollout", self)


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW.

    Attributes:
        updates: Policy updates (rollout batches) of the run.
        generated_tokens: The run ends with the update in which its sampled tokens reach this number, where that comes
            first; 0: no such limit. Runs of several methods are then compared at equal sampling.
        minibatch_groups: Groups per optimiser step; 0 takes the whole batch in one step.
        minibatch_rows: The same by rows, as the published lineage counts: about so many, dealt out evenly, so that no
            step is left with a few; 0 goes by groups.
        microbatch_tokens: Positions per forward/backward, padding included; bounds memory, does not change the
            gradient.
        packing: ``rows`` pads the rows of a micro-batch to the longest; ``packed`` lays short rows side by side, so
            that hardly any padding is computed (train.packing).
        master_weights: With model.dtype bfloat16, AdamW moves fp32 copies of the weights and the model is their
            rounding: a step of 1e-6 is less than the spacing of bfloat16 weights. No effect in float32.
        max_skipped_steps: Steps in a row whose gradient may be not finite; such a step is skipped and counted, one more
            stops the run.
        epochs: Passes over each batch.
        duplicate_rows_to: Append randomly chosen copies of rows until their number is a multiple of this, as verl-agent
            does to share them out among GPUs; copies enter group statistics and loss. 0 keeps every row once.
        old_logprobs: ``recompute`` with the trainer's model before the first step, or trust the ``sampled`` ones.
        tis_cap: Truncated importance sampling against a sampler of other numerics: each token's policy term is weighed
            by min(π_trainer / π_sampler, cap). 0 turns it off; needs ``old_logprobs: recompute``.
    """

    lr: Annotated[float, within(0.0, 1.0)] = 1e-6
    warmup_updates: Count = 0
    weight_decay: Annotated[float, within(0.0, 10.0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    updates: Count = 150
    generated_tokens: Annotated[int, within(0, 1 << 60)] = 0
    max_skipped_steps: Count = 2
    epochs: PositiveInt = 1
    minibatch_groups: Count = 0
    minibatch_rows: Count = 0
    microbatch_tokens: PositiveInt = 16384
    packing: Literal["rows", "packed"] = "rows"
    master_weights: bool = True
    duplicate_rows_to: Annotated[int, within(0, 1 << 20)] = 0
    old_logprobs: Literal["recompute", "sampled"] = "recompute"
    tis_cap: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        check_fields("optim", self)
        if self.minibatch_groups and self.minibatch_rows:
            raise ValueError(
                f"optim.minibatch_rows must be 0 where optim.minibatch_groups is {self.minibatch_groups}, "
                f"got {self.minibatch_rows}"
            )
        if self.tis_cap and self.old_logprobs != "recompute":
            raise ValueError(
                "optim.tis_cap compares log-probs of the trainer and the sampler: optim.old_logprobs must be "
                f"recompute, got {self.old_logprobs}"
            )


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """What is played to measure a policy.

    Attributes:
        every: Updates between evaluations; 0 only before the first and after the last.
        panel: ``fixed`` plays the same games at every evaluation; ``draw`` draws ``games`` of them anew each time, as
            the published lineage does (its evaluations then differ by the draw, too).
        games: Games per panel, spread evenly over the sorted split; 0 plays all.
        samples: Episodes per game.
        temperature: Sampling temperature; 0 is greedy.
        greedy: Play every game once more, greedily; kept apart from the samples.
        seed: Base seed of evaluation episodes, fixed for a run.
    """

    every: Count = 5
    panel: Literal["fixed", "draw"] = "fixed"
    games: Count = 0
    samples: PositiveInt = 1
    temperature: Annotated[float, within(0.0, 100.0)] = 0.4
    greedy: bool = False
    seed: int = 1000

    def __post_init__(self) -> None:
        check_fields("eval", self)
        if self.panel == "draw" and not self.games:
            raise ValueError("eval.games must say how many games eval.panel=draw draws, got 0")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One training run.

    Attributes:
        run_dir: Everything the run writes goes here.
        seed: Seeds the sampler, the task order and the model's dropout (if any).
        device: ``auto`` takes CUDA when there is one.
        checkpoint_every: Updates between checkpoints; 0 only at the end.
        keep_checkpoints: Older ones are deleted; 0 keeps all.
        transcripts_every: Updates between stored transcripts with token advantages; 0 none.
        transcripts: Trajectories per stored update.
        transcript_groups: Whole groups among them, mixed ones first, even where that makes more trajectories.
        deadline: Hours after which the run has to have ended, saved; 0 for none. It stops before an update that would
            take longer than what is left, for batch systems that end jobs at a set time.
        resume: Continue from the newest checkpoint in ``run_dir`` when there is one.
    """

    run_dir: str = "runs/train"
    seed: int = 0
    device: str = "auto"
    checkpoint_every: Count = 10
    keep_checkpoints: Count = 2
    transcripts_every: Count = 10
    transcripts: Count = 4
    transcript_groups: Count = 1
    deadline: NonNegativeFloat = 0.0
    resume: bool = True
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)
        check_needs(self)
        if self.loss.kl_reference == "teacher" and not self.credit.has_stale_teacher:
            raise ValueError(
                f"loss.kl_reference=teacher needs a stale teacher, credit.name={self.credit.name} has none; use start"
            )
