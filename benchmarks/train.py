"""Training throughput at one shape: qkv beside transformers' GPT-2 and torch.nn.TransformerEncoder, in one process, step by step.

    python benchmarks/train.py [--steps 8] [--threads N] [--compile] [--dtype fp32,bf16] [--layers 6 --dim 384 --heads 6 --length 256 --batch 12]

A step is forward, cross-entropy, backward, clipping and AdamW on random characters. The models take turns, so that the machine's
speed drifts for all of them alike; printed are the medians and the ratio to qkv.
"""

import argparse
import contextlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import qkv
from qkv import runtime
from qkv.training import optim


class Peer(torch.nn.Module):
    """torch.nn.TransformerEncoder with a causal mask, as a language model of the same shape."""

    def __init__(self, a):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(a.dim, a.heads, 4 * a.dim, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.stack = torch.nn.TransformerEncoder(layer, a.layers, torch.nn.LayerNorm(a.dim), enable_nested_tensor=False)
        self.token, self.place = torch.nn.Embedding(a.vocab, a.dim), torch.nn.Embedding(a.length, a.dim)
        self.register_buffer("mask", torch.nn.Transformer.generate_square_subsequent_mask(a.length))

    def forward(self, ids):
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        return self.stack(x, mask=self.mask, is_causal=True) @ self.token.weight.T


def models(a):
    """{name: (model, forward)}"""
    ours = qkv.create("gpt-nano", vocab=a.vocab, dim=a.dim, layers=a.layers, heads=a.heads, length=a.length)
    out = {"qkv": (ours, lambda m, x: m(input_ids=x)["logits"])}
    out["nn.TransformerEncoder"] = (Peer(a), lambda m, x: m(x))
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("transformers is not installed: pip install 'qkv[bench]'", file=sys.stderr)
        return out
    config = GPT2Config(vocab_size=a.vocab, n_positions=a.length, n_embd=a.dim, n_layer=a.layers, n_head=a.heads,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu")  # fmt: skip
    out["transformers"] = (GPT2LMHeadModel(config), lambda m, x: m(input_ids=x, use_cache=False).logits)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("steps", 8),
        ("threads", 0),
        ("layers", 6),
        ("dim", 384),
        ("heads", 6),
        ("length", 256),
        ("batch", 12),
        ("vocab", 65),
    ):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--dtype", default="fp32,bf16")
    p.add_argument("--default-memory", action="store_true", help="leave glibc's memory handling as it is, for everybody")
    a = p.parse_args()
    if not a.default_memory:
        runtime.keep_memory()  # the whole process: peers gain as well
    if a.threads:
        torch.set_num_threads(a.threads)
    print(
        f"{a.layers} layers, {a.dim} wide, context {a.length}, batch {a.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for dtype in a.dtype.split(","):
        for compiled in (False, True) if a.compile else (False,):
            row(a, dtype, compiled)


def row(a, dtype, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    entries = {}
    for name, (model, forward) in models(a).items():
        run = torch.compile(model) if compiled else model
        if name == "qkv":
            step = optim.make(model, "adamw", 1e-3, 0.1)
        else:
            step = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
        entries[name] = (model, run, forward, step)
    cast = lambda: torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
    times = {name: [] for name in entries}
    for i in range(a.steps + 2):
        ids = torch.randint(0, a.vocab, (a.batch, a.length + 1))
        for name, (model, run, forward, step) in entries.items():
            start = time.perf_counter()
            with cast():
                logits = forward(run, ids[:, :-1])
                loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            step.step()
            step.zero_grad()
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    speed = {name: a.batch * a.length / statistics.median(t) for name, t in times.items()}
    kind = f"{dtype}, {'compiled' if compiled else 'eager'}"
    print(
        f"{kind:16s} "
        + "  ".join(f"{n} {s:,.0f} tokens/s" + (f" (qkv is {speed['qkv'] / s:.2f}x)" if n != "qkv" else "") for n, s in speed.items()),
        flush=True,
    )


if __name__ == "__main__":
    main()
