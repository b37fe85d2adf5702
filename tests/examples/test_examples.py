"""The examples run as they stand; those for TRL are with its tests."""

from __future__ import annotations

import pytest
import torch

from tests.examples.loading import FOLDER, example


def test_every_example_is_run_by_a_test():
    with_trl = {"trl_alfworld.py", "trl_search.py"}
    assert {path.name for path in FOLDER.glob("*.py")} == with_trl | {"op_in_ten_lines.py", "custom_loop.py"}


def test_the_op_in_ten_lines():
    shaped = example("op_in_ten_lines").shaped
    assert shaped.advantages.shape == (2, 6)
    assert torch.equal(shaped.advantages[0, 2], torch.tensor(1.0)), "no step, no change"


@pytest.mark.parametrize("credit", ["stepopsd", "rlsd"])
def test_the_custom_loop_learns_its_word(credit):
    curve = example("custom_loop").main(["--steps", "40", "--credit", credit])
    assert sum(curve[-5:]) / 5 > sum(curve[:5]) / 5 + 0.3
