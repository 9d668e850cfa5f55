"""ProbSparse attention (Zhou et al., 2021, Informer): only queries whose scores stand out attend; the others take the mean of the values.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, U queries that attend, N sampled keys.
"""

import math

import torch
from torch import nn

from ..layers import dropout
from ..masks import Causal, Documents, Full


class ProbSparse(nn.Module):
    """Of each query, maximum less mean of its scores with factor ln S sampled keys says how much it stands out; the factor ln T first
    ones attend to all keys they may see, the others get the mean of the values, or where attention is causal their sum so far (section
    3.2 and its published code).

    sample: "query", keys drawn for each query (the published code); "layer", one draw for all (transformers). drawn: the same of `seed`
    in every pass; else anew, from torch's own generator, after training too, as published. Whole texts only: there is no cache.
    """

    patterns = (Full, Causal, Documents)
    takes_scores = False

    def __init__(self, factor=5, sample="query", drawn=False, seed=0, dropout=0.0):
        super().__init__()
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"factor must be a whole number of at least 1, not {factor!r}")
        if sample not in ("query", "layer"):
            raise ValueError(f"sample must be query or layer, not {sample!r}")
        self.factor, self.sample, self.drawn, self.seed, self.dropout = factor, sample, drawn, seed, dropout

    def count(self, length):
        """factor ln(length), rounded up, as each of the two codes does it."""
        log = math.log(length) if self.sample == "query" else math.log1p(length)
        return min(length, self.factor * math.ceil(log))

    def flops(self, heads, head_dim, length, seen):
        """Of a query: scores with the sampled keys, and its share of those that attend."""
        return heads * head_dim * (2 * self.count(length) + 4 * self.count(length) * seen / length)

    def sampled(self, T, S):
        """(T or 1, N) numbers of keys."""
        generator = torch.Generator().manual_seed(self.seed) if self.drawn else None
        shape = (T, self.count(S)) if self.sample == "query" else (min(S, T * self.factor * math.ceil(math.log1p(S))),)
        return torch.randint(S, shape, generator=generator).view(-1, shape[-1])

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        if "document" in see.keys.marks:
            raise ValueError("kernel probsparse sums over all values; it cannot keep packed documents apart; set data.across=true to let texts run on")  # fmt: skip
        groups = q_BHTC.shape[1] // k_BGSC.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSC, v_BGSC))
        (B, H, T, C), S, causal = q_BHTC.shape, k.shape[2], not isinstance(see.pattern, Full)
        if causal and T != S:
            raise ValueError("kernel probsparse reads whole texts; generate with cached=False, or use kernel=softmax")
        gone = None if see.keys.plain else ~see.valid()[:, None, 0]  # (B, 1, S)
        v = v if gone is None else v.masked_fill(gone[..., None], 0)
        at = self.sampled(T, S).to(k.device)
        if len(at) == 1:
            scores = q_BHTC @ k[:, :, at[0]].mT
        else:
            scores = torch.einsum("bhtc,bhtnc->bhtn", q_BHTC, k[:, :, at])
        if gone is None:
            most = scores.amax(-1)
        else:
            hidden = gone[:, :, at]  # (B, 1, T or 1, N)
            most, scores = scores.masked_fill(hidden, -1e30).amax(-1), scores.masked_fill(hidden, 0)
        stands_out = most - scores.sum(-1) / S
        if not see.queries.plain:
            stands_out = stands_out.masked_fill((see.queries.position < 0)[:, None], -torch.inf)
        top = stands_out.topk(self.count(T), sorted=False)[1]  # (B, H, U)
        pick = top[..., None].expand(-1, -1, -1, C)
        scores = q_BHTC.gather(2, pick) @ k.mT * C**-0.5
        if not see.all:
            seen = see.dense().expand(B, H, T, S) if not causal or gone is not None else None
            hidden = (
                torch.arange(S, device=k.device) > top[..., None] if seen is None else ~seen.gather(2, top[..., None].expand(-1, -1, -1, S))
            )
            scores = scores.masked_fill(hidden, -torch.inf)
        out = dropout(scores.softmax(-1), self.dropout if self.training else 0.0) @ v
        if causal:
            rest = v.cumsum(2)
        else:
            rest = v.mean(2, keepdim=True) if gone is None else v.sum(2, keepdim=True) / (~gone).sum(-1, keepdim=True)[..., None]
        return rest.expand(B, H, T, v.shape[-1]).scatter(2, top[..., None].expand(-1, -1, -1, v.shape[-1]), out)
