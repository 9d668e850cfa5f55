"""What attention costs as the length grows: one layer (dim 256, 4 heads), forward and backward, time and memory, ours beside its peers.

    pip install -e '.[bench]'
    python benchmarks/attention.py [--lengths 512,1024,2048,4096,8192,16384] [--only window,local-attention] [--threads 1]

Every point is a process of its own; a row's slope is that of log(time) over log(length) from 2,048 on. Memory is the peak during one
forward and backward pass over what was there before, and beyond that of the same layer whose attention does nothing.
"""

import argparse
import ctypes
import json
import math
import subprocess
import sys
import time

DIM, HEADS = 256, 4


def ours(pattern="full", kernel="softmax"):
    def make(n):
        from qkv.core import KERNELS, Attention, build, read_pattern

        k = build("kernel", kernel, KERNELS, head_dim=DIM // HEADS, length=n, heads=HEADS)
        return context(Attention(DIM, HEADS, pattern=read_pattern(pattern, longest=n), kernel=k), n)

    return make


def context(layer, n):
    from qkv.core import Context, tokens

    return lambda x: layer(x, Context(tokens(n)))


def nothing(n):
    from torch import nn

    from qkv.core import Attention, Full

    class Nothing(nn.Module):
        patterns, takes_scores = (Full,), False

        def forward(self, q, k, v, see, position, shared=None):
            return q + k + v

    return context(Attention(DIM, HEADS, kernel=Nothing()), n)


def naive(n):
    """softmax(q k') v as it is written."""
    from qkv.core import Attention, Softmax

    layer = Attention(DIM, HEADS, kernel=Softmax())
    layer.kernel.weights.register_forward_hook(lambda *_: None)  # somebody looks: the formula as it is written
    return context(layer, n)


def local_attention(causal, window):
    def make(n):
        from local_attention import LocalMHA

        return LocalMHA(dim=DIM, dim_head=DIM // HEADS, heads=HEADS, window_size=window, causal=causal, prenorm=False, qk_rmsnorm=False,
                        use_xpos=False, use_rotary_pos_emb=False, exact_windowsize=True)  # fmt: skip

    return make


def performer_pytorch(causal):
    def make(n):
        from performer_pytorch import SelfAttention

        return SelfAttention(DIM, causal=causal, heads=HEADS, dim_head=DIM // HEADS)

    return make


def linformer(n):
    from linformer import LinformerSelfAttention

    return LinformerSelfAttention(DIM, n, k=256, heads=HEADS)


def bigbird(n):
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdAttention

    cfg = BigBirdConfig(hidden_size=DIM, num_attention_heads=HEADS, max_position_embeddings=n, attention_probs_dropout_prob=0.0,
                        hidden_dropout_prob=0.0, block_size=64, num_random_blocks=3, attention_type="block_sparse")  # fmt: skip
    layer = BigBirdAttention(cfg)
    import torch

    ones, edge = torch.ones(1, n), torch.ones(1, n // 64, 64)
    band = torch.einsum("blq,blk->blqk", edge[:, 2:-2], torch.cat([edge[:, 1:-3], edge[:, 2:-2], edge[:, 3:-1]], 2))[:, None]
    more = dict(
        band_mask=band, from_mask=ones[:, None, :, None], to_mask=ones[:, None, None, :], from_blocked_mask=edge, to_blocked_mask=edge
    )
    return lambda x: layer(x, **more)[0]


ROWS = {  # name: (make(n), its peer)
    "nothing": (nothing, None),
    "naive": (naive, None),
    "exact": (ours(), None),
    "exact causal": (ours("causal"), None),
    "window": (ours("sliding(257)"), "local-attention"),
    "window both ways": (ours("window(256)"), "local-attention both ways"),
    "dilated": (ours("dilated(64, 4)"), None),
    "longformer": (ours("window(256) | globals(64)"), None),
    "sparse bigbird": (ours("window(96) | globals(64) | random(count=3)"), None),
    "bigbird": (ours(kernel="bigbird(block=64, random=3, drawn=true)"), "transformers bigbird"),
    "linformer": (ours(kernel="linformer(rank=256)"), "linformer package"),
    "performer": (ours(kernel="performer(redraw=0)"), "performer-pytorch"),
    "performer causal": (ours("causal", "performer(redraw=0)"), "performer-pytorch causal"),
    "local-attention": (local_attention(True, 256), None),
    "local-attention both ways": (local_attention(False, 256), None),
    "transformers bigbird": (bigbird, None),
    "linformer package": (linformer, None),
    "performer-pytorch": (performer_pytorch(False), None),
    "performer-pytorch causal": (performer_pytorch(True), None),
}


def memory(field):
    """KiB of this process: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field))


def measure(name, n, threads):
    """{ms, mib} of one point, in this process."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def once(f, x):
        f(x).sum().backward()

    small = torch.randn(1, 1024, DIM, requires_grad=True)
    once(ROWS[name][0](1024), small)  # libraries are loaded, kernels made
    f = ROWS[name][0](n)
    x = torch.randn(1, n, DIM, requires_grad=True)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what that left free would hide what is needed now
    with open("/proc/self/clear_refs", "w") as g:
        g.write("5")
    before = memory("VmRSS")
    once(f, x)
    mib = (memory("VmHWM") - before) / 1024
    best = math.inf
    for _ in range(3):
        x.grad = None
        start = time.perf_counter()
        once(f, x)
        best = min(best, time.perf_counter() - start)
    return {"ms": 1e3 * best, "mib": mib}


def slope(points, key, start=2048):
    xs = [(math.log(n), math.log(max(p[key], 1e-9))) for n, p in points.items() if n >= start]
    mx, my = (sum(c) / len(xs) for c in zip(*xs))
    return sum((x - mx) * (y - my) for x, y in xs) / sum((x - mx) ** 2 for x, _ in xs) if len(xs) > 1 else math.nan


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lengths", default="512,1024,2048,4096,8192,16384")
    p.add_argument("--only", default="")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.point:
        return print(json.dumps(measure(a.point[0], int(a.point[1]), a.threads)))
    lengths, names = [int(n) for n in a.lengths.split(",")], a.only.split(",") if a.only else list(ROWS)
    table = {}
    for n in lengths:  # a length's rows run side by side in time
        for name in names:
            if name == "naive" and n > 8192:
                continue  # 4 heads of n x n floats, several times over
            command = [sys.executable, __file__, "--threads", str(a.threads), "--point", name, str(n)]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                print(f"{name} at {n}: {out.stderr.strip().splitlines()[-1][:150]}", file=sys.stderr)
                continue
            table.setdefault(name, {})[n] = point = json.loads(out.stdout.splitlines()[-1])
            print(f"{name:26s} {n:6d} {point['ms']:9.1f} ms {point['mib']:9.1f} MiB", file=sys.stderr, flush=True)
    print(f"{'ms':26s} " + " ".join(f"{n:>8d}" for n in lengths) + "   slope   MiB at most, slope, beyond `nothing`   peer's time / ours")
    for name, points in table.items():
        row = " ".join(f"{points[n]['ms']:8.1f}" if n in points else " " * 8 for n in lengths)
        last = max(points)
        more = points[last]["mib"] - table.get("nothing", points)[last]["mib"]
        peer = table.get(ROWS[name][1] or "", {})
        against = ", ".join(f"{peer[n]['ms'] / points[n]['ms']:.2f}" for n in lengths[-2:] if n in peer and n in points)
        print(
            f"{name:26s} {row}  {slope(points, 'ms'):6.2f}   {points[last]['mib']:7.0f} {slope(points, 'mib'):6.2f} {more:7.0f}   {against}"
        )


if __name__ == "__main__":
    main()
