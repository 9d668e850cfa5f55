"""Residual, Parallel, Block, Stack: how sublayers `f(x, ctx) -> x` are put together."""

from torch import nn

from .layers import Dropout
from .positions import Position


class Residual(nn.Module):
    """post(x + scale * gate(dropout(out(f(pre(x)))))). A norm as `pre` is pre-norm (GPT-2), as `post` post-norm (2017), as `out`
    the order of OLMo 2; `gate` is Flamingo's tanh gate, `scale` 0.5 a Conformer's half step."""

    def __init__(self, f, pre=None, post=None, out=None, scale=1.0, gate=None, dropout=0.0):
        super().__init__()
        self.pre, self.f = pre or nn.Identity(), f
        self.out, self.gate, self.drop = out or nn.Identity(), gate or nn.Identity(), Dropout(dropout)
        self.post, self.scale = post or nn.Identity(), scale

    def forward(self, x_BTD, ctx):
        return self.add(x_BTD, self.f(self.pre(x_BTD), ctx))

    def add(self, x_BTD, y_BTD):
        """x and what the branch says of it, put together."""
        y = self.gate(self.drop(self.out(y_BTD)))
        return self.post(x_BTD + (y if self.scale == 1.0 else self.scale * y))


class Parallel(nn.Module):
    """The sum of named sublayers of one input (GPT-J, PaLM)."""

    def __init__(self, **sublayers):
        super().__init__()
        if not sublayers:
            raise ValueError("Parallel needs at least one sublayer")
        for name, f in sublayers.items():
            self.add_module(name, f)

    def forward(self, x_BTD, ctx):
        return sum(f(x_BTD, ctx) for f in self.children())


class Block(nn.Module):
    """Named branches, applied in order."""

    def __init__(self, **branches):
        super().__init__()
        if not branches:
            raise ValueError("a Block needs at least one branch")
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x_BTD, ctx):
        for branch in self.children():
            x_BTD = branch(x_BTD, ctx)
        return x_BTD


class Stack(nn.Module):
    """Blocks in order, then a norm. position: a scheme whose site is "stack": its bias is computed once a pass and shared by all.
    order: numbers of the blocks as they are run, where some run several times (ALBERT, 2020, section 3.1)."""

    def __init__(self, blocks, norm=None, position=None, order=None):
        super().__init__()
        if position is not None and type(position).bias is Position.bias:
            raise ValueError(f"position {type(position).__name__} has no scores for a stack to share")
        self.blocks, self.norm, self.shared = nn.ModuleList(blocks), norm or nn.Identity(), position
        self.order = list(range(len(self.blocks)) if order is None else order)

    def run(self, x_BTD, ctx):
        """(B, T, D) -> (B, T, D)"""
        return self.norm(self.through(x_BTD, ctx))

    def through(self, x_BTD, ctx, last=None):
        """The same without the last norm. last: what is done in place of calling the last block, `last(block, x, ctx)`."""
        if self.shared is not None:
            ctx.shared = self.shared
        *before, end = self.order
        for i in before:
            x_BTD = self.blocks[i](x_BTD, ctx)
        return self.blocks[end](x_BTD, ctx) if last is None else last(self.blocks[end], x_BTD, ctx)

    forward = run
