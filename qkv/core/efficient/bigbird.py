"""BigBird (Zaheer et al., 2020): blocks of queries see the first and last block, their neighbours and a few random ones.

Dims: B batch, T tokens, H heads, C channels of a head, N blocks, P tokens a block, L blocks that a block sees.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..masks import Documents, Full


class BigBird(nn.Module):
    """Block-sparse attention by gathering keys (section 3, appendix D): time and memory grow with the length.

    block: tokens a block. random: random blocks that a block sees. drawn: the same random blocks, of `seed`, in training and after it;
    else they are drawn anew in every training pass, and stand for the first block afterwards, as the published code has it. Texts of
    at most (5 + 2 random) blocks get exact attention. The first and last block see all.
    """

    patterns = (Full, Documents)
    takes_scores = False

    def __init__(self, block=64, random=3, drawn=False, seed=0, dropout=0.0):
        super().__init__()
        if not isinstance(block, int) or block < 1 or not isinstance(random, int) or random < 0:
            raise ValueError(f"block must be at least 1 and random at least 0, not {block!r} and {random!r}")
        self.block, self.random, self.drawn, self.seed, self.dropout = block, random, drawn, seed, dropout

    def seen(self, count, device=None):
        """(N - 2, L) numbers of the blocks that blocks 1 .. N - 2 see, and (N - 2, L) bool, False where a place is not used."""
        middle = torch.arange(1, count - 1)
        near = torch.stack([middle - 1, middle, middle + 1], 1)
        first, last = torch.zeros(count - 2, 1, dtype=torch.long), torch.full((count - 2, 1), count - 1)
        extra = torch.zeros(count - 2, self.random, dtype=torch.long)
        if self.random and (self.drawn or self.training):
            generator = torch.Generator().manual_seed(self.seed) if self.drawn else None
            score = torch.rand(count - 2, count, generator=generator)
            taken = torch.cat([near, first, last], 1)
            extra = score.scatter(1, taken, -1.0).topk(self.random, 1)[1]
        blocks = torch.cat([first, near, extra, last], 1)
        used = torch.ones_like(blocks, dtype=torch.bool)
        used[0, 1] = used[-1, 3] = False  # the first and last block are neighbours there
        return blocks.to(device), used.to(device)

    def flops(self, heads, head_dim, length, seen):
        """Of a query: of five blocks and the random ones, or of all where there are no more."""
        return 4 * heads * head_dim * min(length, (5 + self.random) * self.block)

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        if "document" in see.keys.marks:
            raise ValueError("kernel bigbird cannot keep packed documents apart; set data.across=true to let texts run on")
        groups, p = q_BHTC.shape[1] // k_BGSC.shape[1], self.dropout if self.training else 0.0
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSC, v_BGSC))
        T, P = q_BHTC.shape[2], self.block
        valid = see.valid()[:, None] if not see.keys.plain else None  # (B, 1, 1, T)
        if (5 + 2 * self.random) * P >= T:
            return F.scaled_dot_product_attention(q_BHTC, k, v, valid, p)
        pad = -T % P
        if pad:
            q_BHTC, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q_BHTC, k, v))
            valid = F.pad(torch.ones(1, 1, 1, T, dtype=torch.bool, device=k.device) if valid is None else valid, (0, pad))
        N = q_BHTC.shape[2] // P
        blocks, used = self.seen(N, k.device)
        cut = lambda x: x.unflatten(2, (N, P))
        take = lambda x: cut(x).index_select(2, blocks.flatten()).unflatten(2, blocks.shape).flatten(3, 4)  # (B, H, N - 2, L P, C)
        mask = used.repeat_interleave(P, 1)[None, None]
        if valid is not None:
            mask = mask & valid[:, 0].unflatten(2, (N, P))[:, :, blocks].flatten(3)
        inner = F.scaled_dot_product_attention(cut(q_BHTC)[:, :, 1:-1], take(k), take(v), mask[:, :, :, None], p).flatten(2, 3)
        ends = [F.scaled_dot_product_attention(q, k, v, valid, p) for q in (q_BHTC[:, :, :P], q_BHTC[:, :, -P:])]
        out = torch.cat([ends[0], inner, ends[1]], 2)[:, :, :T]
        return out if see.queries.plain else out * (see.queries.position >= 0)[:, None, :, None]
