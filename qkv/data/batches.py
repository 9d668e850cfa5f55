"""Examples in an order that is a function of (seed, step) alone, so that a run resumes, and ranks share it, exactly.

Dims: B rows, T tokens.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from .text import DataError


@dataclass
class Batch:
    """inputs: arguments of the model. labels: (N, ...) targets of the scored places, -100 where there is none. count: how many are
    targets. tokens: how many tokens the model reads. targets: what else the objective needs, a row each. whole: its rows are scored
    against each other, so that ranks cannot share them."""

    inputs: dict
    labels: torch.Tensor
    count: int
    tokens: int
    targets: dict = field(default_factory=dict)
    whole: bool = False

    def share(self, rank, world):
        """Every world-th row, from `rank` on. A rank without a row gets one that counts nothing."""
        if self.whole:
            return self
        given = next(self.inputs[k] for k in ("decoder_input_ids", "input_ids", *self.inputs) if k in self.inputs)
        B, T = given.shape[0], given.shape[-1]
        mine = torch.arange(B)[rank::world]
        rows = mine if len(mine) else torch.zeros(1, dtype=torch.long)
        inputs = {k: v[rows] if v.shape[0] == B else v for k, v in self.inputs.items() if k != "at"}
        targets = {k: v[rows] for k, v in self.targets.items()}
        if "at" in self.inputs:
            at = self.inputs["at"]
            keep = (at // T) % world == rank
            inputs["at"], labels = at[keep] // T // world * T + at[keep] % T, self.labels[keep]
        else:
            of_rows = self.labels.unflatten(0, (B, -1))
            labels = (of_rows[rows] if len(mine) else torch.full_like(of_rows[:1], -100)).flatten(0, 1)
        scored = labels if labels.dim() == 1 else labels[:, 0]  # a target may be several numbers
        return Batch(inputs, labels, int((scored != -100).sum()), self.tokens * len(mine) // B, targets)

    def to(self, device):
        move = lambda x: x.to(device, non_blocking=True) if torch.is_tensor(x) else x
        inputs, targets = ({k: move(v) for k, v in part.items()} for part in (self.inputs, self.targets))
        return Batch(inputs, move(self.labels), self.count, self.tokens, targets, self.whole)


def rng(*key):
    """A random generator that is a function of a few whole numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(k) & 0xFFFFFFFF for k in key])))


class Windows:
    """Packed rows: the documents one after another, cut into windows of `length` tokens, each epoch at another offset and in another
    order.

    across: let attention and positions run on over document ends. Raises DataError where there is not one window.
    """

    def __init__(self, shards, length, *, seed=0, across=False, name="the text"):
        if len(shards) < length:
            raise DataError(
                f"{name} has {len(shards)} tokens, fewer than the {length} that one row of the model reads; use a smaller "
                f"data.length (now {length}) or more text"
            )
        self.shards, self.length, self.seed, self.across = shards, length, seed, across
        self.starts = np.concatenate([[0], shards.ends[:-1]]) if len(shards.ends) else np.zeros(1, np.int64)
        self._order = (None, None)

    def __len__(self):
        """Rows of one epoch."""
        return len(self.shards) // self.length

    def epoch(self, number):
        """The window starts of one epoch, shuffled."""
        if self._order[0] != number:
            r = rng(self.seed, number, 1)
            n, spare = len(self), len(self.shards) - len(self) * self.length
            offset = int(r.integers(0, spare + 1))
            self._order = number, r.permutation(n) * self.length + offset
        return self._order[1]

    def starts_of(self, first, count):
        """Window starts of rows first .. first + count of the endless order."""
        out = []
        while count:
            e, at = divmod(first, len(self))
            take = self.epoch(e)[at : at + count]
            out.append(take)
            first, count = first + len(take), count - len(take)
        return np.concatenate(out)

    def in_order(self):
        """The starts of whole windows one after another, from the beginning of the text: rows to look at."""
        return np.arange(len(self)) * self.length

    def cover(self, rows: int, overlap: int = 0, least: int = 1):
        """Yields batches of at most `rows` rows, as `rows()` gives them, that cover the whole text once, for evaluation.

        overlap: tokens that a row repeats of the row before (a row's first token is read and not predicted: 1). The last row is as long as
        what is left, in a batch of its own; it is left out where it has fewer than `least` tokens.
        """
        step = self.length - overlap
        whole = max(0, len(self.shards) - overlap) // step
        for i in range(0, whole, rows):
            yield self.rows(np.arange(i, min(i + rows, whole)) * step)
        rest = len(self.shards) - whole * step
        if rest > overlap and rest >= least:
            yield self.rows(np.array([whole * step]), rest)

    def unpredicted(self):
        """Ids of the tokens that none stands before: the first of each document, or where windows run across them, of the text."""
        starts = self.starts[:1] if self.across else np.unique(self.starts)  # an empty document begins where the next one does
        return self.shards.ids[starts[starts < len(self.shards)]]

    def rows(self, starts, length=None):
        """ids (B, T), and where documents meet within a row: documents (B, T) and positions (B, T), else None, None. length: of the rows,
        that of a window by default."""
        T = self.length if length is None else length
        at = starts[:, None] + np.arange(T)
        ids = torch.from_numpy(self.shards.ids[at].astype(np.int64))
        if self.across:
            return ids, None, None
        first = np.searchsorted(self.starts, starts, "right")
        last = np.searchsorted(self.starts, starts + T - 1, "right")
        if (first == last).all():
            return ids, None, None
        which = np.searchsorted(self.starts, at, "right") - 1
        position = at - np.maximum(self.starts[which], starts[:, None])
        return ids, torch.from_numpy(which - which[:, :1]), torch.from_numpy(position)


class Pairs:
    """Pairs of token lists in batches of similar length, at most `tokens` per side with its padding, and at most `rows` of them; or other
    items, whose lengths are `size`.

    An epoch is shuffled, cut into pools, sorted by length within a pool and cut into batches, whose order is shuffled again.
    """

    def __init__(self, pairs, *, tokens=4096, seed=0, pool=100, rows=None, size=None):
        if not pairs:
            raise DataError("there are no pairs to learn from")
        self.pairs, self.tokens, self.seed, self.pool, self.most = pairs, tokens, seed, pool, rows
        self.size = np.array([(len(a), len(b)) for a, b in pairs]) if size is None else np.stack([size, size], 1)
        self._epochs = {}
        self._sizes = []

    def __len__(self):
        return len(self.pairs)

    def epoch(self, number):
        """[[index]] of one epoch."""
        if number not in self._epochs:
            r = rng(self.seed, number, 2)
            order = r.permutation(len(self.pairs))
            per = self.most or max(1, self.tokens // max(1, int(self.size.max(1).mean())))
            batches = []
            for i in range(0, len(order), per * self.pool):
                part = order[i : i + per * self.pool]
                part = part[np.lexsort((self.size[part, 0], self.size[part, 1]))]
                batches += self.cut(part)
            self._epochs = {number: [batches[i] for i in r.permutation(len(batches))]}
        return self._epochs[number]

    def cut(self, order):
        """Batches of consecutive pairs that keep within the token budget."""
        out, now, longest = [], [], 0
        for i in order:
            size = max(longest, int(self.size[i].max()))
            if now and (size * (len(now) + 1) > self.tokens or len(now) == self.most):
                out.append(now)
                now, size = [], int(self.size[i].max())
            now.append(int(i))
            longest = size
        return [*out, now] if now else out

    def batch(self, number):
        """The pairs of the batch with this number in the endless order."""
        e = 0
        while True:
            while len(self._sizes) <= e:
                self._sizes.append(len(self.epoch(len(self._sizes))))
            if number < self._sizes[e]:
                return [self.pairs[i] for i in self.epoch(e)[number]]
            number -= self._sizes[e]
            e += 1

    def in_order(self, fewest: int = 1):
        """Batches that cover the pairs once, sorted by length, for evaluation. One of fewer than `fewest` pairs goes with the one before it."""
        groups: list[list[int]] = []
        for group in self.cut(np.lexsort((self.size[:, 0], self.size[:, 1]))):
            if groups and min(len(group), len(groups[-1])) < fewest:
                groups[-1] += group
            else:
                groups.append(group)
        return [[self.pairs[i] for i in g] for g in groups]


def padded(rows, value, side="right"):
    """(B, T) of lists of ids, and (B, T) bool of what is not padding."""
    longest = max(len(r) for r in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = True
    return ids, mask
