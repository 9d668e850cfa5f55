"""Patterns: who may look where, decided from what tokens carry (their positions and marks), never from their content.

Dims: B batch, T queries, S keys.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Tokens:
    """What is known of a row of tokens besides their vectors.

    position: (B|1, T) integers, -1 is padding. marks: named (B|1, T) integers, e.g. `document`, `prefix`.
    plain: positions are 0, 1, 2 ... in every row, without padding, so that masks may be left to structure.
    """

    position: torch.Tensor
    marks: dict = field(default_factory=dict)
    plain: bool = False
    memo: dict = field(default_factory=dict)  # what a position scheme worked out once for these tokens

    def mark(self, name):
        return self.marks.get(name)

    def rows(self, pick):
        """The same with `pick` applied to every tensor (rows of a batch chosen)."""
        return Tokens(pick(self.position), {k: pick(v) for k, v in self.marks.items()}, self.plain)

    def as_queries(self):
        return Tokens(self.position[:, :, None], {k: v[:, :, None] for k, v in self.marks.items()})

    def as_keys(self):
        return Tokens(self.position[:, None, :], {k: v[:, None, :] for k, v in self.marks.items()})


@dataclass
class Blocks:
    """Tokens cut into blocks: position and marks are (B|1, N, P). axis: where the other side's blocks stand in (B, N, M)."""

    tokens: Tokens
    axis: int

    def values(self, of, empty):
        of = "position" if of is None else of
        x = of(self.tokens) if callable(of) else self.tokens.position if of == "position" else self.tokens.mark(of)
        return x.masked_fill(self.tokens.position < 0, empty)

    def low(self, of=None):
        """The least position (or mark of that name, or of(tokens)) in each block, padding left out."""
        return self.values(of, FAR).amin(-1).unsqueeze(self.axis)

    def high(self, of=None):
        return self.values(of, -FAR).amax(-1).unsqueeze(self.axis)


FAR = 2**40  # over any position, and the difference of two such is still a number


def whole(**values):
    """Raises unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


class Pattern:
    """A frozen value; `allows` broadcasts queries (B, T, 1) against keys (B, 1, S) and answers in booleans.

    stride: positions that leave the same rest belong together (dilated patterns). relative: does it go by the distance of two tokens
    alone?"""

    stride = 1
    relative = False
    limit = None  # tokens that it is made for, where there are such

    def allows(self, q, k):
        raise NotImplementedError

    def touches(self, q, k):
        """May any query of a block see any key of a block? Of `Blocks`; broadcasts to (B, N, M). It may say yes too often, never no."""
        return torch.ones((), dtype=torch.bool, device=k.tokens.position.device)

    def reach(self):
        """How many tokens back a query sees at most, itself included; None: any number."""
        return None

    def within(self, length, marks=()):
        """The simplest pattern that means the same for positions below `length`, of tokens that carry these marks."""
        return self

    def parts(self):
        """The basic patterns that this one is put together from."""
        return [self]

    def blind(self, length=64):
        """The first position, of so many, whose token sees neither itself nor any before it; None where every one does."""
        position = torch.arange(length, device="cpu")[None]
        seen = self.allows(Tokens(position).as_queries(), Tokens(position).as_keys()).expand(1, length, length)[0].tril().any(-1)
        return None if bool(seen.all()) else int(seen.long().argmin())

    def __and__(self, other):
        return And(self, other)

    def __or__(self, other):
        return Or(self, other)


@dataclass(frozen=True)
class Full(Pattern):
    """Every token sees every token."""

    relative = True

    def allows(self, q, k):
        return torch.ones_like(k.position, dtype=torch.bool)


@dataclass(frozen=True)
class Causal(Pattern):
    """A token sees itself and what comes before it."""

    relative = True

    def allows(self, q, k):
        return k.position <= q.position

    def touches(self, q, k):
        return k.low() <= q.high()


@dataclass(frozen=True)
class Sliding(Pattern):
    """The last `window` tokens, the token itself included (Mistral 7B, 2023, section 2)."""

    window: int
    relative = True

    def __post_init__(self):
        whole(window=self.window)

    def allows(self, q, k):
        return (k.position <= q.position) & (q.position - k.position < self.window)

    def touches(self, q, k):
        return (k.low() <= q.high()) & (q.low() - k.high() < self.window)

    def reach(self):
        return self.window

    def within(self, length, marks=()):
        return Causal() if self.window >= length else self


@dataclass(frozen=True)
class Prefix(Pattern):
    """All see the prefix, the rest is causal (T5, 2020, section 3.2.1).

    The prefix is the first `length` tokens, or, where length is None, the tokens whose mark `prefix` is 1.
    """

    length: int | None = None

    def __post_init__(self):
        if self.length is not None and (not isinstance(self.length, int) or self.length < 1):
            raise ValueError(f"length must be a whole number of at least 1, or left out, not {self.length!r}")

    def allows(self, q, k):
        causal = k.position <= q.position
        if self.length is not None:
            return causal | (k.position < self.length)
        return causal if k.mark("prefix") is None else causal | (k.mark("prefix") == 1)

    def touches(self, q, k):
        causal = k.low() <= q.high()
        if self.length is not None:
            return causal | (k.low() < self.length)
        return causal if k.tokens.mark("prefix") is None else causal | (k.high("prefix") == 1)

    def within(self, length, marks=()):
        return Causal() if self.length is None and "prefix" not in marks else self


@dataclass(frozen=True)
class Documents(Pattern):
    """Tokens see only their own document: those whose mark `document` is the same. Without marks, all is one document."""

    def allows(self, q, k):
        mine, theirs = q.mark("document"), k.mark("document")
        if (mine is None) != (theirs is None):
            raise ValueError("some tokens say which document they are of and others do not; give `documents` in every pass or in none")
        return torch.ones_like(k.position, dtype=torch.bool) if mine is None else mine == theirs

    def touches(self, q, k):
        if k.tokens.mark("document") is None or q.tokens.mark("document") is None:
            return super().touches(q, k)
        return (q.low("document") <= k.high("document")) & (k.low("document") <= q.high("document"))

    def within(self, length, marks=()):
        return self if "document" in marks else Full()


@dataclass(frozen=True)
class And(Pattern):
    left: Pattern
    right: Pattern

    @property
    def relative(self):
        return self.left.relative and self.right.relative

    def allows(self, q, k):
        return self.left.allows(q, k) & self.right.allows(q, k)

    def touches(self, q, k):
        return self.left.touches(q, k) & self.right.touches(q, k)

    def reach(self):
        return min((r for r in (self.left.reach(), self.right.reach()) if r is not None), default=None)

    def within(self, length, marks=()):
        a, b = self.left.within(length, marks), self.right.within(length, marks)
        if a == Full() or a == b:
            return b
        if b == Full():
            return a
        if Causal() in (a, b) and any(isinstance(p, Sliding) for p in (a, b)):
            return a if isinstance(a, Sliding) else b
        return And(a, b)

    def parts(self):
        return self.left.parts() + self.right.parts()


@dataclass(frozen=True)
class Or(Pattern):
    left: Pattern
    right: Pattern

    @property
    def relative(self):
        return self.left.relative and self.right.relative

    def allows(self, q, k):
        return self.left.allows(q, k) | self.right.allows(q, k)

    def touches(self, q, k):
        return self.left.touches(q, k) | self.right.touches(q, k)

    def reach(self):
        each = self.left.reach(), self.right.reach()
        return None if None in each else max(each)

    def within(self, length, marks=()):
        a, b = self.left.within(length, marks), self.right.within(length, marks)
        return Full() if Full() in (a, b) else a if a == b else Or(a, b)

    def parts(self):
        return self.left.parts() + self.right.parts()


class See:
    """Which keys the queries of one forward pass may see under one pattern; made once per pattern per pass."""

    def __init__(self, pattern, queries, keys):
        self.queries, self.keys = queries, keys
        self.plain = queries.plain and keys.plain
        T, S = queries.position.shape[1], keys.position.shape[1]
        for part in pattern.parts():
            if part.limit is not None and S and (last := int(keys.position.max())) >= part.limit:
                raise ValueError(f"position {last} is beyond the {part.limit} of {part}; raise longest")
        self.pattern = pattern.within(S if self.plain else math.inf, keys.marks)
        if self.plain and T == 1 and isinstance(self.pattern, Causal):
            self.pattern = Full()  # the newest token sees all that came before
        self._dense = self._hidden = self._blocks = None
        self.memo = {}  # what kernels worked out once for this pass

    @property
    def all(self):
        """Every query sees every key: no mask at all."""
        return self.plain and isinstance(self.pattern, Full)

    @property
    def triangle(self):
        """The plain lower triangle of as many queries as keys: what `is_causal` means."""
        return self.plain and isinstance(self.pattern, Causal) and self.queries.position.shape[1] == self.keys.position.shape[1]

    def valid(self):
        """(B|1, 1, S) keys that are tokens; where a row has none, all, so that no softmax row is empty."""
        k = self.keys.position[:, None, :] >= 0
        return k | ~k.any(-1, keepdim=True)

    def dense(self):
        """(B|1, 1, T|1, S) bool. Rows of padding see every key: no NaN row."""
        if self._dense is None:
            q, k = self.queries.as_queries(), self.keys.as_keys()
            see = self.pattern.allows(q, k)
            if not self.keys.plain:
                see = see & self.valid()
            if not isinstance(self.pattern, Full) and not self.queries.plain:
                see = see | (q.position < 0)
            self._dense = see[:, None]
        return self._dense

    def hidden(self):
        """What may not be seen: the dense mask turned round, made once."""
        if self._hidden is None:
            self._hidden = ~self.dense()
        return self._hidden

    def bias(self, shared):
        """(B|1, H, T, S) scores of a scheme that all layers share, worked out once per pass; None where there is none."""
        if shared is None:
            return None
        key = ("bias", id(shared))
        if key not in self.memo:
            self.memo[key] = shared.bias(None, self.queries, self.keys)
        return self.memo[key]

    def added(self, bias, dtype, shared=True):
        """`bias` (B|1, H, T, S), or None, with -inf where nothing may be seen. Merged once per pass where all layers share it."""
        if bias is None or shared:
            key = ("added", None if bias is None else id(bias), dtype)
            if key not in self.memo:
                self.memo[key] = self.merged(bias, dtype)
            return self.memo[key]
        return self.merged(bias, dtype)

    def merged(self, bias, dtype):
        zero = torch.zeros((), dtype=dtype, device=self.keys.position.device)
        return torch.where(self.dense(), zero if bias is None else bias, -torch.inf).to(dtype)

    def blocks(self, heads):
        """The same as flex_attention's BlockMask."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self._blocks is None:
            T, S = self.queries.position.shape[1], self.keys.position.shape[1]
            B = max(self.queries.position.shape[0], self.keys.position.shape[0])
            row = lambda t, b: t[b if t.shape[0] > 1 else 0]
            at = lambda tokens, b, i: Tokens(row(tokens.position, b)[i], {n: row(m, b)[i] for n, m in tokens.marks.items()})

            empty = (self.keys.position < 0).all(1)

            def allows(b, h, q_index, k_index):
                q, k = at(self.queries, b, q_index), at(self.keys, b, k_index)
                return (self.pattern.allows(q, k) & (k.position >= 0)) | (q.position < 0) | row(empty, b)

            self._blocks = create_block_mask(allows, B, None, T, S, device=str(self.keys.position.device))
        return self._blocks
