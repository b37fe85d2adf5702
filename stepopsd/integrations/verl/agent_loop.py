"""The agent loop ``stepopsd``: plays text environments, one training row per call, scored with hindsight afterwards."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any
from uuid import uuid4

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from stepopsd.integrations.hosts import check_host
from stepopsd.integrations.verl.batch import TEACHER
from stepopsd.integrations.verl.expected import LOOP, TESTED
from stepopsd.integrations.verl.play import Played, load_player, play, score, shifted
from stepopsd.integrations.verl.settings import Settings, TeacherSettings
from stepopsd.integrations.verl.siblings import Siblings
from stepopsd.integrations.verl.teacher import LiveScorer, Scorer, ServerScorer
from stepopsd.integrations.verl.trainer import read_credit
from stepopsd.text.hindsight import BlockWriter

SIBLINGS = Siblings()


class EpisodeLoop(AgentLoopBase):
    """An episode of the player that ``stepopsd.episode`` names.

    A row of the data set has ``extra_info`` with ``task`` (JSON of the task's fields), ``seed`` and ``split``; see
    ``stepopsd data verl``. The teacher is asked in the split ``train`` alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.credit = read_credit(self.config)
        if not self.settings.episode.player:
            raise ValueError("stepopsd.episode.player must name what is played, got ''")
        section = self.credit.teacher
        if section is not None and section.hindsight.placement != "suffix":
            raise ValueError(
                f"stepopsd.options: hindsight.placement must be suffix for the agent loop stepopsd, got "
                f"{section.hindsight.placement!r} of method {self.settings.method}"
            )
        if self.credit.config.span == "answer_only":
            raise ValueError("stepopsd.options: span must not be answer_only for the agent loop stepopsd")

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:
        row = kwargs["extra_info"]
        prompt, member = str(kwargs.get("uid", "")), int(kwargs.get("session_id", 0))
        asked = row["split"] == "train" and self.credit.wants_teacher(max(1, int(kwargs.get("global_steps", 1))))
        played = Played()
        try:
            played = await self._play(row, sampling_params)
        finally:
            if asked:  # whatever happened: the others wait for this
                render = self._hindsight.render
                success = played.render(render) if played.success else None
                SIBLINGS.tell(prompt, member, int(self.rollout_config.n), success)
                if not played.turns:
                    SIBLINGS.leave(prompt, member)
        if asked and played.turns:
            await self._ask(played, prompt, member)
        return self._rows(played)

    @property
    def _whole(self) -> bool:
        """Whether whole responses are scored instead of their actions."""
        asking = [method for method in self.credit.methods.values() if method.wants_teacher(1)]
        return self.credit.config.span != "action_only" or any(m.teacher_tokens == "response" for m in asking)

    @property
    def _hindsight(self) -> Any:
        section = self.credit.teacher
        assert section is not None
        return section.hindsight

    async def _play(self, row: dict[str, Any], sampling_params: dict[str, Any]) -> Played:
        request = uuid4().hex  # one for the whole episode: its calls go to one server

        async def generate(prompt_ids: list[int]) -> Any:
            return await self.server_manager.generate(
                request_id=request, prompt_ids=prompt_ids, sampling_params=dict(sampling_params)
            )

        return await play(
            load_player(self.settings.episode.player, self.settings.episode.options),
            json.loads(row["task"]),
            seed=int(row["seed"]),
            encode=self.ct_build_initial_tokens,
            generate=generate,
            tokenizer=self.tokenizer,
            max_prompt_tokens=int(self.rollout_config.prompt_length),
        )

    async def _ask(self, played: Played, prompt: str, member: int) -> None:
        options = self._hindsight
        peer = None
        if options.peer:
            found = await SIBLINGS.peer_of(prompt, member, wait_s=self.settings.episode.peer_wait_s)
            peer = None if played.success else found
        else:
            SIBLINGS.leave(prompt, member)
        lengths = self.rollout_config
        limit = lengths.max_model_len or lengths.prompt_length + lengths.response_length
        await score(
            played, peer, scorer_of(self.settings, self.server_manager), BlockWriter(self.tokenizer, options),
            whole=self._whole,
            max_tokens=int(limit),
        )  # fmt: skip

    def _rows(self, played: Played) -> list[AgentLoopOutput]:
        told = {"won": float(played.success), "turns": len(played.turns), "invalid_turns": played.invalid}
        told |= {"hit_context_limit": float(played.status == "context_limit"), **played.facts}
        limit = int(self.rollout_config.response_length)
        out = []
        for turn in played.turns:
            ids = turn.response_ids[:limit]
            teacher = (turn.teacher or [float("nan")] * len(ids))[:limit]
            version = turn.facts.get("global_steps")
            fields: dict[str, Any] = {
                TEACHER: torch.tensor(shifted(len(turn.prompt_ids), teacher), dtype=torch.float32),
                # verl copies this from the last row to the others, and looks for it where the loop gave the reward.
                "reward_extra_info": dict(told),
                "turn_scores": [], "tool_rewards": [],
                "min_global_steps": turn.facts.get("min_global_steps", version),
                "max_global_steps": turn.facts.get("max_global_steps", version),
            }  # fmt: skip
            out.append(
                AgentLoopOutput(
                    prompt_ids=turn.prompt_ids, response_ids=ids, response_mask=[1] * len(ids),
                    response_logprobs=None if turn.logprobs is None else turn.logprobs[:limit],
                    reward_score=played.reward, num_turns=2 * len(played.turns), metrics=AgentLoopMetrics(),
                    extra_fields=fields,
                )
            )  # fmt: skip
        return out


def register() -> type:
    """Register the loop under the name ``stepopsd``.

    Raises:
        HostMoved: This verl is another one than the adapter was written for.
    """
    check_host("verl", LOOP, tested=TESTED)
    from verl.experimental.agent_loop.agent_loop import register as add

    return add("stepopsd")(EpisodeLoop)


@lru_cache(maxsize=1)
def _server(settings: TeacherSettings) -> ServerScorer:
    """One per process: its connections are kept open."""
    return ServerScorer(settings)


def scorer_of(settings: Settings, client: Any) -> Scorer:
    """The teacher that the settings name."""
    if settings.teacher.source == "server":
        return _server(settings.teacher)
    return LiveScorer(client, attempts=settings.teacher.attempts)
