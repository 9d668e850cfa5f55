"""Attention that grows with the length: each kernel beside the formula it stands for."""

import pytest
import torch

import qkv
from qkv.core import KERNELS, Attention, Cache, Causal, Context, Full, See, tokens
from qkv.core.efficient import BigBird, Linformer, Performer, ProbSparse


def context(length, valid=None):
    return Context(tokens(length, valid=valid))


def layer(kernel, pattern=None, **fields):
    torch.manual_seed(0)
    return Attention(16, 2, kernel=kernel, pattern={None: Full(), "causal": Causal()}[pattern], **fields).double().eval()


def heads(a, x):
    return [a.split(p(x)) for p in (a.q, a.k, a.v)]


def test_linformer_is_exact_attention_over_mixed_keys():
    a = layer(Linformer(12, 4))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    q, k, v = heads(a, x)
    E, F = a.kernel.keys[:9], a.kernel.values[:9]
    want = ((q @ (E.T @ k).mT * 8**-0.5).softmax(-1) @ (F.T @ v)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(a(x, context(9)), a.o(want), rtol=0, atol=1e-12)
    full = layer(Linformer(9, 9))
    with torch.no_grad():
        full.kernel.keys.copy_(torch.eye(9))
        full.kernel.values.copy_(torch.eye(9))
    exact = layer(None)
    exact.load_state_dict(full.state_dict(), strict=False)
    torch.testing.assert_close(full(x, context(9)), exact(x, context(9)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "kernel", (Linformer(20, 4), Performer(8, 32), Performer(8, 16, "relu"), BigBird(2, 1, drawn=True), ProbSparse(1, drawn=True)), ids=repr
)
def test_padding_changes_nothing(kernel):
    a = layer(kernel)
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[:, 16:] = False
    other = torch.where(valid[..., None], x, torch.randn_like(x))
    one, two = (a(y, context(20, valid))[:, :16] for y in (x, other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_performer_comes_near_softmax_as_features_grow():
    x = 0.5 * torch.randn(4, 24, 16, dtype=torch.float64)
    errors = {}
    for features in (16, 256, 4096):
        total = 0.0
        for seed in range(4):
            a = layer(None)
            torch.manual_seed(seed)
            exact, a.kernel = a(x, context(24)), Performer(8, features, eps=0.0).double().eval()
            total += (a(x, context(24)) - exact).square().mean().sqrt().item()
        errors[features] = total / 4
    assert errors[16] / errors[256] > 2.5 and errors[256] / errors[4096] > 2.5  # 4 is 1 / sqrt(features)


@pytest.mark.parametrize("generalized", (None, "relu"))
@pytest.mark.parametrize("length", (7, 128, 300))
def test_prefix_sums_are_causal_linear_attention(generalized, length):
    a = layer(Performer(8, 16, generalized), "causal")
    x = torch.randn(2, length, 16, dtype=torch.float64)
    q, k, v = heads(a, x)
    q, k = a.kernel.features(q, None, each=True), a.kernel.features(k, None)
    weights = (q @ k.mT).tril()
    want = weights @ v / (weights.sum(-1) + a.kernel.tiny * q.sum(-1))[..., None]
    torch.testing.assert_close(a(x, context(length)), a.o(want.transpose(1, 2).flatten(2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shared", (False, True))
@pytest.mark.parametrize("padded", (False, True))
def test_mixing_before_projecting_is_the_same(padded, shared):
    """Value and gradients, with biases."""
    a = layer(Linformer(20, 4, shared=shared), kv_heads=1)
    assert a.bare
    valid = torch.arange(17)[None] < torch.tensor([[17], [9]]) if padded else None
    x, found = torch.randn(2, 17, 16, dtype=torch.float64, requires_grad=True), []
    for hook in (False, True):
        handle = a.k.register_forward_hook(lambda *_: None) if hook else None
        y = a(x, context(17, valid))
        found.append((y, *torch.autograd.grad((y * torch.arange(16)).sum(), [x, *a.parameters()])))
        assert a.bare is not hook
        if hook:
            handle.remove()
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("causal", (False, True))
def test_probsparse_equals_the_published_layer(causal):
    """One draw for all queries, from the same seed; then its parts: who attends, and what the others get."""
    from transformers import InformerConfig
    from transformers.models.informer.modeling_informer import InformerProbSparseAttention

    theirs = InformerProbSparseAttention(16, 2, is_decoder=causal, sampling_factor=2).double().eval()
    ours = layer(ProbSparse(2, "layer"), "causal" if causal else None)
    for a, b in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        getattr(ours, a).load_state_dict(getattr(theirs, b).state_dict())
    x = torch.randn(3, 30, 16, dtype=torch.float64)
    mask = torch.full((30, 30), -torch.inf, dtype=torch.float64).triu(1).expand(3, 1, 30, 30) if causal else None
    torch.manual_seed(5)
    want = theirs(x, attention_mask=mask)[0]
    torch.manual_seed(5)
    torch.testing.assert_close(ours(x, context(30)), want, rtol=0, atol=1e-6 if causal else 1e-12)  # its running sums are float32
    assert InformerConfig().sampling_factor == 5  # the default of both


@torch.no_grad()
@pytest.mark.parametrize("causal", (False, True))
def test_probsparse_of_all_queries_is_exact(causal):
    """And of a few: those far from the mean attend, the others take the mean of the values or their sum so far."""
    a, exact = (layer(k, "causal" if causal else None) for k in (ProbSparse(100, drawn=True), None))
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    torch.testing.assert_close(a(x, context(20)), exact(x, context(20)), rtol=0, atol=1e-12)
    a.kernel.factor = 1  # 3 of 20 attend
    q, k, v = heads(a, x)
    at = a.kernel.sampled(20, 20)
    assert at.shape == (20, 3) and torch.equal(at, a.kernel.sampled(20, 20))
    rest = v.cumsum(2) if causal else v.mean(2, keepdim=True).expand_as(v)
    out = rest.clone()
    for b in range(2):
        for h in range(2):
            stands = [max(s := [q[b, h, t] @ k[b, h, i] for i in at[t]]) - sum(s) / 20 for t in range(20)]
            for t in sorted(range(20), key=lambda t: -stands[t])[:3]:
                seen = t + 1 if causal else 20
                out[b, h, t] = (q[b, h, t] @ k[b, h, :seen].T * 8**-0.5).softmax(0) @ v[b, h, :seen]
    torch.testing.assert_close(a(x, context(20)), a.o(out.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", (False, True))
def test_performer_by_pieces_equals_its_formula(padded):
    """Value and gradients; pieces shorter than the text, one of them all padding."""
    kernel = Performer(8, 3000, redraw=0).double()
    t = tokens(150, valid=torch.arange(150)[None] >= torch.tensor([[0], [80]]) if padded else None)
    see = See(Full(), t, t)
    qkv_ = [torch.randn(2, 3, 150, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    q, k, v, gone = kernel.ready(*qkv_, see)
    q, k = kernel.features(q, None, each=True), kernel.features(k, gone)
    want, got = (q @ (k.mT @ v)) / (q @ k.sum(2)[..., None]), kernel(*qkv_, see, None)
    weigh = torch.randn_like(want)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad((y * weigh).sum(), qkv_) for y in (got, want))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("generalized", (None, "relu"))
@torch.no_grad()
def test_performer_decodes_with_a_state_of_constant_size(generalized, padded):
    """The same as with every key kept, whose size grows."""
    a = Attention(16, 2, kv_heads=1, pattern=Causal(), kernel=Performer(8, 24, generalized, redraw=0, eps=0.01)).double()
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    valid = torch.arange(40)[None] >= torch.tensor([[0], [9]])
    caches = Cache(rolling=True), Cache(rolling=False)
    at, sizes = 0, []
    for count in (6, 6, 1, 1, 5, 1, 20):  # the first pass of the second row is padding alone
        known = dict(valid=valid[:, at : at + count]) if padded else {}
        one, two = (a(x[:, at : at + count], Context(tokens(count, start=at, **known), cache=c)) for c in caches)
        real = valid[:, at : at + count] if padded else torch.ones(2, count, dtype=torch.bool)
        torch.testing.assert_close(one[real], two[real], rtol=0, atol=1e-5)
        at += count
        sizes.append(caches[0].nbytes())
    assert len(set(sizes)) == 1 and caches[0].nbytes() < caches[1].nbytes()
    caches[0].select(torch.tensor([1, 1]))
    got = a(x[[1, 1], :1], Context(tokens(1, start=40), cache=caches[0]))
    torch.testing.assert_close(got[0], got[1], rtol=0, atol=0)


def test_features_are_drawn_anew_in_training_only():
    kernel = Performer(8, 16, redraw=3)
    a = Attention(16, 2, kernel=kernel)
    first, x = kernel.projection.clone(), torch.randn(1, 5, 16)
    a.eval()
    for _ in range(5):
        a(x, context(5))
    assert torch.equal(kernel.projection, first)
    a.train()
    for _ in range(3):
        a(x, context(5))
    assert not torch.equal(kernel.projection, first)
    rows = kernel.projection[:8] / kernel.projection[:8].norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", (40, 43))
def test_bigbird_is_exact_attention_under_its_mask(length):
    a = layer(BigBird(4, 1, drawn=True, seed=3))
    x = torch.randn(2, length, 16, dtype=torch.float64)
    N = -(-length // 4)
    blocks, used = a.kernel.seen(N)
    see = torch.zeros(N, N, dtype=torch.bool)
    see[0] = see[-1] = True
    for i, (row, on) in enumerate(zip(blocks.tolist(), used.tolist())):
        kept = [b for b, o in zip(row, on) if o]
        assert len(set(kept)) == len(kept) and {0, N - 1, i, i + 1, i + 2} <= set(kept) | {0, N - 1}
        see[i + 1, kept] = True
    mask = see.repeat_interleave(4, 0).repeat_interleave(4, 1)[:length, :length]
    q, k, v = heads(a, x)
    want = (q @ k.mT * 8**-0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(a(x, context(length)), a.o(want.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


def test_bigbird_reads_short_texts_whole_and_draws_in_training():
    a, exact = layer(BigBird(4, 1)), layer(None)
    x = torch.randn(1, 28, 16, dtype=torch.float64)
    torch.testing.assert_close(a(x, context(28)), exact(x, context(28)), rtol=0, atol=1e-12)
    a.kernel.train()
    draws = {tuple(a.kernel.seen(12)[0][:, 4].tolist()) for _ in range(5)}
    assert len(draws) > 1 and (a.kernel.eval().seen(12)[0][:, 4] == 0).all()


@pytest.mark.parametrize("values,shared", ((True, False), (True, True), (False, False)))
@pytest.mark.parametrize("far", (2, 20))
def test_shaw_positions(values, shared, far):
    from qkv.core.positions import Shaw

    torch.manual_seed(1)
    a = layer(None, position=Shaw(8, far, values, shared))
    with torch.no_grad():
        for p in a.position.parameters():
            p.normal_()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    q, k, v = heads(a, x)
    out = torch.zeros_like(q)
    for t in range(9):
        rows = [max(-far, min(far, s - t)) + far for s in range(9)]
        keys = k + a.position.keys[rows]
        w = ((q[:, :, t : t + 1] * keys).sum(-1) * 8**-0.5).softmax(-1)
        out[:, :, t] = (w[..., None] * (v + (a.position.table[rows] if values else 0))).sum(2)
    torch.testing.assert_close(a(x, context(9)), a.o(out.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


REFUSED = (
    (dict(kernel="linformer(rank=4)"), "gpt-nano", "kernel Linformer cannot follow the pattern"),
    (dict(kernel="bigbird"), "gpt-nano", "kernel BigBird cannot follow the pattern"),
    (dict(kernel="performer", position="alibi"), "gpt-nano", "forms no scores|no scores"),
    (dict(kernel="performer", pattern="sliding(8)"), "gpt-nano", "kernel Performer cannot follow the pattern"),
    (dict(kernel="linformer(rank=500)"), "bert-nano", "rank must be between 1 and the length 128"),
    (dict(kernel="performer(features=0)"), "bert-nano", "features must be a whole number of at least 1|features=0"),
    (dict(kernel="bigbird(block=0)"), "bert-nano", "block must be at least 1"),
    (dict(position="shaw(far=0)"), "bert-nano", "far must be a whole number of at least 1"),
)


@pytest.mark.parametrize("fields,preset,say", REFUSED)
def test_what_cannot_be_is_refused_when_built(fields, preset, say):
    with pytest.raises(ValueError, match=say):
        qkv.create(preset, **fields)


def test_a_text_beyond_the_projection_is_refused():
    a = layer(Linformer(8, 4))
    with pytest.raises(ValueError, match="the text has 9 tokens and Linformer's projection is for 8"):
        a(torch.randn(1, 9, 16, dtype=torch.float64), context(9))


@pytest.mark.parametrize("kernel", ("linformer(rank=8)", "performer", "bigbird(block=8, random=1)"))
def test_every_kernel_trains(kernel):
    torch.manual_seed(0)
    model = qkv.create("bert-nano", vocab=50, length=96, dim=32, hidden=64, kernel=kernel)
    out = model(input_ids=torch.randint(0, 50, (2, 96)), labels=torch.randint(0, 50, (192,)))
    out["loss"].backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for n, p in model.named_parameters() if "pool" not in n and "types" not in n
    )
    assert kernel.partition("(")[0] in KERNELS


@pytest.mark.parametrize("kernel", ("softmax", "performer(redraw=0)", "bigbird(block=8, random=1, drawn=true)", "linformer(rank=8)"))
def test_bfloat16_comes_near_float32(kernel, monkeypatch):
    """Under autocast and in bfloat16 weights, forward and backward, on rows that go by blocks."""
    from qkv.core import build, read_pattern
    from qkv.core.efficient import blocks

    monkeypatch.setattr(blocks, "SIZE", 16)
    monkeypatch.setattr(blocks, "SHARE", 9.0)
    torch.manual_seed(0)
    pattern = read_pattern("window(10)") if kernel == "softmax" else Full()
    a = Attention(32, 4, pattern=pattern, kernel=build("kernel", kernel, KERNELS, head_dim=8, length=100, heads=4))
    x = torch.randn(2, 100, 32, requires_grad=True)
    want = a(x, context(100))
    grad = torch.autograd.grad(want.square().sum(), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = a(x, context(100))
        half = torch.autograd.grad(got.float().square().sum(), x)[0]
    near = lambda a, b: (a.float() - b.float()).norm() / b.norm()
    assert near(got, want) < 0.02 and near(half, grad) < 0.03
    narrow = a.bfloat16()(x.bfloat16(), context(100))
    assert narrow.dtype is torch.bfloat16 and near(narrow, want) < 0.03
