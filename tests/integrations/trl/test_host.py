"""What the integration stands on is checked at import, and says what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.extras import missing

trl = pytest.importorskip("trl", reason=missing("trl"))
from stepopsd.integrations.trl.host import METHODS, TESTED, check_host, is_unsloth  # noqa: E402


def test_the_installed_trl_passes():
    check_host(trl.GRPOTrainer, trl.__version__)


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_method_and_a_missing_parameter_are_named(name):
    def other(self, something):
        raise NotImplementedError

    for value, message in ((None, "is missing"), (other, f"has no parameter {', '.join(METHODS[name])}")):
        cls = type("GRPOTrainer", (trl.GRPOTrainer,), {name: value})
        with pytest.raises(ImportError, match=rf"trl 9\.9 .*{TESTED[1]}.*GRPOTrainer\.{name} {message}"):
            check_host(cls, "9.9")


def test_a_loss_of_one_advantage_per_row_is_refused():
    class Old(trl.GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return inputs["advantages"].unsqueeze(1)

    with pytest.raises(ImportError, match=r"advantages of shape \(B, T\)"):
        check_host(Old, "1.0")


def test_a_release_in_which_not_every_loss_takes_both_shapes_is_too_old():
    with pytest.raises(ImportError, match=rf"needs trl {TESTED[0]} or later, got 1\.8\.0"):
        check_host(trl.GRPOTrainer, "1.8.0")
    check_host(trl.GRPOTrainer, TESTED[0])


def test_unsloths_trainer_is_refused_with_the_reason():
    home = {"__module__": "unsloth_compiled_cache.UnslothGRPOTrainer"}
    patched = type("UnslothGRPOTrainer", (trl.GRPOTrainer,), home)
    assert is_unsloth(patched)
    with pytest.raises(ImportError, match=r"Unsloth's .*one advantage per row"):
        check_host(patched, trl.__version__)

    def compute_loss(self, model, inputs):
        raise NotImplementedError

    compute_loss.__module__ = "unsloth_zoo.rl_replacements"
    assert is_unsloth(type("GRPOTrainer", (trl.GRPOTrainer,), {"_compute_loss": compute_loss}))
    assert not is_unsloth(trl.GRPOTrainer)


def test_without_trl_the_import_says_how_to_get_it():
    script = "import sys\nsys.modules['trl'] = None\nimport stepopsd.integrations.trl"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "pip install 'stepopsd[trl]'" in done.stderr
