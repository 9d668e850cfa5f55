"""Images: an encoder of patches (ViT, Dosovitskiy et al., 2021) and the autoencoder that trains it on masked ones (MAE, He et al., 2022).

Dims: B batch, C channels, N patches, T tokens (the patches, and a class token before them), D model, P pixels of a patch's side.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..core import POSITIONS, Context, FeedForward, GatedFeedForward, Softmax, Stack, build, made_of, tokens, watched
from ..core.layers import Dropout
from .shape import Output, Shape, initialise, make_blocks, make_norm, one_of


@dataclass(frozen=True, kw_only=True)
class ImageEncoder(Shape):
    """image, patch: pixels of a side. channels. class_token: one before the patches. patch_bias. pooling: what stands for the image, its
    class token (first) or the mean of its patches. stem: patches, or convs: 3 x 3 convolutions of stride 2 down to the size of a patch (Xiao et al., 2021), the hybrid of ViT's
    section 3.1. pooler: a tanh layer on that. norm_whole: the last norm is for what stands for the
    image alone (CLIP). projection: width of the image's vector, with output=projection. output: hidden, sequence (a label), projection.
    length follows from image and patch; vocab is not used."""

    vocab: int = 1
    length: int = 1
    image: int = 224
    patch: int = 16
    channels: int = 3
    class_token: bool = True
    stem: str = "patches"
    patch_bias: bool = True
    pooling: str = "first"
    pooler: bool = False
    norm_whole: bool = False
    projection: int | None = None
    output: str = "sequence"

    def __post_init__(self):
        for name in ("image", "patch", "channels"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a whole number of at least 1")
        if self.image % self.patch:
            raise ValueError(f"patch={self.patch} does not divide image={self.image}; both are pixels of a side")
        object.__setattr__(self, "length", self.grid**2 + self.class_token)
        super().__post_init__()
        one_of("pooling", self.pooling, ("first", "mean"))
        one_of("stem", self.stem, ("patches", "convs"))
        if self.stem == "convs" and self.patch & (self.patch - 1):
            raise ValueError(f"patch={self.patch}: convolutions of stride 2 need a power of 2")
        if self.pooling == "first" and not self.class_token:
            raise ValueError("pooling=first reads the class token; set class_token=true or pooling=mean")

    @property
    def grid(self):
        """Patches of a side."""
        return self.image // self.patch

    def build(self):
        return initialise(ImageEncoderModel(self), self)


def normalised(pixels_BCHW, folder=None):
    """Bytes as a model reads them: from -1 to 1, or by the mean and deviation of the preprocessor_config.json that a published folder holds."""
    x, path = pixels_BCHW.float() / 255, None if folder is None else Path(folder) / "preprocessor_config.json"
    given = json.loads(path.read_text()) if path is not None and path.exists() else {}
    mean, std = (torch.tensor(given.get(k, [0.5])).view(1, -1, 1, 1) for k in ("image_mean", "image_std"))
    return (x - mean) / std


def table(cfg, dim):
    """The position scheme of patches, or None."""
    given = dict(
        length=cfg.length, dim=dim, width=cfg.grid, skip=int(cfg.class_token), heads=cfg.heads, head_dim=dim // cfg.heads, causal=False
    )
    return build("position", cfg.position, POSITIONS, **given)


def convolutions(cfg):
    """A stem of convolutions: half the size and twice the channels each, the last of them of dim."""
    steps, parts, before = cfg.patch.bit_length() - 1, [], cfg.channels
    for i in reversed(range(steps)):
        width = max(cfg.dim >> i, 8)
        parts += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*parts, nn.Conv2d(before, cfg.dim, 1))


class Patches(nn.Module):
    """Patches as vectors, with their positions and a class token before them."""

    def __init__(self, cfg, position):
        super().__init__()
        whole = cfg.stem == "patches"
        self.cut = nn.Conv2d(cfg.channels, cfg.dim, cfg.patch, cfg.patch, bias=cfg.patch_bias) if whole else convolutions(cfg)
        self.first = nn.Parameter(torch.empty(cfg.dim).normal_(std=cfg.init_std)) if cfg.class_token else None
        self.position = position
        self.norm, self.drop = make_norm(cfg) if cfg.embed_norm else nn.Identity(), Dropout(cfg.dropout)
        self.grid = cfg.grid

    def place(self, rows, columns):
        """(1, T, D) of a grid; where it is another than the model's, drawn out by cubic interpolation (ViT, section 3.2)."""
        whole = self.position.embed(torch.arange(self.position.length, device=self.position.weight.device)[None])
        if (rows, columns) == (self.grid, self.grid):
            return whole
        skip = self.first is not None
        square = whole[:, skip:].mT.unflatten(-1, (self.grid, self.grid))
        drawn = F.interpolate(square, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([whole[:, :skip], drawn.flatten(2).mT], 1)

    def forward(self, pixels_BCHW, keep_BK=None):
        x_BDhw = self.cut(pixels_BCHW)
        x_BND, skip = x_BDhw.flatten(2).mT, self.first is not None
        place = self.place(*x_BDhw.shape[2:]) if self.position is not None else None
        if place is not None:
            x_BND = x_BND + place[:, skip:]
        if keep_BK is not None:
            x_BND = x_BND.gather(1, keep_BK[..., None].expand(-1, -1, x_BND.shape[-1]))
        if skip:
            first = self.first if place is None else self.first + place[:, 0]
            x_BND = torch.cat([first.expand(len(x_BND), 1, -1), x_BND], 1)
        return self.drop(self.norm(x_BND))


class ImageEncoderModel(Stack):
    """A stack on patches, and a head on what stands for the image."""

    def __init__(self, cfg):
        one_of("output", cfg.output, ("hidden", "sequence", "projection"))
        if (cfg.output == "projection") != (cfg.projection is not None):
            raise ValueError(f"projection={cfg.projection} is the width of the vector of output=projection, not of output={cfg.output}")
        position = table(cfg, cfg.dim)
        blocks = make_blocks(cfg, layers=cfg.layers, pattern=cfg.pattern, heads=cfg.heads, hidden=cfg.wide, position=position)
        norm = make_norm(cfg) if cfg.final_norm else None
        super().__init__(blocks, None if cfg.norm_whole else norm, position if position.site == "stack" else None)
        self.config = cfg
        self.embed = Patches(cfg, position if position.site == "embedding" else None)
        self.last = norm if cfg.norm_whole else None
        self.pool = nn.Linear(cfg.dim, cfg.dim) if cfg.pooler and cfg.output == "hidden" else None
        self.head = None
        if cfg.output == "sequence":
            self.head = nn.Linear(cfg.dim, cfg.labels)
        elif cfg.output == "projection":
            self.head = nn.Linear(cfg.dim, cfg.projection, bias=False)
        self.built = made_of(self.blocks[self.order[-1]])

    def check(self, pixels, stretch):
        cfg = self.config
        if pixels.dim() != 4 or pixels.shape[1] != cfg.channels:
            raise ValueError(
                f"pixel_values have the shape {tuple(pixels.shape)}; they must be (batch, {cfg.channels}, {cfg.image}, {cfg.image})"
            )
        H, W = pixels.shape[2:]
        if not stretch and (cfg.image, cfg.image) != (H, W):
            raise ValueError(
                f"the image is {H} x {W} and this model reads {cfg.image} x {cfg.image}; resize it, or give interpolate_pos_encoding=True"
            )
        if cfg.patch > H or cfg.patch > W:
            raise ValueError(f"the image is {H} x {W}, smaller than a patch of {cfg.patch} x {cfg.patch}")

    def narrow(self):
        """Can the last block do with the class token alone? Not where somebody looks at what it says of the others."""
        last = self.blocks[self.order[-1]]
        if (
            made_of(last) != self.built
            or self.config.order == "parallel"
            or self.shared is not None
            or type(last.attn.f.kernel) is not Softmax
        ):
            return False
        alone = type(last.ffn.f) in (FeedForward, GatedFeedForward)  # what it says of a token goes by that token
        return alone and self.config.pooling == "first" and self.config.output != "hidden" and not any(map(watched, last.modules()))

    def forward(self, pixel_values, *, interpolate_pos_encoding=False, keep=None, whole=True):
        """pixel_values (B, C, H, W); keep (B, K): numbers of the patches that are read, all by default. whole=False: the last block is worked out for the
        class token alone, where nothing else is read (`narrow`): the same head, and hidden (B, 1, D).
        Returns hidden (B, T, D), with a head before the last norm, before_norm (B, T, D), pooled (B, D) with a pooler, logits (B, labels) or image_embeds (B, projection)."""
        self.check(pixel_values, interpolate_pos_encoding)
        x = self.embed(pixel_values, keep)
        ctx = Context(tokens(x.shape[1], device=x.device))
        raw = self.through(x, ctx, class_token if not whole and self.narrow() else None)
        hidden = self.norm(raw)
        out = Output(hidden=hidden if self.config.output == "hidden" else raw, before_norm=raw)
        whole = hidden[:, 0] if self.config.pooling == "first" else hidden[:, int(self.config.class_token) :].mean(1)
        if self.last is not None:
            whole = out["pooled"] = self.last(whole)
        if self.pool is not None:
            out["pooled"] = torch.tanh(self.pool(whole))
        if self.head is not None:
            out["logits" if self.config.output == "sequence" else "image_embeds"] = self.head(whole)
        return out.with_losses(ctx.losses)


def class_token(block, x_BTD, ctx):
    """(B, 1, D): a block's output at the class token alone, which is all that a classifier reads of the last one."""
    first = block.attn.f.first(block.attn.pre(x_BTD), ctx, 1)
    return block.ffn(block.attn.add(x_BTD[:, :1], first), ctx)


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoder(ImageEncoder):
    """decoder_dim, decoder_layers, decoder_heads, decoder_hidden: of the light decoder. rate: share of the patches that is masked.
    norm_pixels: targets are the pixels of a patch less their mean, over their deviation. output: pretraining or hidden."""

    decoder_dim: int = 512
    decoder_layers: int = 8
    decoder_heads: int = 16
    decoder_hidden: int | None = None
    rate: float = 0.75
    norm_pixels: bool = False
    position: str = "sinusoid2d"
    output: str = "pretraining"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate={self.rate}: must be in [0, 1)")

    def build(self):
        return initialise(MaskedAutoencoderModel(self), self)


class MaskedAutoencoderModel(nn.Module):
    """An encoder of the patches that are left, and a decoder that says what the others hold."""

    def __init__(self, cfg):
        super().__init__()
        one_of("output", cfg.output, ("pretraining", "hidden"))
        self.config = cfg
        fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(ImageEncoder)} | {"output": "hidden"}
        self.encoder = ImageEncoderModel(ImageEncoder(**fields))
        self.decoder = Decoder(cfg) if cfg.output == "pretraining" else None

    def forward(self, pixel_values, *, noise=None, interpolate_pos_encoding=False):
        """pixel_values (B, C, H, W); noise (B, N): the patches of the least of it are kept, drawn by default.
        Returns hidden (B, kept + 1, D), before the last norm with output=pretraining, mask (B, N) 1 where a patch is hidden, and of the pre-training loss, logits (B, N, P P C)."""
        cfg = self.config
        B, N = len(pixel_values), (pixel_values.shape[2] // cfg.patch) * (pixel_values.shape[3] // cfg.patch)
        noise = torch.rand(B, N, device=pixel_values.device) if noise is None else noise
        if noise.shape != (B, N):
            raise ValueError(f"noise has the shape {tuple(noise.shape)}; {B} images of {N} patches need ({B}, {N})")
        order = noise.argsort(1)
        kept = order[:, : int(N * (1 - cfg.rate))]
        mask = torch.ones(B, N, device=noise.device, dtype=pixel_values.dtype).scatter(1, kept, 0.0)
        seen = self.encoder(pixel_values, keep=kept, interpolate_pos_encoding=interpolate_pos_encoding)
        out = Output(hidden=seen["hidden" if self.decoder is None else "before_norm"], mask=mask)
        losses = [seen["auxiliary"]] if "auxiliary" in seen else []
        if self.decoder is not None:
            out["logits"] = self.decoder(seen["hidden"], order.argsort(1), losses)
            wrong = (out["logits"] - self.target(pixel_values)).square().mean(-1)
            out["loss"] = (wrong * mask).sum() / mask.sum()
        return out.with_losses(losses)

    def target(self, pixels_BCHW):
        """(B, N, P P C)"""
        P = self.config.patch
        x = pixels_BCHW.unflatten(2, (-1, P)).unflatten(4, (-1, P))  # (B, C, h, P, w, P)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if self.config.norm_pixels:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
        return x


class Decoder(Stack):
    """MAE's decoder (section 3): mask tokens where patches are missing, positions, blocks, pixels."""

    def __init__(self, cfg):
        small = dataclasses.replace(cfg, dim=cfg.decoder_dim, heads=cfg.decoder_heads, kv_heads=None, head_dim=None)
        wide = cfg.decoder_hidden or 4 * cfg.decoder_dim
        blocks = make_blocks(small, layers=cfg.decoder_layers, pattern=cfg.pattern, heads=cfg.decoder_heads, hidden=wide)
        super().__init__(blocks, make_norm(small))
        self.embed = nn.Linear(cfg.dim, cfg.decoder_dim)
        self.missing = nn.Parameter(torch.empty(cfg.decoder_dim).normal_(std=cfg.init_std))
        self.position = table(dataclasses.replace(small, position="sinusoid2d"), cfg.decoder_dim)
        self.out = nn.Linear(cfg.decoder_dim, cfg.patch**2 * cfg.channels)
        self.skip = int(cfg.class_token)

    def forward(self, hidden_BKD, back_BN, losses):
        x, N = self.embed(hidden_BKD), back_BN.shape[1]
        if N + self.skip != self.position.length:
            raise ValueError(f"the decoder knows the places of {self.position.length - self.skip} patches and the image has {N}")
        first, rest = x[:, : self.skip], x[:, self.skip :]
        rest = torch.cat([rest, self.missing.expand(len(x), N - rest.shape[1], -1)], 1)
        rest = rest.gather(1, back_BN[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([first, rest], 1) + self.position.embed(torch.arange(N + self.skip, device=x.device)[None])
        return self.out(self.run(x, Context(tokens(x.shape[1], device=x.device), losses=losses))[:, self.skip :])
