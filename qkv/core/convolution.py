"""Convolution over time as a sublayer (Gulati et al., 2020, section 2.2). Dims: B batch, T tokens, D model, I inner channels."""

import torch.nn.functional as F
from torch import nn

from .layers import Dropout, activation


class Convolution(nn.Module):
    """down(act(norm(depthwise(glu(up(x)))))): what stands near a token, a channel at a time.

    kernel: tokens that are seen. expand: inner channels over dim. conv_norm: batch, group (one group) or none. causal: only back.
    padding: "zero" keeps what padding holds out of its neighbours; "kept" lets it in, as the published codes do.
    """

    def __init__(self, dim, kernel=31, expand=1, conv_norm="batch", act="silu", bias=True, causal=False, padding="zero", dropout=0.0):
        super().__init__()
        if not isinstance(kernel, int) or kernel < 1 or not isinstance(expand, int) or expand < 1:
            raise ValueError(f"kernel and expand must be whole numbers of at least 1, not {kernel!r} and {expand!r}")
        if conv_norm not in ("batch", "group", "none"):
            raise ValueError(f"conv_norm must be batch, group or none, not {conv_norm!r}")
        if padding not in ("zero", "kept"):
            raise ValueError(f"padding must be zero or kept, not {padding!r}")
        inner = dim * expand
        self.up, self.down = nn.Conv1d(dim, 2 * inner, 1, bias=bias), nn.Conv1d(inner, dim, 1, bias=bias)
        self.depth = nn.Conv1d(inner, inner, kernel, groups=inner, bias=bias)
        self.norm = {"batch": nn.BatchNorm1d, "group": lambda n: nn.GroupNorm(1, n), "none": lambda n: nn.Identity()}[conv_norm](inner)
        self.act, self.drop, self.zero = activation(act), Dropout(dropout), padding == "zero"
        self.around = (kernel - 1, 0) if causal else (kernel // 2, (kernel - 1) // 2)

    def forward(self, x_BTD, ctx):
        x_BIT = F.glu(self.up(x_BTD.mT), dim=1)
        if self.zero and not ctx.queries.plain:
            x_BIT = x_BIT.masked_fill((ctx.queries.position < 0)[:, None], 0)
        x_BIT = self.norm(self.depth(F.pad(x_BIT, self.around)))
        return self.down(self.drop(self.act(x_BIT))).mT


CONVOLUTIONS = {"convolution": Convolution}
