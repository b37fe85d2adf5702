"""The launch files are ones that accelerate itself reads, and the trainer takes from them what they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from stepopsd.train.sharding import Shards, wants_sharding

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
TYPES = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}


def test_every_file_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert str(config.distributed_type.value) == TYPES[name]
    assert config.mixed_precision == "no"  # model.dtype says it
    assert config.num_processes == (1 if name == "single" else 8)


def test_the_launcher_passes_on_what_fsdp2_needs(monkeypatch):
    monkeypatch.setattr("accelerate.commands.launch.is_torch_xla_available", lambda *_, **__: False)
    arguments = ["--config_file", str(FOLDER / "fsdp2.yaml"), "-m", "stepopsd.cli", "train"]
    options, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    environment = prepare_multi_gpu_env(options)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"].lower() == "true"
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    assert wants_sharding(_accelerator()) == Shards(reshard=True)


def test_without_fsdp_nothing_is_sharded(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert wants_sharding(_accelerator()) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert wants_sharding(_accelerator(processes=1)) is None


def test_fsdp1_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match=r"fsdp_config\.fsdp_version must be 2, got 1"):
        wants_sharding(_accelerator())


@pytest.mark.parametrize(("stage", "shards"), [(0, None), (2, Shards(reshard=False)), (3, Shards(reshard=True))])
def test_deepspeed_stages_are_carried_out_by_shards(stage, shards):
    assert wants_sharding(_accelerator(deepspeed_plugin=SimpleNamespace(zero_stage=stage))) == shards


def test_deepspeeds_offloading_is_refused():
    plugin = SimpleNamespace(zero_stage=2, offload_optimizer_device="cpu")
    with pytest.raises(ValueError, match=r"deepspeed_config\.offload_optimizer_device must be none, got cpu"):
        wants_sharding(_accelerator(deepspeed_plugin=plugin))


def _accelerator(processes=2, **state):
    return SimpleNamespace(
        num_processes=processes, state=SimpleNamespace(**state), device=SimpleNamespace(type="cpu")
    )
