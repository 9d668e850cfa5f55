"""SpeechEncoderDecoder: hears frames of sound, writes text (Whisper, Radford et al., 2022)."""

from dataclasses import dataclass

from torch import nn

from ..core import POSITIONS, Context, build, tokens
from ..core.layers import Dropout
from .encoder_decoder import EncoderDecoder, EncoderDecoderModel
from .fronts import FRONTS
from .shape import initialise


@dataclass(frozen=True, kw_only=True)
class SpeechEncoderDecoder(EncoderDecoder):
    """features: width of a frame (mel bands). frames: positions of the encoder, so that with the front of Whisper a sound has at most twice as
    many frames; a shorter sound is heard with silence behind it. front: from frames to vectors. encoder_position: the encoder's scheme."""

    features: int = 80
    frames: int = 1500
    front: str = "convolved"
    encoder_position: str = "sinusoid(layout=fairseq)"
    order: str = "pre"
    biases: str = "qvo"
    init: str = "normal"

    def __post_init__(self):
        super().__post_init__()
        for name in ("features", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def build(self):
        return initialise(SpeechEncoderDecoderModel(self), self)


class Ear(nn.Module):
    """Frames as vectors with their positions."""

    def __init__(self, cfg, position):
        super().__init__()
        self.front = build("front", cfg.front, FRONTS, features=cfg.features, dim=cfg.dim, eps=cfg.norm_eps)
        self.position, self.drop = position if position.site == "embedding" else None, Dropout(cfg.dropout)

    def forward(self, x_BFM, numbers):
        x = self.front(x_BFM)
        return self.drop(x if self.position is None else x + self.position.embed(numbers))


class SpeechEncoderDecoderModel(EncoderDecoderModel):
    """An encoder-decoder whose encoder hears."""

    def encoder_position(self, cfg):
        return build("encoder_position", cfg.encoder_position, POSITIONS, length=cfg.frames, dim=cfg.dim, heads=cfg.heads,
                     head_dim=cfg.head_dim or cfg.dim // cfg.heads, causal=False)  # fmt: skip

    def reader(self, cfg, position):
        return Ear(cfg, position)

    @property
    def window(self):
        """Frames that it hears at once."""
        n = self.config.frames
        while self.encoder_embed.front.length(n) < self.config.frames:
            n += 1
        while self.encoder_embed.front.length(n + 1) == self.config.frames:
            n += 1
        return n

    def encode(self, input_features=None, attention_mask=None, inputs_embeds=None, losses=None):
        """input_features (B, features, F) -> hidden (B, T, D) and its Tokens."""
        cfg, front = self.config, self.encoder_embed.front
        if input_features is None or input_features.dim() != 3 or input_features.shape[1] != cfg.features:
            shape = None if input_features is None else tuple(input_features.shape)
            raise ValueError(f"input_features have the shape {shape}; they must be (batch, {cfg.features}, frames)")
        T = front.length(input_features.shape[2])
        if not 1 <= T <= cfg.frames:
            raise ValueError(
                f"a sound of {input_features.shape[2]} frames gives {T} vectors, and the encoder has 1 to {cfg.frames} positions"
            )
        toks = tokens(T, device=input_features.device)
        x = self.encoder_embed(input_features.mT, toks.position)
        return self.encoder(x, Context(toks, losses=[] if losses is None else losses)), toks
