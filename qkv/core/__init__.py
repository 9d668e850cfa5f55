"""What every model is made of. Imports torch only; knows no architecture."""

from . import efficient, layers
from .attention import Attention
from .blocks import Block, Parallel, Residual, Stack
from .cache import Cache
from .context import Context, tokens
from .convolution import CONVOLUTIONS, Convolution
from .efficient import Experts
from .kernels import KERNELS as EXACT
from .kernels import Softmax
from .layers import NORMS, Embedding, FeedForward, GatedFeedForward, LayerNorm, RMSNorm
from .masks import Causal, Documents, Full, Pattern, Prefix, See, Sliding, Tokens
from .patterns import PATTERNS, read_pattern
from .positions import POSITIONS, XL, ALiBi, Learned, NoPosition, Position, RoPE, RoPE2D, Shaw, Sinusoid, Sinusoid2D, T5Bias
from .slots import build, nearest
from .watch import made_of, plain, transformed, watched

KERNELS = EXACT | efficient.KERNELS
FEED_FORWARDS = layers.FEED_FORWARDS | efficient.FEED_FORWARDS

__all__ = [
    "CONVOLUTIONS",
    "FEED_FORWARDS",
    "KERNELS",
    "NORMS",
    "PATTERNS",
    "POSITIONS",
    "XL",
    "ALiBi",
    "Attention",
    "Block",
    "Cache",
    "Causal",
    "Context",
    "Convolution",
    "Documents",
    "Embedding",
    "Experts",
    "FeedForward",
    "Full",
    "GatedFeedForward",
    "LayerNorm",
    "Learned",
    "NoPosition",
    "Parallel",
    "Pattern",
    "Position",
    "Prefix",
    "RMSNorm",
    "Residual",
    "RoPE",
    "RoPE2D",
    "See",
    "Shaw",
    "Sinusoid",
    "Sinusoid2D",
    "Sliding",
    "Softmax",
    "Stack",
    "T5Bias",
    "Tokens",
    "build",
    "made_of",
    "nearest",
    "plain",
    "read_pattern",
    "tokens",
    "transformed",
    "watched",
]  # fmt: skip
