"""The keys of ``rollout.vllm``; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from stepopsd.options.checks import PositiveFloat, PositiveInt, PositiveShare, check_fields, within


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """vLLM, where ``rollout.engine`` is ``vllm`` or ``vllm_server``.

    Attributes:
        memory: Share of the GPU's memory that a colocated vLLM takes while it samples.
        sleep: What a colocated vLLM does while the trainer works: 0 stays awake, 1 keeps its weights in host memory,
            2 gives them up and is sent them again.
        url: Of the server.
        weights_dir: Where weights are handed over; a server must see it, too. "" takes shared memory, else the
            temporary folder.
        timeout_s: Of one request to a server, and of a hand-over.
        concurrency: Requests in flight at a server.
    """

    memory: PositiveShare = 0.4
    sleep: Annotated[int, within(0, 2)] = 1
    url: str = "http://127.0.0.1:8000"
    weights_dir: str = ""
    timeout_s: PositiveFloat = 600.0
    concurrency: PositiveInt = 256

    def __post_init__(self) -> None:
        check_fields("rollout.vllm", self)
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"rollout.vllm.url must begin with http:// or https://, got {self.url!r}")
