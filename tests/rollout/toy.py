"""A scripted world and a scripted sampler, so that the loop can be followed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stepopsd.envs.base import EnvError, EnvTimeLimit, Observation, StepResult, Task
from stepopsd.rollout.engines.base import Completion, Sampling

TASK = Task("toy/count-1", "toy", "count", "train", "")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<unk>"]
LINES = [
    "task : put a hot mug in the cabinet 1 . you see a desk 2 , a drawer 3 and a microwave 1 .",
    "<think> the mug is cold , so heat it first . </think><action>go to microwave 1</action>",
    "<action>take mug 1 from desk 2</action> <action>open drawer 3</action>",
    "the café is closed — naïve übung 東京 🙂🚀 …",
    "nothing happens . you arrive at desk 2 . on the desk 2 , you see a mug 1 .",
]


class ToyPool:
    """Opening the last of ``depth`` doors wins; seed and history show in every observation."""

    def __init__(self, size: int, *, depth: int = 3) -> None:
        self.size, self.depth = size, depth
        self.closed = False
        self.resets: list[tuple[int, Task, int]] = []
        self.announced: list[list[tuple[Task, int]]] = []
        self._opened: dict[int, int] = {}
        self._seed: dict[int, int] = {}

    def reset(self, starts: dict[int, tuple[Task, int]]) -> dict[int, tuple[str, Observation] | EnvError]:
        out: dict[int, tuple[str, Observation] | EnvError] = {}
        for slot, (task, seed) in starts.items():
            self.resets.append((slot, task, seed))
            self._opened[slot], self._seed[slot] = 0, seed
            broken = task.task_id == "toy/broken"
            out[slot] = EnvError(f"{task.task_id}: no game") if broken else ("open doors", self._look(slot))
        return out

    def step(self, actions: dict[int, str]) -> dict[int, StepResult | EnvError]:
        return {slot: self._step(slot, action) for slot, action in actions.items()}

    def release(self, slots: Iterable[int]) -> None:
        for slot in slots:
            del self._opened[slot], self._seed[slot]

    def prefetch(self, upcoming: Sequence[tuple[Task, int]]) -> None:
        self.announced.append(list(upcoming))

    def close(self) -> None:
        self.closed = True

    def _step(self, slot: int, action: str) -> StepResult | EnvError:
        if action == "hang":
            return EnvTimeLimit("toy: 30 s passed")
        if action == "crash":
            return EnvError("toy: engine died")
        self._opened[slot] += action == "open door"
        won = self._opened[slot] == self.depth
        lost = action == "give up"
        return StepResult(self._look(slot), float(won), won or lost, won)

    def _look(self, slot: int) -> Observation:
        opened = self._opened[slot]
        words = " ".join(["you see a desk 2 ."] * ((self._seed[slot] + opened) % 3 + 1))
        return Observation(f"{opened} open . {words}", ("open door", "wait"))


class ScriptedEngine:
    """Says what ``script(key, turn)`` returns, token by token; the end id follows unless the text ends in ``~``."""

    max_context = 4096

    def __init__(self, tokenizer: Any, script: Callable[[int, int], str]) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.turns: dict[int, int] = {}
        self.dropped: list[int] = []
        self.calls: list[set[int]] = []
        self.seeds: list[int] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int]
    ) -> list[Completion]:
        raise NotImplementedError

    def session(self) -> _ScriptedSession:
        return _ScriptedSession(self)


class _ScriptedSession:
    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    def __enter__(self) -> _ScriptedSession:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def drop(self, keys: Sequence[int]) -> None:
        self.engine.dropped += keys

    def generate(
        self, contexts: Mapping[int, Sequence[int]], sampling: Sampling, *, seeds: Mapping[int, int],
        budgets: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        self.engine.calls.append(set(contexts))
        self.engine.seeds += seeds.values()
        return {key: self._say(key) for key in contexts}

    def _say(self, key: int) -> Completion:
        turn = self.engine.turns.get(key, 0)
        self.engine.turns[key] = turn + 1
        text = self.engine.script(key, turn)
        ids = self.engine.tokenizer(text.rstrip("~"), add_special_tokens=False)["input_ids"]
        ids = ids if text.endswith("~") else [*ids, self.engine.tokenizer.eos_token_id]
        return Completion(ids, [-0.25 * (i + 1) for i in range(len(ids))], "stop")
