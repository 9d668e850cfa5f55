"""Exact attention by blocks: a block of queries meets only the blocks of keys that its pattern touches, so that time and memory grow with
what is seen and not with the square of the length (the idea of Child et al., 2019, section 5.2; BigBird, 2020, appendix D). Forward,
backward, any position scheme, on any device.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, P tokens a block, N query blocks, M key blocks,
R query blocks that are worked on together, L key blocks that each of them sees.
"""

import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..masks import Blocks, See, Tokens

SIZE = 128  # tokens a block
SHARE = 0.5  # of all pairs, above which one dense mask is as fast
LARGE = 2**26  # scores of one layer that are not kept in memory for the backward pass
CHUNK = 2**22  # of them at a time instead
CACHE = 2**18  # of them fit a core's own memory


class Plan:
    """Which blocks meet. groups: [(rows (R,), blocks (R, L), see of each group)]; order, back: (B, tokens) places of the tokens in
    their blocks and of the blocks' tokens in the row, where they do not stand as they came."""

    def __init__(self, see, size):
        self.see, self.size = see, size
        strides = {1} | {p.stride for p in see.pattern.parts()}
        self.queries, self.keys, groups = min((self.lay(s) for s in sorted(strides)), key=lambda laid: self.cells(laid[2]))
        self.count = self.cells(groups)
        self.groups = [(rows, blocks, {}) for rows, blocks in groups]

    def lay(self, stride):
        """(queries, keys, groups) with tokens sorted by their rest by `stride`."""
        B = max(t.shape[0] for side in (self.see.queries, self.see.keys) for t in (side.position, *side.marks.values()))
        queries, keys = Laid(self.see.queries, self.size, stride, B), Laid(self.see.keys, self.size, stride, B)
        q, k = Blocks(queries.tokens, 2), Blocks(keys.tokens, 1)
        real = lambda side: (side.tokens.position >= 0).any(-1).unsqueeze(side.axis)
        touch = self.see.pattern.touches(q, k) & real(q) & real(k)
        touch = touch.expand(-1, queries.blocks, keys.blocks)  # (B|1, N, M)
        return queries, keys, grouped(touch)

    def cells(self, groups):
        return sum(blocks.numel() for _, blocks in groups) * self.size**2

    def large(self, batch, heads):
        """Are there too many scores to keep them, or masks of them?"""
        return batch // len(self.queries.tokens.position) * heads * self.count > LARGE

    def steps(self, batch, heads, scores):
        """[(rows, blocks, see())] of a batch, at most so many scores at a time."""
        rows_of, large = len(self.queries.tokens.position), self.large(batch, heads)
        N, M = self.queries.blocks * rows_of, self.keys.blocks * rows_of
        for rows, blocks, sees in self.groups:
            R = max(1, scores // (heads * blocks.shape[1] * self.size**2))
            for b in range(batch // rows_of):
                for i in range(0, len(rows), R):
                    some, seen = rows[i : i + R], blocks[i : i + R]
                    make = functools.partial(self.part, some, seen) if large else functools.partial(self.kept, sees, (i, R), some, seen)
                    yield some + b * N, torch.where(seen == M, 0, seen + b * M), make

    def kept(self, sees, key, rows, blocks):
        if key not in sees:
            sees[key] = self.part(rows, blocks)
        return sees[key]

    def part(self, rows, blocks):
        """The See of some query blocks as if each were a row of a batch."""
        row = lambda x: x.flatten(0, 1)[rows]
        pick = lambda x, empty: torch.cat([x.flatten(0, 1), x.new_full((1, x.shape[-1]), empty)])[blocks].flatten(1)
        q, k = self.queries.tokens, self.keys.tokens
        return See(
            self.see.pattern,
            Tokens(row(q.position), {n: row(m) for n, m in q.marks.items()}),
            Tokens(pick(k.position, -1), {n: pick(m, 0) for n, m in k.marks.items()}),
        )


class Laid:
    """Tokens padded to whole blocks, in an order where blocks see little. tokens: (B|1, N, P)."""

    def __init__(self, tokens, size, stride, B):
        T = tokens.position.shape[1]
        self.pad, self.blocks, self.size = -T % size, -(-T // size), size
        cut = lambda x, empty: F.pad(x, (0, self.pad), value=empty)
        position, marks = cut(tokens.position, -1), {n: cut(m, 0) for n, m in tokens.marks.items()}
        self.order = self.back = None
        if stride > 1:
            position, far = position.expand(B, -1), position.max() + 1
            self.order = torch.where(position >= 0, position % stride * far + position, far * stride).argsort(dim=1, stable=True)
            self.back = self.order.argsort(1)
            put = lambda x: x.expand(B, -1).gather(1, self.order)
            position, marks = put(position), {n: put(m) for n, m in marks.items()}
        fold = lambda x: x.unflatten(1, (self.blocks, size))
        self.tokens = Tokens(fold(position.expand(B, -1)), {n: fold(m.expand(B, -1)) for n, m in marks.items()})

    def fold(self, x_BGTC):
        """-> (B N, P, G, C)"""
        x = x_BGTC.transpose(1, 2)
        if self.pad:
            x = F.pad(x, (0, 0, 0, 0, 0, self.pad))
        x = self.moved(x, self.order)
        return x.reshape(x.shape[0] * self.blocks, self.size, *x.shape[2:])

    def unfold(self, x_NPHC, batch):
        """(B N, P, H, C) -> (B, H, T, C)"""
        x = self.moved(x_NPHC.reshape(batch, -1, *x_NPHC.shape[2:]), self.back)
        return x[:, : x.shape[1] - self.pad].transpose(1, 2)

    def moved(self, x, order):
        if order is None:
            return x
        if order.shape[0] == 1:
            return x.index_select(1, order[0])
        at = order + torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
        return x.flatten(0, 1).index_select(0, at.flatten()).view_as(x)


def grouped(touch_BNM):
    """[(rows (R,) of B N, blocks (R, L) of B M, or B M itself: none)]: query blocks that see about as many key blocks together."""
    B, N, M = touch_BNM.shape
    touch = touch_BNM.reshape(B * N, M)
    count = touch.sum(1).clamp(min=1)
    step = 2 ** (count.float().log2().floor().long() - 2).clamp(min=0)
    level = (count + step - 1) // step * step  # rounded up by a quarter at most
    groups = []
    for L in sorted(set(level.tolist()), reverse=True):
        rows = (level == L).nonzero()[:, 0]
        if groups and (groups[-1][1] - L) * len(rows) < 0.05 * len(touch):  # too few to be worth a pass of their own
            rows, L = torch.cat([groups[-1][0], rows]), groups[-1][1]
            groups.pop()
        groups.append((rows, L))
    out = []
    for rows, L in groups:
        rows = rows.sort()[0]
        L = int(count[rows].max())
        seen, blocks = touch[rows].to(torch.int8).sort(dim=1, descending=True, stable=True)
        blocks = blocks[:, :L] + rows[:, None] // N * M
        out.append((rows, torch.where(seen[:, :L] > 0, blocks, B * M)))
    return out


def plan(see, heads, costly):
    """The Plan of a See, made once a pass; None where blocks would not pay. costly: a mask or bias is needed in any case."""
    T, S = see.queries.position.shape[1], see.keys.position.shape[1]
    if T < 4 * SIZE or torch.compiler.is_compiling() or (not costly and (see.all or see.triangle)):
        return None
    if "plan" not in see.memo:
        see.memo["plan"] = Plan(see, SIZE)
    made, rows = see.memo["plan"], max(see.queries.position.shape[0], see.keys.position.shape[0])
    return made if made.count < SHARE * rows * T * S or rows * heads * T * S > LARGE else None


def attend(dense, plan, q_BHTC, k_BGSC, v_BGSC):
    """`dense` (q, k, v, see) -> out, on the blocks of a plan."""
    q, k, v = plan.queries.fold(q_BHTC), plan.keys.fold(k_BGSC), plan.keys.fold(v_BGSC)
    B, H = q_BHTC.shape[:2]
    again = plan.large(B, H) and torch.is_grad_enabled()
    places, outs = [], []

    def run(q, k, v, rows, blocks, see):
        take = lambda x: x.index_select(0, blocks.flatten()).view(len(rows), -1, *x.shape[2:]).transpose(1, 2)
        return dense(q.index_select(0, rows).transpose(1, 2), take(k), take(v), see()).transpose(1, 2)

    for rows, blocks, see in plan.steps(B, H, CHUNK if again else 2**62):
        outs.append(checkpoint(run, q, k, v, rows, blocks, see, use_reentrant=False) if again else run(q, k, v, rows, blocks, see))
        places.append(rows)
    return plan.queries.unfold(torch.cat(outs).index_select(0, torch.cat(places).argsort()), B)


def exact(plan, q_BHTC, k_BGSC, v_BGSC, scale):
    """softmax(q k' scale) v on the blocks of a plan, where nothing is added to the scores."""
    B, H = q_BHTC.shape[:2]
    q, k, v = plan.queries.fold(q_BHTC), plan.keys.fold(k_BGSC), plan.keys.fold(v_BGSC)
    steps = [(rows, blocks, lambda see=see: see().added(None, q.dtype)) for rows, blocks, see in plan.steps(B, H, CACHE)]
    return plan.queries.unfold(Gathered.apply(q, k, v, steps, q_BHTC.shape[-1] ** -0.5 if scale is None else scale), B)


def gathered(q, k, v, rows, blocks, mask, p, gqa):
    """One step of `Gathered`, with dropout: (R, P, H, C)."""
    take = lambda x: x.index_select(0, blocks.flatten()).view(len(rows), -1, *x.shape[2:]).transpose(1, 2)
    return F.scaled_dot_product_attention(q[rows].transpose(1, 2), take(k), take(v), mask, p, enable_gqa=gqa).transpose(1, 2)


class Gathered(torch.autograd.Function):
    """Softmax attention of a few blocks at a time, forward and backward: no gathered keys and no scores are kept.

    q (N, P, H, C), k and v (M, P, G, C); steps: [(rows (R,), blocks (R, L), mask() -> (R, 1, P, L P) of zeros and -inf)]."""

    @staticmethod
    def forward(ctx, q, k, v, steps, scale):
        out = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype, device=q.device)
        for rows, blocks, mask in steps:
            weights, _, _, values = Gathered.weights(q, k, v, rows, blocks, mask(), scale)
            out[rows] = Gathered.back(weights @ values, q.shape)
        ctx.save_for_backward(q, k, v, out)
        ctx.steps, ctx.scale = steps, scale
        return out

    @staticmethod
    def weights(q, k, v, rows, blocks, mask, scale):
        """(softmax (R, G, H/G P, L P), queries (R, G, H/G P, C), keys and values (R, G, L P, C)): heads of a group stand below each other."""
        R, (_, P, H, C), G = len(rows), q.shape, k.shape[2]
        query = (q[rows] * scale).view(R, P, G, H // G, C).permute(0, 2, 3, 1, 4).reshape(R, G, -1, C)
        keys, values = (x.index_select(0, blocks.flatten()).view(R, -1, G, x.shape[-1]).transpose(1, 2) for x in (k, v))
        scores = query @ keys.mT
        scores.view(R, H, P, -1).add_(mask)
        return scores.softmax(-1), query, keys, values

    @staticmethod
    def back(x, shape):
        """(R, G, H/G P, C) -> (R, P, H, C)"""
        _, P, H, _ = shape
        R, G, _, C = x.shape
        return x.view(R, G, H // G, P, C).permute(0, 3, 1, 2, 4).reshape(R, P, H, C)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, blocks, mask in ctx.steps:
            weights, query, keys, values = Gathered.weights(q, k, v, rows, blocks, mask(), ctx.scale)
            G = keys.shape[1]
            group = lambda x: x.view(len(rows), x.shape[1], G, -1, x.shape[-1]).permute(0, 2, 3, 1, 4).reshape(*query.shape[:3], -1)
            g = group(grad[rows])
            inner = (g * group(out[rows])).sum(-1, keepdim=True)
            d = (g @ values.mT).sub_(inner).mul_(weights)
            dq[rows] = Gathered.back((d @ keys).mul_(ctx.scale), q.shape)
            for whole, part in ((dk, d.mT @ query), (dv, weights.mT @ g)):
                whole.index_add_(0, blocks.flatten(), part.transpose(1, 2).reshape(-1, *whole.shape[1:]))
        return dq, dk, dv, None, None
