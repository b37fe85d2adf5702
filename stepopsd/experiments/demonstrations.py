"""Expert demonstrations on the real engine: won episodes with other people's mistakes in them, and told ones."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.base import Observation, Task
from stepopsd.envs.games.bundle import bundled_keys
from stepopsd.envs.games.expert import HandExpert
from stepopsd.envs.games.game import Game
from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.goals import parse_goal
from stepopsd.envs.games.wheel import write_game
from stepopsd.envs.prompts import dialogue_followup, dialogue_opening
from stepopsd.experiments.lessons import Demonstration
from stepopsd.text.hindsight import number_actions, render_hindsight

_CHANGING = ("take", "move", "clean", "heat", "cool", "use")


@dataclass(frozen=True, slots=True)
class DemonstrationConfig:
    """What is played.

    Attributes:
        games: Generated games, drawn from the training layouts; none has the content of a bundled game.
        plays: Episodes of each game, with mistakes in different places; loading a game costs more than playing it.
        noise: Share of actions drawn at random instead of from the expert; they are played, not imitated.
        told: Share of demonstrations that hold a hindsight block with a successful peer.
        labelled: Share of the other demonstrations that hold a block with the outcome alone.
        max_steps: Longer episodes are dropped, as are lost ones.
    """

    games: int = 1900
    plays: int = 2
    noise: float = 0.15
    told: float = 0.5
    labelled: float = 0.1
    max_steps: int = 20
    seed: int = 0


def iter_demonstrations(config: DemonstrationConfig, *, workers: int = 0) -> Iterator[list[Demonstration]]:
    """The demonstrations of each game in turn; the same config gives the same ones, whatever ``workers`` is.

    Args:
        workers: Processes that play; 0 plays in this one.

    Yields:
        One list per game: plain episodes and, after a share of them, one that was told of that success.
    """
    drawn = iter_games(config.seed, config.games, size="tiny", split="train", exclude=bundled_keys())
    play = partial(_play_in_process, config=config)
    if workers < 2:
        yield from map(play, drawn)
        return
    # Ctrl-C reaches the whole process group: the players leave it to this process, which then waits for no other game.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        yield from pool.map(play, drawn, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


_engine: AlfworldEnv | None = None


def _play_in_process(game: Game, config: DemonstrationConfig) -> list[Demonstration]:
    global _engine
    _engine = _engine or AlfworldEnv()
    folder = Path(tempfile.mkdtemp(prefix="stepopsd-"))
    try:
        path = write_game(game, folder)
        task = Task(f"train/{game.folder}", "alfworld", game.task_type, "train", str(path))
        return demonstrate(_engine, task, config, random.Random(f"demonstrations/{config.seed}/{game.trial}"))
    finally:
        shutil.rmtree(folder)


def demonstrate(
    env: AlfworldEnv, task: Task, config: DemonstrationConfig, rng: random.Random
) -> list[Demonstration]:
    """The demonstrations of one game; empty when the expert never won within the limit."""
    found: list[Demonstration] = []
    for _ in range(config.plays):
        plain = play_noisy(env, task, rng, noise=config.noise, max_steps=config.max_steps)
        if plain is None:
            continue
        found.append(_labelled(plain, rng) if rng.random() < config.labelled else plain)
        # Drawn so that `told` is the share among all demonstrations, not among the plain ones.
        if rng.random() < config.told / (1 - config.told):
            told = play_told(env, task, plain.actions, rng, noise=config.noise, max_steps=config.max_steps)
            found += [told] if told else []
    return found


def play_noisy(
    env: AlfworldEnv, task: Task, rng: random.Random, *, noise: float, max_steps: int
) -> Demonstration | None:
    """An episode of the expert with random actions in between; None when it is not won in time."""
    episode = _Episode(env, task)
    while not episode.won and len(episode.actions) < max_steps:
        expert = episode.expert_action()
        if rng.random() < noise:
            episode.play(_stray_action(episode, rng), imitated=False)
        else:
            episode.play(expert, imitated=True)
    return episode.demonstration(task.kind) if episode.won else None


def play_told(
    env: AlfworldEnv, task: Task, peer_actions: Sequence[str], rng: random.Random, *, noise: float, max_steps: int
) -> Demonstration | None:
    """An episode that turns, at some point, into what someone would do who has read a peer's successful actions.

    The steps before that point are the expert's own search, up to its first find. The block stands at the start of the
    opening message or right before one of the later actions; only actions that the block precedes are imitated. With
    chance ``noise`` an action strays to another place or fails, and the next one goes on with the peer's plan.
    """
    episode = _Episode(env, task)
    searching = rng.choice((0, 0, 1, 2, 3, 4))
    while len(episode.actions) < searching and not episode.won:
        action = episode.expert_action()
        if action.startswith("take "):
            break
        episode.play(action, imitated=False)
    first = len(episode.actions)
    _follow(episode, shortcut(peer_actions, parse_goal(env.goal).obj), rng, noise=noise, max_steps=max_steps)
    if not episode.won or len(episode.actions) > max_steps:
        return None
    turn = rng.choice((-1, -1, -1, first, rng.randrange(first, len(episode.actions))))
    imitated = [follows and i >= turn for i, follows in enumerate(episode.imitated)]
    hint = render_hindsight(rng.random() < 0.1, number_actions(peer_actions))
    return Demonstration(task.kind, episode.messages, episode.actions, imitated, hint, turn)


def _follow(
    episode: _Episode, plan: Sequence[str], rng: random.Random, *, noise: float, max_steps: int
) -> None:
    """Play the plan, back to its place after every stray; what cannot be done there is left out."""
    waiting, visit, at = list(plan), "", ""
    while waiting and not episode.won and len(episode.actions) < max_steps:
        stray = rng.random() < noise
        if stray:
            action = _wandering_action(episode, rng)
        elif visit and at != visit:
            action = visit
        else:
            action = waiting.pop(0)
        possible = action in episode.observation.admissible
        if possible or stray:
            episode.play(action, imitated=not stray)
        if action.startswith("go ") and not stray:
            visit = action
        if (possible and action.startswith("go ")) or action == visit:  # a visit that is refused: already there
            at = action


def shortcut(actions: Sequence[str], wanted: str) -> list[str]:
    """A successful agent's actions without the visits that brought nothing.

    Args:
        actions: Everything that it did.
        wanted: Object type of the goal; what was done with other objects is left out.

    Example:
        >>> shortcut(["go to shelf 1", "go to desk 1", "take pen 2 from desk 1"], "pen")
        ['go to desk 1', 'take pen 2 from desk 1']
    """
    plan: list[str] = []
    visit: list[str] = []
    for action in actions:
        verb, *words = action.split()
        if verb == "go":
            visit = [action]
        elif verb == "open":
            visit.append(action)
        elif verb == "use" or (verb in _CHANGING and words[:1] == [wanted]):
            plan += [*visit, action]
            visit = []
    return plan


class _Episode:
    """A running episode and what has been said and done in it."""

    def __init__(self, env: AlfworldEnv, task: Task) -> None:
        self.env = env
        self.observation: Observation = env.reset(task, 0)
        self.expert = HandExpert(env.goal)
        self.messages = [dialogue_opening(env.goal, self.observation, think=False, style="compact")]
        self.actions: list[str] = []
        self.imitated: list[bool] = []
        self.offered: set[str] = set()
        self.won = False

    def expert_action(self) -> str:
        return self.expert.act(self.observation)

    def play(self, action: str, *, imitated: bool) -> None:
        self.offered.update(self.observation.admissible)
        result = self.env.step(action)
        self.actions.append(action)
        self.imitated.append(imitated)
        self.observation, self.won = result.observation, result.success
        if not self.won:
            self.messages.append(dialogue_followup(self.observation, think=False, style="compact"))

    def demonstration(self, kind: str) -> Demonstration:
        return Demonstration(kind, self.messages[: len(self.actions)], self.actions, self.imitated)


def _stray_action(episode: _Episode, rng: random.Random) -> str:
    """Mostly something possible; else something that was possible earlier, which teaches "Nothing happens."."""
    stale = sorted(episode.offered - set(episode.observation.admissible))
    if stale and rng.random() < 0.25:
        return rng.choice(stale)
    return rng.choice(episode.observation.admissible)


def _wandering_action(episode: _Episode, rng: random.Random) -> str:
    """A stray action that changes nothing but the place."""
    possible = set(episode.observation.admissible)
    stale = sorted(episode.offered - possible)
    if stale and rng.random() < 0.4:
        return rng.choice(stale)
    return rng.choice([action for action in sorted(possible) if action.startswith("go ")] or ["look"])


def _labelled(plain: Demonstration, rng: random.Random) -> Demonstration:
    label = render_hindsight(rng.random() < 0.5, None)
    return replace(plain, hint=label, hint_turn=rng.randrange(-1, len(plain.actions)))
