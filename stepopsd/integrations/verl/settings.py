"""The ``stepopsd`` section of a verl configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

TEACHERS = ("live", "server", "none")
STUDENTS = ("rollout_log_probs", "old_log_probs")


@dataclass(frozen=True)
class EpisodeSettings:
    """What an agent loop plays.

    Attributes:
        player: ``module:Class`` of a ``stepopsd.envs.chat.ChatEpisode``.
        options: Its keyword arguments.
        peer_wait_s: Seconds to wait for the other attempts at a prompt before the teacher is asked without their help.
    """

    player: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    peer_wait_s: float = 600.0


@dataclass(frozen=True)
class TeacherSettings:
    """Who scores with hindsight.

    Attributes:
        source: ``live``: the policy's own servers, at rollout time. ``server``: a frozen snapshot behind an
            OpenAI-compatible vLLM server. ``none``: nobody.
        url: Of that server, e.g. ``http://10.0.0.7:8000``.
        model: Its name there.
        timeout_s: Of one request.
        attempts: Tries of one request before the tokens stay unscored.
    """

    source: str = "live"
    url: str = ""
    model: str = ""
    timeout_s: float = 120.0
    attempts: int = 3


@dataclass(frozen=True)
class Settings:
    """The section.

    Attributes:
        method: Credit method, as in a run of stepopsd's own, e.g. ``stepopsd``.
        options: Keys of the ``credit`` section of such a run.
        student: Log-probs that the teacher's are compared with: those of the rollout engine, which also scores for the
            teacher, or those that the trainer computed again.
        teacher: See ``TeacherSettings``.
        episode: See ``EpisodeSettings``.
    """

    method: str = "stepopsd"
    options: Mapping[str, Any] = field(default_factory=dict)
    student: str = "rollout_log_probs"
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)

    def __post_init__(self) -> None:
        if self.student not in STUDENTS:
            raise ValueError(f"stepopsd.student must be one of {', '.join(STUDENTS)}, got {self.student!r}")
        source = self.teacher.source
        if source not in TEACHERS:
            raise ValueError(f"stepopsd.teacher.source must be one of {', '.join(TEACHERS)}, got {source!r}")
        if self.teacher.source == "server" and not (self.teacher.url and self.teacher.model):
            raise ValueError("stepopsd.teacher.url and stepopsd.teacher.model must be set where source is server")
        if self.teacher.attempts < 1:
            raise ValueError(f"stepopsd.teacher.attempts must be at least 1, got {self.teacher.attempts}")


def read_settings(config: Any) -> Settings:
    """The section of a whole verl configuration; defaults where there is none.

    Args:
        config: The configuration of ``verl.trainer.main_ppo``, a ``DictConfig`` or a mapping.

    Raises:
        ValueError: An unknown key, a value out of range, or settings of verl that the method cannot work with: a
            temperature other than 1, since servers score prompts untempered; or the rollout's log-probs left out.
    """
    section = config.get("stepopsd", None)
    tree = {} if section is None else _plain(section)
    teacher = _filled(TeacherSettings, tree.pop("teacher", {}), "stepopsd.teacher")
    episode = _filled(EpisodeSettings, tree.pop("episode", {}), "stepopsd.episode")
    settings = _filled(Settings, {**tree, "teacher": teacher, "episode": episode}, "stepopsd")
    rollout = config["actor_rollout_ref"]["rollout"]
    if settings.teacher.source != "none":
        if float(rollout["temperature"]) != 1.0:
            raise ValueError(
                "actor_rollout_ref.rollout.temperature must be 1.0 with a teacher, whose log-probs are untempered, "
                f"got {rollout['temperature']}"
            )
        if float(rollout["top_p"]) != 1.0 or int(rollout["top_k"]) not in (-1, 0):
            raise ValueError(
                "actor_rollout_ref.rollout.top_p and top_k must be 1 and -1 with a teacher: log-probs of a cut "
                f"distribution cannot be compared, got {rollout['top_p']} and {rollout['top_k']}"
            )
        if settings.student == "rollout_log_probs" and not rollout["calculate_log_probs"]:
            raise ValueError(
                "actor_rollout_ref.rollout.calculate_log_probs must be true where stepopsd.student is rollout_log_probs"
            )
        if _distils(config):
            raise ValueError(
                "distillation.enabled must be false: verl would overwrite the hindsight teacher's log-probs with those "
                "of its own teacher"
            )
    return settings


def _distils(config: Any) -> bool:
    section = config.get("distillation", None)
    return bool(section is not None and section.get("enabled", False))


def _filled(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(f"{prefix}.{key} is unknown; known: {', '.join(known)}")
    return cls(**values)


def _plain(section: Any) -> dict[str, Any]:
    if isinstance(section, Mapping) and not hasattr(section, "_metadata"):
        return dict(section)
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(section, resolve=True)
    if not isinstance(plain, dict):
        raise ValueError(f"stepopsd must be a mapping, got {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}
