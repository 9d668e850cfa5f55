"""What this machine can do, measured: products, memory, and the fastest arithmetic that is accurate enough."""

import time
import warnings

import torch
from torch import nn

from ..words import nearest

PRECISIONS = ("auto", "exact", "fast", "bf16")
ACCURATE = 1e-6  # relative root-mean-square error of a product of 1024 that still counts as float32 (float32 itself: about 2e-7)


def fast_bf16(device="cpu"):
    """Does this machine multiply in bfloat16 by itself, and so faster than in float32?"""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def settle(asked, model, tokens, device="cpu", before=None):
    """(bfloat16?, how float32 is multiplied: "highest" or "medium", a sentence about it).

    asked: exact is torch's own float32; fast takes torch's other float32 product (oneDNN on a CPU) where it is measured to be
    accurate here (ACCURATE) and faster for this model's layers at `tokens` a pass; bf16 is mixed precision; auto is bf16 where the
    processor has it, else fast. before: the choice of the run that is gone on with. Raises ValueError for a precision that does not
    exist, or that the machine cannot do.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"train.precision={asked!r}: must be one of {', '.join(PRECISIONS)}.{nearest(asked, PRECISIONS)}")
    if asked == "bf16" and not fast_bf16(device):
        raise ValueError("train.precision=bf16: this processor has no bfloat16 arithmetic and would be many times slower than in float32; "
                         "use precision=fast")  # fmt: skip
    if asked == "bf16" or (asked == "auto" and fast_bf16(device)):
        return True, "highest", "bfloat16"
    if asked == "exact":
        return False, "highest", "float32"
    if before in ("highest", "medium"):
        return False, before, f"float32 ({before}, as before)"
    shapes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    gain = medium_gain(shapes, tokens, device)
    if gain is None:
        return False, "highest", "float32 (the faster product is not accurate here)"
    if gain < 1.03:
        return False, "highest", "float32"
    return False, "medium", f"float32 by oneDNN ({gain:.2f}x)"


def medium_gain(shapes, tokens, device="cpu"):
    """How many times faster the layers (inputs, outputs) are in float32 "medium" than in "highest"; None where it is not accurate."""
    was = torch.get_float32_matmul_precision()
    try:
        if error_of("medium", device) > ACCURATE:
            return None
        times = {}
        rows = min(tokens, 512)
        for how in ("highest", "medium"):
            torch.set_float32_matmul_precision(how)
            times[how] = 0.0
            for k, n in set(shapes):
                n = min(n, 4096)
                x, w = torch.randn(rows, k, device=device), torch.randn(n, k, device=device)
                times[how] += shapes.count((k, n)) * seconds(lambda x=x, w=w: x @ w.T, 4)
        return times["highest"] / max(times["medium"], 1e-12)
    finally:
        torch.set_float32_matmul_precision(was)


def error_of(how, device="cpu", size=1024):
    """Relative root-mean-square error of a float32 product under a setting, against float64."""
    was = torch.get_float32_matmul_precision()
    made = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=made) for _ in "ab")
    exact = a.double() @ b.double()
    try:
        torch.set_float32_matmul_precision(how)
        got = (a.to(device) @ b.to(device)).cpu().double()
    finally:
        torch.set_float32_matmul_precision(was)
    return ((got - exact).square().mean() / exact.square().mean()).sqrt().item()


def seconds(work, times=5):
    """The least of several timings of work(), after one that does not count."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    best = float("inf")
    for _ in range(times):
        sync()
        began = time.perf_counter()
        work()
        sync()
        best = min(best, time.perf_counter() - began)
    return best


def peak(kind="float32", device="cpu", size=1024, times=5):
    """FLOPs a second of the best product of this kind: float32 (torch's own), medium, bfloat16, int8. None where there is none."""
    was = torch.get_float32_matmul_precision()
    try:
        if kind == "int8":
            if device != "cpu":
                return None
            w = torch.randn(size, size)
            warnings.filterwarnings("ignore", message=".*quantize_per_tensor.*")  # still the only int8 product that torch has
            packed = torch.ops.quantized.linear_prepack(
                torch.quantize_per_channel(w, w.abs().amax(1) / 127, torch.zeros(size, dtype=torch.long), 0, torch.qint8), None
            )
            x = torch.randn(size, size)
            return 2 * size**3 / seconds(lambda: torch.ops.quantized.linear_dynamic(x, packed, True), times)
        if kind == "bfloat16" and not fast_bf16(device):
            return None
        torch.set_float32_matmul_precision("medium" if kind == "medium" else "highest")
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in "ab")
        return 2 * size**3 / seconds(lambda: a @ b, times)
    finally:
        torch.set_float32_matmul_precision(was)


def bandwidth(device="cpu"):
    """Bytes a second read from memory."""
    x = torch.ones(1 << 26, device=device)
    return x.nbytes / seconds(lambda: x.sum())
