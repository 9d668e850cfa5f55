"""Optimisers and schedules."""

import math

import torch

from ..words import nearest
from .machine import fast_bf16


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by its nearest orthogonal one, by five Newton-Schulz steps (Jordan et al., 2024).

    Matrices of one shape are treated together, which is what makes it cheap where they are small.
    """

    def __init__(self, params, lr=0.01, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for shape, params in shapes.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                grads = [p.grad for p in params]
                held = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(held, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, held, group["momentum"])  # Nesterov
                update = orthogonal(torch.stack(ahead)) * max(1.0, shape[0] / shape[1]) ** 0.5
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.to(params[0].dtype).unbind()), alpha=-group["lr"])


def orthogonal(m_NRC, steps=5):
    """The orthogonal matrix nearest to each of (N, R, C), roughly: singular values end between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m_NRC.bfloat16() if fast_bf16(m_NRC.device.type) else m_NRC.float()  # emulated bfloat16 is a hundred times slower
    turn = x.shape[1] > x.shape[2]
    x = x.mT if turn else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if turn else x


class Optimizers:
    """Several optimisers as one; the learning rate of every group is scaled together."""

    def __init__(self, *members):
        self.members = members
        for o in members:
            for g in o.param_groups:
                g["base"] = g["lr"]

    def scale(self, factor):
        for o in self.members:
            for g in o.param_groups:
                g["lr"] = g["base"] * factor

    def step(self):
        for o in self.members:
            o.step()

    def zero_grad(self):
        for o in self.members:
            o.zero_grad(set_to_none=True)

    def state(self, names):
        """{"name of the parameter/field": tensor} of all state. names: {parameter: name}."""
        out = {}
        for o in self.members:
            for p, fields in o.state.items():
                out |= {f"{names[p]}/{k}": v if torch.is_tensor(v) else torch.tensor(v) for k, v in fields.items()}
        return out

    def load(self, state, names):
        for o in self.members:
            for g in o.param_groups:
                for p in g["params"]:
                    mine = {k.rpartition("/")[2]: v for k, v in state.items() if k.rpartition("/")[0] == names[p]}
                    if mine:
                        o.state[p] = {k: v.to(p.device if v.dim() else v.device, copy=True) for k, v in mine.items()}


def depth(name, blocks):
    """How far from the input a parameter is: 0 the embedding, then the blocks, blocks + 1 what stands above them."""
    parts = name.split(".")
    if "blocks" in parts:
        return int(parts[parts.index("blocks") + 1]) + 1
    return 0 if any(p.endswith("embed") for p in parts) else blocks + 1


def make(model, name="adamw", lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), muon_lr=0.01, layer_decay=1.0):
    """adamw: matrices decay, vectors (norms, biases) do not. muon: the matrices inside blocks by Muon, all else by AdamW. layer_decay:
    each block learns by this factor slower than the one above it (discriminative fine-tuning; ULMFiT, 2018, section 3.2)."""
    if name not in ("adamw", "muon"):
        raise ValueError(f"train.optimizer='{name}' is not one of adamw, muon.{nearest(name, ('adamw', 'muon'))}")
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inner = [p for n, p in params.items() if name == "muon" and p.ndim == 2 and "blocks." in n]
    taken = {id(p) for p in inner}
    blocks = max((depth(n, 0) for n in params), default=0)
    level = {id(p): depth(n, blocks) if layer_decay != 1 else 0 for n, p in params.items()}
    factor = lambda at: layer_decay ** (blocks + 1 - at) if layer_decay != 1 else 1.0
    rest = [p for p in params.values() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if (p.ndim >= 2) == matrix and level[id(p)] == at], "weight_decay": decay, "lr": lr * factor(at)}
        for at in sorted(set(level.values()))
        for matrix, decay in ((True, weight_decay), (False, 0.0))
    ]
    adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=1e-8, fused=True)
    slow = [
        {"params": part, "lr": muon_lr * factor(at)}
        for at in sorted(set(level.values()))
        if (part := [p for p in inner if level[id(p)] == at])
    ]
    return Optimizers(adam, *([Muon(slow, muon_lr, weight_decay=weight_decay)] if inner else []))


SCHEDULES = ("cosine", "inverse_sqrt", "constant", "linear")


def factor(schedule, step, done, warmup, floor=0.1, decay=0.2):
    """What the peak learning rate is multiplied by.

    step: counts from 0. done: share of the run behind us, 0 to 1. warmup: steps of linear rise. cosine: to `floor` at the end.
    linear: to 0 at the end. inverse_sqrt: warmup^0.5 * step^-0.5 (2017, section 5.3). constant: flat, then to 0 over the last
    `decay` of the run.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "cosine":
        return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    if schedule == "linear":
        return rise * max(0.0, 1 - done)
    if schedule == "inverse_sqrt":
        return rise * min(1.0, (max(1, warmup) / (step + 1)) ** 0.5)
    if schedule == "constant":
        return rise * min(1.0, max(0.0, (1 - done) / decay))
    raise ValueError(f"train.schedule='{schedule}' is not one of {', '.join(SCHEDULES)}.{nearest(schedule, SCHEDULES)}")
