"""`stepopsd doctor verl`: verl logs a plug-in that fails at debug level only, so somebody has to look."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepopsd.integrations.hosts import Finding, Relied, differences, installed, version_of
from stepopsd.integrations.verl.expected import LOOP, TESTED, TRAINER

CONFIG_DIR = Path(__file__).parent / "config"
CONFIGS = ("stepopsd_alfworld", "stepopsd_searchqa")
GROUP, NAME = "verl.plugins", "stepopsd"


def findings() -> list[Finding]:
    """Everything that decides whether our modes run in the verl that is installed; imports verl, changes nothing."""
    if not installed("verl"):
        return [Finding("verl", False, "not installed", f"pip install 'verl[vllm]=={TESTED}'")]
    found = [Finding("verl", True, _version()), _entry_point(), _policy()]
    checks: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("import verl", _plugin, ""),
        ("trainer modes", _modes, f"pip install 'verl[verl-core]=={TESTED}'"),
        ("agent loop", _loop, f"pip install 'verl[verl-core]=={TESTED}'"),
        ("configurations", _configurations, ""),
    )
    for name, check, remedy in checks:
        try:
            found.append(Finding(name, True, check()))
        except Exception as error:  # whatever is wrong belongs into the report
            found.append(Finding(name, False, f"{type(error).__name__}: {error}", remedy))
            if name == "import verl":
                break
    return [*found, _engine()]


def _version() -> str:
    version = version_of("verl")
    return version if version == TESTED else f"{version} (tested: {TESTED})"


def _entry_point() -> Finding:
    points = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == NAME]
    if not points:
        return Finding(
            "entry point", False, f"no {NAME} in the group {GROUP}: verl will not load us",
            "repeat the installation of stepopsd, or set VERL_USE_EXTERNAL_MODULES=stepopsd.integrations.verl.plugin",
        )  # fmt: skip
    return Finding("entry point", True, f"{GROUP}: {points[0].name} = {points[0].value}")


def _policy() -> Finding:
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    ok = policy == "auto" or NAME in [name.strip() for name in policy.split(",")]
    remedy = "" if ok else f"unset it, or add {NAME} to its list"
    return Finding("plug-in policy", ok, f"VERL_USE_EXTERNAL_PLUGINS={policy}", remedy)


def _plugin() -> str:
    importlib.import_module("verl")
    if "stepopsd.integrations.verl.plugin" not in sys.modules:
        # As verl would have: its own message says nothing at the usual log level.
        importlib.import_module("stepopsd.integrations.verl.plugin")
        raise RuntimeError("verl did not load the plug-in, although it can be imported")
    return "verl loaded the plug-in"


def _modes() -> str:
    _compare(TRAINER)
    registry = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY
    return _registered("trainer.v1.trainer_mode", registry, importlib.import_module(f"{__package__}.trainer").MODES)


def _loop() -> str:
    _compare(LOOP)
    registry = importlib.import_module("verl.experimental.agent_loop.agent_loop")._agent_loop_registry
    return _registered("agent.default_agent_loop", registry, (NAME,))


def _compare(relied: tuple[Relied, ...]) -> None:
    moved = differences(relied)
    if moved:
        raise RuntimeError(f"verl {version_of('verl')} moved (tested: {TESTED}): " + "; ".join(moved))


def _registered(setting: str, registry: Any, names: Any) -> str:
    absent = [name for name in names if name not in registry]
    if absent:
        raise RuntimeError(f"not registered: {', '.join(absent)}; see the log above")
    return f"{setting}: {', '.join(names)}"


def _configurations() -> str:
    for name in CONFIGS:
        check_configuration(compose(name))
    return f"{', '.join(CONFIGS)} in {CONFIG_DIR}"


def compose(name: str, overrides: tuple[str, ...] = ()) -> Any:
    """One of our configurations over verl's, as ``verl.trainer.main_ppo`` would get it.

    Raises:
        ImportError: Hydra or verl is not installed.
    """
    import hydra
    import verl

    theirs = Path(verl.__file__).parent / "trainer" / "config"
    with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base=None):
        return hydra.compose(name, [f"hydra.searchpath=[file://{theirs}]", *overrides])


def check_configuration(config: Any) -> None:
    """Compare a composed configuration with verl's own keys, data classes and validation.

    Raises:
        Exception: Whatever verl raises; an unknown key is named by OmegaConf.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from stepopsd.integrations.verl.trainer import read_credit

    ours = OmegaConf.masked_copy(config, [key for key in config if key != "stepopsd"])
    OmegaConf.merge(_schema(), ours)  # a key that verl does not know raises
    for section in ("algorithm", "actor_rollout_ref.rollout", "actor_rollout_ref.actor"):
        omega_conf_to_dataclass(OmegaConf.select(config, section))
    validate_config(config, need_reference_policy(config), need_critic(config))
    read_credit(config)


@lru_cache(maxsize=1)
def _schema() -> Any:
    """verl's own configuration, closed to keys that it does not have."""
    import hydra
    import verl
    from omegaconf import OmegaConf

    theirs = Path(verl.__file__).parent / "trainer" / "config"
    with hydra.initialize_config_dir(config_dir=str(theirs), version_base=None):
        schema = hydra.compose("ppo_trainer")
    OmegaConf.set_struct(schema, True)
    return schema


def _engine() -> Finding:
    for engine in ("vllm", "sglang"):
        if installed(engine):
            return Finding("rollout engine", True, f"{engine} {version_of(engine)}", required=False)
    remedy = f"pip install 'verl[vllm]=={TESTED}'; it needs a GPU"
    return Finding("rollout engine", False, "neither vllm nor sglang is installed", remedy, required=False)
