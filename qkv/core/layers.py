"""Norms, activations, feed-forward layers and the input embedding.

Dims: B batch, T tokens, D model, F hidden, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich, 2019), computed in float32 at least."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std * weight + bias (Ba et al., 2016)."""

    def __init__(self, dim, eps=1e-5, bias=True):
        super().__init__(dim, eps=eps, bias=bias)


def dropout(x, p):
    """Zeroes a share p of x and scales the rest up (Srivastava et al., 2014).

    On a CPU each 64-bit draw decides four elements (p is met to 1/65,536): one draw an element, as torch does it, took a seventh of
    a training step.
    """
    if p == 0:
        return x
    if x.is_cuda or not x.is_contiguous():
        return F.dropout(x, p)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()]
    kept = 1 - round(p * 65536) / 65536
    return x * ((bits >= round(p * 65536) - 32768).to(x.dtype) / kept).view_as(x)


class Dropout(nn.Module):
    """dropout(x, p) in training, x otherwise."""

    def __init__(self, p=0.0):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1), not {p}")
        self.p = p

    def forward(self, x):
        return dropout(x, self.p) if self.training else x


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


def gelu_new(x):
    """GELU by tanh (Hendrycks and Gimpel, 2016)."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x):
    """x times the logistic function of 1.702 x (Hendrycks and Gimpel, 2016)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": quick_gelu,
    "tanh": torch.tanh,
}


def activation(name):
    """The function of that name. Raises ValueError with the names there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation '{name}' is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """down(act(up(x))) (Vaswani et al., 2017, section 3.3)."""

    def __init__(self, dim, hidden, act="gelu", bias=True, dropout=0.0):
        super().__init__()
        self.act, self.drop = activation(act), Dropout(dropout)
        self.up, self.down = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)

    def forward(self, x_BTD, ctx=None):
        return self.down(self.drop(self.act(self.up(x_BTD))))


class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, 2020, GLU variants): SwiGLU with act=silu, GEGLU with gelu."""

    def __init__(self, dim, hidden, act="silu", bias=True, dropout=0.0):
        super().__init__()
        self.act, self.drop = activation(act), Dropout(dropout)
        self.up, self.gate = nn.Linear(dim, hidden, bias), nn.Linear(dim, hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)

    def forward(self, x_BTD, ctx=None):
        return self.down(self.drop(self.act(self.gate(x_BTD)) * self.up(x_BTD)))


FEED_FORWARDS = {"plain": FeedForward, "gated": GatedFeedForward}


class Embedding(nn.Module):
    """norm(token * scale + position + type), with dropout, and a projection to `out` where that is given (ALBERT, 2020,
    section 3.1): what a stack reads.

    position: a scheme whose site is "embedding", or None. types: how many token types (BERT's segments), 0 for none.
    still: id whose vector is not trained (padding).
    Raises ValueError for a text longer than a position table.
    """

    def __init__(self, vocab, dim, position=None, types=0, norm=None, dropout=0.0, scale=1.0, still=None, out=None):
        super().__init__()
        self.token = nn.Embedding(vocab, dim, padding_idx=still)
        self.position, self.scale = position, scale
        self.types = nn.Embedding(types, dim) if types else None
        self.norm, self.drop = norm or nn.Identity(), Dropout(dropout)
        self.project = nn.Linear(dim, out) if out else None

    def forward(self, ids_BT, number, types_BT=None, x_BTD=None, last=None):
        """ids (B, T) or their vectors x; number (B|1, T) for the position table; last: highest number, where it is known.

        Returns (B, T, D)."""
        x = self.token(ids_BT) if x_BTD is None else x_BTD
        if self.scale != 1.0:
            x = x * self.scale
        if self.types is not None:
            x = x + self.types(torch.zeros(1, 1, dtype=torch.long, device=x.device) if types_BT is None else types_BT)
        if self.position is not None:
            if last is not None and last >= self.position.length:
                raise ValueError(f"position {last} is beyond the {self.position.length} positions of this model (length); shorten the text")
            x = x + self.position.embed(number)
        x = self.drop(self.norm(x))
        return x if self.project is None else self.project(x)
