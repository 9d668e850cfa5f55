"""Kernels: (q, k, v) -> out. A kernel lists the patterns it can follow; Attention refuses the others when it is built.

Dims: B batch, T queries, S keys, H heads, G key-value heads, C channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .efficient import blocks
from .layers import dropout
from .masks import Pattern
from .positions import Position
from .watch import plain


class Softmax(nn.Module):
    """Exact attention, softmax(q k' scale + bias) v (Vaswani et al., 2017, section 3.2.1).

    The fastest equal path is taken: no mask or the causal triangle where structure allows, flex_attention on a GPU, one dense
    mask a pattern and pass otherwise. A forward hook on `weights` selects the explicit path and sees (B, H, T, S).
    scale: 1/sqrt(C) by default. upcast: scores and softmax in float32.
    """

    patterns = (Pattern,)
    takes_scores = True

    def __init__(self, dropout=0.0, scale=None, upcast=False):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if scale is not None and (not isinstance(scale, (int, float)) or not 0 < scale < float("inf")):
            raise ValueError(f"scale must be a number above 0, not {scale!r}")
        self.dropout, self.scale, self.upcast = dropout, scale, upcast
        self.weights = nn.Identity()

    def flops(self, heads, head_dim, length, seen):
        """FLOPs a query of a text of that length, of which it sees so many keys."""
        return 4 * heads * head_dim * seen

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        p = self.dropout if self.training else 0.0
        looked_into = not plain(self.weights, nn.Identity)
        biased = shared is not None or type(position).bias is not Position.bias
        explicit = looked_into or self.upcast or type(position).values is not Position.values
        if q_BHTC.is_cuda and not (biased or explicit or p or see.all or see.triangle) and q_BHTC.shape[2] > 1:
            gqa = q_BHTC.shape[1] != k_BGSC.shape[1]
            return _flex()(q_BHTC, k_BGSC, v_BGSC, block_mask=see.blocks(q_BHTC.shape[1]), scale=self.scale, enable_gqa=gqa)
        plan = None if looked_into else blocks.plan(see, q_BHTC.shape[1], biased or explicit or p > 0)
        if plan is not None and not (biased or explicit or p or blocks.narrow(q_BHTC)):
            return blocks.exact(plan, q_BHTC, k_BGSC, v_BGSC, self.scale)
        if plan is not None:
            dense = lambda q, k, v, see: self.dense(q, k, v, see, position, shared, explicit, p)
            return blocks.attend(dense, plan, q_BHTC, k_BGSC, v_BGSC)
        return self.dense(q_BHTC, k_BGSC, v_BGSC, see, position, shared, explicit, p)

    def dense(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared, explicit, p):
        """Every query against every key that is given."""
        own = position.bias(q_BHTC, see.queries, see.keys)
        bias = see.bias(shared)
        bias = own if bias is None else bias if own is None else own + bias
        if explicit or _slow_backward(q_BHTC, k_BGSC, p):
            return self.explicit(q_BHTC, k_BGSC, v_BGSC, see, position, bias, p)
        triangle = False
        if bias is None and see.triangle:  # a branch: under the dynamic shapes of a compiled model the condition is a symbol
            triangle = True
        mask = None if triangle or (bias is None and see.all) else see.added(bias, q_BHTC.dtype, own is None)
        gqa = q_BHTC.shape[1] != k_BGSC.shape[1]
        return F.scaled_dot_product_attention(q_BHTC, k_BGSC, v_BGSC, mask, p, is_causal=triangle, scale=self.scale, enable_gqa=gqa)

    def explicit(self, q_BHTC, k_BGSC, v_BGSC, see, position, bias, p):
        """The formula as it is written, its softmax in float32 at least."""
        groups = q_BHTC.shape[1] // k_BGSC.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSC, v_BGSC))
        wide = torch.promote_types(q_BHTC.dtype, torch.float32)
        q, k = (q_BHTC.to(wide), k.to(wide)) if self.upcast else (q_BHTC, k)
        scores = (q * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)) @ k.mT
        if bias is not None:
            scores = scores + bias
        if not see.all:
            scores = scores.masked_fill(see.hidden(), -torch.inf)
        if scores.dtype is v.dtype:
            with torch.autocast(scores.device.type, enabled=False):  # it works in float32 inside; autocast would copy in and out
                weights = scores.softmax(-1)
        else:
            weights = scores.softmax(-1).to(v.dtype)
        weights = self.weights(weights)
        out = dropout(weights, p) @ v
        more = position.values(weights, see.queries, see.keys)
        return out if more is None else out + more


class Additive(nn.Module):
    """w' tanh(q + k) in place of q' k, a softmax, and the sum of the values (Bahdanau et al., 2015, section A.1.2): the first attention. Its
    scores take memory for every pair of tokens and channel. A forward hook on `weights` sees (B, H, T, S)."""

    patterns = (Pattern,)
    takes_scores = False

    def __init__(self, heads, head_dim, dropout=0.0):
        super().__init__()
        self.weight, self.dropout, self.weights = nn.Parameter(torch.randn(heads, head_dim) * head_dim**-0.5), dropout, nn.Identity()

    def flops(self, heads, head_dim, length, seen):
        """FLOPs a query: of a channel of a pair one sum, one tanh and one product with the score's and the value's sum each."""
        return 6 * heads * head_dim * seen

    def forward(self, q_BHTC, k_BGSC, v_BGSC, see, position, shared=None):
        groups = q_BHTC.shape[1] // k_BGSC.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSC, v_BGSC))
        scores = torch.einsum("bhtsc,hc->bhts", torch.tanh(q_BHTC[:, :, :, None] + k[:, :, None]), self.weight)
        if not see.all:
            scores = scores.masked_fill(see.hidden(), -torch.inf)
        return dropout(self.weights(scores.softmax(-1)), self.dropout if self.training else 0.0) @ v


def _slow_backward(q_BHTC, k_BGSC, p):
    """On a CPU, SDPA has no dropout (it falls back to float32 tensors of scores), and its backward in bfloat16 takes several times
    as long as the plain formula where rows are short (measured on AMX, torch 2.13: 48 against 5 ms at 15 tokens, even at 512)."""
    if q_BHTC.is_cuda or not (torch.is_grad_enabled() and q_BHTC.requires_grad):
        return False
    return p > 0 or (q_BHTC.dtype is torch.bfloat16 and q_BHTC.shape[2] * k_BGSC.shape[2] <= 256 * 256)


_compiled_flex = None


def _flex():
    global _compiled_flex
    if _compiled_flex is None:
        from torch.nn.attention.flex_attention import flex_attention

        _compiled_flex = torch.compile(flex_attention, dynamic=False)
    return _compiled_flex


KERNELS = {"softmax": Softmax, "additive": Additive}
