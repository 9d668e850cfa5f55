"""Flamingo (Alayrac et al., 2022): a frozen language model whose blocks look at images through gates that begin closed.

Dims: B rows, T tokens of text, N images of a row, P vectors of an image, K latents, S = N K vectors that are looked at, D model, W width of the vectors.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..core import FEED_FORWARDS, Attention, Block, Cache, Context, Residual, Stack, build, tokens
from ..core.layers import NORMS
from ..core.masks import Pattern
from .decoder import Decoder, DecoderModel
from .image import ImageEncoder, ImageEncoderModel
from .shape import WORDS, AroundWords, Output, initialise, locate, one_of


@dataclass(frozen=True)
class Seen(Pattern):
    """A token looks at the images whose bits it carries (mark `images`); one that carries none may look anywhere, so that no softmax row
    is empty: what it then finds is not used."""

    def allows(self, q, k):
        bits = q.mark("images")
        return ((bits >> k.mark("image")) & 1).bool() | (bits == 0)


class TanhGate(nn.Module):
    """tanh(w) y, closed at first (section 2.2). wide: a w for every channel."""

    def __init__(self, dim=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1) if dim is None else torch.zeros(1, 1, dim))

    def forward(self, y):
        return self.weight.tanh() * y


class Resample(nn.Module):
    """Latents look at the vectors of an image and at themselves (section 2.1)."""

    def __init__(self, dim, heads, head_dim, qk_norm=None):
        super().__init__()
        self.media = NORMS["layer"](dim)
        self.attn = Attention(dim, heads, head_dim=head_dim, cross=True, biases="", qk_norm=qk_norm)

    def forward(self, x_BKD, ctx):
        return self.attn(x_BKD, Context(ctx.queries, torch.cat([self.media(ctx.memory), x_BKD], 1)))


class Perceiver(Stack):
    """Any number of vectors as `latents` ones."""

    def __init__(self, dim, latents=64, layers=6, heads=8, head_dim=64, mult=4, act="gelu", qk_norm=False):
        qk = (lambda c: NORMS["layer"](c)) if qk_norm else None
        block = lambda: Block(
            attn=Residual(Resample(dim, heads, head_dim, qk), pre=NORMS["layer"](dim)),
            ffn=Residual(FEED_FORWARDS["plain"](dim, mult * dim, act, bias=False), pre=NORMS["layer"](dim)),
        )
        super().__init__([block() for _ in range(layers)], NORMS["layer"](dim))
        self.latents = nn.Parameter(torch.randn(latents, dim))

    def forward(self, x_BPD):
        return self.run(self.latents.expand(len(x_BPD), -1, -1), Context(tokens(len(self.latents), device=x_BPD.device), x_BPD))


class Direct(nn.Module):
    """The vectors as they are."""

    def forward(self, x_BPD):
        return x_BPD


RESAMPLERS = {"none": Direct, "perceiver": Perceiver}


class Look(nn.Module):
    """Cross-attention to the images that a token may see. Before the first image it gives nothing, or with `even` the mean of all
    (open_flamingo as published, where earlier images are seen too)."""

    def __init__(self, dim, seen, heads, head_dim, even=False, qk_norm=None):
        super().__init__()
        self.attn = Attention(dim, heads, head_dim=head_dim, cross=True, memory_dim=seen, biases="", pattern=Seen(), qk_norm=qk_norm)
        self.even = even

    def forward(self, x_BTD, ctx):
        y, none = self.attn(x_BTD, ctx), (ctx.queries.mark("images") == 0)[..., None]
        if not self.even:
            return y.masked_fill(none, 0)
        return torch.where(none, self.attn.o(self.attn.v(ctx.memory).mean(1, keepdim=True)), y)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How text looks at images. seen_dim: width of an image's vectors. resampler: none or perceiver(latents=64, layers=6, heads=8, head_dim=64).
    look_heads, look_head_dim, look_hidden, look_ffn, look_norm, look_eps: of the gated blocks. see: the images a token looks at, the last one before it (last), all of
    them (previous), or all of the row (all). gate: one number a branch or a vector."""

    seen_dim: int = 1024
    resampler: str = "perceiver"
    look_heads: int = 8
    look_head_dim: int | None = 64
    look_hidden: int | None = None
    look_ffn: str = "plain(gelu, bias=False)"
    look_norm: str = "layer"
    look_eps: float = 1e-5
    look_qk_norm: bool = False
    see: str = "last"
    gate: str = "number"

    def __post_init__(self):
        one_of("see", self.see, ("last", "previous", "all"))
        one_of("gate", self.gate, ("number", "vector"))
        for name in ("seen_dim", "look_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def branches(self, dim):
        """{name: branch} of the gated block: look, then think (section 2.2)."""
        norm = lambda: build("look_norm", self.look_norm, NORMS, dim=dim, eps=self.look_eps)
        gate = lambda: TanhGate(dim if self.gate == "vector" else None)
        qk = (lambda c: build("look_norm", self.look_norm, NORMS, dim=c, eps=self.look_eps)) if self.look_qk_norm else None
        head = self.look_head_dim or dim // self.look_heads
        look = Look(dim, self.seen_dim, self.look_heads, head, even=self.see == "previous", qk_norm=qk)
        think = build("look_ffn", self.look_ffn, FEED_FORWARDS, dim=dim, hidden=self.look_hidden or 4 * dim)
        return {"look": Residual(look, pre=norm(), gate=gate()), "think": Residual(think, pre=norm(), gate=gate())}

    def bits(self, count_BT, images):
        """(B, T) the images that each token looks at, as bits, from how many have come so far."""
        whole = torch.ones_like(count_BT)
        if self.see == "all":
            return (whole << images) - 1
        return torch.where(count_BT > 0, whole << (count_BT - 1).clamp(min=0), 0) if self.see == "last" else (whole << count_BT) - 1


def remembered(media_BNKW):
    """(memory (B, S, W), its Tokens, which know their image)."""
    B, N, K, W = media_BNKW.shape
    if N > 62:
        raise ValueError(f"a row holds {N} images; 62 can be told apart")
    at = torch.arange(N, device=media_BNKW.device).repeat_interleave(K)[None]
    return media_BNKW.flatten(1, 2), tokens(N * K, marks={"image": at}, device=media_BNKW.device)


@dataclass(frozen=True, kw_only=True)
class CrossModal(Looks):
    """The resampler and the gated blocks alone (open_flamingo's helpers). dim: of the text's vectors."""

    dim: int = 512
    layers: int = 2
    output: str = "hidden"
    length: int = 1
    vocab: int = 1
    heads: int = 1
    head_dim: int | None = None
    init: str = "normal"
    init_std: float = 0.02

    def build(self):
        return initialise(CrossModalModel(self), self)


class CrossModalModel(Stack):
    def __init__(self, cfg):
        one_of("output", cfg.output, ("hidden",))
        super().__init__([Block(**cfg.branches(cfg.dim)) for _ in range(cfg.layers)])
        self.config = cfg
        self.resampler = build("resampler", cfg.resampler, RESAMPLERS, dim=cfg.seen_dim)

    def forward(self, vision_features, hidden_states, media_locations):
        """vision_features (B, N, frames, P, W), hidden_states (B, T, D), media_locations (B, T) true where an image stands -> media (B, N, K, W),
        hidden (B, T, D)."""
        B, N = vision_features.shape[:2]
        media = self.resampler(vision_features.flatten(2, 3).flatten(0, 1)).unflatten(0, (B, N))
        memory, toks = remembered(media)
        bits = self.config.bits(media_locations.long().cumsum(-1), N)
        queries = tokens(hidden_states.shape[1], marks={"images": bits}, device=hidden_states.device)
        return Output(media=media, hidden=self.run(hidden_states, Context(queries, memory, toks)))


@dataclass(frozen=True, kw_only=True)
class SeeingDecoder(AroundWords, Looks):
    """words: the language model; picture: the encoder of images; every: gated blocks stand before each `every`-th block of the language
    model. more: tokens that were added to the vocabulary and have weights of their own. image: the id that stands for an image in the text.
    A field that is not here is that of the words."""

    asked = WORDS | {"start", "layers", "pattern", "position"}
    words: Decoder
    picture: ImageEncoder
    every: int = 1
    more: int = 0
    image: int | None = None
    output: str = "lm"

    def __post_init__(self):
        super().__post_init__()
        self.part("words", Decoder, output="lm")
        self.part("picture", ImageEncoder, output="hidden")
        object.__setattr__(self, "seen_dim", self.picture.dim)
        one_of("output", self.output, ("lm",))
        if self.every < 1 or self.more < 0:
            raise ValueError(f"every={self.every} must be at least 1, and more={self.more} 0 or more")

    @property
    def vocab(self):
        return self.words.vocab + self.more

    @property
    def decoder_layers(self):
        return self.picture.layers

    def build(self):
        model = SeeingDecoderModel(self)
        initialise(model.words, self.words)
        initialise(model.picture, self.picture)
        return model


class Extended(nn.Module):
    """An embedding or output matrix with rows of added tokens behind the others."""

    def __init__(self, base, more):
        super().__init__()
        self.base = base
        width = base.weight.shape[1]
        self.more = nn.Embedding(more, width) if isinstance(base, nn.Embedding) else nn.Linear(width, more, bias=False)
        nn.init.normal_(self.more.weight, std=0.02)
        self.bias = None

    @property
    def weight(self):
        return torch.cat([self.base.weight, self.more.weight])

    def forward(self, x):
        embeds = isinstance(self.base, nn.Embedding)
        return nn.functional.embedding(x, self.weight) if embeds else nn.functional.linear(x, self.weight)


class SeeingDecoderModel(nn.Module):
    """A language model with eyes."""

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.words, self.picture = DecoderModel(cfg.words), ImageEncoderModel(cfg.picture)
        self.resampler = build("resampler", cfg.resampler, RESAMPLERS, dim=cfg.seen_dim)
        for i in range(0, cfg.words.layers, cfg.every):
            block = self.words.blocks[i]
            self.words.blocks[i] = Block(**cfg.branches(cfg.words.dim), **dict(block.named_children()))
        if cfg.more:
            tied = self.words.head.out.weight is self.words.embed.token.weight
            self.words.embed.token = Extended(self.words.embed.token, cfg.more)
            self.words.head.out, self.words.head.vocab = Extended(self.words.head.out, cfg.more), cfg.vocab
            if tied:
                self.words.head.out.more.weight = self.words.embed.token.more.weight

    @property
    def unwritten(self):
        """Ids that stand for something given, which the model never writes."""
        return () if self.config.image is None else (self.config.image,)

    def trained(self):
        """The parameters that are trained: all but those of the language model and of the encoder of images (section 2.2)."""
        new = (".look.", ".think.", "resampler.", ".more.")
        return {n: p for n, p in self.named_parameters() if any(x in f".{n}" for x in new)}

    def look(self, pixels_BNCHW, **options):
        """(B, N, K, W) of the images of each row."""
        B, N = pixels_BNCHW.shape[:2]
        hidden = self.picture(pixels_BNCHW.flatten(0, 1), **options)["hidden"]
        return self.resampler(hidden).unflatten(0, (B, N))

    def forward(self, input_ids, attention_mask=None, position_ids=None, *, pixel_values=None, media=None, image_attention_mask=None, cache=None,
                use_cache=False, at=None, labels=None, smoothing=0.0, interpolate_pos_encoding=False):  # fmt: skip
        """input_ids (B, T); pixel_values (B, N, C, H, W), or media (B, N, K, W) as `look` gave them; image_attention_mask (B, T, N): which
        images a token looks at; without it that follows from the id `image` and from `see`. The rest as for a decoder.
        Returns logits (B, T, V), hidden (B, T, D), cache."""
        cfg, words = self.config, self.words
        if (pixel_values is None) == (media is None):
            raise ValueError("give either pixel_values, the images of each row, or media, what look() made of them")
        if media is None:
            if pixel_values.dim() != 5:
                raise ValueError(
                    f"pixel_values have the shape {tuple(pixel_values.shape)}; they must be (batch, images, channels, height, width)"
                )
            media = self.look(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        N, cache = media.shape[1], Cache() if cache is None and use_cache else cache
        if image_attention_mask is not None:
            count = torch.zeros_like(input_ids)
            bits = (image_attention_mask[:, -input_ids.shape[1] :].long() << torch.arange(N, device=media.device)).sum(-1)
        else:
            if cfg.image is None and cfg.see != "all":
                raise ValueError(
                    f"see={cfg.see} goes by where images stand: set image, the id of an image in the text, or give image_attention_mask"
                )
            count = (input_ids == cfg.image).long().cumsum(-1) if cfg.image is not None else torch.zeros_like(input_ids)
            if cache is not None and cache.length:
                count = count + cache.marks["count"][:, cache.length - 1 : cache.length]
            if int(count.max()) > N:
                raise ValueError(f"the text holds {int(count.max())} images and {N} are given")
            bits = cfg.bits(count, N)
        number, last, toks = locate(cfg.words, input_ids, None, attention_mask, position_ids, cache, vocab=cfg.vocab, packed=True)
        toks.marks.update(images=bits, count=count)
        x = words.embed(input_ids, number, None, None, last)
        memory, seen = remembered(media)
        losses = []
        hidden = words.run(x, Context(toks, memory, seen, cache, losses=losses))
        out = Output(hidden=hidden)
        out.update(words.head(hidden, {"labels": labels, "smoothing": smoothing, "at": at}))
        if cache is not None:
            out["cache"] = cache
        return out.with_losses(losses)


def nano():
    """A small one; its language model and its encoder of images come from other runs."""
    words = Decoder(vocab=1024, length=128, dim=128, layers=4, heads=4, hidden=256, pad=0, bos=5, eos=6)
    picture = ImageEncoder(
        dim=128, hidden=256, layers=2, heads=4, patch=8, image=32, stem="convs", patch_bias=False, embed_norm=True, norm_whole=True
    )
    return SeeingDecoder(words=words, picture=picture, resampler="perceiver(latents=8, layers=1, heads=4, head_dim=32, mult=2)", look_heads=4,
                         look_head_dim=32, look_hidden=256)  # fmt: skip
