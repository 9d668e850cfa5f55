"""Accounting: parameters by part, FLOPs a token, KV-cache and memory of a model, counted without allocating it."""

import functools

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..core import Attention, Experts, Stack, Tokens, tokens
from .loss import WHOLE


def blank(cfg):
    """The model of a config on the meta device: shapes without memory."""
    with torch.device("meta"):
        return cfg.build()


BRANCHES = {"attn": "attention", "cross": "cross-attention", "look": "cross-attention", "ffn": "feed-forward", "think": "feed-forward",
            "first": "feed-forward", "last": "feed-forward", "conv": "convolution", "both": "attention and feed-forward"}  # fmt: skip


def parameters(model):
    """{part: parameters}, every tensor once: embedding, attention, cross, feed-forward, norms, head, and whatever else a model is made of, by
    its name."""
    out = {}
    for name, p in model.named_parameters():
        inside = ".f." in name
        branch = name[: name.index(".f.")].split(".")[-1] if inside else ""
        first = name.split(".")[0]
        if inside:
            part = BRANCHES.get(branch, branch)
        elif "embed" in name.split(".blocks.")[0]:
            part = "front" if ".front." in name else "position table" if ".position." in name else "embedding" if p.dim() > 1 else "norms"
        elif first in ("head", "pool", "project"):
            part = "head"
        elif "shared" in name:
            part = "position bias"
        elif p.dim() > 1:
            part = {"stem": "convolution", "blocks": "convolution"}.get(first, first)
        else:
            part = first if ".bias_" in name else "norms"
        out[part] = out.get(part, 0) + p.numel()
    return out


class _Whole:
    """What torch's counter asks for the modules around an operation: here one, all of it."""

    parents = ("Global",)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Flops(FlopCounterMode):
    """Counts the FLOPs of what is run within, operation by operation: `get_total_flops()`. Unlike torch's own counter it puts no hooks on
    modules, which would make every fast path step aside and be counted as what it is not."""

    def __init__(self):
        super().__init__(display=False)
        self.mod_tracker = _Whole()


def of_example(model):
    """FLOPs of a forward pass of one image or sound at the model's size, counted operation by operation on the meta device; None where that has no
    numbers to go by (a position scheme that looks at how far apart tokens are)."""
    cfg = model.config
    given = {
        "ConvNet": lambda: {"pixel_values": torch.empty(1, cfg.channels, cfg.image, cfg.image, device="meta")},
        "SpeechEncoder": lambda: {"input_features": torch.empty((1, 16000) if model.front.samples else (1, cfg.length, cfg.features or cfg.dim), device="meta")},
        "SpeechEncoderDecoder": lambda: {"input_features": torch.empty(1, cfg.features, model.window, device="meta"),
                                         "decoder_input_ids": torch.zeros(1, cfg.length, dtype=torch.long, device="meta")},
    }[type(cfg).__name__]()  # fmt: skip
    try:
        with Flops() as counter, torch.no_grad():
            model.eval()(**given)
    except RuntimeError:
        return None
    return counter.get_total_flops()


def flops(model, context=None):
    """{part: FLOPs of a forward pass a token}: two a weight, and attention's scores and sums over what a token of a text of `context`
    tokens sees on average. Of experts one is counted, of shared layers every run. An encoder-decoder counts one source and one target token."""
    cfg = model.config
    context = context or cfg.length
    out = {"attention weights": 0, "feed-forward": 0, "scores and values": 0, "output matrix": 0}
    runs = {}  # how often a layer works on a token: one of several experts, shared blocks several times
    for m in model.modules():
        if isinstance(m, Stack):
            for i, block in enumerate(m.blocks):
                runs |= {id(x): m.order.count(i) for x in block.modules()}
    for m in model.modules():
        if isinstance(m, Experts):
            runs |= {id(x): runs.get(id(m), 1) / len(m.experts) for x in m.experts.modules()}
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear):
            part = (
                "output matrix"
                if name.startswith("head")
                else "attention weights"
                if name.endswith((".q", ".k", ".v", ".o"))
                else "feed-forward"
            )
            out[part] += int(2 * m.weight.numel() * runs.get(id(m), 1))
        elif isinstance(m, nn.RNNBase):
            out["recurrence"] = out.get("recurrence", 0) + 2 * sum(p.numel() for p in m.parameters() if p.dim() > 1)
        elif isinstance(m, Attention):
            keys = context if m.cross else seen(m.pattern, context)
            out["scores and values"] += int(m.kernel.flops(m.heads, m.head_dim, context, keys) * runs.get(id(m), 1))
    return {k: v for k, v in out.items() if v}


@functools.lru_cache(64)
def seen(pattern, length):
    """Keys that a query of a text of that length sees on average, of at most 256 queries evenly spread."""
    t = tokens(length, device="cpu")
    at = torch.linspace(0, length - 1, min(length, 256), dtype=torch.float64).round().long()
    queries = Tokens(t.position[:, at]).as_queries()
    return pattern.allows(queries, t.as_keys()).expand(1, len(at), length).sum().item() / len(at)


def cache_bytes(model, width=2, length=None):
    """Bytes of keys and values that decoding keeps a token (width: bytes a number), or of a text of that length: no more than the window
    where a pattern has one, and a state where the kernel has one. Cross-attention's are kept once a source token."""
    own = [m for n, m in model.named_modules() if isinstance(m, Attention) and not m.cross and not n.startswith("encoder")]
    total = 0
    for m in own:
        token = 2 * m.kv_heads * m.head_dim * width
        if length is None:
            total += token
        elif hasattr(m.kernel, "state_size"):
            total += m.heads * m.kernel.state_size(m.head_dim) * width
        else:
            total += token * (length if m.reach is None else min(length, m.reach))
    return total


def activation_bytes(model, length=None):
    """Rough bytes that one more row of `length` tokens adds to a training step in float32: 18 numbers a token, layer and width (and
    the gates), scores of attention where the kernel forms them left out, and the scores of the vocabulary where they are held whole."""
    cfg = model.config
    length = length or cfg.length
    layers = cfg.layers + (getattr(cfg, "decoder_layers", None) or (cfg.layers if hasattr(model, "encode") else 0))
    hidden = max((m.out_features for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith("f.up")), default=cfg.wide)
    return 4 * length * (layers * (10 * cfg.dim + 2 * hidden) + min(3 * cfg.vocab, 2 * cfg.dim + WHOLE // length))


def training_bytes(model):
    """Bytes of weights, gradients, two moments in float32, and one gradient of the output matrix in the making."""
    return 16 * sum(p.numel() for p in model.parameters()) + 4 * model.config.vocab * model.config.dim


def size(n, units=("", "K", "M", "G", "T", "P"), base=1000):
    """1536 -> '1.5 K'"""
    n = float(n)
    for unit in units:
        if abs(n) < base or unit == units[-1]:
            return f"{n:.3g} {unit}".rstrip()
        n /= base
