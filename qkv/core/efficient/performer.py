"""Performer (Choromanski et al., 2021): softmax attention by random features, so that sums over keys are shared by all queries.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, M features.
"""

import math

import torch
from torch import nn

from ..layers import activation
from ..masks import Causal, Documents, Full

CHUNK = 128  # tokens whose prefix sums are worked out together


def orthogonal(rows, columns):
    """(rows, columns) Gaussian rows, orthogonal within each block of `columns` of them (section 2.4)."""
    blocks = []
    for _ in range(-(-rows // columns)):
        q, r = torch.linalg.qr(torch.randn(columns, columns))
        blocks.append((q * r.diagonal().sign()).T)  # without the signs some directions are likelier, and the estimate is biased
    return torch.cat(blocks)[:rows] * torch.randn(rows, columns).norm(dim=1, keepdim=True)


class Performer(nn.Module):
    """FAVOR+: phi(q) (phi(k)' v) / (phi(q) sum phi(k)), causal by prefix sums (section 2.2).

    features: of the map, C ln C by default. generalized: an activation in place of positive softmax features. redraw: training passes
    after which the features are drawn anew, 0 never. eps: added to every feature. padding: "out" leaves padded keys out; "values" only
    zeroes their values, as the package performer-pytorch does.
    """

    patterns = (Full, Causal, Documents)
    takes_scores = False

    def __init__(self, head_dim, features=None, generalized=None, redraw=1000, eps=None, padding="out"):
        super().__init__()
        features = max(1, int(head_dim * math.log(head_dim))) if features is None else features
        if not isinstance(features, int) or features < 1:
            raise ValueError(f"features must be a whole number of at least 1, not {features!r}")
        if padding not in ("out", "values"):
            raise ValueError(f"padding must be out or values, not {padding!r}")
        self.padding = padding
        self.act = activation(generalized) if generalized else None
        self.redraw, self.eps, self.passes = redraw, (1e-3 if generalized else 1e-4) if eps is None else eps, 0
        self.register_buffer("projection", orthogonal(features, head_dim))

    def features(self, x_BHSC, query, gone=None):
        """phi(x): (B, H, S, M). Scaled so that the largest exponent is 0, which cancels in the quotient. gone: keys that are padding."""
        x = x_BHSC * x_BHSC.shape[-1] ** -0.25
        dash = x @ self.projection.to(x.dtype).T
        if self.act is not None:
            return self.act(dash) + self.eps
        most = (dash if gone is None else dash.masked_fill(gone, -torch.inf)).amax(-1 if query else (-1, -2), keepdim=True).detach()
        return (torch.exp(dash - x.square().sum(-1, keepdim=True) / 2 - most) + self.eps) * dash.shape[-1] ** -0.5

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, bias):
        if self.training and self.redraw:
            self.passes += 1
            if self.passes % self.redraw == 0:
                self.projection.copy_(orthogonal(*self.projection.shape))
        if "document" in see.keys.marks:
            raise ValueError("kernel performer sums over all keys; it cannot keep packed documents apart (data.across=true)")
        groups = q_BHTC.shape[1] // k_BGSC.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSC, v_BGSC))
        gone = None if see.keys.plain else ~see.valid()[:, :, :, None]
        q, k = self.features(q_BHTC, True), self.features(k, False, gone if self.padding == "out" else None)
        if gone is not None:
            k, v = (k.masked_fill(gone, 0), v) if self.padding == "out" else (k, v.masked_fill(gone, 0))
        if isinstance(see.pattern, Full):
            return (q @ (k.mT @ v)) / (q @ k.sum(2)[..., None])
        if q.shape[2] != k.shape[2]:  # decoding: the newest queries, every key before them
            past = k.shape[2] - q.shape[2]
            state, total = k[:, :, :past].mT @ v[:, :, :past], k[:, :, :past].sum(2)
            k, v = k[:, :, past:], v[:, :, past:]
        else:
            state, total = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), q.new_zeros(*q.shape[:2], q.shape[-1])
        return prefix_sums(q, k, v, state, total)


def prefix_sums(q_BHTM, k_BHTM, v_BHTC, state_BHMC, total_BHM, eps=1e-6):
    """Causal linear attention: a chunk at a time, its own triangle and what came before it. Memory grows with the length alone."""
    out = []
    for q, k, v in zip(*(x.split(CHUNK, 2) for x in (q_BHTM, k_BHTM, v_BHTC))):
        own = (q @ k.mT).tril()
        above = own @ v + q @ state_BHMC
        below = own.sum(-1, keepdim=True) + (q * (total_BHM[:, :, None] + eps)).sum(-1, keepdim=True)
        out.append(above / below)
        state_BHMC = state_BHMC + k.mT @ v
        total_BHM = total_BHM + k.sum(2)
    return torch.cat(out, 2)
