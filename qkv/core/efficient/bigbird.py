"""BigBird (Zaheer et al., 2020): blocks of queries see the first and last block, their neighbours and a few random ones.

Dims: B batch, T tokens, H heads, C channels of a head, N blocks, P tokens a block, L blocks that a block sees.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..masks import Documents, Full
from ..watch import transformed
from . import blocks


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
        p, (B, H, T, _), P = self.dropout if self.training else 0.0, q_BHTC.shape, self.block
        gqa = k_BGSC.shape[1] != H
        valid = None if see.keys.plain else see.valid()  # (B, 1, T)
        if (5 + 2 * self.random) * P >= T:
            seen = None if valid is None else valid[:, None]
            return F.scaled_dot_product_attention(q_BHTC, k_BGSC, v_BGSC, seen, p, enable_gqa=gqa)
        laid = blocks.Laid(see.keys, P, 1, len(see.keys.position))
        q, k, v = (laid.fold(x) for x in (q_BHTC, k_BGSC, v_BGSC))
        N, device = laid.blocks, k.device
        real = laid.tokens.position >= 0 if valid is None else F.pad(valid[:, 0], (0, -T % P)).unflatten(1, (N, P))  # (B|1, N, P)
        hidden = torch.where(real.expand(B, N, P), 0.0, -1e30).to(q.dtype).flatten(0, 1)
        inner, used = self.seen(N, device)
        every, both = torch.arange(N, device=device), torch.tensor([0, N - 1], device=device)
        parts = (both, every.expand(2, N), torch.ones(2, N, dtype=torch.bool, device=device)), (every[1:-1], inner, used)
        steps = []
        for b in range(B):
            for rows, inner_blocks, there in parts:
                for row, seen, on in zip(rows.tolist(), (inner_blocks + b * N).tolist(), there.tolist()):
                    seen = [n for n, used in zip(seen, on) if used]
                    steps.append((row + b * N, blocks.runs(seen), lambda seen=seen: hidden[seen].flatten()))
        if p or blocks.narrow(q) or transformed():
            out = torch.stack([blocks.gathered(q, k, v, row, seen, mask(), p) for row, seen, mask in sorted(steps, key=lambda s: s[0])])
        else:
            out = blocks.Gathered.apply(q, k, v, steps, q.shape[-1] ** -0.5)
        out = laid.unfold(out, B)
        return out if see.queries.plain else out * (see.queries.position >= 0)[:, None, :, None]
