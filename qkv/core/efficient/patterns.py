"""Patterns that leave most pairs out. They say nothing of direction unless they must: `causal & window(64) | ...` joins them.

Sources: Child et al. (2019, Sparse Transformer), Beltagy et al. (2020, Longformer), Zaheer et al. (2020, BigBird).
"""

import random
from dataclasses import dataclass

import torch

from ..masks import Pattern, whole


def overlap(q, k, of):
    """May a query and a key agree in `of`? By the range of each block."""
    return (q.low(of) <= k.high(of)) & (k.low(of) <= q.high(of))


@dataclass(frozen=True)
class Window(Pattern):
    """Up to `radius` tokens to either side (Longformer, section 3.1, whose window is 2 radius)."""

    radius: int
    relative = True

    def __post_init__(self):
        whole(radius=self.radius)

    def allows(self, q, k):
        return (q.position - k.position).abs() <= self.radius

    def touches(self, q, k):
        return (q.low() - k.high() <= self.radius) & (k.low() - q.high() <= self.radius)

    def reach(self):
        return self.radius + 1


@dataclass(frozen=True)
class Dilated(Pattern):
    """`window` tokens back with gaps: every `gap`-th, the token itself included (Longformer, section 3.1)."""

    window: int
    gap: int = 2
    relative = True

    def __post_init__(self):
        whole(window=self.window, gap=self.gap)

    @property
    def stride(self):
        return self.gap

    def rest(self, tokens):
        return tokens.position % self.gap

    def allows(self, q, k):
        back = q.position - k.position
        return (back >= 0) & (back < self.reach()) & (back % self.gap == 0)

    def touches(self, q, k):
        return (k.low() <= q.high()) & (q.low() - k.high() < self.reach()) & overlap(q, k, self.rest)

    def reach(self):
        return (self.window - 1) * self.gap + 1


@dataclass(frozen=True)
class Strided(Pattern):
    """Every `step`-th token back from this one (Sparse Transformer, section 4.3: join it with sliding(step))."""

    step: int
    relative = True

    def __post_init__(self):
        whole(step=self.step)

    @property
    def stride(self):
        return self.step

    def rest(self, tokens):
        return tokens.position % self.step

    def allows(self, q, k):
        return (k.position <= q.position) & ((q.position - k.position) % self.step == 0)

    def touches(self, q, k):
        return (k.low() <= q.high()) & overlap(q, k, self.rest)


@dataclass(frozen=True)
class Block(Pattern):
    """Tokens of the same run of `size`: block-local attention."""

    size: int

    def __post_init__(self):
        whole(size=self.size)

    def number(self, tokens):
        return tokens.position.div(self.size, rounding_mode="floor")

    def allows(self, q, k):
        return self.number(q) == self.number(k)

    def touches(self, q, k):
        return overlap(q, k, self.number)

    def reach(self):
        return self.size


@dataclass(frozen=True)
class Summary(Pattern):
    """The last `last` tokens of every run of `size`, up to this one (Sparse Transformer, section 4.3, "fixed": join it with
    causal & block(size))."""

    size: int
    last: int = 1

    def __post_init__(self):
        whole(size=self.size, last=self.last)
        if self.last > self.size:
            raise ValueError(f"last={self.last} is over size={self.size}")

    def allows(self, q, k):
        return (k.position <= q.position) & (k.position % self.size >= self.size - self.last)

    def touches(self, q, k):
        return (k.low() <= q.high()) & (k.high(lambda t: t.position % self.size) >= self.size - self.last)


@dataclass(frozen=True)
class Globals(Pattern):
    """The first `count` tokens see all and are seen by all (Longformer, section 3.1; BigBird, section 2)."""

    count: int = 1

    def __post_init__(self):
        whole(count=self.count)

    def allows(self, q, k):
        return (q.position < self.count) | (k.position < self.count)

    def touches(self, q, k):
        return (q.low() < self.count) | (k.low() < self.count)


@dataclass(frozen=True)
class Random(Pattern):
    """Every block of `size` queries sees `count` blocks of keys, drawn once from `seed` (BigBird, section 2). longest: tokens of the longest
    text."""

    longest: int
    count: int = 3
    size: int = 64
    seed: int = 0

    def __post_init__(self):
        whole(count=self.count, size=self.size, longest=self.longest)
        n, r = -(-self.longest // self.size), random.Random(self.seed)
        chosen = torch.tensor([r.sample(range(n), min(self.count, n)) for _ in range(n)], device="cpu")
        object.__setattr__(self, "drawn", torch.zeros(n, n, dtype=torch.bool, device="cpu").scatter(1, chosen, True))

    @property
    def limit(self):
        return self.longest

    def allows(self, q, k):
        place = lambda t: t.position.clamp(0, self.longest - 1).div(self.size, rounding_mode="floor")
        return self.drawn.to(k.position.device)[place(q), place(k)]

    def touches(self, q, k):
        sums = torch.nn.functional.pad(self.drawn.long().cumsum(0).cumsum(1), (1, 0, 1, 0)).to(k.tokens.position.device)
        place = lambda x: x.clamp(0, self.longest - 1).div(self.size, rounding_mode="floor")
        (a, b), (c, d) = ((place(side.low()), place(side.high()) + 1) for side in (q, k))
        return sums[b, d] - sums[a, d] - sums[b, c] + sums[a, c] > 0


PATTERNS = {
    "window": Window,
    "dilated": Dilated,
    "strided": Strided,
    "block": Block,
    "summary": Summary,
    "globals": Globals,
    "random": Random,
}
