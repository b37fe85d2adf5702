"""The packed teacher sequence gives what one whole forward per span would give."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit.contexts import collate_contexts, prefix_context, spans_of, suffix_context

ROW = [2, 4, 6, 8, 3, 2, 5, 7, 9, 3, 2, 4, 10, 7, 8, 6]
STEPS = [-1, -1, 0, 0, 0, -1, 1, 1, -1, -1, -1, -1, 2, 2, 2, -1]
BLOCK = [11, 13, 15, 12]


def test_spans_are_runs_of_equal_steps():
    assert spans_of(STEPS) == [(2, 5), (6, 8), (12, 15)]
    assert spans_of([0, 0, 1, 1]) == [(0, 2), (2, 4)]
    assert spans_of([-1, -1]) == []


def scores(policy, context):
    ids, positions, mask = collate_contexts([context, context], 0, torch.float32)
    read = torch.zeros(ids.shape, dtype=torch.bool)
    for packed, _, _ in context.reads:
        read[0, packed] = True
    states = policy.read_at(ids, mask, read, positions)
    logps = states.head(states.states).log_softmax(-1)
    return {t: float(logps[i, token]) for i, (_, t, token) in enumerate(context.reads)}


def whole_forward(policy, ids, count):
    """Log-probs of the last ``count`` tokens of one plain sequence."""
    logits = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logits[t - 1, ids[t]]) for t in range(len(ids) - count, len(ids))]


@torch.no_grad()
def test_packed_suffix_equals_one_forward_per_span(policy):
    context = suffix_context(ROW, STEPS, BLOCK)
    assert not context.is_causal
    got = scores(policy, context)
    for a, b in spans_of(STEPS):
        want = whole_forward(policy, ROW[:a] + BLOCK + ROW[a:b], b - a)
        assert [got[t] for t in range(a, b)] == pytest.approx(want, abs=2e-5)


@torch.no_grad()
def test_prefix_equals_one_forward(policy):
    got = scores(policy, prefix_context(ROW, STEPS, BLOCK, 1))
    whole = ROW[:1] + BLOCK + ROW[1:]
    logps = policy.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    for a, b in spans_of(STEPS):
        for t in range(a, b):
            assert got[t] == pytest.approx(float(logps[t + len(BLOCK) - 1, ROW[t]]), abs=2e-5)


@torch.no_grad()
def test_without_a_block_the_teacher_context_is_the_row(policy):
    context = suffix_context(ROW, STEPS, [])
    assert context.is_causal
    logps = policy.model(torch.tensor([ROW])).logits[0].log_softmax(-1)
    for t, value in scores(policy, context).items():
        assert value == pytest.approx(float(logps[t - 1, ROW[t]]), abs=2e-5)


def test_one_span_needs_no_branch_mask():
    context = suffix_context(ROW[:5], STEPS[:5], BLOCK)
    assert context.is_causal
    assert context.ids == ROW[:2] + BLOCK + ROW[2:4]
    assert [t for _, t, _ in context.reads] == [2, 3, 4]
