"""Context: what one forward pass knows besides x."""

from dataclasses import dataclass, field

import torch

from .masks import See, Tokens


def tokens(length, *, start=0, position=None, valid=None, marks=None, device=None):
    """Tokens of one forward pass.

    length: how many. start: number of the first (tokens already in a cache). position: (B, T) their numbers, where they do not
    simply count up. valid: (B, T) bool, False is padding (it becomes position -1).
    """
    marks = marks or {}
    plain = position is None and valid is None
    if position is None:
        position = torch.arange(start, start + length, device=device)[None]
    if valid is not None:
        position = torch.where(valid, position, -1)
    return Tokens(position, marks, plain)


@dataclass
class Context:
    """queries: the tokens of x. memory (B, S', D) with its tokens: what cross-attention reads. shared: a position scheme
    that adds to the scores of every layer (ALiBi, T5). losses: auxiliary losses that parts leave behind (balance of experts)."""

    queries: Tokens
    memory: torch.Tensor | None = None
    memory_tokens: Tokens | None = None
    cache: object | None = None
    shared: object | None = None
    losses: list = field(default_factory=list)
    sees: dict = field(default_factory=dict)

    def __post_init__(self):
        self.keys = self.queries if self.cache is None else self.cache.advance(self.queries)
        if self.memory is not None and self.memory_tokens is None:
            self.memory_tokens = tokens(self.memory.shape[1], device=self.memory.device)

    def see(self, pattern, cross=False, new=False):
        """The See of a pattern, made once per pass: of the memory (cross), of the new tokens alone (new), or of all keys in reach."""
        key = (pattern, cross, new)
        if key not in self.sees:
            rolls = self.cache is not None and self.cache.rolling
            keys = self.memory_tokens if cross else self.queries if new else self.cache.keys(pattern.reach()) if rolls else self.keys
            self.sees[key] = See(pattern, self.queries, keys)
        return self.sees[key]
