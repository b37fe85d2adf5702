"""The scorers of OAR on a tiny model: what they agree with, what they survive, what they must not touch."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit.oar_probe import PROBES, probe_kl
from stepopsd.credit.oar_scores import _slope, grad_x_input, oar_g, oar_p
from tests.extras import missing

transformers = pytest.importorskip("transformers", reason=missing("transformers"))


@pytest.fixture(scope="module", params=["plain", "sliding"])
def model(request):
    """Qwen3 with random weights, large enough for answers to depend on what came before."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config = transformers.Qwen3Config(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, attention_dropout=0.3,
        initializer_range=0.15, **(sliding if request.param == "sliding" else {}),
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).train()


def rows(n=3, width=30):
    """Ids, attention mask, reasoning and answer of right-padded rows of falling length."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 61, (n, width), generator=rng)
    attention, reasoning, answer = (torch.zeros(n, width, dtype=torch.bool) for _ in range(3))
    for i in range(n):
        end = width - 4 * i
        attention[i, :end] = True
        reasoning[i, 4 + i : end - 6] = True
        answer[i, end - 4 : end - 1] = True
    return ids, attention, reasoning, answer


def test_kl_survives_tiny_values_and_is_never_negative():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(32_000, generator=rng) * 2
    for size in (1e-1, 1e-2, 1e-3, 3e-4):
        y = x + size * torch.randn(4, 32_000, generator=rng)
        p, q = x.double().log_softmax(0), y.double().log_softmax(1)
        want = (p.exp() * (p - q)).sum(1)
        got = probe_kl(y, x.log_softmax(0))
        torch.testing.assert_close(got.double(), want, atol=0, rtol=2e-3)
    assert float(want.max()) < 1e-7
    naive = (x.softmax(0) * (x.log_softmax(0) - y.log_softmax(1))).sum(1)
    assert ((naive.double() - want).abs() / want).max() > 0.05, "the usual form is no good here"
    assert probe_kl(x[None], x.log_softmax(0)).item() < 1e-12


def test_kl_of_impossible_tokens():
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    q = torch.tensor([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]).log()
    got = probe_kl(q, p)
    assert got[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=1e-6)
    assert got[1] == torch.inf


@pytest.mark.parametrize("probe", PROBES)
def test_replacing_one_token_at_a_time_is_what_oar_p_computes(model, probe):
    ids, _, reasoning, answer = (x[0] for x in rows())
    scores = oar_p(model, ids, reasoning, answer, pad_id=0, probe=probe, chunk=5)
    assert torch.equal(~scores.isnan(), reasoning)
    model.eval()
    places = answer.nonzero()[:, 0]

    def outcome(tokens):
        with torch.no_grad():
            logits = model(input_ids=tokens[None]).logits[0].double()
        if probe == "answer_joint":
            return logits.log_softmax(-1)[places - 1, ids[places]].mean()
        read = logits[places[:1] - 1] if probe == "last" else logits[places - 1]
        return read.mean(0).log_softmax(-1)

    clean = outcome(ids)
    for t in reasoning.nonzero()[::3, 0].tolist():
        changed = ids.clone()
        changed[t] = 0
        moved = outcome(changed)
        want = clean - moved if probe == "answer_joint" else (clean.exp() * (clean - moved)).sum()
        assert float(scores[t]) == pytest.approx(float(want), rel=2e-3, abs=1e-7)
    model.train()


@pytest.mark.parametrize("probe", PROBES)
def test_reused_prefixes_change_nothing(model, probe):
    ids, _, reasoning, answer = (x[0] for x in rows())
    whole = oar_p(model, ids, reasoning, answer, pad_id=0, probe=probe, chunk=64, reuse_prefix=False)
    for chunk in (1, 4):
        cached = oar_p(model, ids, reasoning, answer, pad_id=0, probe=probe, chunk=chunk)
        torch.testing.assert_close(cached, whole, atol=2e-6, rtol=1e-3, equal_nan=True)


def test_less_is_computed_with_reused_prefixes(model):
    ids, _, reasoning, answer = (x[0] for x in rows())
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0].numel()))
    heads = []
    head = model.get_output_embeddings().register_forward_hook(lambda _, args, out: heads.append(out.shape[1]))
    oar_p(model, ids, reasoning, answer, pad_id=0, probe="last", chunk=1, reuse_prefix=False)
    whole, seen[:] = sum(seen), []
    oar_p(model, ids, reasoning, answer, pad_id=0, probe="last", chunk=1)
    handle.remove()
    head.remove()
    assert sum(seen) < 0.6 * whole
    assert set(heads) == {1}, "the LM head runs at the probed position only"


def test_a_stride_scores_fewer_tokens_and_shares_their_scores(model):
    ids, _, reasoning, answer = (x[0] for x in rows())
    every = oar_p(model, ids, reasoning, answer, pad_id=0)[reasoning]
    third = oar_p(model, ids, reasoning, answer, pad_id=0, stride=3)[reasoning]
    torch.testing.assert_close(third[::3], every[::3], atol=1e-6, rtol=1e-3)
    assert torch.equal(third[1::3], third[::3][: len(third[1::3])])


@pytest.mark.parametrize("probe", ["last", "answer_mean"])
def test_the_gradient_is_that_of_the_kl(model, probe):
    """Closed form against automatic differentiation of the textbook formula, with the same noise."""
    from stepopsd.credit.oar_scores import _noise

    ids, attention, reasoning, answer = (x[:1] for x in rows())
    got = oar_g(model, ids, attention, reasoning, answer, probe=probe, sigma=1e-2, seed=3)
    model.eval()
    embeddings = model.get_input_embeddings()(ids).detach()
    read = answer[0].nonzero()[:, 0] - 1
    read = read[:1] if probe == "last" else read
    clean = model(inputs_embeds=embeddings, attention_mask=attention.long()).logits[0, read].detach()
    noisy = (embeddings + 1e-2 * _noise([0], reasoning, 0, 3, embeddings)).requires_grad_()
    moved = model(inputs_embeds=noisy, attention_mask=attention.long()).logits[0, read]
    p, q = clean.mean(0).log_softmax(-1), moved.mean(0).log_softmax(-1)
    (gradient,) = torch.autograd.grad((p.exp() * (p - q)).sum(), noisy)
    want = (gradient * embeddings).sum(-1).abs()
    model.train()
    torch.testing.assert_close(got[reasoning], want[reasoning], rtol=2e-3, atol=1e-8)
    assert got[~reasoning].isnan().all()


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_is_left_behind_in_the_model(model, probe):
    ids, attention, reasoning, answer = rows()
    frozen = next(model.parameters()).requires_grad_(False)
    others = [p for p in model.parameters() if p is not frozen]
    others[0].grad = torch.ones_like(others[0])
    before = [p.detach().clone() for p in model.parameters()]
    oar_g(model, ids, attention, reasoning, answer, probe=probe)
    oar_p(model, ids[0], reasoning[0], answer[0], pad_id=0, probe=probe)
    assert model.training
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in others)
    assert others[0].grad.eq(1).all()
    assert all(p.grad is None for p in others[1:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    frozen.requires_grad_(True)
    others[0].grad = None


def test_noise_is_needed_for_the_kl_and_not_for_the_joint_probability(model):
    ids, attention, reasoning, answer = rows()
    with pytest.raises(ValueError, match="sigma must be above 0"):
        oar_g(model, ids, attention, reasoning, answer, sigma=0.0)
    first, second = (
        oar_g(model, ids, attention, reasoning, answer, probe="answer_joint", sigma=0.0, seed=s) for s in (0, 1)
    )
    assert torch.equal(first[reasoning], second[reasoning])
    assert first[reasoning].gt(0).any()


@pytest.mark.parametrize("probe", ["last", "answer_mean"])
def test_without_noise_the_kl_has_no_slope(probe):
    logits = torch.randn(1 if probe == "last" else 3, 40, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(len(logits), dtype=torch.int64)
    assert _slope(logits, logits, targets, probe).eq(0).all()
    assert _slope(logits + 0.1 * torch.randn_like(logits), logits, targets, probe).abs().max() > 1e-4


def test_scores_grow_with_the_noise_and_draws_are_averaged(model):
    ids, attention, reasoning, answer = rows()

    def score(**options):
        return oar_g(model, ids, attention, reasoning, answer, **options)[reasoning]

    tenfold = (score(sigma=1e-3) / score(sigma=1e-4)).median()
    assert 9 < float(tenfold) < 11
    assert torch.equal(score(seed=1), score(seed=1))
    assert not torch.equal(score(seed=1), score(seed=2))
    both, one = score(seed=4, draws=2), score(seed=4)
    assert not torch.equal(both, one)
    assert (2 * both - one).ge(-1e-6 * one).all(), "what remains is the other draw's score"
    assert score(reduce="l2").gt(0).all()
    each = oar_g(model, ids, attention, reasoning, answer, seed=4, draws=2, each=True)
    assert torch.equal(each[0][reasoning], one)
    torch.testing.assert_close(each.mean(0)[reasoning], both)


def test_a_row_s_scores_do_not_depend_on_its_batch(model):
    ids, attention, reasoning, answer = rows()
    whole = oar_g(model, ids, attention, reasoning, answer)
    end = int(attention[2].sum())
    alone = oar_g(
        model, ids[2:, :end], attention[2:, :end], reasoning[2:, :end], answer[2:, :end], row_numbers=[2]
    )
    torch.testing.assert_close(alone[0], whole[2, :end], rtol=2e-2, atol=1e-7, equal_nan=True)


def test_rows_without_reasoning_or_answer_are_not_scored(model):
    ids, attention, reasoning, answer = rows()
    answer[0], reasoning[1] = False, False
    scores = oar_g(model, ids, attention, reasoning, answer)
    assert scores[:2].isnan().all()
    assert torch.equal(~scores[2].isnan(), reasoning[2])
    assert oar_g(model, ids, attention, reasoning, torch.zeros_like(answer)).isnan().all()


def test_saliency_of_masked_tokens_is_zero():
    g, e = torch.ones(1, 2, 3), torch.tensor([[[1.0, -2.0, 0.5], [9.0, 9.0, 9.0]]])
    mask = torch.tensor([[True, False]])
    assert grad_x_input(g, e, mask).tolist() == [[0.5, 0.0]]
    assert grad_x_input(g, e, mask, "l2")[0, 0] == pytest.approx(3**0.5)
    with pytest.raises(ValueError, match="reduce must be one of abs_dot, l2"):
        grad_x_input(g, e, mask, "sum")


def test_mistakes_are_named(model):
    ids, attention, reasoning, answer = rows()
    row = (ids[0], reasoning[0], answer[0])
    with pytest.raises(ValueError, match="probe must be one of last, answer_mean, answer_joint, got 'first'"):
        oar_p(model, *row, pad_id=0, probe="first")
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        oar_p(model, *row, pad_id=0, chunk=0)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        oar_g(model, ids, attention, reasoning, answer, draws=0)
    with pytest.raises(ValueError, match="reasoning must lie before the answer"):
        oar_p(model, ids[0], answer[0] | reasoning[0], answer[0], pad_id=0)
    with pytest.raises(ValueError, match="answer must hold a token"):
        oar_p(model, ids[0], reasoning[0], torch.zeros_like(answer[0]), pad_id=0)
