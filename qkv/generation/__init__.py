"""Generation: greedy, sampling and beam search, for decoders and encoder-decoders, with the cache that the caller owns.

Dims: B rows, T tokens, V vocabulary, K beams.
"""

from .beam import beam_search
from .sampling import Decoding, Sampling, generate, steps
from .text import complete, sample_text, stream

__all__ = ["Decoding", "Sampling", "beam_search", "complete", "generate", "sample_text", "steps", "stream"]
