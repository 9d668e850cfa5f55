"""Linformer (Wang et al., 2020): keys and values of all positions are projected to a few.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, R projected positions.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..masks import Documents, Full


class Linformer(nn.Module):
    """softmax(q (E k)' / sqrt(C)) (F v): E and F, (length, rank), mix positions (section 4). shared: keys, values and both projections
    are one. A shorter text uses the first rows. Padding is left out of the mixture. Raises ValueError for a longer text."""

    patterns = (Full, Documents)
    takes_scores = False

    def __init__(self, length, rank=256, shared=False, dropout=0.0):
        super().__init__()
        if not isinstance(rank, int) or not 1 <= rank <= length:
            raise ValueError(f"rank must be between 1 and the length {length}, not {rank!r}")
        self.length, self.rank, self.shared_values, self.dropout = length, rank, shared, dropout
        self.keys = nn.Parameter(torch.empty(length, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.values = self.keys if shared else nn.Parameter(torch.empty(length, rank).uniform_(-(rank**-0.5), rank**-0.5))

    def flops(self, heads, head_dim, length, seen):
        """Of a query: its scores over the projected positions, and its share of their mixing."""
        return 8 * heads * head_dim * self.rank

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        S = k_BGSC.shape[2]
        if self.length < S:
            raise ValueError(f"the text has {S} tokens and Linformer's projection is for {self.length} (length); shorten it")
        if "document" in see.keys.marks:
            raise ValueError(
                "kernel linformer mixes all positions; it cannot keep packed documents apart; set data.across=true to let texts run on"
            )
        if not see.keys.plain:
            gone = ~see.valid()[:, :, :, None]
            k_BGSC, v_BGSC = k_BGSC.masked_fill(gone, 0), v_BGSC.masked_fill(gone, 0)
        k = torch.einsum("bgsc,sr->bgrc", k_BGSC, self.keys[:S])
        v = torch.einsum("bgsc,sr->bgrc", v_BGSC, self.values[:S])
        gqa = q_BHTC.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q_BHTC, k, v, dropout_p=self.dropout if self.training else 0.0, enable_gqa=gqa)
