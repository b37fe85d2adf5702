"""vLLM in this process as a transport: it shares the trainer's GPU and sleeps while the trainer works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepopsd.rollout.engines.results import LostResults
from stepopsd.rollout.engines.vllm import Answer, Request


class Colocated:
    """vLLM in this process, on the trainer's GPU; asleep while the trainer works.

    Args:
        path: Model folder or hub name that vLLM starts from.
        dtype: ``bfloat16`` or ``float32``.
        max_context: Longest context with its completion.
        memory: Share of the GPU's memory that vLLM may take while awake.
        sleep: Level between rollouts: 0 stays awake, 1 keeps the weights in host memory, 2 gives them up.

    Raises:
        ImportError: vLLM is missing; the message names the extra.
    """

    def __init__(self, path: str, *, dtype: str, max_context: int, memory: float, sleep: int, seed: int = 0) -> None:
        vllm = _vllm()
        self.sleep, self._asleep = sleep, False
        self._params: Callable[..., Any] = vllm.SamplingParams
        self.llm = vllm.LLM(
            model=path, dtype=dtype, seed=seed, max_model_len=max_context, gpu_memory_utilization=memory,
            enable_sleep_mode=sleep > 0, enable_prefix_caching=True, logprobs_mode="processed_logprobs",
        )  # fmt: skip
        self.rest()

    def send(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """See ``Transport.send``; vLLM answers in the order of the prompts, which each answer repeats."""
        outputs = self.llm.generate(
            [{"prompt_token_ids": r.ids, "cache_salt": r.salt} for r in requests],
            [self._params(**r.params) for r in requests],
            use_tqdm=False,
        )
        if len(outputs) != len(requests):
            raise LostResults(f"vLLM returned {len(outputs)} results for {len(requests)} requests")
        answers = {}
        for request, output in zip(requests, outputs, strict=True):
            if list(output.prompt_token_ids or ()) != request.ids:
                raise LostResults(f"the answer to request {request.name} belongs to another prompt")
            [one] = output.outputs
            ids = list(one.token_ids)
            logprobs = [table[token].logprob for table, token in zip(one.logprobs or (), ids, strict=False)]
            answers[request.name] = Answer(ids, logprobs, one.finish_reason if output.finished else "unfinished")
        return answers

    def load(self, folder: Path) -> None:
        """See ``Transport.load``."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if self._asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self.llm.reset_prefix_cache()

    def wake(self) -> bool:
        """See ``Transport.wake``; the cache's memory is mapped after the weights are in place."""
        if not self._asleep:
            return False
        self.llm.wake_up(tags=["weights"])
        if self.sleep == 2:
            return True
        self.llm.wake_up(tags=["kv_cache"])
        self._asleep = False
        return False

    def rest(self) -> None:
        """See ``Transport.rest``."""
        if self.sleep > 0:
            self.llm.sleep(level=self.sleep)
            self._asleep = True

    def close(self) -> None:
        """Drop the engine."""
        self.llm = None


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise ImportError("rollout.engine vllm needs vLLM: pip install 'stepopsd[vllm]' (Linux with a GPU)") from error
    return vllm
