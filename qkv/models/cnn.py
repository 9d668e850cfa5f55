"""Convolutional networks for images, what a ViT is compared with: plain, or with residual branches (ResNet, He et al., 2016)."""

from dataclasses import dataclass

import torch
from torch import nn

from .shape import Output, Shape, one_of


@dataclass(frozen=True, kw_only=True)
class ConvNet(Shape):
    """image: pixels of a side. channels. widths: channels of each stage, the first at full size, each next at half of it. depth: blocks of two
    convolutions a stage. residual: is a block added to what it reads? output: sequence (a label), hidden."""

    vocab: int = 1
    dim: int = 1
    layers: int = 1
    heads: int = 1
    length: int = 1
    image: int = 32
    channels: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    depth: int = 3
    residual: bool = True
    output: str = "sequence"

    def __post_init__(self):
        for name in ("image", "channels", "depth"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a whole number of at least 1")
        if not isinstance(self.widths, (tuple, list)) or not all(isinstance(w, int) and w > 0 for w in self.widths) or not self.widths:
            raise ValueError(f"widths={self.widths!r}: must be whole numbers of at least 1, one a stage, e.g. [16, 32, 64]")
        if self.image < 2 ** (len(self.widths) - 1):
            raise ValueError(f"image={self.image}: {len(self.widths)} stages need at least {2 ** (len(self.widths) - 1)} pixels")
        sizes = {"dim": self.widths[-1], "layers": 2 * self.depth * len(self.widths), "length": self.image**2}
        for name, value in sizes.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    @property
    def grid(self):
        """Places of a side that are counted as what the model reads."""
        return self.image // 4 or 1

    def build(self):
        return ConvNetModel(self)


class Pair(nn.Module):
    """Two convolutions with batch norms, the first of `stride`, beside a shortcut (He et al., 2016, section 3.3)."""

    def __init__(self, before, width, stride, residual):
        super().__init__()
        self.first, self.second = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        same = before == width and stride == 1
        self.short = (
            None
            if not residual
            else nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x_BCHW):
        y = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x_BCHW)))))
        return torch.relu(y if self.short is None else y + self.short(x_BCHW))


class ConvNetModel(nn.Module):
    """Convolutions, the mean over all places, a head."""

    def __init__(self, cfg):
        super().__init__()
        one_of("output", cfg.output, ("hidden", "sequence"))
        self.config = cfg
        self.stem, self.norm = nn.Conv2d(cfg.channels, cfg.widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(cfg.widths[0])
        pairs, before = [], cfg.widths[0]
        for stage, width in enumerate(cfg.widths):
            for i in range(cfg.depth):
                pairs.append(Pair(before, width, 2 if stage and i == 0 else 1, cfg.residual))
                before = width
        self.blocks = nn.ModuleList(pairs)
        self.head = nn.Linear(before, cfg.labels) if cfg.output == "sequence" else None

    def forward(self, pixel_values):
        """pixel_values (B, C, H, W) -> hidden (B, C', H', W'), logits (B, labels) with output=sequence."""
        cfg = self.config
        if pixel_values.dim() != 4 or pixel_values.shape[1] != cfg.channels:
            raise ValueError(
                f"pixel_values have the shape {tuple(pixel_values.shape)}; they must be (batch, {cfg.channels}, {cfg.image}, {cfg.image})"
            )
        x = torch.relu(self.norm(self.stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        out = Output(hidden=x)
        if self.head is not None:
            out["logits"] = self.head(x.mean((2, 3)))
        return out


OWN = {
    "cnn-nano": ConvNet(widths=(16, 32, 64), depth=3, residual=False, labels=10),
    "resnet-20": ConvNet(widths=(16, 32, 64), depth=3, labels=10),
    "resnet-56": ConvNet(widths=(16, 32, 64), depth=9, labels=10),
}
