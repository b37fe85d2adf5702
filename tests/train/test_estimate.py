"""The estimate of a run against counts, against bytes that torch keeps, and in a dry run."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stepopsd.cli import main
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree, load_config
from stepopsd.train.estimate import activations_per_token, estimate, lines
from tests.train.conftest import make_policy
from tests.train.toy import config

SHAPE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "parameters"), [("Qwen/Qwen3-1.7B", 1_720_574_976), ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688)]
)
def test_public_models_have_their_published_size(path, parameters):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert estimate(from_tree(RunConfig, {"model": {"path": path}})).parameters == parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB: the weights have no storage


def test_parts_of_memory_and_tokens_are_counted(model, tmp_path):
    run = config(tmp_path / "run", model, loss={"kl_coef": 0.01}, credit={"name": "stepopsd"})
    found = estimate(run)
    parameters = sum(p.numel() for p in make_policy().model.parameters())
    assert found.parameters == parameters
    weights = 4 * parameters
    assert {part: found.memory[part] for part in ("weights", "gradients", "optimiser", "reference", "teacher")} == {
        "weights": weights, "gradients": weights, "optimiser": 2 * weights, "reference": weights, "teacher": weights,
    }  # fmt: skip
    assert found.memory["cache"] == 16 * 104 * 2 * 2 * 2 * 8 * 4  # episodes, positions, keys and values, layers, heads
    assert (found.rows, found.row_tokens, found.generated) == (16, 16 * 104, 16 * 3 * 4)
    assert found.forwards == {"loss": 3, "recomputation": 0, "old log-probs": 1, "reference": 1, "teacher": 1}
    assert found.operations == 2 * parameters * 16 * 104 * 6
    assert found.training_bytes == sum(found.memory.values()) - found.memory["cache"]
    grpo = estimate(config(tmp_path / "run", model, rollout={"context": "turn"}, optim={"old_logprobs": "sampled"}))
    assert "teacher" not in grpo.memory
    assert "reference" not in grpo.memory
    assert (grpo.rows, grpo.forwards["old log-probs"], grpo.forwards["teacher"]) == (48, 0, 0)


def test_exact_weights_and_adapters_are_counted(model, tmp_path):
    parameters = sum(p.numel() for p in make_policy().model.parameters())
    plain = config(tmp_path / "run", model)
    half = estimate(replace(plain, model=replace(plain.model, dtype="bfloat16"))).memory
    assert (half["weights"], half["gradients"], half["optimiser"]) == (2 * parameters, 2 * parameters, 8 * parameters)
    assert half["exact weights, sums of gradients"] == 8 * parameters
    run = config(tmp_path / "run", model, lora={"rank": 4}, loss={"kl_coef": 0.01}, credit={"name": "stepopsd"})
    # Per layer q, k, v, o of 32, 16, 16, 32 numbers on 32, gate, up, down of 64 on 32.
    adapters = 4 * 2 * (64 + 48 + 48 + 64 + 96 + 96 + 96)
    low = estimate(run).memory
    assert low["weights"] == 4 * (parameters + adapters)
    assert (low["gradients"], low["optimiser"], low["teacher"]) == (4 * adapters, 8 * adapters, 4 * adapters)
    assert "reference" not in low
    only = estimate(replace(run, lora=replace(run.lora, targets=("q_proj",)))).memory
    assert only["gradients"] == 4 * 4 * 2 * 64


@pytest.mark.parametrize(("kind", "of"), [(Qwen3Config, Qwen3ForCausalLM), (Qwen2Config, Qwen2ForCausalLM)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_torch_keeps_for_the_backward(kind, of, checkpointing):
    """Within a third of what autograd saves, parameters left out; one layer is kept in full while recomputing."""
    shape = kind(**SHAPE)
    net = of(shape).train()
    if checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tokens = 2 * 128
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.model(input_ids=torch.randint(0, 64, (2, 128)), use_cache=False)
    expected = activations_per_token(shape, checkpointing=checkpointing) * tokens * 4
    if checkpointing:
        last = 2 * shape.hidden_size
        in_full = (activations_per_token(shape, checkpointing=False) - last) // shape.num_hidden_layers
        expected -= in_full * tokens * 4
    assert sum(kept.values()) == pytest.approx(expected, rel=0.05 if checkpointing else 0.34)


def test_a_dry_run_ends_in_the_estimate_and_stays_a_configuration(model, tmp_path, capsys):
    args = ["train", "--model.path", str(model), "--dry-run"]
    assert main(args) == 0
    shown = capsys.readouterr().out
    file = tmp_path / "run.yaml"
    file.write_text(shown)
    assert load_config(file).model.path == str(model)
    for words in (
        "# parameters:",
        "# memory, GiB: weights",
        "activations",
        "time of an update at most, without sampling: not",
    ):
        assert words in shown
    assert main([*args, "--tflops", "100"]) == 0
    assert "at 100 TFLOP/s" in capsys.readouterr().out
    assert main([*args, "--tflops", "fast"]) == 1
    assert "--tflops needs a number greater than 0, got 'fast'" in capsys.readouterr().err


def test_a_model_that_is_not_here_is_not_estimated(tmp_path):
    [only] = lines(from_tree(RunConfig, {"model": {"path": "nobody/no-such-model"}}))
    assert only.startswith("# estimate: none, ")
