"""The ``stepopsd`` section: defaults, and settings of verl's that cannot work with a teacher."""

from __future__ import annotations

import pytest

from stepopsd.integrations.verl.settings import read_settings
from stepopsd.integrations.verl.trainer import read_credit


def config(section=None, **rollout):
    given = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "calculate_log_probs": True} | rollout
    return {"actor_rollout_ref": {"rollout": given}, "stepopsd": section}


def test_without_a_section_it_is_stepopsd_with_a_live_teacher():
    settings, credit = read_credit(config())
    assert (settings.method, settings.teacher.source, settings.student) == ("stepopsd", "live", "rollout_log_probs")
    assert credit.wants_teacher(1)


@pytest.mark.parametrize(
    ("section", "rollout", "message"),
    [
        ({"metod": "grpo"}, {}, "stepopsd.metod is unknown"),
        ({"teacher": {"source": "stale"}}, {}, "source must be one of live, server, none, got 'stale'"),
        ({"teacher": {"source": "server"}}, {}, "teacher.url and stepopsd.teacher.model must be set"),
        ({"student": "logits"}, {}, "student must be one of rollout_log_probs, old_log_probs"),
        ({}, {"temperature": 0.7}, r"temperature must be 1\.0 with a teacher.*got 0\.7"),
        ({}, {"top_p": 0.9}, "top_p and top_k must be 1 and -1"),
        ({}, {"calculate_log_probs": False}, "calculate_log_probs must be true"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(section, rollout, message):
    with pytest.raises(ValueError, match=message):
        read_settings(config(section, **rollout))


def test_verls_own_distillation_would_overwrite_the_teacher():
    with pytest.raises(ValueError, match=r"distillation\.enabled must be false"):
        read_settings(config() | {"distillation": {"enabled": True}})


def test_a_method_without_a_teacher_minds_no_temperature():
    settings, credit = read_credit(config({"method": "grpo", "teacher": {"source": "none"}}, temperature=0.7))
    assert not credit.wants_teacher(1)
    assert settings.method == "grpo"


def test_methods_that_verls_batch_is_not_enough_for_name_what_they_lack():
    with pytest.raises(ValueError, match=r"needs .*, which verl's batch does not hold"):
        read_credit(config({"method": "oar_p", "teacher": {"source": "none"}}))
    with pytest.raises(ValueError, match=r"needs a teacher, but stepopsd\.teacher\.source is none"):
        read_credit(config({"teacher": {"source": "none"}}))
