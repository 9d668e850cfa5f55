"""How far Performer is from exact attention: the error falls as 1 / sqrt(features) (FAVOR+, 2021, section 2.4 and figure 4).

    python benchmarks/performer_error.py [--draws 20]

Root mean square error of the output of one head, against softmax attention, of standard normal q, k (times 0.25, 0.5 and 1) and v; orthogonal and
independent features; the exponent is the slope of log error over log features.
"""

import argparse
import math

import torch

from qkv.core import Full, See, tokens
from qkv.core.efficient import Performer

FEATURES = (16, 32, 64, 128, 256, 512, 1024, 2048)


def error(features, sharp, independent, draws, length=256, channels=32):
    total = 0.0
    t = tokens(length)
    for seed in range(draws):
        torch.manual_seed(seed)
        q, k, v = (torch.randn(1, 1, length, channels, dtype=torch.float64) for _ in range(3))
        q, k = q * sharp, k * sharp
        kernel = Performer(channels, features, eps=0.0).double().eval()
        if independent:
            kernel.projection.normal_()
        exact = (q @ k.mT * channels**-0.5).softmax(-1) @ v
        total += (kernel(q, k, v, See(Full(), t, t), None) - exact).square().mean().item()
    return math.sqrt(total / draws)


def slope(xs, ys):
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--draws", type=int, default=20)
    a = p.parse_args()
    print(f"{'features':24s} " + " ".join(f"{n:>8d}" for n in FEATURES) + "   exponent, from 256 on")
    for sharp in (0.25, 0.5, 1.0):
        for independent in (False, True):
            errors = [error(n, sharp, independent, a.draws) for n in FEATURES]
            name = f"{'independent' if independent else 'orthogonal'}, q k x {sharp}"
            print(
                f"{name:24s} "
                + " ".join(f"{e:8.4f}" for e in errors)
                + f"   {slope(FEATURES, errors):6.2f}, {slope(FEATURES[4:], errors[4:]):.2f}"
            )


if __name__ == "__main__":
    main()
