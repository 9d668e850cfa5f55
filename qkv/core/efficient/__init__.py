"""Parts that cost less than they seem: attention that grows with the length and not its square, and experts of which one works on a
token. They stand in the same slots; each says what it gives up."""

from . import blocks
from .bigbird import BigBird
from .experts import Experts
from .linformer import Linformer
from .patterns import PATTERNS
from .performer import Performer
from .probsparse import ProbSparse

__all__ = ["FEED_FORWARDS", "KERNELS", "PATTERNS", "BigBird", "Experts", "Linformer", "Performer", "ProbSparse", "blocks"]
FEED_FORWARDS = {"experts": Experts}
KERNELS = {"linformer": Linformer, "performer": Performer, "bigbird": BigBird, "probsparse": ProbSparse}
