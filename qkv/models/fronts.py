"""Fronts: from sound to vectors.

Dims: B batch, S samples, F frames, M features of a frame, T vectors, D model, C channels.
"""

import torch
from torch import nn

from ..core.layers import LayerNorm, activation


def halved(n, kernel, stride, padding=0):
    """What a convolution leaves of a length, a number or a tensor of them."""
    return (n + 2 * padding - kernel) // stride + 1


class Bare(nn.Module):
    """Frames that are vectors of dim already."""

    samples = False  # does it read samples, (B, S), and not frames?

    def length(self, n):
        """Vectors of n frames or samples."""
        return n

    def forward(self, x_BFM, lengths=None):
        return x_BFM


class Frames(Bare):
    """A vector a frame."""

    def __init__(self, features, dim):
        super().__init__()
        self.out = nn.Linear(features, dim)

    def forward(self, x_BFM, lengths=None):
        return self.out(x_BFM)


class Subsampled(Bare):
    """Convolutions over time and frequency of stride 2, then a projection (Gulati et al., 2020, section 2). times: how many; each halves
    the rate. Padding is kept at zero, so that a sound's vectors do not depend on its neighbours in the batch."""

    def __init__(self, features, dim, times=2, channels=32):
        super().__init__()
        if times < 1 or channels < 1:
            raise ValueError(f"times={times} and channels={channels} must be at least 1")
        self.convs = nn.ModuleList(nn.Conv2d(channels if i else 1, channels, 3, 2, padding=1) for i in range(times))
        for _ in self.convs:
            features = halved(features, 3, 2, 1)
        self.out = nn.Linear(channels * features, dim)

    def length(self, n):
        for _ in self.convs:
            n = halved(n, 3, 2, 1)
        return n

    def forward(self, x_BFM, lengths=None):
        x = x_BFM[:, None]
        for conv in self.convs:
            if lengths is not None:
                x = x * (torch.arange(x.shape[2], device=x.device)[None] < lengths[:, None])[:, None, :, None]
                lengths = halved(lengths, 3, 2, 1)
            x = torch.relu(conv(x))
        return self.out(x.transpose(1, 2).flatten(2))


class Convolved(Bare):
    """Two convolutions over time with GELU, the second of stride 2 (Whisper, Radford et al., 2022, section 2.2)."""

    def __init__(self, features, dim):
        super().__init__()
        self.first = nn.Conv1d(features, dim, 3, padding=1)
        self.second = nn.Conv1d(dim, dim, 3, stride=2, padding=1)

    def length(self, n):
        return halved(n, 3, 2, 1)

    def forward(self, x_BFM, lengths=None):
        gelu = nn.functional.gelu
        return gelu(self.second(gelu(self.first(x_BFM.mT)))).mT


class Waves(Bare):
    """Convolutions of the samples themselves, and a projection (wav2vec 2.0, Baevski et al., 2020, section 2). widths, kernels, strides:
    of each. norm: group (a norm over time after the first) or layer (one of channels after each)."""

    samples = True

    def __init__(
        self,
        dim,
        eps=1e-5,
        widths=(512,) * 7,
        kernels=(10, 3, 3, 3, 3, 2, 2),
        strides=(5, 2, 2, 2, 2, 2, 2),
        norm="group",
        act="gelu",
        bias=False,
    ):
        super().__init__()
        if not len(widths) == len(kernels) == len(strides) or not widths:
            raise ValueError(
                f"widths, kernels and strides are {len(widths)}, {len(kernels)} and {len(strides)} numbers; each convolution needs one of each"
            )
        if norm not in ("group", "layer"):
            raise ValueError(f"norm={norm!r} is not group or layer")
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, bias=bias) for i, o, k, s in zip((1, *widths), widths, kernels, strides))
        kinds = [LayerNorm(w) for w in widths] if norm == "layer" else [nn.GroupNorm(widths[0], widths[0])]
        self.norms, self.over, self.act = nn.ModuleList(kinds), norm, activation(act)
        self.norm, self.out = LayerNorm(widths[-1], eps), nn.Linear(widths[-1], dim)

    def length(self, n):
        for c in self.convs:
            n = halved(n, c.kernel_size[0], c.stride[0])
        return n

    def forward(self, x_BS, lengths=None):
        x = x_BS[:, None]
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.over == "layer":
                x = self.norms[i](x.mT).mT
            elif i == 0:
                x = self.norms[0](x)
            x = self.act(x)
        x = self.out(self.norm(x.mT))
        if lengths is not None:  # as published: what is padding begins as zeros
            x = x * (torch.arange(x.shape[1], device=x.device)[None] < self.length(lengths)[:, None])[..., None]
        return x


FRONTS = {"none": Bare, "frames": Frames, "subsampled": Subsampled, "convolved": Convolved, "waves": Waves}
