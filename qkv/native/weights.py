"""Weights as the kernels read them: panels of outputs, in float32, bfloat16, int8 or int4, and what rounding them costs.

Dims: N outputs, K inputs.
"""

import contextlib
import mmap
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import library

PACKINGS = ("fp32", "bf16", "int8", "int4")
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4.5}
GROUP = 32  # int4: weights that share a scale


def rounded(w_NK, packing):
    """(whole numbers or None, scales or None, the weights that they stand for), all (N, K) in float32 at least.

    int8: one scale an output, -127 to 127 (LLM.int8, 2022, section 2.1). int4: one scale a group of 32 inputs, -8 to 7, chosen so
    that the largest weight of a group is met exactly.
    """
    w = w_NK.detach().float()
    if packing == "fp32":
        return None, None, w
    if packing == "bf16":
        return None, None, w.bfloat16().float()
    if packing == "int8":
        scale = (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
        q = (w / scale).round()
        return q, scale, q * scale
    K = w.shape[1]
    groups = F.pad(w, (0, -K % 64)).unflatten(1, (-1, GROUP))
    most = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (most / -8).bfloat16().float()
    q = torch.where(scale == 0, 0.0, (groups / torch.where(scale == 0, 1.0, scale)).round()).clamp(-8, 7)
    return q.flatten(1), scale[..., 0], (q * scale).flatten(1)[:, :K]


@dataclass
class Packed:
    """One or several linear layers side by side, ready to be multiplied with. error: relative root-mean-square error of the
    rounded weights."""

    packing: str
    n: int
    k: int
    data: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    error: float
    nbytes: int


def _on_large_pages(t):
    """A copy whose memory comes in pages of 2 MB where the system has them: int8 and int4 are read a tenth faster."""
    if t.nbytes < 2**22 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return t
    room = mmap.mmap(-1, t.nbytes + 2**22)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    base = torch.frombuffer(room, dtype=torch.uint8)  # keeps the mapping
    first = -base.data_ptr() % 2**21
    return base[first : first + t.nbytes].view(t.dtype).view(t.shape).copy_(t)


def pack(w_NK, bias_N, packing, lib=None):
    """Packed weights for a library (the usual one). Raises ValueError for a packing that does not exist."""
    if packing not in PACKINGS:
        raise ValueError(f"precision={packing!r} is not one of {', '.join(PACKINGS)}")
    lib = lib or library.load()
    R, unit = lib.qkv_width(), lib.qkv_unit()
    N, K = w_NK.shape
    q, scale, near = rounded(w_NK, packing)
    exact = w_NK.detach().float()
    error = ((near - exact).square().mean() / exact.square().mean().clamp(min=1e-30)).sqrt().item()
    down = lambda x: F.pad(x, (0, 0, 0, -N % R))
    if q is None:
        data = down(near).unflatten(0, (-1, R)).mT  # (panels, K, R)
        if packing == "bf16":  # outputs i and R / 2 + i are neighbours
            data = data.unflatten(2, (2, R // 2)).transpose(2, 3).flatten(2).bfloat16()
        data = data.contiguous()
    elif packing == "int8":
        data = F.pad(down(q), (0, -K % 64)).to(torch.int16)
        data = data.unflatten(0, (-1, R)).unflatten(2, (-1, unit)).transpose(1, 2).contiguous()  # (panels, K / unit, R, unit)
        data = (data + 128).to(torch.uint8) if unit == 4 else data.to(torch.int8)
        scale = down(scale)[:, 0].contiguous()
    else:
        quads = (down(q) + 8).to(torch.uint8).unflatten(0, (-1, R)).unflatten(2, (-1, 2, 4))  # (panels, R, K / 8, 2, 4)
        data = (quads[:, :, :, 0] | quads[:, :, :, 1] << 4).transpose(1, 2).contiguous()
        scale = down(scale).unflatten(0, (-1, R)).mT.contiguous().bfloat16()  # (panels, groups, R)
    bias = None if bias_N is None else F.pad(bias_N.detach().float(), (0, -N % R)).contiguous()
    size = sum(t.nbytes for t in (data, bias, scale) if t is not None)
    return Packed(packing, N, K, _on_large_pages(data), bias, scale, error, size)
