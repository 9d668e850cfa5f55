"""Seconds of training until a held-out loss: tiny Shakespeare characters, about 0.8 M parameters, context 64.

    python benchmarks/time_to_loss.py [--target 1.88] [--steps 2000] [--seeds 1] [--threads 1]

The rival is nanoGPT's documented CPU recipe (batch 12, 2,000 steps, AdamW 1e-3 to 1e-4, betas 0.9 and 0.99, dropout 0, float32) on
transformers' GPT-2 of the same shape. Ours has the same depth, width, context, batch and data, with what is different named below.
Both train in this process in turn, a slice of steps each; the clock of each runs during its own steps only. The loss is that of the
whole held-out text (the last 10 %).
"""

import argparse
import contextlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import qkv
from qkv import runtime
from qkv.data import registry, text
from qkv.training import machine, optim

T, BATCH = 64, 12
MODERN = dict(position="rope", norm="rms", ffn="gated(silu, bias=False)", hidden=344, biases="")


def corpus():
    raw = text.read_text(registry.fetch("tinyshakespeare", "train"))
    vocabulary = np.array(sorted({ord(c) for c in raw}))
    ids = torch.from_numpy(np.searchsorted(vocabulary, np.frombuffer(raw.encode("utf-32-le"), dtype=np.uint32)))
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:]


@torch.no_grad()
def held_out(forward, ids):
    rows = (len(ids) - 1) // T
    x, y, total = ids[: rows * T].view(rows, T), ids[1 : rows * T + 1].view(rows, T), 0.0
    for i in range(0, rows, 256):
        total += F.cross_entropy(forward(x[i : i + 256]).float().flatten(0, 1), y[i : i + 256].flatten(), reduction="sum").item()
    return total / (rows * T)


class Runner:
    """A model in training with a clock of its own."""

    def __init__(self, name, model, forward, optimizer, steps, schedule, warmup, bf16, seed):
        self.name, self.model, self.forward, self.optimizer, self.steps = name, model, forward, optimizer, steps
        self.schedule, self.warmup, self.bf16 = schedule, warmup, bf16
        self.step, self.seconds, self.reached = 0, 0.0, None
        self.generator = torch.Generator().manual_seed(seed)

    def slice(self, train, count):
        began = time.perf_counter()
        for _ in range(min(count, self.steps - self.step)):
            at = torch.randint(len(train) - T, (BATCH,), generator=self.generator)[:, None] + torch.arange(T + 1)
            rows = train[at]
            self.optimizer.scale(optim.factor(self.schedule, self.step, self.step / self.steps, self.warmup, decay=0.5))
            with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
                loss = F.cross_entropy(self.forward(rows[:, :-1]).float().flatten(0, 1), rows[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        self.seconds += time.perf_counter() - began


def rivals(a, seed):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=65, n_positions=T, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                        activation_function="gelu", bos_token_id=0, eos_token_id=0)  # fmt: skip
    theirs = GPT2LMHeadModel(config)
    forward = lambda x: theirs(input_ids=x, use_cache=False).logits
    yield Runner(
        "recipe on transformers", theirs, forward, optim.make(theirs, "adamw", 1e-3, 0.1, (0.9, 0.99)), a.steps, "cosine", 100, False, seed
    )
    for name, steps in (("qkv, short", int(a.steps * 0.21)), ("qkv, about equal time", int(a.steps * 0.8))):
        torch.manual_seed(seed)
        model = qkv.create("gpt-nano", vocab=65, length=T, dim=128, layers=4, heads=4, **MODERN)
        optimizer = optim.make(model, "muon", 3e-3, 0.1, (0.9, 0.95), 0.02)
        yield Runner(name, model, lambda x, m=model: m(input_ids=x)["logits"], optimizer, steps, "constant", 20, a.bf16, seed)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", type=float, default=1.88)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--fp32", dest="bf16", action="store_false", help="ours in float32 too")
    a = p.parse_args()
    try:
        import transformers  # noqa: F401
    except ImportError:
        sys.exit("the rival needs transformers: pip install 'qkv[bench]'")
    torch.set_num_threads(a.threads)
    a.bf16 = a.bf16 and machine.fast_bf16()
    runtime.keep_memory()
    train, valid = corpus()
    for seed in range(a.seeds):
        runners = list(rivals(a, seed))
        for r in runners:
            print(f"{r.name}: {sum(q.numel() for q in r.model.parameters()):,} parameters, {r.steps} steps of {BATCH} x {T}")
        print(f"ours differs by: {', '.join(f'{k}={v}' for k, v in MODERN.items())}; Muon in the blocks; {'bf16' if a.bf16 else 'fp32'}")
        for part in range(20):
            for r in runners:
                r.slice(train, -(-r.steps // 20))
                loss = held_out(r.forward, valid)
                if loss <= a.target and r.reached is None:
                    r.reached = r.seconds
                r.loss = loss
            print(f"{5 * (part + 1):3d} %  " + "   ".join(f"{r.name}: {r.loss:.3f} at {r.seconds:.0f} s" for r in runners), flush=True)
        base = runners[0]
        whole = base.reached or base.seconds
        for r in runners[1:]:
            when = f"{r.reached:.0f} s, {r.reached / whole:.2f} of its time" if r.reached else "not reached"
            print(
                f"seed {seed}: {r.name}: loss {a.target} after {when}; end {r.loss:.4f} after {r.seconds:.0f} s; the recipe ends at {base.loss:.4f} after {base.seconds:.0f} s"
            )


if __name__ == "__main__":
    main()
