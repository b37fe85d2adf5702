"""The reset plan, driven by hand: what it asks for, round by round, and what it trains on in the end."""

from __future__ import annotations

import random

import pytest
import torch

from stepopsd.credit import CreditInputs, create
from stepopsd.credit.groups import population_normalize
from stepopsd.credit.plan import Attempt, Continuation, Fresh, Question, Step, plain_plan
from stepopsd.credit.reset_methods import wordings

OPTIONS = {
    "n_fresh": 2, "n_reset": 3, "n_parents": 1, "parents": "iid", "n_probes": 1, "delimiter": "",
    "localiser_tokens": 9, "localiser_temperature": 0.3,
}  # fmt: skip
STEPS = tuple(Step(f"act {i}", f"saw {i}", 5 * i) for i in (1, 2, 3))


class World:
    """Answers requests from a script: prompt -> outcomes of its attempts, "x" failed, "o" won, "!" broken."""

    def __init__(self, outcomes, reply=r"\boxed{3}", lost=()):
        self.outcomes = [iter(own) for own in outcomes]
        self.reply, self.lost = reply, lost
        self.asked, self.count, self.prompts = [], 0, {}

    def run(self, plan):
        try:
            requests = next(plan)
            while True:
                self.asked.append(list(requests))
                requests = plan.send([self.answer(r) for r in requests])
        except StopIteration as made:
            return made.value

    def answer(self, request):
        if isinstance(request, Question):
            return self.reply
        prompt = request.prompt if isinstance(request, Fresh) else self.prompts[request.row]
        if isinstance(request, Continuation) and prompt in self.lost:
            return []
        return [self.attempt(prompt) for _ in range(request.count)]

    def attempt(self, prompt):
        outcome = next(self.outcomes[prompt], "o")
        self.prompts[self.count] = prompt
        self.count += 1
        return Attempt(self.count - 1, prompt, outcome != "!", outcome == "o", f"task {prompt}", STEPS, 15)


def plan(name, prompts, seed=0, **changes):
    return create(name, {"resets": OPTIONS | changes}).plan(prompts, 4, random.Random(seed))


def test_prompts_are_asked_for_side_by_side_and_grouped_apart():
    world = World(["ox", "oox", "oooo"])
    made = world.run(plan("rrpo", 3))
    assert [[(r.prompt, r.count) for r in asked] for asked in world.asked[:2]] == [
        [(0, 2), (1, 2), (2, 2)], [(1, 1), (2, 1)],
    ]  # fmt: skip
    resets = [r for r in world.asked[2] if isinstance(r, Continuation)]
    assert [(r.row, r.count, r.kind, r.group) for r in resets] == [(1, 3, "reset", 1), (6, 3, "reset", 3)]
    assert {r.cut for r in resets} <= {0, 5, 10}
    assert [(r.prompt, r.count) for r in world.asked[2] if isinstance(r, Fresh)] == [(2, 3)]
    # 6 and 7 were probes; the third prompt's further attempts join its fresh group.
    assert made.groups == {0: 0, 1: 0, 2: 2, 3: 2, 4: 4, 5: 4, **dict.fromkeys((8, 9, 10), 1),
                           **dict.fromkeys((11, 12, 13), 3), **dict.fromkeys((14, 15, 16), 4)}  # fmt: skip
    assert made.metrics["reset/rate"] == pytest.approx(2 / 3)


def test_rrpo_draws_every_step_and_asks_nothing():
    cuts = set()
    for seed in range(40):
        world = World(["xx"])
        world.run(plan("rrpo", 1, seed))
        cuts |= {r.cut for r in world.asked[-1]}
        assert not any(isinstance(r, Question) for asked in world.asked for r in asked)
    assert cuts == {0, 5, 10}


@pytest.mark.parametrize(("reply", "cut", "how"), [(r"\boxed{3}", 10, "boxed"), ("", 0, "default"), (None, 0, None)])
def test_srpo_goes_back_to_the_step_that_the_model_names(reply, cut, how):
    world = World(["xo"], reply)
    made = world.run(plan("srpo", 1))
    [question] = world.asked[1]
    assert (question.prompt, question.max_tokens, question.temperature) == (0, 9, 0.3)
    assert question.texts == wordings("task 0", STEPS)
    assert [r.cut for r in world.asked[2]] == [cut]
    assert made.metrics["localiser/too_long"] == (reply is None)
    if how:
        assert made.metrics[f"localiser/{how}"] == 1


def test_wordings_get_shorter_and_keep_the_end_of_a_step():
    steps = (Step("think " * 100 + "open it", "it is open " * 50, 9), Step("close it", "", 12))
    texts = wordings("task", steps)
    assert [len(t) for t in texts] == sorted((len(t) for t in texts), reverse=True)
    assert "Result: it is open" in texts[0]
    assert "Result" not in texts[1]
    assert all("open it" in text and "Step 2: close it" in text for text in texts)


def test_a_reset_that_cannot_be_played_leaves_the_fresh_group():
    world = World(["xo", "xo"], lost={0})
    made = world.run(plan("rrpo", 2))
    assert made.groups == {0: 0, 1: 0, 2: 2, 3: 2, 4: 3, 5: 3, 6: 3}
    assert made.metrics["reset/rate"] == 0.5


def test_broken_attempts_are_trained_on_nowhere():
    made = World(["!x", "xo!!o"]).run(plan("rrpo", 2))
    assert 0 not in made.groups
    assert [i for i, g in made.groups.items() if g == 3] == [9], "two of the three continuations of the second broke"


def test_sizes_are_free():
    world = World(["xx", "ox"])
    made = world.run(plan("rrpo", 2, n_fresh=None, n_reset=4, n_parents=2, n_probes=0))
    assert [r.count for r in world.asked[0]] == [4, 4]
    assert sorted(made.groups.values()) == [0] * 4 + [1] * 2 + [2] * 2 + [3] * 4 + [4] * 4


def test_groups_are_normalised_apart():
    method = create("srpo", {"resets": OPTIONS})
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0]), torch.tensor([0] * 4 + [1] * 4)
    x = CreditInputs(
        torch.zeros(8), torch.ones(8, 2, dtype=torch.bool), torch.zeros(8, 2), torch.arange(8), torch.zeros(8, 2), None,
        1, groups, {"rewards": rewards},
    )  # fmt: skip
    result = method.assign(x)
    assert torch.equal(result.advantages[:, 0], population_normalize(rewards, groups))
    assert result.advantages[:, 0].tolist() == pytest.approx([3**0.5, *[-(3**-0.5)] * 3, 1, 1, -1, -1])
    assert result.metrics["reset/flat_groups"] == 0


def test_without_a_plan_of_its_own_a_method_gets_plain_groups():
    world = World(["ox", "!o"])
    assert world.run(plain_plan(2, 2)).groups == {0: 0, 1: 0, 3: 1}
    assert world.asked == [[Fresh(0, 2), Fresh(1, 2)]]
