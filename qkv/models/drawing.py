"""Drawer: draws an image from words; while it grows, each region looks at the words that matter to it (AttnGAN, Xu et al., 2018), at a small size.

Dims: B texts, T tokens, D width of words, Z noise, C channels, R regions (height times width), S pixels of a side.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..core import Attention, Context, tokens
from .encoder import Encoder, EncoderModel
from .shape import WORDS, AroundWords, Output, initialise, one_of


@dataclass(frozen=True, kw_only=True)
class Drawer(AroundWords):
    """words: the encoder of texts. image: pixels of a side of the last image, a power of 2; the first is of half of it. width: channels. noise: numbers that
    say which of all images of a text it is. A field that is not here is that of the words."""

    asked = WORDS | {"layers"}
    words: Encoder
    image: int = 32
    channels: int = 3
    width: int = 32
    noise: int = 64
    output: str = "images"

    def __post_init__(self):
        self.part("words", Encoder, output="hidden", pooler=False)
        one_of("output", self.output, ("images",))
        if self.image < 16 or self.image & (self.image - 1):
            raise ValueError(f"image={self.image}: must be a power of 2 of at least 16")
        for name in ("width", "noise", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def grid(self):
        """Regions of a side that look at words."""
        return self.image // 2

    def build(self):
        model = DrawerModel(self)
        initialise(model.words, self.words)
        return model


class Grow(nn.Module):
    """Twice the size: nearest neighbours, a convolution, a gate."""

    def __init__(self, before, after):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, 2 * after, 3, padding=1, bias=False), nn.BatchNorm2d(2 * after)

    def forward(self, x_BCHW):
        return F.glu(self.norm(self.conv(F.interpolate(x_BCHW, scale_factor=2.0))), dim=1)


class Refine(nn.Module):
    """A residual branch of two convolutions."""

    def __init__(self, width):
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.GLU(1),
                                   nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))  # fmt: skip

    def forward(self, x_BCHW):
        return x_BCHW + self.parts(x_BCHW)


class Generator(nn.Module):
    """Text and noise to a first image, whose regions look at the words before the second is drawn (sections 3.1)."""

    def __init__(self, cfg):
        super().__init__()
        C, D = cfg.width, cfg.words.dim
        steps = int(math.log2(cfg.image // 2)) - 2  # from 4 x 4 to half the size
        wide = [C * 2 ** max(0, steps - i) for i in range(steps + 1)]
        self.blur = nn.Linear(D, 2 * cfg.noise)  # mean and spread of the text (conditioning augmentation)
        self.first = nn.Linear(2 * cfg.noise, wide[0] * 16)
        self.grow = nn.Sequential(*(Grow(a, b) for a, b in itertools.pairwise(wide)))
        self.look = Attention(C, 1, cross=True, memory_dim=D, biases="")
        self.refine = nn.Sequential(Refine(2 * C), Refine(2 * C), Grow(2 * C, C))
        self.paint = nn.ModuleList(nn.Conv2d(C, cfg.channels, 3, padding=1) for _ in range(2))

    def forward(self, words_BTD, toks, sentence_BD, noise_BZ, spread_BZ=None):
        """(images of half and full size, what is added to the loss so that texts nearby draw alike)."""
        mean, log = self.blur(sentence_BD).chunk(2, -1)
        given = mean if spread_BZ is None else mean + spread_BZ * (log / 2).exp()
        kl = -0.5 * (1 + log - mean.square() - log.exp()).mean(-1).sum()
        h = self.grow(self.first(torch.cat([given, noise_BZ], -1)).unflatten(1, (-1, 4, 4)))
        regions = h.flatten(2).mT
        seen = self.look(regions, Context(tokens(regions.shape[1], device=h.device), words_BTD, toks)).mT.unflatten(2, h.shape[2:])
        second = self.refine(torch.cat([h, seen], 1))
        return [torch.tanh(p(x)) for p, x in zip(self.paint, (h, second))], kl


class Judge(nn.Module):
    """Is an image of this size real, by itself and for this text?"""

    def __init__(self, cfg, size):
        super().__init__()
        C, steps = cfg.width, int(math.log2(size)) - 2
        wide = [cfg.channels, *(C * 2**i for i in range(steps))]
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(wide))
        self.alone = nn.Conv2d(wide[-1], 1, 4)
        self.text, self.both = nn.Linear(cfg.words.dim, C), nn.Conv2d(wide[-1] + C, wide[-1], 3, padding=1)
        self.fits = nn.Conv2d(wide[-1], 1, 4)

    def forward(self, x_BCSS, sentence_BD):
        """Two scores an image: (2, B)"""
        for conv in self.shrink:
            x_BCSS = F.leaky_relu(conv(x_BCSS), 0.2)
        text = self.text(sentence_BD)[:, :, None, None].expand(-1, -1, 4, 4)
        both = F.leaky_relu(self.both(torch.cat([x_BCSS, text], 1)), 0.2)
        return torch.stack([self.alone(x_BCSS).flatten(), self.fits(both).flatten()])


class Matcher(nn.Module):
    """Which text an image is of, by words and regions and by the whole (DAMSM, section 3.2)."""

    def __init__(self, cfg):
        super().__init__()
        C, D = cfg.width, cfg.words.dim
        steps = int(math.log2(cfg.image)) - 2
        wide = [cfg.channels, *(C * 2**i for i in range(steps))]
        parts = [
            x for a, b in itertools.pairwise(wide) for x in (nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
        ]
        self.parts, self.regions, self.whole = nn.Sequential(*parts), nn.Conv2d(wide[-1], D, 1), nn.Linear(wide[-1], D)

    def forward(self, x_BCSS, words_BTD, mask_BT, sentence_BD, sharp=5.0):
        """(images, texts) how well each image fits each text, by words and by the whole; equations 7 to 12."""
        h = self.parts(x_BCSS)
        v_BRD = self.regions(h).flatten(2).mT
        s = torch.einsum("ntd,brd->bntr", words_BTD, v_BRD).masked_fill(~mask_BT[None, :, :, None], -1e4)
        weights = (sharp * s.softmax(2)).softmax(-1)  # over the words of a region, then over the regions of a word
        context = torch.einsum("bntr,brd->bntd", weights, v_BRD)
        fit = F.cosine_similarity(context, words_BTD[None], dim=-1).masked_fill(~mask_BT[None], -1e4)
        by_words = (sharp * fit).logsumexp(-1) / sharp
        return by_words, F.normalize(self.whole(h.mean((2, 3))), dim=-1) @ F.normalize(sentence_BD, dim=-1).T


class DrawerModel(nn.Module):
    """A reader of texts, a generator, a judge for each size, and a matcher."""

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.words, self.generator = EncoderModel(cfg.words), Generator(cfg)
        self.judges = nn.ModuleList(Judge(cfg, s) for s in (cfg.image // 2, cfg.image))
        self.matcher = Matcher(cfg)

    def read(self, input_ids, attention_mask=None, left=None):
        """(words (B, T, D), their Tokens, mask (B, T), sentence (B, D))"""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        words = self.words(input_ids=input_ids, attention_mask=mask).leave(left)["hidden"]
        sentence = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return words, tokens(words.shape[1], valid=mask, device=words.device), mask, sentence

    def forward(self, input_ids, attention_mask=None, *, noise=None):
        """input_ids (B, T), noise (B, Z), zeros by default -> images (B, C, S, S) and first (B, C, S/2, S/2), from -1 to 1."""
        words, toks, _, sentence = self.read(input_ids, attention_mask)
        noise = words.new_zeros(len(words), self.config.noise) if noise is None else noise
        (first, second), _ = self.generator(words, toks, sentence, noise)
        return Output(images=second, first=first)

    def losses(self, pixel_values, input_ids, attention_mask, noise, spread, weight=5.0):
        """{name: summed loss} of the two sides of the game in one pass: `judge` and `match` train judges, matcher and reader on real images,
        `draw` the generator against them as they are (equation 3). Their sum may be minimised by one optimiser."""
        left: list[torch.Tensor] = []  # auxiliary losses of the reader's parts
        words, toks, mask, sentence = self.read(input_ids, attention_mask, left)
        fakes, kl = self.generator(words.detach(), toks, sentence.detach(), noise, spread)
        real = [F.interpolate(pixel_values, f.shape[2:], mode="area") for f in fakes]
        still, wrong = sentence.detach(), sentence.detach().roll(1, 0)
        softplus, judge, draw = F.softplus, 0.0, kl
        for j, fake, x in zip(self.judges, fakes, real):
            judge = judge + (softplus(-j(x, still)) + softplus(j(fake.detach(), still))).sum() / 2 + softplus(j(x, wrong)[1]).sum() / 2
        match = self.matching(pixel_values, words, mask, sentence) + len(words) * sum(left)
        with frozen(self.judges), frozen(self.matcher):
            for j, fake in zip(self.judges, fakes):
                draw = draw + softplus(-j(fake, still)).sum() / 2
            draw = draw + weight * self.matching(fakes[-1], words.detach(), mask, still)
        return {"judge": judge, "match": match, "draw": draw}

    def matching(self, x, words, mask, sentence, sharp=10.0):
        own, total = torch.arange(len(x), device=x.device), 0.0
        for s in self.matcher(x, words, mask, sentence):
            total = total + F.cross_entropy(sharp * s, own, reduction="sum") + F.cross_entropy(sharp * s.T, own, reduction="sum")
        return total / 4


class frozen:
    """The parameters of a module are constants within."""

    def __init__(self, module):
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def __enter__(self):
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *exc):
        for p in self.parameters:
            p.requires_grad_(True)


OWN = {
    "drawer-nano": Drawer(
        words=Encoder(vocab=1024, length=24, dim=64, layers=1, heads=4, hidden=128, pad=0, bos=5, eos=6, dropout=0.1), image=32, width=32
    ),
}
