"""Linformer (Wang et al., 2020): keys and values of all positions are projected to a few.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, R projected positions.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..masks import Documents, Full


class Linformer(nn.Module):
    """softmax(q (E k)' / sqrt(C)) (F v): E and F, (length, rank), mix positions (section 4). shared: keys, values and both projections
    are one. rank: 256 by default, or the length where that is less. A shorter text uses the first rows. Padding is left out of the mixture. Raises ValueError for a longer text."""

    patterns = (Full, Documents)
    takes_scores = False

    def __init__(self, length, rank=None, shared=False, dropout=0.0):
        super().__init__()
        rank = min(256, length) if rank is None else rank
        if not isinstance(rank, int) or not 1 <= rank <= length:
            raise ValueError(f"rank must be between 1 and the length {length}, not {rank!r}")
        self.length, self.rank, self.shared_values, self.dropout = length, rank, shared, dropout
        self.keys = nn.Parameter(torch.empty(length, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.values = self.keys if shared else nn.Parameter(torch.empty(length, rank).uniform_(-(rank**-0.5), rank**-0.5))

    def flops(self, heads, head_dim, length, seen):
        """Of a query: its scores over the projected positions, and its share of their mixing."""
        return 8 * heads * head_dim * self.rank

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        valid = self.check(see, k_BGSC.shape[2])
        if valid is not None:
            k_BGSC, v_BGSC = k_BGSC * valid[:, None, :, None], v_BGSC * valid[:, None, :, None]
        S = k_BGSC.shape[2]
        return self.attend(
            q_BHTC, torch.einsum("bgsc,sr->bgrc", k_BGSC, self.keys[:S]), torch.einsum("bgsc,sr->bgrc", v_BGSC, self.values[:S])
        )

    def early(self, q_BHTC, x_BSD, k, v, see):
        """The same from the input of the layers k and v, which then project the mixed positions alone, R and not S of them."""
        valid, S = self.check(see, x_BSD.shape[1]), x_BSD.shape[1]
        weights = [self.keys[:S]] if self.values is self.keys else [self.keys[:S], self.values[:S]]
        both = torch.cat(weights, 1)
        if valid is not None:
            x_BSD = x_BSD * valid[..., None]
        mixed = (both.T @ x_BSD).split(self.rank, 1)
        sums = (both.sum(0)[None] if valid is None else valid @ both).split(self.rank, 1)  # what a bias is mixed to
        split = lambda y: y.unflatten(-1, (-1, q_BHTC.shape[-1])).transpose(1, 2)

        def project(layer, i):
            y = F.linear(mixed[i], layer.weight)
            return split(y if layer.bias is None else y + sums[i][..., None] * layer.bias)

        keys = project(k, 0)
        return self.attend(q_BHTC, keys, keys if v is k and len(weights) == 1 else project(v, -1))

    def attend(self, q_BHTC, k_BGRC, v_BGRC):
        gqa = q_BHTC.shape[1] != k_BGRC.shape[1]
        return F.scaled_dot_product_attention(q_BHTC, k_BGRC, v_BGRC, dropout_p=self.dropout if self.training else 0.0, enable_gqa=gqa)

    def check(self, see, S):
        """(B, S) 1 for a token and 0 for padding, or None. Raises ValueError for a text that is too long or packed."""
        if self.length < S:
            raise ValueError(f"the text has {S} tokens and Linformer's projection is for {self.length} (length); shorten it")
        if "document" in see.keys.marks:
            raise ValueError(
                "kernel linformer mixes all positions; it cannot keep packed documents apart; set data.across=true to let texts run on"
            )
        return None if see.keys.plain else see.valid()[:, 0].to(self.keys.dtype)
