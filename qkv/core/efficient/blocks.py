"""Exact attention by blocks: a block of queries meets only the blocks of keys that its pattern touches, so that time and memory grow with
what is seen and not with the square of the length (the idea of Child et al., 2019, section 5.2; BigBird, 2020, appendix D). Forward,
backward, any position scheme, on any device.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, P tokens a block, N query blocks, M key blocks,
R query blocks that are worked on together, L key blocks that each of them sees.
"""

import functools

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..layers import dropout
from ..masks import Blocks, See, Tokens
from ..watch import transformed

SIZE = 128  # tokens a block
SHARE = 0.5  # of all pairs, above which one dense mask is as fast
LARGE = 2**26  # scores of one layer that are not kept in memory for the backward pass
CHUNK = 2**22  # of them at a time instead


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

    def single(self, batch, heads, dtype):
        """[(row, blocks, mask())] of a batch, a query block at a time; masks (P, L P) of zeros and -inf. Where a pattern goes by
        distance alone, blocks at the same distances share one."""
        memo, N, M = self.see.memo.setdefault(("masks", dtype), {}), self.queries.blocks, self.keys.blocks
        rows_of, large = len(self.queries.tokens.position), self.large(batch, heads)
        far = self.see.pattern.relative and self.see.plain and self.queries.order is None
        last = M - 1 if self.keys.pad or self.queries.pad else M

        def mask(row, seen):
            if far and seen[-1] < last and row < N - 1:
                key = tuple(block - row for block in seen)
            elif large:
                return self.drawn(row, seen, dtype)
            else:
                key = row, None
            if key not in memo:
                memo[key] = self.drawn(row, seen, dtype)
            return memo[key]

        for rows, blocks, _ in self.groups:
            for row, seen in zip(rows.tolist(), blocks.tolist()):
                seen = [block for block in seen if block < M * rows_of] or [row // N * M]
                make = functools.partial(mask, row, seen)
                for b in range(batch // rows_of):
                    yield row + b * N, [block + b * M for block in seen], make

    def drawn(self, row, seen, dtype):
        device = self.keys.tokens.position.device
        return self.part(torch.tensor([row], device=device), torch.tensor([seen], device=device)).merged(None, dtype)[0, 0]

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
    if T < 4 * SIZE or torch.compiler.is_compiling() or transformed() or (not costly and (see.all or see.triangle)):
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
    B, H, _, _ = q_BHTC.shape
    q, k, v = plan.queries.fold(q_BHTC), plan.keys.fold(k_BGSC), plan.keys.fold(v_BGSC)
    steps = [(row, runs(seen), mask) for row, seen, mask in plan.single(B, H, q.dtype)]
    return plan.queries.unfold(Gathered.apply(q, k, v, steps, q_BHTC.shape[-1] ** -0.5 if scale is None else scale), B)


def runs(numbers):
    """[3, 4, 5, 9] -> [(3, 6), (9, 10)]"""
    out = []
    for n in numbers:
        if out and out[-1][1] == n:
            out[-1] = out[-1][0], n + 1
        else:
            out.append((n, n + 1))
    return out


def narrow(x):
    """Is it computed with in half precision, in which sums of a whole row are not exact enough?"""
    return x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type)


def gathered(q, k, v, row, seen, mask, p):
    """One step of `Gathered`, with dropout: (P, H, C)."""
    keys, values = (taken(x, seen) for x in (k, v))
    query, scores = Gathered.scores(q[row], keys, mask, q.shape[-1] ** -0.5)
    return ungrouped(torch.bmm(dropout(scores.softmax(-1), p), values), q[row])


class Gathered(torch.autograd.Function):
    """Softmax attention of a block of queries at a time, forward and backward, in a core's own memory: no scores are kept.

    q (N, P, H, C), k and v (M, P, G, C); steps: [(number of the query block, runs of key blocks, mask() -> (P or 1, L P) of zeros and
    -inf)]."""

    @staticmethod
    def forward(ctx, q, k, v, steps, scale):
        out = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype, device=q.device)
        sums = torch.empty(q.shape[0], k.shape[2], q.shape[1] * q.shape[2] // k.shape[2], 1, dtype=q.dtype, device=q.device)
        for row, seen, mask in steps:
            query, scores = Gathered.scores(q[row], taken(k, seen), mask(), scale)
            most = scores.amax(-1, keepdim=True)
            weights = scores.sub_(most).exp_()
            total = weights.sum(-1, keepdim=True)
            out[row] = ungrouped(torch.bmm(weights, taken(v, seen)).div_(total), q[row])
            sums[row] = total.log_().add_(most)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.steps, ctx.scale = steps, scale
        return out

    @staticmethod
    def scores(q_PHC, keys_GSC, mask, scale):
        """(queries (G, H/G P, C), their scores (G, H/G P, S)): heads that share keys stand below each other."""
        query = grouped_heads(q_PHC, len(keys_GSC))
        P, S = len(q_PHC), keys_GSC.shape[1]
        mask = mask.expand(query.shape[1] // P, P, S).reshape(-1, S) if query.shape[1] != P else mask.expand(P, S)
        return query, torch.baddbmm(mask.expand(len(query), -1, -1), query, keys_GSC.mT, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, out, sums = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for row, seen, mask in ctx.steps:
            keys, values = taken(k, seen), taken(v, seen)
            query, scores = Gathered.scores(q[row], keys, mask(), ctx.scale)
            weights = scores.sub_(sums[row]).exp_()
            g = grouped_heads(grad[row], len(keys))
            inner = (g * grouped_heads(out[row], len(keys))).sum(-1, keepdim=True)
            add(dv, seen, torch.bmm(weights.mT, g))
            d = torch.bmm(g, values.mT).sub_(inner).mul_(weights)
            dq[row] = ungrouped(torch.bmm(d, keys).mul_(ctx.scale), q[row])
            add(dk, seen, torch.bmm(d.mT, query).mul_(ctx.scale))
        return dq, dk, dv, None, None


def taken(x_MPGC, seen):
    """(G, S, C) of runs of blocks."""
    parts = [x_MPGC[low:high] for low, high in seen]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(0, 1).transpose(0, 1)


def add(x_MPGC, seen, part_GSC):
    """Adds (G, S, C) to runs of blocks."""
    part, at = part_GSC.transpose(0, 1).unflatten(0, (-1, x_MPGC.shape[1])), 0
    for low, high in seen:
        x_MPGC[low:high] += part[at : at + high - low]
        at += high - low


def grouped_heads(x_PHC, G):
    """(P, H, C) -> (G, H/G P, C)"""
    P, H, C = x_PHC.shape
    return x_PHC.transpose(0, 1) if G == H else x_PHC.view(P, G, H // G, C).permute(1, 2, 0, 3).reshape(G, -1, C)


def ungrouped(x, like_PHC):
    """(G, H/G P, C) -> (P, H, C)"""
    P, H, _ = like_PHC.shape
    G, _, C = x.shape
    return x.transpose(0, 1) if G == H else x.view(G, H // G, P, C).permute(2, 0, 1, 3).reshape(P, H, C)
