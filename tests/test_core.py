"""The parts: against a plain loop, against each other, and refusing what they cannot do."""

import itertools
import math

import pytest
import torch
from torch import nn

from qkv.core import (
    ALiBi,
    Attention,
    Block,
    Cache,
    Causal,
    Context,
    Documents,
    FeedForward,
    Full,
    GatedFeedForward,
    LayerNorm,
    Learned,
    NoPosition,
    Parallel,  # fmt: skip
    Position,
    Prefix,
    Residual,
    RMSNorm,
    RoPE,
    See,
    Sinusoid,
    Sliding,
    Softmax,
    Stack,
    T5Bias,
    read_pattern,
    tokens,
)
from qkv.core.layers import Embedding, dropout

B, T, D, H = 2, 12, 32, 4
C = D // H


class Shifted(Position):
    """Adds to the values: what a scheme like Shaw's needs."""

    def values(self, weights, queries, keys):
        return weights.sum(-1, keepdim=True).expand(*weights.shape[:3], C) * 0.5


def loop(m, x, allowed, bias=None, extra=0.0):
    """Attention written out, a head and a query at a time."""
    q, k, v = (layer(x).view(B, T, -1, C).transpose(1, 2) for layer in (m.q, m.k, m.v))
    group = H // k.shape[1]
    out = torch.zeros(B, T, H * C, dtype=x.dtype)
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        seen = [s for s in range(T) if allowed(b, t, s)]
        if not seen:
            continue
        scores = torch.stack([q[b, h, t] @ k[b, h // group, s] / C**0.5 + (0 if bias is None else bias(h, t, s)) for s in seen])
        w = torch.exp(scores - scores.max())
        w = w / w.sum()
        out[b, t, h * C : (h + 1) * C] = sum(w[i] * v[b, h // group, s] for i, s in enumerate(seen)) + extra
    return m.o(out)


DOC = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
PRE = torch.tensor([[1] * 4 + [0] * 8, [1] * 2 + [0] * 10])
PATTERNS = {
    "full": (Full(), lambda b, t, s: True),
    "causal": (Causal(), lambda b, t, s: s <= t),
    "sliding": (Sliding(4), lambda b, t, s: 0 <= t - s < 4),
    "prefix-3": (Prefix(3), lambda b, t, s: s <= t or s < 3),
    "prefix-marked": (Prefix(), lambda b, t, s: s <= t or bool(PRE[b, s])),
    "packed": (Causal() & Documents(), lambda b, t, s: s <= t and DOC[b, s] == DOC[b, t]),
    "either": (Sliding(2) | Prefix(2), lambda b, t, s: s <= t or s < 2),
}


def marks(name):
    return {"document": DOC} if name == "packed" else {"prefix": PRE} if name == "prefix-marked" else {}


@pytest.mark.parametrize("kv", (1, 2, 4))
@pytest.mark.parametrize("name", PATTERNS)
def test_attention_equals_the_loop(name, kv):
    pattern, allowed = PATTERNS[name]
    m = Attention(D, H, kv_heads=kv, pattern=pattern).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    with torch.no_grad():
        got = m(x, Context(tokens(T, marks=marks(name))))
        torch.testing.assert_close(got, loop(m, x, allowed), rtol=0, atol=1e-12)


def test_alibi_equals_the_loop():
    m = Attention(D, H, pattern=Causal()).double()
    stack = Stack([Block(attn=m)], position=ALiBi(H)).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    slope = [2 ** (-8 * (h + 1) / H) for h in range(H)]
    with torch.no_grad():
        want = loop(m, x, lambda b, t, s: s <= t, lambda h, t, s: -slope[h] * (t - s))
        torch.testing.assert_close(stack(x, Context(tokens(T))), want, rtol=0, atol=1e-6)


def test_values_hook_is_added():
    m = Attention(D, H, pattern=Causal(), position=Shifted()).double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(m(x, Context(tokens(T))), loop(m, x, lambda b, t, s: s <= t, extra=0.5), rtol=0, atol=1e-12)


def stack_of(position, pattern, kv):
    shared = position if position is not None and position.site == "stack" else None
    own = position if shared is None else None
    block = lambda: Block(
        attn=Residual(Attention(D, H, kv_heads=kv, pattern=pattern & Documents(), position=own), pre=LayerNorm(D)),
        ffn=Residual(FeedForward(D, 64), pre=LayerNorm(D)),
    )
    return Stack([block(), block()], position=shared).double().eval()


@torch.no_grad()
def test_structure_replaces_the_mask():
    """Causal, unpadded, without documents: no dense mask is made; a pattern's dense mask is made once a pass."""
    ctx = Context(tokens(T))
    see = ctx.see(Causal() & Documents())
    assert see.triangle and not see.all and see is ctx.see(Causal() & Documents())
    assert ctx.see(Sliding(T)).triangle and not ctx.see(Sliding(T - 1)).triangle
    assert ctx.see(Full()).all and ctx.see(Prefix() & Documents()).triangle
    calls = []
    stack = stack_of(None, Causal(), 4)
    original, See.dense = See.dense, lambda self: calls.append(self._dense is None) or original(self)
    try:
        stack(torch.randn(1, T, D, dtype=torch.float64), Context(tokens(T)))
        assert calls == []
        stack(torch.randn(1, T, D, dtype=torch.float64), Context(tokens(T, marks={"document": DOC[:1]})))
        assert calls == [True]  # two layers, one mask
    finally:
        See.dense = original


def test_flex_block_mask_equals_the_dense_mask():
    from torch.nn.attention.flex_attention import flex_attention

    m = Attention(D, H, kv_heads=2, pattern=Causal() & Documents())
    position = torch.tensor([[*range(5), *range(7)], [-1, -1, *range(10)]])
    see = See(m.pattern, tokens(T, position=position, marks={"document": DOC}), tokens(T, position=position, marks={"document": DOC}))
    q, k, v = torch.randn(B, H, T, C), torch.randn(B, 2, T, C), torch.randn(B, 2, T, C)
    plain = Softmax()(q, k, v, see, NoPosition(), None)
    flex = flex_attention(q, k, v, block_mask=see.blocks(H), enable_gqa=True)
    real = position[:, None, :, None].expand_as(plain) >= 0
    torch.testing.assert_close(flex[real], plain[real], rtol=0, atol=1e-5)


@torch.no_grad()
def test_bf16_training_path_equals_the_fast_path():
    m = Attention(D, H, pattern=Causal())
    x = torch.randn(B, T, D)
    plain = m(x, Context(tokens(T)))
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        trained = m(x.requires_grad_(), Context(tokens(T)))
    torch.testing.assert_close(trained.float(), plain, rtol=0.05, atol=0.02)


def test_an_empty_row_has_no_nan():
    m = Attention(D, H, pattern=Full())
    out = m(torch.randn(B, T, D), Context(tokens(T, valid=torch.tensor([[True] * T, [False] * T]))))
    assert out.isfinite().all()


def test_rope_is_relative_and_a_rotation():
    for rope in (
        RoPE(8),
        RoPE(8, interleaved=True),
        RoPE(8, scaling="linear", factor=4.0),
        RoPE(8, scaling="llama3", factor=8.0, original=64),
    ):
        q, k = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)
        at = lambda x, i, rope=rope: rope.rotate(x, tokens(1, position=torch.tensor([[i]])))
        torch.testing.assert_close((at(q, 7) * at(k, 3)).sum(), (at(q, 104) * at(k, 100)).sum(), rtol=0, atol=1e-10)
        torch.testing.assert_close(at(q, 50).norm(), q.norm(), rtol=0, atol=1e-12)
        assert not torch.allclose(at(q, 1), at(q, 2))


def test_sinusoids_are_the_papers():
    table = Sinusoid(10, 8).weight
    for pos, i in itertools.product((0, 3, 9), range(4)):
        angle = pos / 10000 ** (2 * i / 8)
        assert math.isclose(table[pos, 2 * i].item(), math.sin(angle), abs_tol=1e-6)
        assert math.isclose(table[pos, 2 * i + 1].item(), math.cos(angle), abs_tol=1e-6)
    halves = Sinusoid(10, 8, layout="halves").weight
    assert torch.equal(halves, torch.cat([table[:, 0::2], table[:, 1::2]], 1)) and not table.requires_grad


def test_block_arrangements_equal_their_formulas():
    a, f, n1, n2 = Attention(D, H), FeedForward(D, 64), LayerNorm(D), LayerNorm(D)
    for n in (n1, n2):
        nn.init.normal_(n.weight)
    c = lambda: Context(tokens(T))
    x = torch.randn(B, T, D)
    cases = {
        "pre": (Block(attn=Residual(a, pre=n1), ffn=Residual(f, pre=n2)), lambda h: (lambda y: y + f(n2(y)))(h + a(n1(h), c()))),
        "post": (Block(attn=Residual(a, post=n1), ffn=Residual(f, post=n2)), lambda h: (lambda y: n2(y + f(y)))(n1(h + a(h, c())))),
        "out": (Block(attn=Residual(a, out=n1), ffn=Residual(f, out=n2)), lambda h: (lambda y: y + n2(f(y)))(h + n1(a(h, c())))),
        "parallel": (Block(both=Residual(Parallel(attn=a, ffn=f), pre=n1)), lambda h: h + a(n1(h), c()) + f(n1(h))),
        "half": (
            Block(ffn=Residual(f, pre=n1, scale=0.5), attn=Residual(a, pre=n2)),
            lambda h: (lambda y: y + a(n2(y), c()))(h + 0.5 * f(n1(h))),
        ),
    }
    for name, (block, formula) in cases.items():
        torch.testing.assert_close(block(x, c()), formula(x), msg=name)


def test_gated_feed_forward_and_rms_norm():
    f, x = GatedFeedForward(D, 48, bias=False), torch.randn(3, D)
    torch.testing.assert_close(f(x), (torch.nn.functional.silu(x @ f.gate.weight.T) * (x @ f.up.weight.T)) @ f.down.weight.T)
    n = RMSNorm(D)
    nn.init.normal_(n.weight)
    torch.testing.assert_close(n(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * n.weight)


def test_dropout_keeps_the_mean_and_the_rate():
    for p in (0.1, 0.3, 0.5):
        y = dropout(torch.ones(400_001), p)
        assert abs((y == 0).float().mean().item() - p) < 0.005 and abs(y.mean().item() - 1) < 0.01
    x = torch.randn(8, 8, requires_grad=True)
    y = dropout(x, 0.5)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


@torch.no_grad()
def test_cross_attention_is_computed_once_and_follows_its_rows():
    m = Attention(D, H, cross=True).double()
    memory, x = torch.randn(B, 5, D, dtype=torch.float64), torch.randn(B, 1, D, dtype=torch.float64)
    cache = Cache()
    first = m(x, Context(tokens(1), memory=memory, cache=cache))
    again = m(x, Context(tokens(1, start=1), memory=torch.zeros_like(memory), cache=cache))  # the cached keys are read
    torch.testing.assert_close(first, again)
    cache.select(torch.tensor([1, 1]))
    torch.testing.assert_close(m(x[[1, 1]], Context(tokens(1, start=2), memory=memory, cache=cache)), first[[1, 1]])


@pytest.mark.parametrize("count", [0, 1, 5, 9])
@torch.no_grad()
def test_a_cut_cache_goes_on_and_leaves_the_whole_one_as_it_was(count):
    """Two texts with a common beginning, read once."""
    stack, x = stack_of(RoPE(C), Causal(), 2), torch.randn(B, T, D, dtype=torch.float64)
    other = torch.cat([x[:, :count], torch.randn(B, T - count, D, dtype=torch.float64)], 1)
    cache = Cache(2)
    stack(x[:, :9], Context(tokens(9), cache=cache))
    cut = cache.first(count)
    pieces = [stack(other[:, a:b], Context(tokens(b - a, start=a), cache=cut)) for a, b in ((count, 10), (10, T))]
    torch.testing.assert_close(torch.cat(pieces, 1), stack(other, Context(tokens(T)))[:, count:], rtol=0, atol=1e-9)
    rest = [stack(x[:, a:b], Context(tokens(b - a, start=a), cache=cache)) for a, b in ((9, 10), (10, T))]
    torch.testing.assert_close(torch.cat(rest, 1), stack(x, Context(tokens(T)))[:, 9:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", [Full(), Causal(), Sliding(2), Causal() & Documents()], ids=str)
@torch.no_grad()
def test_a_row_of_padding_alone_gives_the_same_by_every_way(pattern):
    """It sees all keys, on the path that forms scores too: no NaN reaches the others by way of a sum."""
    m, x = Attention(D, H, pattern=pattern).double(), torch.randn(2, T, D, dtype=torch.float64)
    context = lambda: Context(tokens(T, valid=torch.tensor([[True] * T, [False] * T])))
    fast = m(x, context())
    m.kernel.weights.register_forward_hook(lambda *_: None)
    slow = m(x, context())
    assert slow.isfinite().all()
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_decode_step_compiles_without_a_graph_break():
    stack, x = stack_of(RoPE(C), Causal(), 2), torch.randn(B, T, D, dtype=torch.float64)
    cache = Cache(16, fixed=True)
    full = stack(x, Context(tokens(T)))
    out = [stack(x[:, :4], Context(tokens(4), cache=cache))]
    torch._dynamo.reset()
    graphs = []
    count = lambda graph, example: graphs.append(graph) or graph.forward
    step = torch.compile(lambda y, n: stack(y, Context(tokens(1, position=n), cache=cache)), backend=count, fullgraph=True)
    for t in range(4, T):
        out.append(step(x[:, t : t + 1], torch.full((B, 1), t)))
    torch.testing.assert_close(torch.cat(out, 1), full, rtol=0, atol=1e-10)
    assert len(graphs) <= 2  # the second is for any length


REFUSED = {
    "kv_heads=3 must divide heads=4": lambda: Attention(D, 4, kv_heads=3),
    "heads=5 must divide dim=32": lambda: Attention(D, 5),
    "no common positions": lambda: Attention(D, H, cross=True, position=RoPE(C)),
    "rotated must be even": lambda: RoPE(7),
    "scaling must be linear": lambda: RoPE(8, scaling="magic"),
    "layout must be": lambda: Sinusoid(4, 8, layout="zigzag"),
    "even dim": lambda: Sinusoid(4, 7),
    "window must be a whole number": lambda: Sliding(0),
    "length must be a whole number": lambda: Prefix(0),
    "length must be at least 1": lambda: Learned(0, 8),
    "at least 4 buckets": lambda: T5Bias(4, buckets=2),
    "dropout must be in": lambda: Softmax(dropout=1.0),
    "activation 'sine' is not one of": lambda: FeedForward(8, 8, act="sine"),
    "at least one branch": lambda: Block(),
    "at least one sublayer": lambda: Parallel(),
    "no scores for a stack": lambda: Stack([], position=RoPE(8)),
    "needs a capacity": lambda: Cache(fixed=True),
    "is not one of full": lambda: read_pattern("triangle"),
    "cannot read": lambda: read_pattern("causal &"),
    "takes no 'windw'": lambda: read_pattern("sliding(windw=3)"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_constructors_refuse_with_the_reason(reason):
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        REFUSED[reason]()


def test_a_kernel_refuses_patterns_and_scores_it_cannot_follow():
    class OnlyFull(Softmax):
        patterns, takes_scores = (Full,), False

    with pytest.raises(ValueError, match="OnlyFull cannot follow the pattern"):
        Attention(D, H, kernel=OnlyFull(), pattern=Causal())
    with pytest.raises(ValueError, match="forms no scores for position ALiBi"):
        Attention(D, H, kernel=OnlyFull(), position=ALiBi(H))


def test_a_full_cache_and_a_long_text_are_refused():
    stack = stack_of(None, Causal(), 4)
    cache = Cache(4, fixed=True)
    with pytest.raises(ValueError, match="holds 4 tokens and 5 are needed"):
        stack(torch.randn(B, 5, D, dtype=torch.float64), Context(tokens(5), cache=cache))
    with pytest.raises(ValueError, match="position 11 is beyond the 8 positions"):
        Embedding(5, 8, Learned(8, 8))(torch.zeros(1, 12, dtype=torch.long), torch.arange(12)[None], last=11)


def test_patterns_are_read_as_they_are_written():
    assert read_pattern("causal & documents") == Causal() & Documents()
    assert read_pattern("sliding(4) | prefix(length=2) & full") == Sliding(4) | (Prefix(2) & Full())
    assert hash(Sliding(4) & Causal()) == hash(Sliding(4) & Causal())
