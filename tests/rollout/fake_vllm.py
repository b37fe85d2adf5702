"""vLLM's Python and HTTP interface over a tiny model, with its habits: sleep, a prefix cache that outlives weights.

Names and defaults follow vLLM's source (``LLM``, ``SamplingParams``, ``entrypoints/serve``); an argument that it does
not know is an error here as well. The prefix cache is the worst case: a cache salt that was seen once is answered with
the weights of that time, and resetting the cache does nothing while saying so only to those who look.
"""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stepopsd.rollout.engines.base import Sampling
from stepopsd.rollout.engines.transformers import TransformersEngine


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


class LLM:
    """Attributes that tests look at: ``calls`` (name, argument), ``requests`` sampled so far."""

    def __init__(
        self, model: str, *, dtype: str = "auto", seed: int | None = None, max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9, enable_sleep_mode: bool = False, enable_prefix_caching: bool = False,
        logprobs_mode: str = "raw_logprobs",
    ) -> None:  # fmt: skip
        self.options = {"dtype": dtype, "logprobs_mode": logprobs_mode, "memory": gpu_memory_utilization}
        self.max_model_len, self.enable_sleep_mode = max_model_len, enable_sleep_mode
        self.weights: Any = AutoModelForCausalLM.from_pretrained(model)
        self.awake = {"weights", "kv_cache"}
        self.by_salt: dict[str | None, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        self.requests = 0
        self.spoil = lambda outputs: outputs  # tests break results here

    def generate(self, prompts: list[dict[str, Any]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True):
        assert self.awake == {"weights", "kv_cache"}, f"asked to sample while awake are {self.awake}"
        pairs = zip(prompts, sampling_params, strict=True)
        return self.spoil([self._one(i, prompt, params) for i, (prompt, params) in enumerate(pairs)])

    def _one(self, index: int, prompt: dict[str, Any], params: SamplingParams) -> Any:
        assert set(prompt) <= {"prompt_token_ids", "cache_salt"}
        assert (params.top_p, params.min_p, params.repetition_penalty, params.logprobs) == (1.0, 0.0, 1.0, 0)
        assert params.top_k in (0, -1)
        assert params.ignore_eos
        assert -(2**63) <= params.seed < 2**63
        assert len(prompt["prompt_token_ids"]) + params.max_tokens <= self.max_model_len
        self.requests += 1
        salt = prompt.get("cache_salt")
        if salt not in self.by_salt:
            self.by_salt[salt] = copy.deepcopy(self.weights)
        sampling = Sampling(params.max_tokens, params.temperature, frozenset(params.stop_token_ids or ()))
        [done] = TransformersEngine(self.by_salt[salt]).generate(
            [prompt["prompt_token_ids"]], sampling, seeds=[params.seed]
        )
        tables = [{t: SimpleNamespace(logprob=p, rank=1)} for t, p in zip(done.ids, done.logprobs, strict=True)]
        one = SimpleNamespace(index=0, token_ids=done.ids, logprobs=tables, finish_reason=done.finish)
        return SimpleNamespace(
            request_id=str(index), prompt_token_ids=prompt["prompt_token_ids"], outputs=[one], finished=True
        )

    def collective_rpc(self, method: str, timeout: float | None = None, args: tuple = (), kwargs: dict | None = None):
        self.calls.append((method, kwargs))
        assert method == "reload_weights"
        assert "weights" in self.awake
        self.weights = AutoModelForCausalLM.from_pretrained((kwargs or {})["weights_path"])
        return [None]

    def sleep(self, level: int = 1) -> None:
        assert self.enable_sleep_mode
        self.calls.append(("sleep", level))
        self.awake = set()
        self.by_salt.clear()
        if level == 2:
            with torch.no_grad():
                for parameter in self.weights.parameters():
                    parameter.normal_()

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(("wake_up", tags))
        self.awake |= set(tags or ("weights", "kv_cache"))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache", None))
        return False


class Server:
    """``vllm serve`` over a socket."""

    def __init__(self, model: str, *, max_model_len: int, dev_mode: bool = True) -> None:
        llm = self.llm = LLM(model, max_model_len=max_model_len, logprobs_mode="processed_logprobs")
        lock, self.refuse = threading.Lock(), False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(200 if self.path == "/health" else 404, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
                with lock:
                    if self.path == "/inference/v1/generate":
                        self.reply(500, {"error": "down"}) if outer.refuse else self.reply(200, outer.generate(body))
                    elif dev_mode and self.path == "/collective_rpc":
                        llm.collective_rpc(body["method"], body.get("timeout"), kwargs=body.get("kwargs", {}))
                        self.reply(200, {"results": [None]})
                    elif dev_mode and self.path == "/reset_prefix_cache":
                        llm.reset_prefix_cache()
                        self.reply(200, {})
                    else:
                        self.reply(404, {"detail": "Not Found"})

            def reply(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        assert set(body) <= {"request_id", "token_ids", "sampling_params", "cache_salt", "stream", "model", "priority"}
        prompt = {"prompt_token_ids": body["token_ids"], "cache_salt": body["cache_salt"]}
        [output] = self.llm.generate([prompt], [SamplingParams(**body["sampling_params"])])
        [one] = output.outputs
        content = [
            {"token": f"token_id:{t}", "logprob": table[t].logprob, "bytes": None, "top_logprobs": []}
            for t, table in zip(one.token_ids, one.logprobs, strict=True)
        ]
        choice = {"index": 0, "logprobs": {"content": content}, "finish_reason": one.finish_reason,
                  "token_ids": one.token_ids}  # fmt: skip
        return {"request_id": body["request_id"], "choices": [choice]}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
