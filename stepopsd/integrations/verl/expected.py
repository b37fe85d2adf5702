"""What the adapter relies on in verl, place by place; ``stepopsd doctor verl`` and the tests compare it."""

from __future__ import annotations

from stepopsd.integrations.hosts import Relied

TESTED = "0.9.1"
_BASE = "verl.trainer.ppo.v1.trainer_base"
_LOOP = "verl.experimental.agent_loop.agent_loop"

#: Of the trainer modes.
TRAINER = (
    Relied(f"{_BASE}:register_trainer", ("name",)),
    Relied(f"{_BASE}:get_trainer_cls", ("name",)),
    Relied(f"{_BASE}:PPOTrainer.__init__", ("self", "config")),
    Relied(f"{_BASE}:PPOTrainer._compute_advantage", ("self", "batch", "metrics"), called=False),
    Relied("verl.trainer.ppo.v1:PPOTrainerSync", members=("_compute_advantage",)),
    Relied("verl.trainer.ppo.v1:PPOTrainerColocateAsync", members=("_compute_advantage",)),
    Relied("verl.trainer.ppo.v1:PPOTrainerSeparateAsync", members=("_compute_advantage",)),
    Relied("transfer_queue:kv_batch_get", ("keys", "partition_id", "select_fields")),
    Relied("transfer_queue:kv_batch_put", ("keys", "partition_id", "fields")),
)

#: Of the agent loop.
LOOP = (
    Relied(f"{_LOOP}:AgentLoopBase.run", ("self", "sampling_params"), called=False),
    Relied(f"{_LOOP}:AgentLoopBase.ct_build_initial_tokens", ("self", "messages")),
    Relied(
        f"{_LOOP}:AgentLoopOutput",
        members=(
            "prompt_ids", "response_ids", "response_mask", "response_logprobs", "reward_score", "num_turns", "metrics",
            "extra_fields", "as_dict",
        ),
    ),
    Relied(f"{_LOOP}:AgentLoopMetrics", members=("generate_sequences", "tool_calls")),
    Relied(
        "verl.workers.rollout.llm_server:LLMServerClient.generate",
        ("self", "request_id", "prompt_ids", "sampling_params"),
    ),
    Relied("verl.workers.rollout.replica:TokenOutput", members=("token_ids", "log_probs", "extra_fields")),
)  # fmt: skip
