"""Which sampler a run has; each is imported only where it is chosen."""

from __future__ import annotations

from typing import Any

from stepopsd.rollout.engines.base import Engine
from stepopsd.train.config import RunConfig


def make_engine(config: RunConfig, model: Any) -> Engine:
    """The engine of ``rollout.engine``, over the policy's model.

    Raises:
        ImportError: What it needs is not installed; the message names the extra.
        EngineError: The server does not answer.
    """
    rollout, name = config.rollout, config.rollout.engine
    if name == "transformers":
        from stepopsd.rollout.engines.transformers import TransformersEngine

        return TransformersEngine(model)
    if name == "continuous":
        from stepopsd.rollout.engines.continuous import ContinuousEngine

        return ContinuousEngine(model)
    from stepopsd.rollout.engines.vllm import Transport, VllmEngine

    options = rollout.vllm
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    transport: Transport
    if name == "vllm":
        from stepopsd.rollout.engines.vllm_colocated import Colocated

        transport = Colocated(
            config.model.path, dtype=config.model.dtype, max_context=longest, memory=options.memory,
            sleep=options.sleep, seed=config.seed % 2**31,
        )  # fmt: skip
    else:
        from stepopsd.rollout.engines.vllm_server import ServerTransport

        transport = ServerTransport(options.url, timeout_s=options.timeout_s, concurrency=options.concurrency)
    return VllmEngine(model, transport, max_context=longest, folder=options.weights_dir)
