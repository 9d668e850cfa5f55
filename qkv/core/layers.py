"""Norms, activations, feed-forward layers and the input embedding.

Dims: B batch, T tokens, D model, F hidden, V vocabulary.
"""

import math

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

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
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


class Experts(nn.Module):
    """Feed-forward layers of which a router picks one for each token, its output times the router's probability (Switch
    Transformers, 2022, section 2).

    capacity: tokens of a row that an expert takes at most; those beyond it get nothing. None: `factor` times an equal share.
    jitter: the router's input is multiplied by 1 - jitter to 1 + jitter in training. dropout is that of the experts. balance and z:
    weights of the losses left in the context, one that is least where every expert gets as many tokens (equation 4) and the mean
    square of the router's log-sum-exp (ST-MoE, 2022, equation 5). A hook on `chosen` sees which expert each token went to, (B, T),
    -1 for none.
    """

    def __init__(self, dim, hidden, experts=8, act="relu", bias=True, dropout=0.0, capacity=None, factor=1.25, jitter=0.0, balance=0.01,
                 z=0.001):  # fmt: skip
        super().__init__()
        if not isinstance(experts, int) or experts < 1 or (capacity is not None and capacity < 1) or factor <= 0 or not 0 <= jitter < 1:
            raise ValueError(
                f"experts and capacity must be at least 1, factor above 0 and jitter in [0, 1), not {experts}, {capacity}, {factor}, {jitter}"
            )
        self.capacity, self.factor, self.jitter, self.balance, self.z = capacity, factor, jitter, balance, z
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(dim, hidden, act, bias, dropout) for _ in range(experts))
        self.chosen = nn.Identity()

    def route(self, x_BTD):
        """(expert of each token or -1 (B, T), its probability (B, T), logits (B, T, E) and probabilities in float32 at least)."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        x = x_BTD.to(wide)
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        with torch.autocast(x.device.type, enabled=False):
            logits_BTE = F.linear(x, self.router.weight.to(wide))
            probs_BTE = logits_BTE.softmax(-1)
        gate_BT, which_BT = probs_BTE.max(-1)
        count = len(self.experts)
        room = self.capacity or math.ceil(self.factor * x.shape[1] / count)
        place_BTE = F.one_hot(which_BT, count).cumsum(1)  # how many of the row came to that expert so far
        place_BT = place_BTE.gather(-1, which_BT[..., None])[..., 0]
        return torch.where(place_BT <= room, which_BT, -1), gate_BT, logits_BTE, probs_BTE

    def forward(self, x_BTD, ctx=None):
        which_BT, gate_BT, logits_BTE, probs_BTE = self.route(x_BTD)
        which_BT = self.chosen(which_BT)
        if ctx is not None and torch.is_grad_enabled():
            count = len(self.experts)
            share_E = F.one_hot(probs_BTE.argmax(-1), count).to(probs_BTE.dtype).mean((0, 1))
            balance = count * (share_E * probs_BTE.mean((0, 1))).sum()
            ctx.losses.append(self.balance * balance + self.z * logits_BTE.logsumexp(-1).square().mean())
        flat, which, gate = x_BTD.flatten(0, 1), which_BT.flatten(), gate_BT.flatten().to(x_BTD.dtype)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            at = (which == i).nonzero()[:, 0]
            if len(at):
                out = out.index_add(0, at, (expert(flat[at]) * gate[at, None]).to(out.dtype))
        return out.view_as(x_BTD)


FEED_FORWARDS = {"plain": FeedForward, "gated": GatedFeedForward, "experts": Experts}


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
            x = x + (self.types(types_BT) if types_BT is not None else self.types.weight[0])
        if self.position is not None:
            if last is not None and last >= self.position.length:
                raise ValueError(f"position {last} is beyond the {self.position.length} positions of this model (length); shorten the text")
            x = x + self.position.embed(number)
        x = self.drop(self.norm(x))
        return x if self.project is None else self.project(x)
