"""Generation: greedy, sampling and beam search, for decoders and encoder-decoders, with the cache that the caller owns.

Dims: B rows, T tokens, V vocabulary, K beams.
"""

from .beam import beam_search
from .decoding import Decoding, LoweredDecoding
from .engine import Draft, Engine, Full, NGram, Request
from .sampling import Sampling, finish, generate, slide, steps
from .text import complete, sample_text, stream

__all__ = [
    "Decoding",
    "Draft",
    "Engine",
    "Full",
    "LoweredDecoding",
    "NGram",
    "Request",
    "Sampling",
    "beam_search",
    "complete",
    "finish",
    "generate",
    "sample_text",
    "slide",
    "steps",
    "stream",
]
