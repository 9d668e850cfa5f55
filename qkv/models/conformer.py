"""Conformer (Gulati et al., 2020): attention and convolution between two half steps of feed-forward layers, on vectors of sound."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checkpoints.config import Key
from ..checkpoints.table import Op, stacked
from ..core import CONVOLUTIONS, FEED_FORWARDS, KERNELS, Attention, Block, Context, Documents, Residual, Stack, build, read_pattern, tokens
from ..core.layers import Dropout
from ..core.slots import parse
from .family import Family, arguments
from .fronts import FRONTS
from .shape import Output, Shape, initialise, make_norm, make_position, one_of


@dataclass(frozen=True, kw_only=True)
class SpeechEncoder(Shape):
    """features: width of a frame of the input (mel bands; 1 for samples). front: from frames to vectors of dim, see FRONTS. conv: the slot of the convolution; conv_first: does it
    stand before attention? front_eps: of the norms before and after the blocks, where it is not norm_eps. output: hidden, or ctc: scores of the
    vocabulary and a blank, which is the padding id, for every vector (Graves et al., 2006). With a vocabulary, length is the longest sound, in frames. unread: width and groups
    of a convolution of positions, and whether there is a vector for masked frames, which published files hold and no pass reads."""

    vocab: int = 1
    length: int = 1
    ffn: str = "plain(silu)"
    position: str = "none"
    features: int | None = None
    front: str = "none"
    front_eps: float | None = None
    final_norm: bool = False
    conv: str = "convolution"
    conv_first: bool = False
    unread: tuple[int, ...] | None = None
    output: str = "hidden"

    def build(self):
        return initialise(SpeechEncoderModel(self), self)


class SpeechEncoderModel(Stack):
    """Blocks of ffn / 2, attention, convolution, ffn / 2 and a norm (figure 1)."""

    def __init__(self, cfg):
        one_of("output", cfg.output, ("hidden", "ctc"))
        if cfg.output == "ctc" and cfg.pad is None:
            raise ValueError("output=ctc needs pad, the id that stands for the blank")
        if cfg.front == "none" and cfg.features not in (None, cfg.dim):
            raise ValueError(
                f"features={cfg.features}: front=none reads vectors of dim={cfg.dim}; use front=frames, or another that projects"
            )
        position = make_position(cfg, heads=cfg.heads, causal=False)
        if position.site == "embedding":
            raise ValueError(f"position={cfg.position} is added to an embedding; a conformer takes none, rope, shaw, xl, alibi or t5")
        own = position if position.site == "layer" else None
        outer = dataclasses.replace(cfg, norm_eps=cfg.front_eps or cfg.norm_eps)
        norm = make_norm(outer) if cfg.final_norm else None
        super().__init__([self.block(cfg, i, own) for i in range(cfg.layers)], norm, None if own else position)
        self.config = cfg
        self.front = build("front", cfg.front, FRONTS, features=cfg.features or cfg.dim, dim=cfg.dim, eps=outer.norm_eps)
        self.drop = Dropout(cfg.dropout)
        self.head = nn.Linear(cfg.dim, cfg.vocab) if cfg.output == "ctc" else None
        if cfg.unread:
            width, groups, mask = cfg.unread
            shapes = {"bias": (cfg.dim,), "size": (1, 1, width), "weight": (cfg.dim, cfg.dim // groups, width)} | (
                {"mask": (cfg.dim,)} if mask else {}
            )
            self.unread = nn.ParameterDict({n: nn.Parameter(0.02 * torch.randn(shape)) for n, shape in shapes.items()})

    def block(self, cfg, i, position):
        if position is not None and any(True for _ in position.parameters()):
            position = make_position(cfg, heads=cfg.heads, causal=False)  # each layer trains its own
        kernel = build("kernel", cfg.layer("kernel", i), KERNELS, dropout=cfg.attn_dropout, length=cfg.length, heads=cfg.heads,
                       head_dim=cfg.head_dim or cfg.dim // cfg.heads)  # fmt: skip
        pattern = read_pattern(cfg.layer("pattern", i), longest=cfg.length) & Documents()
        half = lambda **norms: Residual(build("ffn", cfg.layer("ffn", i), FEED_FORWARDS, dim=cfg.dim, hidden=cfg.wide), pre=make_norm(cfg), scale=0.5,
                                        dropout=cfg.dropout, **norms)  # fmt: skip
        middle = {
            "attn": Attention(cfg.dim, cfg.heads, kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, pattern=pattern, position=position,
                              kernel=kernel, biases=cfg.biases),
            "conv": build("conv", cfg.conv, CONVOLUTIONS, dim=cfg.dim),
        }  # fmt: skip
        order = ("conv", "attn") if cfg.conv_first else ("attn", "conv")
        return Block(
            first=half(), **{n: Residual(middle[n], pre=make_norm(cfg), dropout=cfg.dropout) for n in order}, last=half(post=make_norm(cfg))
        )

    def forward(self, input_features, attention_mask=None, *, lengths=None):
        """input_features (B, F, features), or samples (B, S) for a front that reads them; attention_mask (B, F), 0 is padding, or lengths
        (B,) of it -> hidden (B, T, D), with a head before the last norm, lengths (B,) of it where there is padding, logits (B, T, V) with output=ctc."""
        width, samples = self.config.features or self.config.dim, self.front.samples
        if input_features.dim() != (2 if samples else 3) or (not samples and input_features.shape[-1] != width):
            wanted = "(batch, samples)" if samples else f"(batch, frames, {width})"
            raise ValueError(f"input_features have the shape {tuple(input_features.shape)}; they must be {wanted}")
        if lengths is None and attention_mask is not None:
            lengths = attention_mask.sum(-1)
        if lengths is not None and bool((lengths == input_features.shape[1]).all()):
            lengths = None
        if self.front.length(input_features.shape[1]) < 1:
            raise ValueError(
                f"a sound of {input_features.shape[1]} {'samples' if samples else 'frames'} is too short for the front {self.config.front}"
            )
        x = self.drop(self.front(input_features, lengths))
        T, valid, out = x.shape[1], None, Output()
        if lengths is not None:
            out["lengths"] = self.front.length(lengths)
            valid = torch.arange(T, device=x.device)[None] < out["lengths"][:, None]
        ctx = Context(tokens(T, valid=valid, device=x.device))
        raw = self.through(x, ctx)
        out["hidden"] = hidden = self.norm(raw)
        if self.head is not None:
            out.update(logits=self.head(hidden), hidden=raw)
        return out.with_losses(ctx.losses)


flipped = Op(lambda ts: [t.flip(0) for t in ts], lambda ts: [t.flip(0) for t in ts])  # query minus key there, key minus query here
NORM = ("weight", "bias")
MOVING = ("running_mean", "running_var", "num_batches_tracked")


def _conv(published, places):
    """Rows of a convolution module: {our layer: their place}."""
    rows = [(f"{published}{place}.{leaf}", f"blocks.{{i}}.conv.f.{ours}.{leaf}") for ours, place in places.items() for leaf in NORM]
    return rows, [(f"{published}{places['norm']}.{leaf}", f"blocks.{{i}}.conv.f.norm.{leaf}") for leaf in MOVING]


def _halves(name, norm, up, down, i="{i}"):
    """Rows of the two feed-forward layers: `name` holds a place for 1 and 2."""
    out = []
    for n, ours in (("1", "first"), ("2", "last")):
        where = name.replace("#", n)
        for theirs, mine in ((norm, "pre"), (up, "f.up"), (down, "f.down")):
            out += [(f"{where}{theirs}.{leaf}", f"blocks.{i}.{ours}.{mine}.{leaf}") for leaf in NORM]
    return out


def _lucid_before(raw, cls):
    kernel, expand = raw.pop("conv_kernel_size", 31), raw.pop("conv_expansion_factor", 2)
    raw["_conv"] = f"convolution(kernel={kernel}, expand={expand}, causal={bool(raw.pop('conv_causal', False))}, padding=kept)"
    raw["_position"] = f"shaw(far={raw.pop('max_pos_emb', 512)}, values=False)"
    raw["_hidden"] = raw.pop("ff_mult", 4) * raw.get("dim", 512)
    return raw


def _lucid_after(raw, cfg):
    conv, hidden = raw.pop("_conv"), raw.pop("_hidden") or 4 * cfg.dim
    kernel, expand, causal, padding = arguments(conv, "kernel", "expand", "causal", "padding")
    if hidden % cfg.dim or padding != "kept" or "conv_norm" in conv:
        raise ValueError("this layout has a width of ff_mult dim, a batch norm, and padding that is kept")
    (far,) = arguments(raw.pop("_position"), "far")
    return raw | {"ff_mult": hidden // cfg.dim, "conv_kernel_size": kernel, "conv_expansion_factor": expand, "conv_causal": causal,
                  "max_pos_emb": far}  # fmt: skip


LUCID, LUCID_MOVING = _conv("layers.{i}.conv.net.", {"up": "2", "depth": "4.conv", "norm": "5", "down": "7"})
LUCIDRAINS = Family(
    name="lucidrains-conformer",
    config=SpeechEncoder,
    keys=(
        Key("dim", "dim", 512),
        Key("depth", "layers", 12),
        Key("dim_head", "head_dim", 64),
        Key("heads", "heads", 8),
        Key("_hidden", "hidden", None),
        Key("_conv", "conv", "convolution"),
        Key("_position", "position", "none"),
        Key("attn_dropout", "attn_dropout", 0.0),
    ),
    before=_lucid_before,
    after=_lucid_after,
    neutral=("ff_dropout", "conv_dropout"),
    classes={"ConformerBlocks": dict(output="hidden", biases="o")},
    table=(
        *_halves("layers.{i}.ff#.fn.", "norm", "fn.net.0", "fn.net.3"),
        *((f"layers.{{i}}.attn.norm.{leaf}", f"blocks.{{i}}.attn.pre.{leaf}") for leaf in NORM),
        ("layers.{i}.attn.fn.to_q.weight", "blocks.{i}.attn.f.q.weight"),
        ("layers.{i}.attn.fn.to_kv.weight", [f"blocks.{{i}}.attn.f.{x}.weight" for x in "kv"], stacked(2)),
        *((f"layers.{{i}}.attn.fn.to_out.{leaf}", f"blocks.{{i}}.attn.f.o.{leaf}") for leaf in NORM),
        ("layers.{i}.attn.fn.rel_pos_emb.weight", "blocks.{i}.attn.f.position.keys", flipped),
        *((f"layers.{{i}}.conv.net.0.{leaf}", f"blocks.{{i}}.conv.pre.{leaf}") for leaf in NORM),
        *LUCID,
        *LUCID_MOVING,
        *((f"layers.{{i}}.post_norm.{leaf}", f"blocks.{{i}}.last.post.{leaf}") for leaf in NORM),
    ),
)


def _audio_before(raw, cls):
    group = "group" if raw.pop("use_group_norm", False) else "batch"
    raw["_conv"] = f"convolution(kernel={raw.pop('depthwise_conv_kernel_size')}, conv_norm={group}, padding=kept)"
    return raw


def _audio_after(raw, cfg):
    conv = raw.pop("_conv")
    kernel, norm, padding = arguments(conv, "kernel", "conv_norm", "padding")
    if padding != "kept" or len(parse(conv)[2]) > 3:
        raise ValueError("this layout has a convolution of dim channels, whose padding is kept")
    return raw | {"depthwise_conv_kernel_size": kernel, "use_group_norm": norm == "group"}


AUDIO, AUDIO_MOVING = _conv("conformer_layers.{i}.conv_module.sequential.", {"up": "0", "depth": "2", "norm": "3", "down": "5"})
TORCHAUDIO = Family(
    name="torchaudio-conformer",
    config=SpeechEncoder,
    keys=(
        Key("input_dim", "dim", 80),
        Key("num_heads", "heads", 4),
        Key("ffn_dim", "hidden", 256),
        Key("num_layers", "layers", 4),
        Key("_conv", "conv", "convolution"),
        Key("convolution_first", "conv_first", False),
        Key("dropout", "dropout", 0.0),
    ),
    before=_audio_before,
    after=_audio_after,
    classes={"Conformer": dict(output="hidden", biases="qkvo", position="none")},
    table=lambda cfg: (
        *_halves("conformer_layers.{i}.ffn#.sequential.", "0", "1", "4"),
        *((f"conformer_layers.{{i}}.self_attn_layer_norm.{leaf}", f"blocks.{{i}}.attn.pre.{leaf}") for leaf in NORM),
        *(
            (f"conformer_layers.{{i}}.self_attn.in_proj_{leaf}", [f"blocks.{{i}}.attn.f.{x}.{leaf}" for x in "qkv"], stacked(3))
            for leaf in NORM
        ),
        *((f"conformer_layers.{{i}}.self_attn.out_proj.{leaf}", f"blocks.{{i}}.attn.f.o.{leaf}") for leaf in NORM),
        *((f"conformer_layers.{{i}}.conv_module.layer_norm.{leaf}", f"blocks.{{i}}.conv.pre.{leaf}") for leaf in NORM),
        *AUDIO,
        *(AUDIO_MOVING if "group" not in cfg.conv else ()),
        *((f"conformer_layers.{{i}}.final_layer_norm.{leaf}", f"blocks.{{i}}.last.post.{leaf}") for leaf in NORM),
    ),
)
HEARS: dict[str, Any] = dict(
    features=80,
    front="subsampled(times=2)",
    position="xl(layout=interleaved)",
    conv="convolution(kernel=31)",
    output="ctc",
    pad=0,
    dropout=0.1,
)
OWN = {
    "conformer-nano": SpeechEncoder(**HEARS | dict(features=40, front="subsampled(times=1)", conv="convolution(kernel=15)"), vocab=64, length=128, dim=96, layers=4,
                                heads=4, hidden=192),
    "conformer-small": SpeechEncoder(**HEARS, vocab=1024, length=1600, dim=144, layers=16, heads=4),
    "conformer-medium": SpeechEncoder(**HEARS, vocab=1024, length=1600, dim=256, layers=16, heads=4),
    "conformer-large": SpeechEncoder(**HEARS, vocab=1024, length=1600, dim=512, layers=17, heads=8),
}  # fmt: skip
FAMILIES = (LUCIDRAINS, TORCHAUDIO)
