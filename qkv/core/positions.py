"""Position schemes. Each overrides only the places where it enters: the embedding, the rotation of q and k, the scores, the values.

Dims: B batch, T queries, S keys, H heads, C channels of a head, D model.
"""

import math

import torch
from torch import nn


class Position(nn.Module):
    """site says where an instance lives: "embedding" (added to the input, one a model), "layer" (one an attention layer),
    "stack" (a bias that all layers share, computed once a pass)."""

    site = "layer"
    scores = False  # does it add to attention scores?

    def embed(self, number):
        """(B|1, T) numbers -> (B|1, T, D) added to the embedding."""
        raise NotImplementedError(f"{type(self).__name__} is not added to the embedding")

    def inputs(self, x_BTD, tokens):
        """What queries and keys are projected from."""
        return x_BTD

    def rotate(self, x_BHTC, tokens):
        return x_BHTC

    def query(self, q_BHTC):
        """What is added to the queries alone, before they meet the keys."""
        return q_BHTC

    def bias(self, q_BHTC, queries, keys):
        """(B|1, H, T, S) added to the scores, or None. q is None where the scheme lives in the stack."""
        return None

    def values(self, weights_BHTS, queries, keys):
        """(B, H, T, C) added to the output, or None."""
        return None


class NoPosition(Position):
    """No position information at all (a causal mask alone still tells order)."""


class Learned(Position):
    """A trained vector a position (BERT, 2018; GPT, 2018). offset: rows kept free before position 0. still: the row that is not
    trained (padding)."""

    site = "embedding"

    def __init__(self, length, dim, offset=0, still=None):
        super().__init__()
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        self.length, self.offset, self.still = length, offset, still
        self.weight = nn.Parameter(torch.empty(length + offset, dim).normal_(std=0.02))

    def embed(self, number):
        return nn.functional.embedding(number.clamp(min=-self.offset) + self.offset, self.weight, padding_idx=self.still)

    @torch.no_grad()
    def stretch(self, other):
        """Takes the vectors of another table: the first ones of a longer table, those of a shorter one drawn out in a straight line
        between neighbours (as ViT does it for larger images, 2021, section 3.2)."""
        kept, rest = other.weight[: other.offset], other.weight[other.offset :]
        if self.length > other.length:
            rest = nn.functional.interpolate(rest.T[None], self.length, mode="linear", align_corners=True)[0].T
        self.weight.copy_(torch.cat([kept, rest[: self.length]]))


class Sinusoid(Position):
    """Fixed sines and cosines (Vaswani et al., 2017, section 3.5), a frozen table of `length` rows that is saved with the model.

    layout: "interleaved" (sin, cos, sin, cos ..., the paper), "halves" (all sines, then all cosines: Marian) or "fairseq"
    (halves whose slowest wave is 1/10000 exactly: tensor2tensor, FSMT). zero: a row of zeros, for padding.
    """

    site = "embedding"

    def __init__(self, length, dim, layout="interleaved", offset=0, zero=None):
        super().__init__()
        if layout not in ("interleaved", "halves", "fairseq"):
            raise ValueError(f"layout must be interleaved, halves or fairseq, not {layout!r}")
        if dim % 2:
            raise ValueError(f"sinusoids need an even dim, not {dim}")
        self.length, self.dim, self.layout, self.offset, self.zero = length, dim, layout, offset, zero
        self.weight = nn.Parameter(torch.empty(length + offset, dim), requires_grad=False)
        self.reset()

    @torch.no_grad()
    def reset(self):
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float64) / (half - 1 if self.layout == "fairseq" and half > 1 else half)
        angle = torch.arange(self.weight.shape[0], dtype=torch.float64)[:, None] * 10000.0**-steps
        waves = torch.stack([angle.sin(), angle.cos()], -1 if self.layout == "interleaved" else 1).flatten(1)
        if self.zero is not None:
            waves[self.zero] = 0
        self.weight.copy_(waves)

    def embed(self, number):
        return nn.functional.embedding(number.clamp(min=-self.offset) + self.offset, self.weight)


class Sinusoid2D(Sinusoid):
    """Fixed sines and cosines of a grid of `width` columns, read row by row: half of the channels for the column, half for the row
    (He et al., 2022, MAE, appendix A.1). skip: tokens before the grid, whose rows are zero (a class token)."""

    def __init__(self, length, dim, width, skip=0):
        if dim % 4:
            raise ValueError(f"sinusoids of two axes need a dim that 4 divides, not {dim}")
        self.width, self.skip = width, skip
        super().__init__(length, dim, "halves")

    @torch.no_grad()
    def reset(self):
        quarter = self.dim // 4
        row, column = cell(torch.arange(self.length), self.width, self.skip)
        f = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
        waves = [wave for axis in (column, row) for wave in ((axis[:, None] * f).sin(), (axis[:, None] * f).cos())]
        self.weight.copy_(torch.cat(waves, 1))
        self.weight[: self.skip] = 0


class RoPE(Position):
    """Rotary positions (Su et al., 2021, section 3.2).

    base: theta. rotated: channels that turn, all of the head's by default. interleaved: pairs are neighbours (the paper) instead of the
    two halves (LLaMA as published). scaling, to texts `factor` times as long as the `original` context: "linear" divides positions
    (Chen et al., 2023); "ntk" raises the base, so that the longest wave alone is slowed by all of it (bloc97, 2023); "llama3" slows
    waves that turn less than `low` times within the original context wholly, those over `high` (4) not at all (Llama 3, 2024); "yarn" likewise
    with `high` 32, and sharpens attention by 0.1 ln(factor) + 1 (Peng et al., 2023, section 3.4).
    """

    def __init__(
        self, head_dim, base=10000.0, rotated=None, interleaved=False, scaling=None, factor=1.0, low=1.0, high=None, original=8192
    ):
        super().__init__()
        self.dim, self.base, self.interleaved = rotated or head_dim, float(base), interleaved
        self.scaling, self.factor, self.low, self.original = scaling, factor, low, original
        self.high = high or (32.0 if scaling == "yarn" else 4.0)
        if self.dim % 2 or not 0 < self.dim <= head_dim:
            raise ValueError(f"rotated must be even and at most the head's {head_dim}, not {self.dim}")
        if scaling not in (None, "none", "linear", "ntk", "llama3", "yarn"):
            raise ValueError(f"scaling must be linear, ntk, llama3 or yarn, not {scaling!r}")
        if factor <= 0 or self.base <= 0:
            raise ValueError(f"base and factor must be positive, not {base} and {factor}")
        self.sharper = 0.1 * math.log(factor) + 1 if scaling == "yarn" and factor > 1 else 1.0

    def frequencies(self, dtype, device):
        """(dim/2,) radians a position."""
        base = self.base * self.factor ** (self.dim / max(1, self.dim - 2)) if self.scaling == "ntk" else self.base
        f = base ** (-torch.arange(0, self.dim, 2, device=device).to(dtype) / self.dim)
        if self.scaling == "linear":
            return f / self.factor
        if self.scaling == "llama3":
            turns = self.original * f / (2 * math.pi)  # over the original context
            smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
            return f * (smooth + (1 - smooth) / self.factor)
        if self.scaling == "yarn":  # the ramp is over channels here, from that which turns `high` times to that which turns `low` times
            channel = lambda turns: self.dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.base))
            first, last = max(math.floor(channel(self.high)), 0), min(math.ceil(channel(self.low)), self.dim - 1)
            slow = ((torch.arange(self.dim // 2, device=device).to(dtype) - first) / max(last - first, 1e-3)).clamp(0, 1)
            return f * (1 - slow + slow / self.factor)
        return f

    def angles(self, tokens, dtype, device):
        """(B|1, 1, T, dim/2) radians."""
        return tokens.position[:, None, :, None].to(dtype) * self.frequencies(dtype, device)

    def rotate(self, x_BHTC, tokens):
        key = ("rope", id(self), x_BHTC.dtype)
        if key not in tokens.memo:  # every layer rotates by the same angles
            dtype = torch.promote_types(x_BHTC.dtype, torch.float32)
            angle = self.angles(tokens, dtype, x_BHTC.device)
            tokens.memo[key] = tuple((wave * self.sharper).to(x_BHTC.dtype) for wave in (angle.cos(), angle.sin()))
        cos, sin = tokens.memo[key]
        x, rest = (x_BHTC, None) if self.dim == x_BHTC.shape[-1] else x_BHTC.split([self.dim, x_BHTC.shape[-1] - self.dim], -1)
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1) if self.interleaved else x.chunk(2, -1)
        turned = a * cos - b * sin, b * cos + a * sin
        out = torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)
        return out if rest is None else torch.cat([out, rest], -1)


class RoPEBefore(RoPE):
    """Rotary positions of the vectors that queries and keys are projected from, head_dim channels at a time, instead of queries and keys
    (the wav2vec 2.0 Conformer as published). Its frequencies are saved with the model, in float32."""

    rotate = Position.rotate

    def __init__(self, head_dim, base=10000.0):
        super().__init__(head_dim, base)
        self.register_buffer("waves", super().frequencies(torch.float32, None))

    def frequencies(self, dtype, device):
        return self.waves.to(dtype)

    def inputs(self, x_BTD, tokens):
        return RoPE.rotate(self, x_BTD.unflatten(-1, (-1, self.dim)).transpose(1, 2), tokens).transpose(1, 2).flatten(2)


class RoPE2D(RoPE):
    """Rotary positions of a grid of `width` columns, read row by row: half of the waves turn by the row, half by the column (Heo et al.,
    2024, axial). skip: tokens before the grid, which do not turn (a class token)."""

    def __init__(self, head_dim, width, base=100.0, skip=0):
        if head_dim % 4:
            raise ValueError(f"two axes need a head_dim that 4 divides, not {head_dim}")
        if not isinstance(width, int) or width < 1 or not isinstance(skip, int) or skip < 0:
            raise ValueError(f"width must be at least 1 and skip at least 0, not {width!r} and {skip!r}")
        super().__init__(head_dim, base)
        self.width, self.skip = width, skip

    def frequencies(self, dtype, device):
        """(dim/4,) of one axis."""
        return self.base ** (-torch.arange(0, self.dim, 4, device=device).to(dtype) / self.dim)

    def angles(self, tokens, dtype, device):
        row, column = cell(tokens.position, self.width, self.skip)
        f = self.frequencies(dtype, device)
        return torch.cat([(axis.to(dtype)[..., None] * f) for axis in (row, column)], -1)[:, None]


def cell(number, width, skip):
    """(row, column) of the number-th token, 0 of the first `skip`."""
    place = (number - skip).clamp(min=0)
    return place // width, place % width


class ALiBi(Position):
    """A slope of distance a head (Press et al., 2022, section 3); any head count, by the paper's interpolation."""

    site, scores = "stack", True

    def __init__(self, heads):
        super().__init__()
        self.slopes = self.slope(heads)

    @staticmethod
    def slope(heads):
        power = 2 ** math.floor(math.log2(heads))
        own = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
        return own + [2.0 ** (-8 * (i + 0.5) / power) for i in range(0, heads - power)]

    def bias(self, q_BHTC, queries, keys):
        distance = (queries.position[:, None, :, None] - keys.position[:, None, None, :]).abs()
        slopes = torch.tensor(self.slopes, dtype=torch.float32, device=distance.device)
        return -slopes[:, None, None] * distance


class T5Bias(Position):
    """A learned score a bucket of distance and head (Raffel et al., 2020, section 2.1): half of the buckets exact, the rest
    logarithmic up to `far`. causal: all buckets look back; else half of them look ahead."""

    site, scores = "stack", True

    def __init__(self, heads, buckets=32, far=128, causal=False):
        super().__init__()
        if buckets < 4 or far <= buckets // 2:
            raise ValueError(f"needs at least 4 buckets and far over half of them, not buckets={buckets}, far={far}")
        self.buckets, self.far, self.causal = buckets, far, causal
        self.weight = nn.Parameter(torch.empty(buckets, heads).normal_(std=0.02))

    def bucket(self, distance):
        """distance: key minus query, any shape of integers -> bucket of each."""
        n, base = self.buckets, 0
        if self.causal:
            distance = -distance.clamp(max=0)
        else:
            n //= 2
            base, distance = (distance > 0) * n, distance.abs()
        exact = n // 2
        log = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.far / exact) * (n - exact)
        return base + torch.where(distance < exact, distance, (exact + log.long()).clamp(max=n - 1))

    def bias(self, q_BHTC, queries, keys):
        distance = keys.position[:, None, :] - queries.position[:, :, None]
        return nn.functional.embedding(self.bucket(distance), self.weight).permute(0, 3, 1, 2)


class Shaw(Position):
    """A trained vector a distance, up to `far`, added to the keys, and with `values` to the values (Shaw et al., 2018, section 3.2).
    shared: keys and values have one table (OpenNMT)."""

    scores = True

    def __init__(self, head_dim, far=16, values=True, shared=False):
        super().__init__()
        if not isinstance(far, int) or far < 1:
            raise ValueError(f"far must be a whole number of at least 1, not {far!r}")
        self.far, self.with_values = far, values
        self.keys = nn.Parameter(torch.empty(2 * far + 1, head_dim).normal_(std=0.02))
        self.table = (self.keys if shared else nn.Parameter(torch.empty(2 * far + 1, head_dim).normal_(std=0.02))) if values else None
        if not values:
            self.values = super().values  # nothing is added to them

    def distance(self, queries, keys):
        """(B|1, 1, T, S) rows of the table."""
        far = (keys.position[:, None, :] - queries.position[:, :, None]).clamp(-self.far, self.far) + self.far
        return far[:, None]

    def bias(self, q_BHTC, queries, keys):
        scores = (q_BHTC * q_BHTC.shape[-1] ** -0.5) @ self.keys.T
        rows = self.distance(queries, keys)
        return scores.gather(-1, rows.expand(*scores.shape[:2], *rows.shape[2:]).expand(scores.shape[0], -1, -1, -1))

    def values(self, weights_BHTS, queries, keys):
        rows = self.distance(queries, keys).expand(weights_BHTS.shape)
        summed = weights_BHTS.new_zeros(*weights_BHTS.shape[:-1], 2 * self.far + 1).scatter_add(-1, rows, weights_BHTS)
        return summed @ self.table


class XL(Position):
    """Sines and cosines of the distance, projected and met by the queries, and a bias on the queries for each of the two (Transformer-XL,
    Dai et al., 2019, section 3.3): (q + u) k + (q + v) W r. layout: of the sines and cosines, halves or interleaved (Conformer)."""

    scores = True

    def __init__(self, heads, head_dim, dim, layout="halves"):
        super().__init__()
        if layout not in ("halves", "interleaved"):
            raise ValueError(f"layout must be halves or interleaved, not {layout!r}")
        if dim % 2:
            raise ValueError(f"sinusoids need an even dim, not {dim}")
        self.dim, self.layout = dim, layout
        self.project = nn.Linear(dim, heads * head_dim, bias=False)
        self.u, self.v = (nn.Parameter(torch.empty(heads, 1, head_dim).normal_(std=0.02)) for _ in range(2))

    def query(self, q_BHTC):
        return q_BHTC + self.u

    def waves(self, distance, dtype):
        """(N,) -> (N, D)"""
        steps = torch.arange(0, self.dim, 2, device=distance.device, dtype=torch.float64) / self.dim
        angle = distance.double()[:, None] * 10000.0**-steps
        return torch.stack([angle.sin(), angle.cos()], -1 if self.layout == "interleaved" else 1).flatten(1).to(dtype)

    def bias(self, q_BHTC, queries, keys):
        q, k = queries.position, keys.position
        real = lambda x, f, empty: int(f(x.masked_fill(x < 0, empty)))
        far = 2**40
        most = max(0, real(q, torch.max, -1) - real(k, torch.min, far))
        least = min(most, real(q, torch.min, far) - real(k, torch.max, -1))
        C = q_BHTC.shape[-1]
        r = self.project(self.waves(torch.arange(least, most + 1, device=q.device), q_BHTC.dtype)).unflatten(-1, (-1, C))
        scores = (q_BHTC + (self.v - self.u)) @ r.permute(1, 2, 0) * C**-0.5  # (B, H, T, distances)
        rows = ((q[:, :, None] - k[:, None, :]).clamp(least, most) - least)[:, None]
        return scores.gather(-1, rows.expand(scores.shape[0], scores.shape[1], -1, -1))


POSITIONS = {
    "none": NoPosition,
    "learned": Learned,
    "sinusoid": Sinusoid,
    "sinusoid2d": Sinusoid2D,
    "rope": RoPE,
    "rope_before": RoPEBefore,
    "rope2d": RoPE2D,
    "alibi": ALiBi,
    "t5": T5Bias,
    "shaw": Shaw,
    "xl": XL,
}
