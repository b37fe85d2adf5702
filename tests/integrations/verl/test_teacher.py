"""Scores are about the tokens that were sent, or nobody's."""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace

import pytest

from stepopsd.integrations.verl.settings import TeacherSettings
from stepopsd.integrations.verl.teacher import LiveScorer, ServerScorer, from_completion, sliced
from tests.extras import missing


def verl_answer(ids, temperature=0.0):
    """As verl's servers answer: entry i is about token i + 1, the last is a dummy."""
    return {
        "prompt_logprobs": [[-float(i)] for i in ids[1:]] + [[0.0]],
        "prompt_ids": [[i] for i in ids[1:]] + [[0]],
    }


class Client:
    def __init__(self, failures=0, fields=None):
        self.failures, self.fields, self.requests = failures, fields, []

    async def generate(self, request_id, *, prompt_ids, sampling_params):
        self.requests.append((request_id, prompt_ids, sampling_params))
        if len(self.requests) <= self.failures:
            return SimpleNamespace(token_ids=[], extra_fields={})
        fields = verl_answer(prompt_ids) if self.fields is None else self.fields
        return SimpleNamespace(token_ids=[1], extra_fields=fields)


def test_a_live_scorer_asks_for_prompt_scores_and_slices_the_response():
    client = Client()
    assert asyncio.run(LiveScorer(client).score([7, 8, 9], [3, 4])) == [-3.0, -4.0]
    _, ids, params = client.requests[0]
    assert ids == [7, 8, 9, 3, 4]
    assert params == {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "detokenize": False}


def test_an_aborted_request_is_repeated_and_in_the_end_unscored():
    assert asyncio.run(LiveScorer(Client(failures=2), pause_s=0).score([7], [3])) == [-3.0]
    scores = asyncio.run(LiveScorer(Client(failures=9), pause_s=0).score([7], [3, 4]))
    assert all(map(math.isnan, scores))
    assert len(scores) == 2


def test_a_server_without_prompt_scores_is_an_error():
    with pytest.raises(RuntimeError, match=r"stepopsd\.teacher\.source to server or none"):
        asyncio.run(LiveScorer(Client(fields={})).score([7], [3]))


def test_scores_of_other_tokens_are_refused():
    answer = verl_answer([1, 2, 3])
    with pytest.raises(RuntimeError, match="other tokens than were sent"):
        sliced(answer["prompt_logprobs"], answer["prompt_ids"], [1, 2, 4], 1)
    with pytest.raises(RuntimeError, match="do not hold token 5"):
        from_completion([None, {"6": {"logprob": -1.0}}], [4, 5], 1)


def served(answer):
    httpx = pytest.importorskip("httpx", reason=missing("httpx"))
    transport = httpx.MockTransport(lambda request: httpx.Response(**answer(request)))
    settings = TeacherSettings("server", url="http://teacher:8000/", model="snapshot")
    return ServerScorer(settings, httpx.AsyncClient(transport=transport))


def test_a_snapshot_server_is_asked_through_the_completions_api():
    def handler(request):
        body = json.loads(request.content)
        assert request.url == "http://teacher:8000/v1/completions"
        assert (body["model"], body["max_tokens"], body["prompt_logprobs"]) == ("snapshot", 1, 0)
        told = [None] + [{str(i): {"logprob": -float(i), "rank": 1}} for i in body["prompt"][1:]]
        return {"status_code": 200, "json": {"choices": [{"text": "", "prompt_logprobs": told}]}}

    assert asyncio.run(served(handler).score([7, 8], [3, 4])) == [-3.0, -4.0]


def test_a_snapshot_server_that_is_down_leaves_tokens_unscored():
    calls = []

    def handler(request):
        calls.append(request)
        return {"status_code": 503}

    scores = asyncio.run(served(handler).score([7], [3]))
    assert math.isnan(scores[0])
    assert len(calls) == 3
