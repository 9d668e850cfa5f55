"""Training throughput and memory at one shape: qkv beside a plain GPT as nanoGPT writes it, transformers' GPT-2, x-transformers and
torch.nn.TransformerEncoder, in one process, step by step.

    python benchmarks/train.py [--shape char|mini] [--steps 8] [--threads 1] [--compile] [--dtype fp32,bf16] [--memory]

char: 6 layers, 384 wide, context 256, vocabulary 65, batch 12. mini: 4 layers, 256 wide, context 512, vocabulary 50,257, batch 4.
A step is forward, cross-entropy, backward, clipping and AdamW on random tokens. The models take turns, so that the machine's speed
drifts for all of them alike; printed are medians and ratios. "medium": the same rival after
torch.set_float32_matmul_precision("medium"), where that is accurate here. --memory: the peak of each in a process of its own.
"""

import argparse
import contextlib
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from peers import need, ratio
from torch import nn

import qkv
from qkv import runtime
from qkv.training import machine, optim

SHAPES = {
    "char": dict(layers=6, dim=384, heads=6, length=256, vocab=65, batch=12),
    "mini": dict(layers=4, dim=256, heads=4, length=512, vocab=50257, batch=4),
}


class Plain(nn.Module):
    """A GPT with fused q-k-v, scaled_dot_product_attention and a tied head: what nanoGPT's model computes."""

    class Block(nn.Module):
        def __init__(self, D, H):
            super().__init__()
            self.heads, self.a, self.b = H, nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.o, self.up, self.down = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.a(x)).chunk(3, -1))
            x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.b(x))))

    def __init__(self, s):
        super().__init__()
        self.token, self.place = nn.Embedding(s["vocab"], s["dim"]), nn.Embedding(s["length"], s["dim"])
        self.blocks = nn.Sequential(*(self.Block(s["dim"], s["heads"]) for _ in range(s["layers"])))
        self.norm = nn.LayerNorm(s["dim"])

    def forward(self, ids):
        return self.norm(self.blocks(self.token(ids) + self.place.weight[: ids.shape[1]])) @ self.token.weight.T


class Stacked(nn.Module):
    """torch.nn.TransformerEncoder with a causal mask, as a language model of the same shape."""

    def __init__(self, s):
        super().__init__()
        layer = nn.TransformerEncoderLayer(s["dim"], s["heads"], 4 * s["dim"], 0.0, F.gelu, batch_first=True, norm_first=True)
        self.stack = nn.TransformerEncoder(layer, s["layers"], nn.LayerNorm(s["dim"]), enable_nested_tensor=False)
        self.token, self.place = nn.Embedding(s["vocab"], s["dim"]), nn.Embedding(s["length"], s["dim"])
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(s["length"]))

    def forward(self, ids):
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        return self.stack(x, mask=self.mask, is_causal=True) @ self.token.weight.T


class Ours(nn.Module):
    """qkv's model as its training loop calls it: the model scores the labels."""

    def __init__(self, s):
        super().__init__()
        self.inner = qkv.create("gpt-nano", **{k: v for k, v in s.items() if k != "batch"})

    def forward(self, ids, labels):
        return self.inner(input_ids=ids, labels=labels.flatten())["loss"] / labels.numel()


def make(name, s):
    if name == "qkv":
        return Ours(s)
    if name == "plain GPT":
        return Plain(s)
    if name == "nn.TransformerEncoder":
        return Stacked(s)
    if name == "transformers":
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=s["vocab"], n_positions=s["length"], n_embd=s["dim"], n_layer=s["layers"], n_head=s["heads"],
                            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu", use_cache=False)  # fmt: skip
        return Logits(GPT2LMHeadModel(config))
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=s["dim"], depth=s["layers"], heads=s["heads"], attn_dim_head=s["dim"] // s["heads"], attn_flash=True)
    return TransformerWrapper(num_tokens=s["vocab"], max_seq_len=s["length"], attn_layers=layers, tie_embedding=True)


class Logits(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        return self.inner(input_ids=ids).logits


NAMES = ("qkv", "plain GPT", "transformers", "x-transformers", "nn.TransformerEncoder")


class Runner:
    def __init__(self, name, s, bf16, compiled, matmul):
        self.model, self.ours, self.bf16, self.matmul = make(name, s), name == "qkv", bf16, matmul
        self.run = torch.compile(self.model) if compiled else self.model
        if self.ours:
            self.optimizer = optim.make(self.model, "adamw", 1e-3, 0.1)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, weight_decay=0.1)

    def step(self, ids):
        torch.set_float32_matmul_precision(self.matmul)
        x, y = ids[:, :-1], ids[:, 1:]
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            loss = self.run(x, y) if self.ours else F.cross_entropy(self.run(x).float().flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="char", choices=SHAPES)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--dtype", default="fp32,bf16")
    p.add_argument("--memory", action="store_true")
    p.add_argument("--default-memory", action="store_true", help="leave glibc's memory handling as it is, for everybody")
    p.add_argument("--alone", help=argparse.SUPPRESS)
    a = p.parse_args()
    need("transformers", "x_transformers")
    s = SHAPES[a.shape]
    torch.set_num_threads(a.threads)
    if a.alone:
        return alone(a, s)
    if not a.default_memory:
        runtime.keep_memory()  # the whole process: rivals gain as well
    print(f"{s}, {a.threads} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for dtype in a.dtype.split(","):
        if dtype == "bf16" and not machine.fast_bf16():
            print("bf16: this processor has no bfloat16 arithmetic")
            continue
        for compiled in (False, True) if a.compile else (False,):
            row(a, s, dtype, compiled)
        if a.memory:
            for name in NAMES:
                done = subprocess.run([sys.executable, __file__, "--shape", a.shape, "--alone", name, "--dtype", dtype, "--threads", str(a.threads)],
                                      capture_output=True, text=True)  # fmt: skip
                print(f"    {name:26s} {done.stdout.strip() or done.stderr[-300:]}", flush=True)


def alone(a, s):
    """The peak memory of two steps, less what the process had before."""
    peak = lambda: int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
    before = peak()
    runner = Runner(a.alone, s, a.dtype == "bf16", False, "highest")
    for _ in range(2):
        runner.step(torch.randint(0, s["vocab"], (s["batch"], s["length"] + 1)))
    print(f"peak {(peak() - before) / 1e3:,.0f} MB")


def row(a, s, dtype, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    bf16, gain = dtype == "bf16", None
    ours = "highest"
    if not bf16:
        probe = Ours(s).inner
        ours = machine.settle("fast", probe, s["batch"] * s["length"])[1]
        gain = machine.error_of("medium") <= machine.ACCURATE
    runners = {name: Runner(name, s, bf16, compiled, ours if name == "qkv" else "highest") for name in NAMES}
    if gain and ours == "medium":
        runners["plain GPT, medium"] = Runner("plain GPT", s, bf16, compiled, "medium")
    times = {name: [] for name in runners}
    for i in range(a.steps + 2):
        ids = torch.randint(0, s["vocab"], (s["batch"], s["length"] + 1))
        for name, runner in runners.items():
            began = time.perf_counter()
            runner.step(ids)
            if i >= 2:
                times[name].append(time.perf_counter() - began)
    torch.set_float32_matmul_precision("highest")
    speed = {name: s["batch"] * s["length"] / sorted(t)[len(t) // 2] for name, t in times.items()}
    print(f"  {dtype}, {'compiled' if compiled else 'eager'} (qkv multiplies in {'bfloat16' if bf16 else ours})")
    for name, v in speed.items():
        print(f"    {name:26s} {v:10,.0f} tokens/s", flush=True)
    ratio(speed, "qkv", *(n for n in runners if n != "qkv"))
    D, L, V, T = s["dim"], s["layers"], s["vocab"], s["length"]
    work = 6 * (12 * L * D * D + V * D) + 6 * L * T * D  # forward and backward a token, half of the scores
    peak = machine.peak("bfloat16" if bf16 else ours.replace("highest", "float32"))
    print(f"    qkv reaches {100 * work * speed['qkv'] / peak:.0f} % of the machine's {peak / 1e9:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
