"""A host that moved is named with its version, the place, what was expected and what was found."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from stepopsd.integrations.hosts import HostMoved, Relied, check_host, differences


@dataclass
class Output:
    ids: list
    logprobs: list


class Trainer:
    def shape(self, batch, metrics):
        return batch

    def wider(self, batch, *, timeout):
        return batch


@pytest.fixture(autouse=True)
def host(monkeypatch):
    module = ModuleType("a_host")
    module.Output, module.Trainer = Output, Trainer
    module.advantages = lambda args, data, **rest: None
    monkeypatch.setitem(sys.modules, "a_host", module)


def test_what_fits_gives_no_difference():
    relied = (
        Relied("a_host:Trainer.shape", ("self", "batch", "metrics"), called=False),
        Relied("a_host:Trainer.shape", ("self", "batch", "metrics")),
        Relied("a_host:Output", members=("ids", "logprobs")),
        Relied("a_host:Output", ("ids", "logprobs")),
        Relied("a_host:advantages", ("args", "data", "anything")),
    )
    assert differences(relied) == []


@pytest.mark.parametrize(
    ("relied", "message"),
    [
        (Relied("a_host:Trainer.gone"), "expected to be there, found AttributeError"),
        (Relied("no_host:f"), "expected to be there, found ModuleNotFoundError"),
        (Relied("a_host:Trainer.shape", ("self", "batch"), called=False), r"expected the parameters \(self, batch\)"),
        (Relied("a_host:Trainer.shape", ("self", "metrics", "batch")), r"found \(self, batch, metrics\)"),
        (Relied("a_host:Trainer.wider", ("self", "batch")), r"found \(self, batch, timeout\)"),
        (Relied("a_host:Output", members=("ids", "mask")), "expected mask, found ids, logprobs"),
    ],
)
def test_what_moved_is_said(relied, message):
    (found,) = differences([relied])
    assert found.startswith(relied.place)
    with pytest.raises(HostMoved, match=message):
        check_host("a-host", [relied], tested="1.0")


def test_the_message_names_host_versions_and_place():
    with pytest.raises(HostMoved, match=r"(?s)pytest \d.*tested: 1\.0.*a_host:Trainer\.gone"):
        check_host("pytest", [Relied("a_host:Trainer.gone")], tested="1.0")
