"""Two towers: an encoder of images and one of texts, whose vectors of a pair are alike (CLIP, Radford et al., 2021).

Dims: B images, N texts, T tokens, D model, W width of the common vectors.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import normalize

from .decoder import Decoder, DecoderModel
from .heads import at_place
from .image import ImageEncoder, ImageEncoderModel
from .shape import AroundWords, Output, initialise, one_of


@dataclass(frozen=True, kw_only=True)
class TwoTowers(AroundWords):
    """picture, words: the towers, as values of their own. width: of the common vectors. scale: logarithm of what similarities are
    multiplied by at first; it is trained. end: which token's vector is the text's, its eos, or that of the highest id (the first published files). output: similarity. A field that is not
    here is that of the words."""

    picture: ImageEncoder
    words: Decoder
    width: int = 512
    scale: float = 2.6592
    end: str = "eos"
    output: str = "similarity"

    def __post_init__(self):
        self.part("picture", ImageEncoder, projection=self.width, output="projection")
        self.part("words", Decoder, output="hidden")
        if self.words.eos is None:
            raise ValueError("words.eos is not set; a text's vector is that of its eos token")
        one_of("output", self.output, ("similarity",))
        one_of("end", self.end, ("eos", "highest"))

    @property
    def layers(self):
        return self.picture.layers

    @property
    def decoder_layers(self):
        return self.words.layers

    def build(self):
        return initialise(TwoTowersModel(self), self.words)


class TwoTowersModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.picture, self.words = ImageEncoderModel(cfg.picture), DecoderModel(cfg.words)
        self.project = nn.Linear(cfg.words.dim, cfg.width, bias=False)
        self.scale = nn.Parameter(torch.tensor(cfg.scale))

    def see(self, pixel_values, losses=None, **options):
        """(B, W) of length 1. losses: a list that takes the auxiliary losses of parts."""
        return normalize(self.picture(pixel_values, **options).leave(losses)["image_embeds"], dim=-1)

    def read(self, input_ids, attention_mask=None, losses=None):
        """(N, W) of length 1. losses: as in `see`."""
        out, eos = self.words(input_ids=input_ids, attention_mask=attention_mask).leave(losses), self.config.words.eos
        place = input_ids.argmax(-1) if self.config.end == "highest" else (input_ids == eos).int().argmax(-1)
        return normalize(self.project(at_place(out["hidden"], place)), dim=-1)

    def forward(self, input_ids, pixel_values, attention_mask=None, *, interpolate_pos_encoding=False):
        """input_ids (N, T), pixel_values (B, C, H, W) -> logits_per_image (B, N), logits_per_text, text_embeds, image_embeds."""
        losses: list[torch.Tensor] = []
        image = self.see(pixel_values, losses, interpolate_pos_encoding=interpolate_pos_encoding)
        text = self.read(input_ids, attention_mask, losses)
        scores = text @ image.T * self.scale.exp()
        return Output(logits_per_image=scores.T, logits_per_text=scores, text_embeds=text, image_embeds=image).with_losses(losses)
