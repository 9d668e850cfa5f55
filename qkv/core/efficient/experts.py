"""Experts (Fedus et al., 2022): many feed-forward layers, one of which works on each token.

Dims: B batch, T tokens, D model, E experts.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..layers import FeedForward


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
            widened = {name: p.to(wide) for name, p in self.router.named_parameters()}
            logits_BTE = torch.func.functional_call(self.router, widened, x)
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
