"""Performer (Choromanski et al., 2021): softmax attention by random features, so that sums over keys are shared by all queries.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head, M features.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..layers import activation
from ..masks import Causal, Documents, Full
from ..watch import transformed

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

    def flops(self, heads, head_dim, length, seen):
        """Of a query: features of it and of a key, what it adds to the sums, and what it reads of them."""
        return 8 * heads * head_dim * self.projection.shape[0]

    def state_size(self, head_dim):
        """Numbers that decoding keeps a head."""
        return self.projection.shape[0] * (head_dim + 1) + head_dim + 2

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        q, k, v, gone = self.ready(q_BHTC, k_BGSC, v_BGSC, see)
        if self.act is None and isinstance(see.pattern, Full) and not transformed():
            wide = torch.promote_types(q.dtype, torch.float32)
            with torch.autocast(q.device.type, enabled=False):
                return Favor.apply(q.to(wide), k.to(wide), v.to(wide), self.projection.to(wide), self.eps, gone).to(v.dtype)
        past = k.shape[2] - q.shape[2]  # decoding: the newest queries, every key before them
        q, k = self.features(q, gone=None, each=True), self.features(k, gone)
        if isinstance(see.pattern, Full):
            return (q @ (k.mT @ v)) / (q @ k.sum(2)[..., None])
        state, total = k[:, :, :past].mT @ v[:, :, :past], k[:, :, :past].sum(2)[..., None]
        return prefix_sums(q, k[:, :, past:], v[:, :, past:], state, total, self.tiny)

    def step(self, q_BHTC, k_BGTC, v_BGTC, see, who, states):
        """The same, causal, with sums of constant size in place of all keys before (section 2.2), kept in states[who]."""
        q, k, v, gone = self.ready(q_BHTC, k_BGTC, v_BGTC, see, all_gone=True)
        P, query = self.projection.to(q.dtype), self.features(q, gone=None, each=True)
        before = Sums(*states[who]) if who in states else Sums.none(q, P, v)
        if self.act is not None:
            before, e = before.over(torch.zeros_like(before.most)), self.features(k, gone)
        else:
            before, e = before.meet(k, P, gone)
        eps = self.eps if self.act is None else 0.0
        kept = torch.ones_like(e[..., :1]) if gone is None else (~gone).to(e.dtype).expand_as(e[..., :1])
        out = prefix_sums(query, e + eps * kept, v, before.state(eps), before.total(eps), self.tiny)
        states[who] = tuple(vars(before.plus(e, v, kept)).values())
        return out if see.keys.plain else out.masked_fill((see.queries.position < 0)[:, None, :, None], 0)

    def ready(self, q_BHTC, k_BGSC, v_BGSC, see, all_gone=False):
        """(q, k, v, keys to leave out): a key for every head, padded values zeroed, the features drawn anew where it is time.
        all_gone: may no key of a row be left?"""
        if self.training and self.redraw:
            self.passes += 1
            if self.passes % self.redraw == 0:
                self.projection.copy_(orthogonal(*self.projection.shape))
        if "document" in see.keys.marks:
            raise ValueError(
                "kernel performer sums over all keys; it cannot keep packed documents apart; set data.across=true to let texts run on"
            )
        groups = q_BHTC.shape[1] // k_BGSC.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSC, v_BGSC))
        if see.keys.plain:
            return q_BHTC, k, v, None
        gone = (see.keys.position < 0)[:, None, :, None] if all_gone else ~see.valid()[:, :, :, None]
        return q_BHTC, k, v.masked_fill(gone, 0), gone if self.padding == "out" else None

    def features(self, x_BHSC, gone, each=False):
        """phi(x): (B, H, S, M), but for a factor that cancels in the quotient. The largest exponent, of each token or of all, is 0.
        gone: keys that are left out."""
        P = self.projection.to(x_BHSC.dtype)
        if self.act is not None:
            phi = self.act(x_BHSC @ (P * x_BHSC.shape[-1] ** -0.25).T) + self.eps
        else:
            dash, square = exponents(x_BHSC, P)
            most = (dash if gone is None else dash.masked_fill(gone, -torch.inf)).amax(-1 if each else (-1, -2), keepdim=True).detach()
            phi = torch.exp(dash - (square + most)) + self.eps
        return phi if gone is None else phi.masked_fill(gone, 0)

    @property
    def tiny(self):
        """Added to the sum of the keys: 1e-6 of features that are divided by sqrt(M), as published."""
        return 1e-6 * (self.projection.shape[0] ** 0.5 if self.act is None else 1.0)


def exponents(x_BHSC, P_MC):
    """(x P' (B, H, S, M), |x|^2 / 2 (B, H, S, 1)) of x / C^(1/4)."""
    C = x_BHSC.shape[-1]
    return x_BHSC @ (P_MC * C**-0.25).T, x_BHSC.square().sum(-1, keepdim=True) * (C**-0.5 / 2)


@dataclass
class Sums:
    """What is kept of keys and values: sums of e v', of e, of v, and how many, where e are exponentials over `most`. eps has sums of
    its own, so that a larger exponent only rescales what was summed before."""

    most: torch.Tensor  # (B, H, 1, 1)
    ev: torch.Tensor  # (B, H, M, C)
    e: torch.Tensor  # (B, H, M, 1)
    v: torch.Tensor  # (B, H, 1, C)
    count: torch.Tensor  # (B, H, 1, 1)

    @classmethod
    def none(cls, q, P_MC, v):
        new = lambda *shape, value=0.0: q.new_full((*q.shape[:2], *shape), value)
        M, C = P_MC.shape[0], v.shape[-1]
        return cls(new(1, 1, value=-1e30), new(M, C), new(M, 1), new(1, C), new(1, 1))

    def over(self, most):
        shrink = (self.most - most).exp()
        return Sums(most, self.ev * shrink, self.e * shrink, self.v, self.count)

    def meet(self, k, P_MC, gone):
        """(these sums, e of the new keys (B, H, S, M)), over the largest exponent of both."""
        dash, square = exponents(k, P_MC)
        most = (dash if gone is None else dash.masked_fill(gone, -torch.inf)).amax((-1, -2), keepdim=True)
        most = torch.maximum(self.most, most.detach())
        e = torch.exp(dash - (square + most))
        return self.over(most), e if gone is None else e.masked_fill(gone, 0)

    def plus(self, e, v, kept):
        return Sums(self.most, self.ev + e.mT @ v, self.e + e.sum(2)[..., None], self.v + v.sum(2, keepdim=True),
                    self.count + kept.sum((2, 3), keepdim=True))  # fmt: skip

    def state(self, eps):
        return self.ev + eps * self.v

    def total(self, eps):
        return self.e + eps * self.count


class Favor(torch.autograd.Function):
    """Attention of all by all through positive features, a chunk of tokens at a time, forward and backward: no (S, M) features are kept."""

    @staticmethod
    def forward(ctx, q_BHTC, k_BHSC, v_BHSC, P_MC, eps, gone):
        sums = Sums.none(q_BHTC, P_MC, v_BHSC)
        for k, v, g in pieces(P_MC, k_BHSC, v_BHSC, gone):
            sums, e = sums.meet(k, P_MC, g)
            sums = sums.plus(e, v, torch.ones_like(e[..., :1]) if g is None else (~g).to(e.dtype).expand_as(e[..., :1]))
        state, total, out = sums.state(eps), sums.total(eps), []
        for (q,) in pieces(P_MC, q_BHTC):
            phi = Favor.queries(q, P_MC, eps)
            out.append((phi @ state) / (phi @ total))
        out = torch.cat(out, 2)
        ctx.save_for_backward(q_BHTC, k_BHSC, v_BHSC, P_MC, gone, sums.most, state, total, out)
        ctx.eps = eps
        return out

    @staticmethod
    def queries(q, P_MC, eps):
        dash, square = exponents(q, P_MC)
        return dash.sub_(square.add_(dash.amax(-1, keepdim=True))).exp_().add_(eps)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def backward(ctx, grad_BHTC):
        q_BHTC, k_BHSC, v_BHSC, P_MC, gone, most, state, total, out_BHTC = ctx.saved_tensors
        C, eps = q_BHTC.shape[-1], ctx.eps
        P = P_MC * C**-0.25
        into = lambda d, x: (d @ P).sub_(x * (d.sum(-1, keepdim=True) * C**-0.5))  # through exp(x P' - |x|^2 / 2)
        dstate, dtotal, dq, dk, dv = torch.zeros_like(state), torch.zeros_like(total), [], [], []
        for q, out, grad in pieces(P_MC, q_BHTC, out_BHTC, grad_BHTC):
            phi = Favor.queries(q, P_MC, eps)
            above = grad / (phi @ total)
            below = -(above * out).sum(-1, keepdim=True)
            d = (above @ state.mT).add_(below @ total.mT)
            dstate += phi.mT @ above
            dtotal += phi.mT @ below
            dq.append(into(d.mul_(phi.sub_(eps)), q))
        for k, v, g in pieces(P_MC, k_BHSC, v_BHSC, gone):
            dash, square = exponents(k, P_MC)
            e = dash.sub_(square.add_(most)).exp_()
            d = (v @ dstate.mT).add_(dtotal.mT).mul_(e)
            more = (e @ dstate).add_(dstate.sum(2, keepdim=True), alpha=eps)
            dv.append(more if g is None else more.masked_fill(g, 0))
            dk.append(into(d if g is None else d.masked_fill(g, 0), k))
        return torch.cat(dq, 2), torch.cat(dk, 2), torch.cat(dv, 2), None, None, None


def pieces(P_MC, *tensors):
    """Tensors (B, H, S, .) in step, as many tokens at a time as keep features in a core's own memory; None stays None."""
    B, H, S, _ = tensors[0].shape
    size = max(32, 2**18 // (B * H * len(P_MC)))
    for i in range(0, S, size):
        yield [None if t is None else t[:, :, i : i + size] for t in tensors]


def prefix_sums(q_BHTM, k_BHTM, v_BHTC, state_BHMC, total_BHM1, eps):
    """Causal linear attention: a chunk at a time, its own triangle and what came before it. Memory grows with the length alone."""
    out = []
    for q, k, v in zip(*(x.split(CHUNK, 2) for x in (q_BHTM, k_BHTM, v_BHTC))):
        own = (q @ k.mT).tril()
        above = own @ v + q @ state_BHMC
        below = own.sum(-1, keepdim=True) + q @ (total_BHM1 + eps)
        out.append(above / below)
        state_BHMC = state_BHMC + k.mT @ v
        total_BHM1 = total_BHM1 + k.sum(2)[..., None]
    return torch.cat(out, 2)
