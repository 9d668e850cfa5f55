"""Cache: keys and values already computed. It belongs to the caller, never to a module."""

import torch

from .masks import Tokens


class Cache:
    """Preallocated keys and values of every attention layer, and the tokens they came from.

    capacity: tokens to make room for; with None it starts small and doubles. fixed=True keeps every tensor at full capacity
    (unused places are padding to the mask), so that a compiled step sees one shape only. rolling=True: a layer keeps
    the least that newer tokens need, a window of keys and values or a running sum; such a cache cannot be cut (`first`).
    Raises ValueError where a fixed cache is full.
    """

    def __init__(self, capacity=None, fixed=False, rolling=False):
        if fixed and not capacity:
            raise ValueError("a fixed cache needs a capacity")
        if fixed and rolling:
            raise ValueError("a fixed cache keeps every token; it cannot be rolling too")
        self.capacity, self.fixed, self.rolling = capacity or 64, fixed, rolling
        self.length = 0
        self.kv, self.made, self.states = {}, {}, {}  # states: what kernels keep in place of keys and values
        self.position, self.marks, self.plain = None, {}, True
        self.at = self.slots = None  # the length as a tensor (a compiled step sees no new number), and the places being written
        self.new, self.steady = 0, True  # tokens of this pass; do all rows count up to their newest token, padding only before?

    def advance(self, queries):
        """Makes room for the tokens of a pass and returns all tokens seen so far (its keys)."""
        T = queries.position.shape[1]
        B = max(x.shape[0] for x in (queries.position, *queries.marks.values()))
        self.reserve(self.length + T)
        if self.position is None:
            self.position = queries.position.new_full((B, self.capacity), -1)
        if self.position.shape[0] < B:
            self.position = self.position.expand(B, -1).clone()
        if set(queries.marks) - set(self.marks):
            self.marks |= {n: torch.zeros_like(self.position) for n in queries.marks if n not in self.marks}
        if self.at is None:
            self.at = torch.zeros((), dtype=torch.long, device=self.position.device)
        self.slots = self.at + torch.arange(T, device=self.position.device)
        self.at = self.at + T
        self.plain = self.plain and queries.plain
        self.position.index_copy_(1, self.slots, queries.position.expand(self.position.shape[0], -1))
        for name, mark in queries.marks.items():
            self.marks[name].index_copy_(1, self.slots, mark.expand(self.position.shape[0], -1))
        self.length, self.new = self.length + T, T
        if self.rolling and not self.plain:
            seen = self.position[:, max(0, self.length - T - 1) : self.length]
            self.steady = self.steady and bool((~(seen[:, :-1] >= 0) | (seen.diff(dim=1) == 1)).all())
        return self.keys()

    def keys(self, reach=None):
        """Tokens of the keys that a layer of that reach hands out."""
        start, end = self.length - self.kept(reach), self.end
        cut = lambda x: x[:, start:end]
        return Tokens(cut(self.position), {n: cut(m) for n, m in self.marks.items()}, self.plain and not self.fixed)

    def kept(self, reach):
        """How many of the newest tokens a layer of that reach reads in this pass."""
        rolls = self.rolling and reach is not None and self.steady
        return min(self.length, self.new + reach - 1) if rolls else self.length

    @property
    def end(self):
        """How far keys are handed out: to the newest token, or to the capacity of a fixed cache."""
        return self.capacity if self.fixed else self.length

    def reserve(self, length):
        if length <= self.capacity:
            return
        if self.fixed:
            raise ValueError(f"the cache holds {self.capacity} tokens and {length} are needed; make it larger or the prompt shorter")
        more = max(length, 2 * self.capacity) - self.capacity
        grow = lambda x, value: torch.cat([x, x.new_full((*x.shape[:-1], more), value)], -1)
        self.capacity += more
        if self.position is not None:
            self.position = grow(self.position, -1)
            self.marks = {n: grow(m, 0) for n, m in self.marks.items()}
        whole = lambda who, pair: pair if who in self.states else tuple(grow(x.mT, 0).mT.contiguous() for x in pair)
        self.kv = {who: whole(who, pair) for who, pair in self.kv.items()}

    def extend(self, who, k_BGTC, v_BGTC, reach=None):
        """Stores the new keys and values of layer `who`; returns those that it reads: all, or with a reach and rolling=True the
        newest."""
        if self.rolling and reach is not None:
            return self.roll(who, k_BGTC, v_BGTC, reach)
        if who not in self.kv:
            B, G, _, C = k_BGTC.shape
            self.kv[who] = tuple(x.new_zeros(B, G, self.capacity, C) for x in (k_BGTC, v_BGTC))
        out = []
        for buffer, new in zip(self.kv[who], (k_BGTC, v_BGTC)):
            buffer.index_copy_(2, self.slots, new.to(buffer.dtype))
            out.append(buffer[:, :, : self.end])
        return out

    def roll(self, who, k_BGTC, v_BGTC, reach):
        """The window's buffers have twice its size: tokens move to the front once in a window. states[who]: how many are in use."""
        T, used = k_BGTC.shape[2], self.states.get(who, 0)
        if who not in self.kv or used + T > self.kv[who][0].shape[2]:
            keep = min(used, reach - 1) if self.steady else used
            room = max(2 * reach, keep + T) if self.steady else 2 * (keep + T)
            fresh = tuple(x.new_zeros(*x.shape[:2], room, x.shape[3]) for x in (k_BGTC, v_BGTC))
            for new, old in zip(fresh, self.kv.get(who, ())):
                new[:, :, :keep] = old[:, :, used - keep : used]
            self.kv[who], used = fresh, keep
        if self.kept(reach) - T > used:
            raise ValueError("padding behind the tokens of a row: a rolling cache has dropped tokens that are needed; use rolling=False")
        for buffer, new in zip(self.kv[who], (k_BGTC, v_BGTC)):
            buffer[:, :, used : used + T] = new
        self.states[who] = used + T
        return [x[:, :, used + T - self.kept(reach) : used + T] for x in self.kv[who]]

    def once(self, who, make):
        """What `make` returns, computed at the first call only (keys of an encoder's output)."""
        if who not in self.made:
            self.made[who] = make()
        return self.made[who]

    def select(self, rows):
        """Keeps the given rows of the batch, in that order (beams)."""
        shared = lambda x: x[rows] if x.shape[0] > 1 else x  # positions that all rows have in common stay so
        self.position = shared(self.position)
        self.marks = {n: shared(m) for n, m in self.marks.items()}
        self.kv = {who: tuple(x[rows] for x in pair) for who, pair in self.kv.items()}
        deep = lambda x: tuple(map(deep, x)) if isinstance(x, tuple) else x.rows(shared) if isinstance(x, Tokens) else x[rows]
        self.made = {who: deep(x) for who, x in self.made.items()}
        self.states = {who: x if isinstance(x, int) else tuple(t[rows] for t in x) for who, x in self.states.items()}

    def first(self, count):
        """A cache of its own with the first `count` tokens of this one. Raises ValueError where a layer keeps no single tokens."""
        if self.states and count:
            raise ValueError("this cache keeps a window or a state, not every token; it cannot be cut")
        out = Cache(max(count, 1))
        if count and self.position is not None:
            cut = lambda x, at: x.narrow(at, 0, count).clone()
            out.length, out.capacity, out.plain, out.made = count, count, self.plain, dict(self.made)
            out.position, out.marks = cut(self.position, 1), {n: cut(m, 1) for n, m in self.marks.items()}
            out.kv = {who: tuple(cut(x, 2) for x in pair) for who, pair in self.kv.items()}
            out.at = torch.full_like(self.at, count)
        return out

    def nbytes(self):
        """Bytes held by keys and values, or by what stands in their place."""
        states = (s for s in self.states.values() if not isinstance(s, int))
        return sum(x.nbytes for held in (*self.kv.values(), *states) for x in held)
