"""Tasks on images: their class, and their hidden patches.

Dims: B images, C channels, S pixels of a side, N patches.
"""

import numpy as np
import torch

from ..data import images
from ..data.batches import Batch
from ..data.text import DataError
from ..models.loss import IGNORE
from .base import Loss
from .tasks import Classification


class Images(Classification):
    """The class of an image. shift: in training it is moved by up to so many pixels; flip: mirrored half of the time."""

    outputs = {"ImageEncoder": "sequence"}

    def __init__(self, config, shift=0, flip=False):
        if config.channels not in (1, 3):
            raise ValueError(f"images are read as grey or colour, channels=1 or 3, not {config.channels}")
        if not isinstance(shift, int) or not 0 <= shift < config.image:
            raise ValueError(f"shift={shift}: must be a whole number of pixels from 0 to {config.image - 1}")
        self.config, self.shift, self.flip = config, shift, flip
        self.auxiliary, self.weigh, self.topology = 0.0, None, type(config).__name__

    @classmethod
    def read(cls, cfg, source, part):
        if source == "digits" and part == "test":
            raise DataError("data.source=digits has no test part; its held-out images are a share data.holdout")
        return images.read(source)

    def encode(self, examples, training=False):
        cfg = self.config
        return [{"pixels": torch.from_numpy(np.array(images.pixels(e, cfg.image, cfg.channels))), "ids": (), "wanted": e.label, "where": e.where,
                 "label": None if e.label is None or not cfg.label_names else self.number(e.label, e.where)} for e in examples]  # fmt: skip

    def pixels(self, items, rng):
        """(B, C, S, S) from -1 to 1. rng: of the training step, None where nothing is drawn."""
        x = torch.stack([i["pixels"] for i in items])
        if rng is not None and self.shift:
            S, far = x.shape[-1], self.shift
            x = torch.nn.functional.pad(x, (far, far, far, far))
            at = rng.integers(0, 2 * far + 1, (len(x), 2))
            x = torch.stack([image[:, i : i + S, j : j + S] for image, (i, j) in zip(x, at.tolist())])
        if rng is not None and self.flip:
            mirrored = torch.from_numpy(rng.random(len(x)) < 0.5)
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return x.float() / 127.5 - 1

    def pairs(self, items, rng):
        labels = torch.tensor([IGNORE if i["label"] is None else i["label"] for i in items])
        return Batch({"pixel_values": self.pixels(items, rng)}, labels, len(items), len(items) * self.config.grid**2)

    def show(self, model, run):
        """A few held-out images' classes, and what the model says."""
        items = run.valid.pairs[:8]
        was = model.training
        said = self.predict(model.eval(), items, run.device)
        model.train(was)
        return ", ".join(f"{i['wanted']}" + ("" if s == i["wanted"] else f" (said: {s})") for i, s in zip(items, said))


class Reconstruct(Images):
    """The pixels of hidden patches (MAE, 2022)."""

    outputs = {"MaskedAutoencoder": "pretraining"}
    metric, kind = None, "reconstruct"  # type: ignore[assignment]

    @classmethod
    def names(cls, examples):
        return None

    def pairs(self, items, rng):
        N = self.config.grid**2
        noise = torch.from_numpy((rng or np.random.default_rng(0)).random((len(items), N))).float()
        inputs = {"pixel_values": self.pixels(items, rng), "noise": noise}
        return Batch(inputs, torch.zeros(len(items), dtype=torch.long), len(items), len(items) * N)

    def loss(self, model, batch):
        value = model(**batch.inputs)["loss"] * batch.count
        return Loss(value, batch.count, {"loss": value.detach()})

    def show(self, model, run):
        return f"{self.config.rate:.0%} of {self.config.grid**2} patches are hidden"
