"""Series: encoder-decoders of numbers over time (Informer, Zhou et al., 2021). SeriesEncoderDecoder says a distribution for each of the next steps from lagged
values and features; CalendarEncoderDecoder writes all of the next steps at once from values and calendar marks.

Dims: B series, T steps, S steps that are read, C values of a step, F features, D model, N lags.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributions import AffineTransform, Independent, NegativeBinomial, Normal, StudentT, TransformedDistribution

from ..core import FEED_FORWARDS, KERNELS, Attention, Block, Context, Residual, Stack, build, read_pattern, tokens
from ..core.layers import Dropout
from ..core.positions import Sinusoid
from .shape import Output, Shape, initialise, make_norm, one_of


@dataclass(frozen=True, kw_only=True)
class Series(Shape):
    """values: of a step. context: steps that are read; horizon: steps that are said. kernel: of self-attention, softmax or probsparse. distil: half the length after each layer
    of the encoder but the last. mixed: the decoder joins heads as the published code of 2020 does."""

    vocab: int = 1
    length: int = 1
    values: int = 1
    context: int = 96
    horizon: int = 24
    decoder_layers: int | None = None
    decoder_heads: int | None = None
    decoder_hidden: int | None = None
    distil: bool = True
    mixed: bool = False
    order: str = "post"
    position: str = "none"
    final_norm: bool = False

    def __post_init__(self):
        object.__setattr__(self, "length", self.context + self.horizon)
        super().__post_init__()
        for name in ("values", "context", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


class Mixed(nn.Module):
    """A kernel whose heads are joined as if they stood where the steps do (the published code of 2020, mix)."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.patterns, self.takes_scores = inner, inner.patterns, inner.takes_scores

    @property
    def weights(self):
        return self.inner.weights

    def flops(self, *args):
        return self.inner.flops(*args)

    def forward(self, q_BHTC, *rest):
        out = self.inner(q_BHTC, *rest)
        B, H, T, C = out.shape
        return out.contiguous().view(B, T, H, C).transpose(1, 2)


class Distil(nn.Module):
    """Half the length: a convolution over neighbours in a circle, and the greatest of three (section 3.3)."""

    def __init__(self, dim):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(dim, dim, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(dim)
        self.act, self.most = nn.ELU(), nn.MaxPool1d(3, 2, 1)

    def forward(self, x_BTD):
        return self.most(self.act(self.norm(self.conv(x_BTD.mT)))).mT


def blocks(cfg, layers, heads, hidden, second):
    kernel = lambda i, text=None: build("kernel", text or cfg.layer("kernel", i), KERNELS, dropout=cfg.attn_dropout, length=cfg.length, heads=heads,
                                        head_dim=cfg.dim // heads)  # fmt: skip
    residual = lambda f: Residual(f, post=make_norm(cfg), dropout=cfg.dropout)
    out = []
    for i in range(layers):
        own = Mixed(kernel(i)) if cfg.mixed and second else kernel(i)
        parts = {
            "attn": residual(Attention(cfg.dim, heads, pattern=read_pattern("causal" if second else "full"), kernel=own, biases=cfg.biases))
        }
        if second:
            parts["cross"] = residual(Attention(cfg.dim, heads, cross=True, kernel=kernel(i, "softmax"), biases=cfg.biases))
        parts["ffn"] = residual(build("ffn", cfg.layer("ffn", i), FEED_FORWARDS, dim=cfg.dim, hidden=hidden))
        out.append(Block(**parts))
    return out


class Reader(Stack):
    """The encoder: blocks, and between them half the length."""

    def __init__(self, cfg):
        super().__init__(blocks(cfg, cfg.layers, cfg.heads, cfg.wide, False), make_norm(cfg) if cfg.final_norm else None)
        self.distils = nn.ModuleList(Distil(cfg.dim) for _ in range(cfg.layers - 1 if cfg.distil else 0))

    def forward(self, x_BSD, losses):
        for i, block in enumerate(self.blocks):
            x_BSD = block(x_BSD, Context(tokens(x_BSD.shape[1], device=x_BSD.device), losses=losses))
            if i < len(self.distils):
                x_BSD = self.distils[i](x_BSD)
        return self.norm(x_BSD)


class Writer(Stack):
    def __init__(self, cfg):
        layers, heads, hidden = cfg.decoder_layers or cfg.layers, cfg.decoder_heads or cfg.heads, cfg.decoder_hidden or cfg.wide
        super().__init__(blocks(cfg, layers, heads, hidden, True), make_norm(cfg) if cfg.final_norm else None)

    def forward(self, x_BTD, memory_BSD, losses):
        return self.run(x_BTD, Context(tokens(x_BTD.shape[1], device=x_BTD.device), memory_BSD, losses=losses))


@dataclass(frozen=True, kw_only=True)
class SeriesEncoderDecoder(Series):
    """lags: how many steps back values are read beside each step. times: features of a step that are known ahead; statics: numbers of a whole
    series; sizes, widths: of its categories. scaling: values are divided by their mean size (mean), or standardised (std), or none. output: hidden, or the
    parameters of student_t, normal or negative_binomial."""

    lags: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    times: int = 0
    statics: int = 0
    sizes: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    scaling: str = "mean"
    output: str = "student_t"

    def __post_init__(self):
        super().__post_init__()
        one_of("scaling", self.scaling, ("mean", "std", "none"))
        one_of("output", self.output, ("hidden", *DISTRIBUTIONS))
        if not self.lags or min(self.lags) < 0:
            raise ValueError(f"lags={self.lags}: whole numbers of at least 0, and at least one")

    @property
    def past(self):
        """Steps that must be given: the context, and what its lags look back on."""
        return self.context + max(self.lags)

    @property
    def features(self):
        return self.values * len(self.lags) + sum(self.widths or ()) + self.times + self.statics + 2 * self.values

    def build(self):
        return initialise(SeriesEncoderDecoderModel(self), self)


def squareplus(x):
    return (x + (x.square() + 4).sqrt()) / 2


def positive(x):
    return squareplus(x).clamp(min=torch.finfo(x.dtype).eps)


DISTRIBUTIONS = {  # name: (parameters as they come out -> as they are meant, and the distribution)
    "student_t": (lambda df, loc, scale: (2 + squareplus(df), loc, positive(scale)), StudentT, 3),
    "normal": (lambda loc, scale: (loc, positive(scale)), Normal, 2),
    "negative_binomial": (lambda total, logits: (squareplus(total), logits), NegativeBinomial, 2),
}


class Side(nn.Module):
    """Features of each step as vectors: projected, placed, normed."""

    def __init__(self, cfg):
        super().__init__()
        self.project, self.position = nn.Linear(cfg.features, cfg.dim, bias=False), Sinusoid(cfg.length, cfg.dim, "halves")
        self.norm, self.drop = make_norm(cfg), Dropout(cfg.dropout)

    def forward(self, x_BTF, first):
        place = torch.arange(first, first + x_BTF.shape[1], device=x_BTF.device)[None]
        return self.drop(self.norm(self.project(x_BTF) + self.position.embed(place)))


class SeriesEncoderDecoderModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.categories = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(cfg.sizes or (), cfg.widths or ()))
        self.read_side, self.write_side = Side(cfg), Side(cfg)
        self.encoder, self.decoder = Reader(cfg), Writer(cfg)
        count = DISTRIBUTIONS[cfg.output][2] if cfg.output != "hidden" else 0
        self.heads = nn.ModuleList(nn.Linear(cfg.dim, cfg.values) for _ in range(count))

    def scaled(self, x, seen):
        """(loc, scale) of the context x (B, S, ...), of what was seen of it."""
        kind = self.config.scaling
        count = seen.sum(1, keepdim=True)
        if kind == "std":
            n = count.clamp(min=1)
            loc = (x * seen).sum(1, keepdim=True) / n
            return loc, ((((x - loc) * seen).square().sum(1, keepdim=True) / n) + 1e-5).sqrt()
        if kind == "none":
            return torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
        total = (x * seen).abs().sum(1, keepdim=True)
        usual = (total.sum(0) / count.sum(0).clamp(min=1)).squeeze()
        scale = torch.where(count > 0, total / count.clamp(min=1), usual).clamp(min=1e-10)
        return torch.zeros_like(scale), scale

    def forward(self, past_values, past_time_features=None, past_observed_mask=None, future_values=None, future_time_features=None,
                static_real_features=None, static_categorical_features=None):  # fmt: skip
        """past_values (B, past) or (B, past, C), past being context and the longest lag; past_time_features (B, past, times);
        past_observed_mask like the values, 0 where one is missing; future_values (B, horizon[, C]) and future_time_features (B, horizon, times), which the
        decoder reads with their lags. Returns hidden (B, horizon, D), encoder_hidden, loc, scale, static_features, and with a distribution params_0 ...
        and loss, the mean negative log likelihood of future_values."""
        cfg = self.config
        if past_values.shape[1] != cfg.past or past_values.dim() != (2 if cfg.values == 1 else 3):
            shape = f"(batch, {cfg.past})" if cfg.values == 1 else f"(batch, {cfg.past}, {cfg.values})"
            raise ValueError(
                f"past_values have the shape {tuple(past_values.shape)}; they must be {shape}: context={cfg.context} and the longest lag, {max(cfg.lags)}"
            )
        if future_values is None:
            raise ValueError("future_values are missing: the decoder reads the steps to say with their lags")
        seen = torch.ones_like(past_values) if past_observed_mask is None else past_observed_mask
        loc, scale = self.scaled(past_values[:, -cfg.context :], seen[:, -cfg.context :])
        whole = (torch.cat([past_values, future_values], 1) - loc) / scale
        flat = lambda x: x.squeeze(1) if x.dim() == 3 else x
        static = [flat(loc).abs().log1p(), flat(scale).log()]
        static = [*([] if static_real_features is None else [static_real_features]), *static]
        if static_categorical_features is not None:
            columns = static_categorical_features.unbind(-1)
            static = [torch.cat([e(c) for e, c in zip(self.categories, columns)], -1), *static]
        static = torch.cat(static, 1)
        steps = cfg.context + cfg.horizon
        if whole.shape[1] != cfg.past + cfg.horizon:
            raise ValueError(f"future_values have {future_values.shape[1]} steps and the model says {cfg.horizon} (horizon)")
        lagged = torch.stack([whole[:, whole.shape[1] - lag - steps : whole.shape[1] - lag] for lag in cfg.lags], -1).flatten(2)
        parts = [lagged, static[:, None].expand(-1, steps, -1)]
        if cfg.times:
            parts.append(torch.cat([past_time_features[:, cfg.past - cfg.context :], future_time_features], 1))
        x = torch.cat(parts, -1)
        losses: list[torch.Tensor] = []
        memory = self.encoder(self.read_side(x[:, : cfg.context], 0), losses)
        hidden = self.decoder(self.write_side(x[:, cfg.context :], cfg.context), memory, losses)
        out = Output(hidden=hidden, encoder_hidden=memory, loc=loc, scale=scale, static_features=static)
        if self.heads:
            meant, kind, _ = DISTRIBUTIONS[cfg.output]
            params = meant(*(h(hidden) for h in self.heads))
            params = [p.squeeze(-1) for p in params] if cfg.values == 1 else params
            out.update({f"params_{i}": p for i, p in enumerate(params)})
            out["loss"] = -self.distribution(params, loc, scale).log_prob(future_values).mean()
        return out.with_losses(losses)

    def distribution(self, params, loc, scale):
        """Of the values themselves, their scaling undone."""
        base = DISTRIBUTIONS[self.config.output][1](*params)
        joint = self.config.values > 1
        return TransformedDistribution(
            Independent(base, 1) if joint else base, [AffineTransform(loc=loc, scale=scale, event_dim=int(joint))]
        )


CALENDAR = {"minute": 4, "hour": 24, "weekday": 7, "day": 32, "month": 13}
MARKS = ("month", "day", "weekday", "hour", "minute")  # columns of the marks, in this order


@dataclass(frozen=True, kw_only=True)
class CalendarEncoderDecoder(Series):
    """said: how many values are said of each step. known: steps before the horizon that the decoder reads (its start, section 3.4). marks: calendar columns that are
    given, of month, day, weekday, hour, minute. embed: fixed (sines) or learned vectors of marks, or linear (they are numbers)."""

    said: int = 1
    known: int = 48
    marks: int = 4
    embed: str = "fixed"
    final_norm: bool = True
    output: str = "values"

    def __post_init__(self):
        super().__post_init__()
        one_of("embed", self.embed, ("fixed", "learned", "linear"))
        one_of("output", self.output, ("values",))
        if not 0 <= self.known <= self.context:
            raise ValueError(f"known={self.known}: must be from 0 to context={self.context}")
        if self.embed != "linear" and not 4 <= self.marks <= 5:
            raise ValueError(f"marks={self.marks}: month, day, weekday, hour (4), and minute (5)")

    def build(self):
        return initialise(CalendarEncoderDecoderModel(self), self)


class Calendar(nn.Module):
    """A vector of the date: the sum of one for each mark."""

    def __init__(self, cfg):
        super().__init__()
        self.names, self.fixed = MARKS[: cfg.marks], cfg.embed == "fixed"
        if cfg.embed == "linear":
            self.project = nn.Linear(cfg.marks, cfg.dim, bias=False)
            return
        for name in self.names:
            table = Sinusoid(CALENDAR[name], cfg.dim) if cfg.embed == "fixed" else nn.Embedding(CALENDAR[name], cfg.dim)
            self.add_module(name, table)

    def forward(self, marks_BTK):
        if hasattr(self, "project"):
            return self.project(marks_BTK)
        numbers = marks_BTK.long()
        for i, name in enumerate(self.names):
            low, high = (int(f(numbers[..., i])) for f in (torch.min, torch.max))
            if low < 0 or high >= CALENDAR[name]:
                raise ValueError(f"a mark of {name} is {low if low < 0 else high}; it must be from 0 to {CALENDAR[name] - 1}")
        tables = [getattr(self, name) for name in self.names]
        return sum((table.embed if self.fixed else table)(numbers[..., i]) for i, table in enumerate(tables))


class Stem(nn.Module):
    """Values by a convolution over neighbours, their places, their dates (section 3.2, figure 6)."""

    def __init__(self, cfg):
        super().__init__()
        self.values = nn.Conv1d(cfg.values, cfg.dim, 3, padding=1, padding_mode="circular")
        self.position, self.calendar, self.drop = Sinusoid(5000, cfg.dim), Calendar(cfg), Dropout(cfg.dropout)

    def forward(self, x_BTC, marks_BTK):
        place = torch.arange(x_BTC.shape[1], device=x_BTC.device)[None]
        return self.drop(self.values(x_BTC.mT).mT + self.position.embed(place) + self.calendar(marks_BTK))


class CalendarEncoderDecoderModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.read_stem, self.write_stem = Stem(cfg), Stem(cfg)
        self.encoder, self.decoder = Reader(cfg), Writer(cfg)
        self.head = nn.Linear(cfg.dim, cfg.said)

    def forward(self, x_enc, x_mark_enc, x_dec, x_mark_dec):
        """x_enc (B, context, C), x_dec (B, known + horizon, C) whose last steps hold zeros, marks (B, ..., K) -> logits (B, horizon, said)."""
        cfg = self.config
        for name, x, wide in (
            ("x_enc", x_enc, cfg.values),
            ("x_dec", x_dec, cfg.values),
            ("x_mark_enc", x_mark_enc, cfg.marks),
            ("x_mark_dec", x_mark_dec, cfg.marks),
        ):
            if x.dim() != 3 or x.shape[-1] != wide:
                raise ValueError(f"{name} has the shape {tuple(x.shape)}; it must be (batch, steps, {wide})")
        if x_dec.shape[1] < cfg.horizon:
            raise ValueError(f"x_dec has {x_dec.shape[1]} steps, and {cfg.horizon} are said (horizon)")
        losses: list[torch.Tensor] = []
        memory = self.encoder(self.read_stem(x_enc, x_mark_enc), losses)
        hidden = self.decoder(self.write_stem(x_dec, x_mark_dec), memory, losses)
        out = Output(logits=self.head(hidden)[:, -cfg.horizon :], hidden=hidden, encoder_hidden=memory)
        return out.with_losses(losses)


@dataclass(frozen=True, kw_only=True)
class LinearForecaster(Shape):
    """The honest rival (NLinear, Zeng et al., 2023, section 4): each next step is a weighted sum of the steps that are read, less the last of them, which is added
    again. values: columns, all of which share the weights; context, horizon: steps."""

    vocab: int = 1
    dim: int = 1
    layers: int = 1
    heads: int = 1
    length: int = 1
    values: int = 1
    said: int = 1
    context: int = 96
    horizon: int = 24
    output: str = "values"

    def __post_init__(self):
        object.__setattr__(self, "length", self.context + self.horizon)
        super().__post_init__()
        if self.said != self.values:
            raise ValueError(f"said={self.said}: each of the values={self.values} columns is foretold from itself")

    def build(self):
        return LinearForecasterModel(self)


class LinearForecasterModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.weigh = nn.Linear(cfg.context, cfg.horizon)
        nn.init.constant_(self.weigh.weight, 1 / cfg.context)

    def forward(self, x_enc):
        """x_enc (B, context, C) -> logits (B, horizon, C)"""
        last = x_enc[:, -1:]
        return Output(logits=self.weigh((x_enc - last).mT).mT + last)


OWN = {"linear-forecaster": LinearForecaster()}
