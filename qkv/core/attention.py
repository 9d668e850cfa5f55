"""Attention: project, split into heads, rotate, cache, kernel, join. It knows no architecture and no kernel.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, D model.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .kernels import Softmax
from .masks import Full, See, Tokens
from .positions import NoPosition, Position
from .watch import plain, watched


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, section 3.2.2): kv_heads = heads; multi-query (Shazeer, 2019): 1; grouped
    (Ainslie et al., 2023): between.

    dim: width of x and of the output. head_dim: dim / heads by default. cross: keys and values come from the context's memory of
    width memory_dim. biases: which of "qkvo" have one. qk_norm: channels -> norm of q and k.
    Raises ValueError for heads that do not divide, and for a pattern or position that the kernel cannot follow.
    """

    def __init__(self, dim, heads, *, kv_heads=None, head_dim=None, pattern=Full(), position=None, kernel=None, cross=False,
                 biases="qkvo", qk_norm=None, memory_dim=None):  # fmt: skip
        super().__init__()
        H, G = heads, kv_heads or heads
        if H < 1 or G < 1 or H % G:
            raise ValueError(f"kv_heads={G} must divide heads={H}")
        if head_dim is None and dim % H:
            raise ValueError(f"heads={H} must divide dim={dim}, or head_dim must be given")
        C, source = head_dim or dim // H, memory_dim or dim
        self.heads, self.kv_heads, self.head_dim, self.pattern, self.cross = H, G, C, pattern, cross
        self.q = nn.Linear(dim, H * C, "q" in biases)
        self.k = nn.Linear(source, G * C, "k" in biases)
        self.v = nn.Linear(source, G * C, "v" in biases)
        self.o = nn.Linear(H * C, dim, "o" in biases)
        self.q_norm, self.k_norm = (qk_norm(C), qk_norm(C)) if qk_norm else (nn.Identity(), nn.Identity())
        self.position, self.kernel = position or NoPosition(), kernel or Softmax()
        if getattr(self.kernel, "shared_values", False):
            self.v = self.k
        self.reach = pattern.reach()
        name, scheme = type(self.kernel).__name__, type(self.position)
        for part in pattern.parts():
            if not isinstance(part, self.kernel.patterns):
                can = ", ".join(p.__name__ for p in self.kernel.patterns)
                raise ValueError(f"kernel {name} cannot follow the pattern {pattern}; it follows {can}")
        if not cross and (place := pattern.blind()) is not None:
            raise ValueError(f"pattern {pattern}: the token at {place} may see nothing; join it by | with one that shows it itself")
        if scheme.scores and not self.kernel.takes_scores:
            raise ValueError(f"kernel {name} forms no scores for position {scheme.__name__} to add to; use kernel=softmax")
        if cross and scheme is not NoPosition:
            raise ValueError(f"cross-attention reads another text: {scheme.__name__} has no common positions to go by; use position=None")

    def split(self, x_BTE):
        """(B, T, heads * C) -> (B, heads, T, C)"""
        return x_BTE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    @property
    def bare(self):
        """Does nothing stand between the projections of keys and values and the kernel, and does nobody look at them?"""
        scheme = type(self.position)
        moves = scheme.rotate is not Position.rotate or scheme.inputs is not Position.inputs
        return not watched(self.kernel) and plain(self.k) and plain(self.v) and plain(self.k_norm, nn.Identity) and not moves

    def project(self, x_BTD, tokens):
        """q, k and v of x. In training as one product, which reads x once; the parameters keep their names."""
        turned = self.position.inputs(x_BTD, tokens)
        if turned is not x_BTD:
            return self.q(turned), self.k(turned), self.v(x_BTD)
        parts = (self.q, self.k, self.v)
        joined = torch.is_grad_enabled() and x_BTD.requires_grad and all(map(plain, parts))
        biases = [p.bias for p in parts] if joined else []
        if len({b is None for b in biases}) != 1:
            return [p(x_BTD) for p in parts]
        bias = None if biases[0] is None else torch.cat(biases)
        y = F.linear(x_BTD, torch.cat([p.weight for p in parts]), bias)
        return y.split([p.out_features for p in parts], -1)

    def forward(self, x_BTD, ctx):
        if self.cross:
            q = self.q_norm(self.split(self.q(x_BTD)))
            make = lambda: (self.k_norm(self.split(self.k(ctx.memory))), self.split(self.v(ctx.memory)))
            k, v = ctx.cache.once(self, make) if ctx.cache is not None else make()
            out = self.kernel(q, k, v, ctx.see(self.pattern, True), self.position)
        elif ctx.cache is None and hasattr(self.kernel, "early") and self.bare:
            q = self.q_norm(self.split(self.q(x_BTD)))
            out = self.kernel.early(q, x_BTD, self.k, self.v, ctx.see(self.pattern))
        else:
            q, k, v = self.project(x_BTD, ctx.queries)
            q = self.position.query(self.position.rotate(self.q_norm(self.split(q)), ctx.queries))
            k = self.position.rotate(self.k_norm(self.split(k)), ctx.queries)
            v = self.split(v)
            if ctx.cache is not None and ctx.cache.rolling and hasattr(self.kernel, "step") and not watched(self.kernel):
                out = self.kernel.step(q, k, v, ctx.see(self.pattern, new=True), self, ctx.cache.states)
            else:
                if ctx.cache is not None:
                    k, v = ctx.cache.extend(self, k, v, self.reach)
                out = self.kernel(q, k, v, ctx.see(self.pattern), self.position, ctx.shared)
        return self.join(out)

    def join(self, out_BHTC):
        """(B, heads, T, C) -> (B, T, D)"""
        return self.o(out_BHTC.transpose(1, 2).flatten(2))

    def first(self, x_BTD, ctx, count):
        """What the first `count` tokens alone get: the rows of `forward` that somebody reads, where no others are wanted."""
        turned, tokens = self.position.inputs(x_BTD, ctx.queries), ctx.queries
        # structure takes a few queries for the newest tokens, which these are not: who sees what goes by their positions
        alike = tokens.plain and isinstance(self.pattern.within(math.inf, tokens.marks), Full)
        queries = Tokens(tokens.position[:, :count], {n: m[:, :count] for n, m in tokens.marks.items()}, alike)
        q = self.position.query(self.position.rotate(self.q_norm(self.split(self.q(turned[:, :count]))), queries))
        k = self.position.rotate(self.k_norm(self.split(self.k(turned))), tokens)
        return self.join(self.kernel(q, k, self.split(self.v(x_BTD)), See(self.pattern, queries, tokens), self.position, ctx.shared))
