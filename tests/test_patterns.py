"""Every position scheme x pattern x way of running (whole, by blocks, cached, rolling, padded on the left, packed) against attention written
out pair by pair."""

import contextlib
import itertools
import math
import re

import pytest
import torch

from qkv.core import PATTERNS as KNOWN
from qkv.core import POSITIONS, ALiBi, Attention, Block, Cache, Context, Documents, Sinusoid2D, Stack, build, read_pattern, tokens
from qkv.core.efficient import blocks
from qkv.core.slots import parse

B, T, D, H = 2, 28, 16, 2
C = D // H
DRAWN = "random(count=1, size=4, longest=64, seed=3)"


TABLE = read_pattern(DRAWN).drawn.tolist()


PATTERNS = {  # text: may a query at q see a key at k?
    "full": lambda q, k: True,
    "causal": lambda q, k: k <= q,
    "sliding(7)": lambda q, k: 0 <= q - k < 7,
    "window(6)": lambda q, k: abs(q - k) <= 6,
    "causal & window(3)": lambda q, k: 0 <= q - k <= 3,
    "dilated(3, 2)": lambda q, k: q - k in (0, 2, 4),
    "strided(4)": lambda q, k: k <= q and (q - k) % 4 == 0,
    "sliding(4) | strided(4)": lambda q, k: k <= q and (q - k < 4 or (q - k) % 4 == 0),
    "block(6)": lambda q, k: q // 6 == k // 6,
    "causal & block(6)": lambda q, k: k <= q and q // 6 == k // 6,
    "causal & block(6) | summary(6, 2)": lambda q, k: k <= q and (q // 6 == k // 6 or k % 6 >= 4),
    "window(2) | globals(2)": lambda q, k: abs(q - k) <= 2 or q < 2 or k < 2,
    "causal & (window(2) | globals(2))": lambda q, k: k <= q and (abs(q - k) <= 2 or q < 2 or k < 2),
    "prefix(4)": lambda q, k: k <= q or k < 4,
    f"window(1) | globals(1) | {DRAWN}": lambda q, k: abs(q - k) <= 1 or q < 1 or k < 1 or TABLE[q // 4][k // 4],
}
CAUSAL = [p for p, see in PATTERNS.items() if not any(see(q, k) for q in range(T) for k in range(q + 1, T))]
SCHEMES = ("none", "rope", "rope_before", "rope(rotated=4, interleaved=true)", "rope(scaling=ntk, factor=4)", "rope(scaling=yarn, factor=4, original=16)",
           "rope2d(width=5, skip=1)", "alibi", "t5(buckets=8, far=12)", "shaw(far=3)", "shaw(far=3, values=false)", "xl",
           "xl(layout=interleaved)")  # fmt: skip


def made(scheme, pattern):
    torch.manual_seed(0)
    position = build("position", scheme, POSITIONS, heads=H, head_dim=C, dim=D, length=64, causal=False)
    shared = position if position.site == "stack" else None
    layer = Attention(D, H, kv_heads=1, pattern=read_pattern(pattern) & Documents(), position=None if shared else position)
    with torch.no_grad():
        for p in position.parameters():
            p.normal_()
    return Stack([Block(attn=layer)], position=shared).double().eval(), position


def turned(scheme, position, x, n):
    """x of one token and head, rotated for position n, a pair at a time."""
    if not scheme.startswith("rope"):
        return x
    x = x.tolist()
    out, at = list(x), [(n, range(C // 2))]
    width = position.dim
    if scheme.startswith("rope2d"):
        cell = max(n - 1, 0)
        at = [(cell // 5, range(C // 4)), (cell % 5, range(C // 4, C // 2))]
    for m, pairs in at:
        for i in pairs:
            if i >= width // 2:
                continue
            if scheme.startswith("rope2d"):
                f = 100.0 ** (-2 * (i % (C // 4)) / (width / 2))
            elif "ntk" in scheme:
                f = (10000 * 4 ** (width / (width - 2))) ** (-2 * i / width)
            else:
                f = 10000.0 ** (-2 * i / width)
            if "yarn" in scheme:
                where = lambda turns: width * math.log(16 / (turns * 2 * math.pi)) / (2 * math.log(10000))
                low, high = max(math.floor(where(32)), 0), min(math.ceil(where(1)), width - 1)
                slow = min(max((i - low) / (high - low), 0), 1)
                f = f * (1 - slow) + f / 4 * slow
            a, b = (2 * i, 2 * i + 1) if "interleaved" in scheme else (i, i + width // 2)
            sharp = 0.1 * math.log(4) + 1 if "yarn" in scheme else 1
            out[a] = sharp * (x[a] * math.cos(m * f) - x[b] * math.sin(m * f))
            out[b] = sharp * (x[b] * math.cos(m * f) + x[a] * math.sin(m * f))
    return torch.tensor(out, dtype=torch.float64)


def bucket(distance):
    """T5's, of key minus query, 8 buckets, far 12."""
    n = abs(distance)
    return (4 if distance > 0 else 0) + (n if n < 2 else min(3, 2 + int(math.log(n / 2) / math.log(6) * 2)))


def wave(n, interleaved):
    pairs = [(math.sin(n * 10000 ** (-2 * i / D)), math.cos(n * 10000 ** (-2 * i / D))) for i in range(D // 2)]
    flat = [w for pair in pairs for w in pair] if interleaved else [s for s, _ in pairs] + [c for _, c in pairs]
    return torch.tensor(flat, dtype=torch.float64)


@torch.no_grad()
def reference(scheme, stack, position, x, see):
    """x (n, D) of one row, see(t, s): attention pair by pair, positions 0 ... n - 1."""
    layer, n = stack.blocks[0].attn, len(x)
    v, before = layer.v(x).view(n, C), scheme == "rope_before"
    if before:  # what queries and keys are projected from is turned, a head's width of channels at a time
        x = torch.stack([torch.cat([turned("rope", position, part, t) for part in row.split(C)]) for t, row in enumerate(x)])
        scheme = "none"
    q, k = layer.q(x).view(n, H, C), layer.k(x).view(n, C)
    k = torch.stack([turned(scheme, position, k[s], s) for s in range(n)])
    out = torch.zeros(n, H, C, dtype=torch.float64)
    xl, inter = scheme.startswith("xl"), "interleaved" in scheme
    r = {d: position.project(wave(d, inter)).view(H, C) for d in range(-n, n + 1)} if xl else {}
    for h, t in itertools.product(range(H), range(n)):
        seen = [s for s in range(n) if see(t, s)]
        mine, scores = turned(scheme, position, q[t, h], t), []
        for s in seen:
            score = mine @ k[s]
            near = max(-3, min(3, s - t)) + 3
            if scheme.startswith("shaw"):
                score = score + mine @ position.keys[near]
            if xl:
                score = (mine + position.u[h, 0]) @ k[s] + (mine + position.v[h, 0]) @ r[t - s][h]
            score = score / C**0.5
            if scheme == "alibi":
                score = score - 2 ** (-8 * (h + 1) / H) * abs(t - s)
            if scheme.startswith("t5"):
                score = score + position.weight[bucket(s - t), h]
            scores.append(score)
        w = torch.stack(scores).softmax(0)
        for a, s in zip(w, seen):
            more = position.table[max(-3, min(3, s - t)) + 3] if scheme == "shaw(far=3)" else 0
            out[t, h] += a * (v[s] + more)
    return layer.o(out.flatten(1))


def test_every_scheme_and_pattern_has_a_row():
    added = {name for name, scheme in POSITIONS.items() if scheme.site == "embedding"}
    assert {parse(text)[0] for text in SCHEMES} == set(POSITIONS) - added
    assert set(re.findall(r"[a-z]+", " ".join(PATTERNS))) >= set(KNOWN) - {"documents"}  # which every row here is joined with


@pytest.mark.parametrize("heads", range(1, 40))
def test_slopes_of_any_number_of_heads(heads):
    """The paper's: a geometric series from 2 ** (-8 / n) for a power of two, else that of the one below and every other slope of the one above."""

    def series(n):
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 1
    while 2 * below <= heads:
        below *= 2
    wanted = series(below) + series(2 * below)[0::2][: heads - below]
    bias = ALiBi(heads).bias(None, tokens(5), tokens(5))[0, :, 4, 0]
    torch.testing.assert_close(bias.double(), torch.tensor([-4 * s for s in wanted]).double(), rtol=1e-6, atol=0)


WAYS = ("dense", "blocks", "recomputed")  # one dense mask; blocks of 4; blocks whose scores are worked out again in the backward pass


@contextlib.contextmanager
def going(way):
    with pytest.MonkeyPatch.context() as m:
        if way != "dense":
            m.setattr(blocks, "SIZE", 4)
            m.setattr(blocks, "SHARE", 9.0)
            m.setattr(blocks, "LARGE", 0 if way == "recomputed" else 2**60)
            m.setattr(blocks, "CHUNK", 100)
        yield


close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # ALiBi's and the waves' constants are float32


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_every_way_agrees_with_pairs(scheme, pattern):
    """Whole rows, padding on the left, padding on the right, and packed documents."""
    stack, position = made(scheme, pattern)
    x = torch.randn(B, T, D, dtype=torch.float64)
    pair = lambda row: reference(scheme, stack, position, row, PATTERNS[pattern])
    want, pad, cut = [pair(x[b]) for b in range(B)], 11, 9
    alone, parts = pair(x[1, : T - pad]), torch.cat([pair(x[0, :cut]), pair(x[0, cut:])])
    left = torch.cat([x[:1], torch.cat([torch.randn(1, pad, D, dtype=torch.float64), x[1:, : T - pad]], 1)])
    shifted = torch.stack([torch.arange(T), (torch.arange(T) - pad).clamp(min=0)])
    valid = torch.stack([torch.ones(T, dtype=torch.bool), torch.arange(T) >= pad])
    packed = dict(
        position=torch.cat([torch.arange(cut), torch.arange(T - cut)])[None], marks={"document": (torch.arange(T) >= cut).long()[None]}
    )
    for way in WAYS:
        with going(way):
            close(stack(x, Context(tokens(T))), torch.stack(want))
            got = stack(left, Context(tokens(T, position=shifted, valid=valid)))
            close(got[0], want[0])
            close(got[1, pad:], alone)
            close(stack(x, Context(tokens(T, valid=valid.flip(1))))[1, : T - pad], alone)
            close(stack(x, Context(tokens(T, **packed)))[0], parts)


@torch.no_grad()
def test_rows_that_do_not_fill_their_blocks():
    """26 tokens in blocks of 4, and fewer queries than keys: the same as one dense mask."""
    for pattern in PATTERNS:
        stack, _ = made("rope", pattern)
        x, found = torch.randn(B, 26, D, dtype=torch.float64), []
        for way in WAYS:
            with going(way):
                out = [stack(x, Context(tokens(26)))]
                if pattern in CAUSAL:
                    cache = Cache()
                    out += [stack(x[:, a:b], Context(tokens(b - a, start=a), cache=cache)) for a, b in ((0, 5), (5, 26))]
                found.append(torch.cat(out, 1))
        for other in found[1:]:
            close(found[0], other)


@pytest.mark.parametrize("pattern", CAUSAL)
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_a_cache_agrees_with_pairs(scheme, pattern):
    """A token and several at a time; everything kept, and a rolling cache; the second row padded on the left."""
    stack, position = made(scheme, pattern)
    x, pad, may = torch.randn(B, T, D, dtype=torch.float64), 3, PATTERNS[pattern]
    want = reference(scheme, stack, position, x[0], may), reference(scheme, stack, position, x[1, pad:], may)
    place = torch.stack([torch.arange(T), (torch.arange(T) - pad).clamp(min=0)])
    valid = torch.stack([torch.ones(T, dtype=torch.bool), torch.arange(T) >= pad])
    for kind, padded in itertools.product(({}, {"rolling": True}, {"fixed": True}), (False, True)):
        cache, outs, at, rolling = Cache(T if kind.get("fixed") else 4, **kind), [], 0, kind.get("rolling")
        for count in (7, 1, 1, 4, 1, 1, 1, 6, 1, 1, 1, 3):
            part = slice(at, at + count)
            known = dict(position=place[:, part], valid=valid[:, part]) if padded else {"start": at}
            outs.append(stack(x[:, part], Context(tokens(count, **known), cache=cache)))
            at += count
        got = torch.cat(outs, 1)
        close(got[0], want[0])
        if padded:
            close(got[1, pad:], want[1])
        reach = read_pattern(pattern).reach()
        if rolling and reach is not None:
            assert next(iter(cache.kv.values()))[0].shape[2] <= 2 * reach
            with pytest.raises(ValueError, match="cannot be cut"):
                cache.first(3)


@pytest.mark.parametrize("scheme", ("none", "rope", "t5(buckets=8, far=12)", "shaw(far=3)", "xl"))
def test_backward_by_blocks_equals_the_dense_one(scheme):
    """Gradients of the input, the parameters and the position tables."""
    for pattern in PATTERNS:
        stack, _ = made(scheme, pattern)
        x = torch.randn(1, T, D, dtype=torch.float64, requires_grad=True)
        weigh, found = torch.randn(1, T, D, dtype=torch.float64), []
        for way in WAYS:
            with going(way):
                y = (stack(x, Context(tokens(T, marks={"document": (torch.arange(T) > 9).long()[None]}))) * weigh).sum()
                found.append(torch.autograd.grad(y, [x, *stack.parameters()], allow_unused=True))
        for dense, *others in zip(*found):
            for other in others:
                assert (dense is None) == (other is None)
                if dense is not None:
                    torch.testing.assert_close(dense, other, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_flex_attention_sees_the_same(pattern, monkeypatch):
    """The block mask of a GPU, forward on a CPU: plain, packed and padded rows."""
    from torch.nn.attention import flex_attention as flex

    from qkv.core import See

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # tracing it takes ten times as long

    n = 40
    padded = torch.arange(n)[None] >= torch.tensor([[0], [9]])
    for known in ({}, {"marks": {"document": (torch.arange(n) > 15).long()[None]}}, {"valid": padded}):
        t = tokens(n, **known)
        see = See(read_pattern(pattern) & Documents(), t, t)
        q, k, v = (torch.randn(2, H, n, 16) for _ in range(3))
        got, want = (
            flex.flex_attention(q, k, v, block_mask=see.blocks(H)),
            torch.nn.functional.scaled_dot_product_attention(q, k, v, see.dense()),
        )
        real = padded if "valid" in known else torch.ones_like(padded)
        torch.testing.assert_close(got.transpose(1, 2)[real], want.transpose(1, 2)[real], rtol=0, atol=1e-5)


def test_blocks_leave_out_what_is_not_seen():
    """A plan's cost: linear in the length for windows, none of it for other documents, dilated rows sorted by their rest."""
    from qkv.core import See

    def cells(pattern, n, **known):
        t = tokens(n, **known)
        return blocks.Plan(See(read_pattern(pattern, longest=n), t, t), 16).count

    for pattern in ("sliding(40)", "window(20)", "dilated(10, 4)", "causal & block(48)", "window(20) | globals(4)",
                    "window(20) | random(count=2, size=16)"):  # fmt: skip
        short, long = cells(pattern, 512), cells(pattern, 2048)
        assert 3.9 < long / short < 4.4, (pattern, long / short)
        assert long < 0.2 * 2048**2
    assert cells("dilated(10, 4)", 2048) < 1.5 * cells("sliding(10)", 2048)
    packed = cells("causal & documents", 2048, marks={"document": (torch.arange(2048) // 256)[None]})
    assert packed < 0.1 * 2048**2
    padded = cells("full", 2048, valid=torch.arange(2048)[None] < 256)
    assert padded == 256**2 or padded < 0.1 * 2048**2


def test_a_pattern_that_is_asked_too_much_says_so():
    for text, message in (("window(0)", "radius must be a whole number of at least 1, not 0"), ("dilated(3, gap=0)", "gap must be"),
                          ("summary(4, 5)", "last=5 is over size=4"), ("random(count=2)", "needs longest"), ("strided(2.5)", "step must be"),
                          ("block(true)", "size must be")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_pattern(text)
    short = Attention(D, H, pattern=read_pattern("window(1) | random(count=1, size=4, longest=8)"))
    with pytest.raises(ValueError, match="position 8 is beyond the 8 of"):
        short(torch.randn(1, 9, D), Context(tokens(9)))


def test_a_rolling_cache_refuses_what_it_dropped():
    layer = Attention(D, H, pattern=read_pattern("sliding(3)"))
    cache = Cache(rolling=True)
    x = torch.randn(1, 8, D)
    layer(x, Context(tokens(8), cache=cache))
    layer(x[:, :1], Context(tokens(1, start=8), cache=cache))
    with pytest.raises(ValueError, match="rolling cache has dropped"):  # token 9 counts from 2 on again: what it sees is gone
        layer(x[:, :1], Context(tokens(1, position=torch.tensor([[2]])), cache=cache))


def test_two_axes():
    """Sinusoids and rotations of a grid, a cell at a time; tokens before the grid have none."""
    table = Sinusoid2D(1 + 6, 8, width=3, skip=1).weight
    assert (table[0] == 0).all()
    for cell in range(6):
        row, column = divmod(cell, 3)
        want = [f(axis * 10000 ** (-i / 2)) for axis in (column, row) for f in (math.sin, math.cos) for i in range(2)]
        torch.testing.assert_close(table[1 + cell], torch.tensor(want, dtype=torch.float32), rtol=0, atol=1e-6)
