"""Tasks on images: their class, and their hidden patches.

Dims: B images, C channels, S pixels of a side, N patches.
"""

import dataclasses
import zlib

import numpy as np
import torch
import torch.nn.functional as F

from ..data import images, media
from ..data.batches import Batch, padded
from ..data.text import DataError
from ..models.image import ImageEncoder
from ..models.loss import IGNORE
from .base import Loss, with_auxiliary
from .ranks import places
from .tasks import Classification


def _kornia(make):
    def augment():
        try:
            from kornia import augmentation
            from kornia.augmentation import auto  # noqa: F401
        except ImportError:
            raise ValueError("augment needs kornia: pip install 'qkv[images]'") from None
        return make(augmentation)

    return augment


AUGMENTS = {
    "none": lambda: None,
    "mild": _kornia(
        lambda k: torch.nn.Sequential(
            k.RandomAffine(15.0, translate=(0.1, 0.1), scale=(0.8, 1.2), padding_mode="border", p=0.9),
            k.RandomErasing(scale=(0.02, 0.2), p=0.5),
        )
    ),
    "rand": _kornia(lambda k: k.auto.RandAugment(n=2, m=10)),
    "trivial": _kornia(lambda k: k.auto.TrivialAugment()),
}


def drawn_for(item):
    """The random generator of a held-out item: what is drawn does not depend on the batch it stands in."""
    return np.random.default_rng(zlib.crc32(item["where"].encode()))


class Images(Classification):
    """The class of an image. shift: in training it is moved by up to so many pixels; flip: mirrored half of the time; augment: none, mild
    (turned, scaled and moved a little, a part erased), or
    rand or trivial (RandAugment, Cubuk et al., 2020; TrivialAugment, Müller and Hutter, 2021, as kornia does them)."""

    outputs = {"ImageEncoder": "sequence", "ConvNet": "sequence"}

    def __init__(self, config, shift=0, flip=False, augment="none"):
        self.config, self.sees = config, getattr(config, "picture", config)
        if self.sees.channels not in (1, 3):
            raise ValueError(f"images are read as grey or colour, channels=1 or 3, not {self.sees.channels}")
        if not isinstance(shift, int) or not 0 <= shift < self.sees.image:
            raise ValueError(f"shift={shift}: must be a whole number of pixels from 0 to {self.sees.image - 1}")
        if augment not in AUGMENTS:
            raise ValueError(f"augment={augment!r} is not one of {', '.join(AUGMENTS)}")
        self.shift, self.flip, self.augment = shift, flip, AUGMENTS[augment]()
        self.auxiliary, self.weigh, self.topology = 0.0, None, type(config).__name__

    @classmethod
    def read(cls, cfg, source, part):
        if source == "digits" and part == "test":
            raise DataError("data.source=digits has no test part; its held-out images are a share data.holdout")
        return images.read(source, cfg, part)

    def seen(self, example):
        """(C, S, S) bytes."""
        return torch.from_numpy(np.array(images.pixels(example, self.sees.image, self.sees.channels)))

    def encode(self, examples, training=False):
        named, out = self.config.label_names, []
        for e in examples:
            label = None if e.label is None or not named else self.number(e.label, e.where)
            wanted = e.label if label is None else named[label]  # one spelling a class
            out.append({"pixels": self.seen(e), "ids": (), "wanted": wanted, "where": e.where, "label": label})
        return out

    def pixels(self, items, rng):
        """(B, C, S, S) from -1 to 1. rng: of the training step, None where nothing is drawn."""
        x = torch.stack([i["pixels"] for i in items])
        if rng is not None and self.shift:
            S, far = x.shape[-1], self.shift
            x = torch.nn.functional.pad(x.float(), (far, far, far, far), mode="replicate").byte()
            at = rng.integers(0, 2 * far + 1, (len(x), 2))
            x = torch.stack([image[:, i : i + S, j : j + S] for image, (i, j) in zip(x, at.tolist())])
        if rng is not None and self.flip:
            mirrored = torch.from_numpy(rng.random(len(x)) < 0.5)
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return x.float() / 127.5 - 1

    def loss(self, model, batch):
        if self.augment is not None and torch.is_grad_enabled():  # here, where the step's seed is set
            x = self.augment((batch.inputs["pixel_values"] + 1) / 2) * 2 - 1
            batch = dataclasses.replace(batch, inputs=batch.inputs | {"pixel_values": x.detach()})
        return self.score(model, batch)

    def score(self, model, batch):
        if isinstance(self.config, ImageEncoder):
            batch = dataclasses.replace(batch, inputs=batch.inputs | {"whole": False})
        return Classification.loss(self, model, batch)

    def pairs(self, items, rng):
        labels = torch.tensor([IGNORE if i["label"] is None else i["label"] for i in items])
        return Batch({"pixel_values": self.pixels(items, rng)}, labels, len(items), len(items) * self.sees.grid**2)

    def show(self, model, run):
        """A few held-out images' classes, and what the model says."""
        items = run.valid.pairs[:: max(1, len(run.valid.pairs) // 8)][:8]
        return self.told(model, run, items)


class Reconstruct(Images):
    """The pixels of hidden patches (MAE, 2022)."""

    outputs = {"MaskedAutoencoder": "pretraining"}
    metric, kind = None, "reconstruct"  # type: ignore[assignment]

    @classmethod
    def names(cls, examples):
        return None

    def encode(self, examples, training=False):
        return [i | {"wanted": ""} for i in super().encode(examples)]  # its pixels are; it needs no label

    def pairs(self, items, rng):
        N = self.config.grid**2
        noise = np.stack([(drawn_for(i) if rng is None else rng).random(N) for i in items])
        noise = torch.from_numpy(noise).float()
        inputs = {"pixel_values": self.pixels(items, rng), "noise": noise}
        return Batch(inputs, torch.zeros(len(items), dtype=torch.long), len(items), len(items) * N)

    def score(self, model, batch):
        out = model(**batch.inputs)
        value = out["loss"] * batch.count
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach()})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        return [""] * len(items)

    def scores(self, items, said):
        return {}

    @torch.inference_mode()
    def picture(self, model, items, path, count=6):
        """Images, what is left of them, and what the model makes of that."""
        from .. import pictures

        items = items[:: max(1, len(items) // count)][:count]
        batch = self.pairs(items, None)
        out = model.eval()(**batch.inputs)
        x, cfg = batch.inputs["pixel_values"], self.config
        blocks = lambda y: (
            y.unflatten(1, (cfg.grid, cfg.grid))
            .unflatten(3, (cfg.patch, cfg.patch, cfg.channels))
            .permute(0, 1, 3, 2, 4, 5)
            .flatten(1, 2)
            .flatten(2, 3)
        )
        plain = dataclasses.replace(cfg, norm_pixels=False)
        model.config = plain
        patches = model.target(x)
        model.config = cfg
        said = out["logits"]
        if cfg.norm_pixels:  # the mean and deviation of a patch are not guessed: those of the truth
            said = said * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
        hidden = out["mask"][..., None].bool()
        seen = [blocks(y) for y in (patches, patches.masked_fill(hidden, 0), torch.where(hidden, said, patches))]
        as_bytes = lambda y: ((y.clamp(-1, 1) + 1) * 127.5).byte().numpy()
        return pictures.rows(path, [[as_bytes(y[i]) for y in seen] for i in range(len(items))], ["image", "what is seen", "what is said"])

    def show(self, model, run):
        return f"{self.config.rate:.0%} of {self.config.grid**2} patches are hidden"


class Match(Images):
    """Which text belongs to which image, among all of a batch, both ways (CLIP, 2021, figure 3). Held-out pairs are found among each other:
    at1, at5: share of texts whose image is the nearest, or among the nearest five; back1, back5: of images whose text is. drop: share of a text's
    tokens that are left out in training."""

    outputs = {"TwoTowers": "similarity"}
    metric, kind = "at5", "match"  # type: ignore[assignment]

    def __init__(self, config, tokenizer, shift=0, flip=False, augment="none", drop=0.0):
        super().__init__(config, shift, flip, augment)
        if not 0 <= drop < 1:
            raise ValueError(f"drop={drop}: must be in [0, 1)")
        self.tokenizer, self.drop = tokenizer, drop

    @classmethod
    def read(cls, cfg, source, part):
        return media.table(cfg, source, part, images.SUFFIXES)

    @classmethod
    def names(cls, examples):
        return None

    @classmethod
    def words(cls, example):
        return [example.pair]

    def text(self, text, where):
        """Ids of a text with its end. Raises DataError for one beyond the model's positions."""
        ids = self.tokenizer.encode(text)
        if len(ids) + 2 > self.config.length:
            raise DataError(f"{where}: the text {text[:60]!r} has {len(ids)} tokens and the model reads {self.config.length - 2}")
        return [self.config.bos, *ids, self.config.eos]

    def encode(self, examples, training=False):
        return [{"pixels": self.seen(e), "ids": self.text(e.pair, e.where), "wanted": e.pair, "where": e.where} for e in examples]

    def pairs(self, items, rng):
        fewer = lambda ids: [ids[0], *(t for t in ids[1:-1] if rng.random() >= self.drop), ids[-1]]
        ids, mask = padded([fewer(i["ids"]) if rng is not None and self.drop else i["ids"] for i in items], self.config.pad)
        inputs = {"pixel_values": self.pixels(items, rng), "input_ids": ids, "attention_mask": mask.long()}
        return Batch(inputs, torch.arange(len(items)), len(items), len(items) * self.sees.grid**2 + int(mask.sum()), whole=True)

    def score(self, model, batch):
        out = model(**batch.inputs)
        scores = out["logits_per_image"].float()
        value = (F.cross_entropy(scores, batch.labels, reduction="sum") + F.cross_entropy(scores.T, batch.labels, reduction="sum")) / 2
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach()})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The vectors of each pair, image and text."""
        batch = self.pairs(items, None).to(device)
        out = model(**batch.inputs)
        return list(zip(out["image_embeds"].float().cpu(), out["text_embeds"].float().cpu()))

    def similarity(self, said):
        """(images, texts) cosines of what `predict` said."""
        image, text = (torch.stack(x) for x in zip(*said))
        return image @ text.T

    @staticmethod
    def apart(items, scores):
        """Scores (images, texts), those aside of another pair with the same text, which would not be wrong."""
        number = {i["wanted"]: n for n, i in enumerate(items)}
        text = torch.tensor([number[i["wanted"]] for i in items], device=scores.device)
        return scores.masked_fill((text[:, None] == text).fill_diagonal_(False), -torch.inf)

    def among_all(self, model, said):
        """The loss of held-out pairs, each among all of them: that of batches would depend on their size."""
        scores = self.similarity(said) * model.scale.detach().float().cpu().exp()
        own = torch.arange(len(scores))
        return float(F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    def ranked(self, items, said):
        """(metrics of retrieval, the text that is nearest to each image), all of them among each other."""
        scores, own = self.apart(items, self.similarity(said)), torch.arange(len(items))
        rank = {"at": places(scores.T, own), "back": places(scores, own)}
        held = {f"{way}{k}": float((r < k).float().mean()) for way, r in rank.items() for k in (1, 5)}
        return held, [items[j]["wanted"] for j in scores.argmax(1).tolist()]

    def picture(self, model, items, path, count=20):
        """The similarity of some images and texts, each pair on the diagonal."""
        from .. import pictures

        items = items[:: max(1, len(items) // count)][:count]
        scores, names = self.similarity(self.predict(model, items)), [i["wanted"][:28] for i in items]
        return pictures.matrix(path, scores, names, names, "cosine of image (row) and text (column)")

    def show(self, model, run):
        items = run.valid.pairs
        nearest = self.ranked(items, self.answered(model, items, run.device))[1]
        return ", ".join(
            i["wanted"] + ("" if n == i["wanted"] else f" (nearest: {n})")
            for i, n in list(zip(items, nearest))[:: max(1, len(items) // 6)][:6]
        )


class Draw(Match):
    """An image of a text, by a game of a generator against judges (AttnGAN, Xu et al., 2018). Held out: at1, at5, the share of texts whose drawn image
    the model's own matcher finds among all drawn ones (R-precision, section 4); it says that images fit their texts, not that they are beautiful."""

    outputs = {"Drawer": "images"}
    metric, kind = None, "draw"  # type: ignore[assignment]

    def pairs(self, items, rng):
        batch = super().pairs(items, rng)
        draw = rng if rng is not None else np.random.default_rng(0)
        sample = lambda: torch.from_numpy(draw.standard_normal((len(items), self.config.noise))).float()
        return dataclasses.replace(batch, inputs=batch.inputs | {"noise": sample(), "spread": sample()})

    def score(self, model, batch):
        parts = model.losses(**batch.inputs)
        value = sum(parts.values())
        return Loss(value, batch.count, {"loss": value.detach()} | {n: v.detach() for n, v in parts.items()})

    @torch.no_grad()
    def drawn(self, model, items, device="cpu"):
        """(B, C, S, S)"""
        batch = self.pairs(items, None).to(device)
        return model(batch.inputs["input_ids"], batch.inputs["attention_mask"], noise=batch.inputs["noise"])["images"]

    @torch.no_grad()
    def judge_all(self, model, items, device="cpu"):
        """({loss, at1, at5}, nothing is said)."""
        # of even sizes: a last batch of one would have nothing to tell apart
        even = np.array_split(np.arange(len(items)), -(-len(items) // 64))
        groups = [[items[i] for i in numbers] for numbers in even]
        total = sum(float(self.score(model, self.pairs(g, None).to(device)).metrics["loss"]) for g in groups)
        return {"loss": total / len(items)} | self.found(model, items, device), [""] * len(items)

    @torch.no_grad()
    def found(self, model, items, device="cpu"):
        """{at1, at5} among these items."""
        images = torch.cat([self.drawn(model, items[i : i + 64], device) for i in range(0, len(items), 64)])
        batch = self.pairs(items, None).to(device)
        words, _, mask, sentence = model.read(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        scores = torch.cat([sum(model.matcher(x, words, mask, sentence)) for x in images.split(32)])
        rank = places(self.apart(items, scores), torch.arange(len(items), device=scores.device))
        return {f"at{k}": float((rank < k).float().mean()) for k in (1, 5)}

    def picture(self, model, items, path, count=6):
        """Texts, their true images, what is drawn, and where three of their words are looked at."""
        from .. import pictures
        from ..interpret import weights

        items = items[:: max(1, len(items) // count)][:count]
        batch, drawn = self.pairs(items, None), self.drawn(model.eval(), items)
        looked = weights(
            model,
            cross=True,
            input_ids=batch.inputs["input_ids"],
            attention_mask=batch.inputs["attention_mask"],
            noise=batch.inputs["noise"],
        )[0, :, 0]
        as_bytes = lambda x: ((x.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        return pictures.drawn(path, [
            (i["wanted"], as_bytes(batch.inputs["pixel_values"][n]), as_bytes(drawn[n]),
             [(self.tokenizer.decode([t]), looked[n, :, at].unflatten(0, (self.config.grid,) * 2).numpy()) for at, t in enumerate(i["ids"][1:-1], 1)][:4])
            for n, i in enumerate(items)
        ])  # fmt: skip

    def show(self, model, run):
        was = model.training
        held = self.found(model.eval(), run.valid.pairs[:256], run.device)
        model.train(was)
        return f"of drawn images of {len(run.valid.pairs[:256])} held-out texts {100 * held['at1']:.1f} % are matched with their own, {100 * held['at5']:.1f} % among the best five"


class Caption(Match):
    """A text for an image, behind up to `shots` examples, each an image and its text (Flamingo, 2022, section 2.3). In training their number is
    drawn. near: the examples are the training images that are most alike to the frozen encoder (section C.3, RICES), or drawn."""

    outputs = {"SeeingDecoder": "lm"}
    metric, kind = "f1", "caption"  # type: ignore[assignment]

    def __init__(self, config, tokenizer, shots=4, near=True, shift=0, augment="none", longest=16):
        super().__init__(config, tokenizer, shift, False, augment)
        if not 0 <= shots <= 32 or longest < 1:
            raise ValueError(f"shots={shots} must be from 0 to 32, and longest={longest} at least 1")
        if config.image is None:
            raise ValueError("the model has no id for an image in the text (image)")
        self.shots, self.near, self.longest, self.pool, self.vectors = shots, near, longest, [], None

    def text(self, text, where):
        ids = self.tokenizer.encode(text)[: self.longest]
        room = self.config.length // (self.shots + 1) - 2
        if len(ids) > room:
            raise DataError(
                f"{where}: the text {text[:60]!r} has {len(ids)} tokens; with {self.shots} examples beside it the model reads {room} of each"
            )
        return ids

    def encode(self, examples, training=False):
        out = super().encode(examples)
        if training:
            self.pool = [i | {"number": n} for n, i in enumerate(out)]
        return self.pool if training else out

    @torch.no_grad()
    def prepare(self, model):
        """The vectors of all training images, by which the nearest are found."""
        if self.near and self.pool:
            self.vectors = self.seen_as(model, self.pool)
            self.nearest(model, self.pool)

    @torch.no_grad()
    def seen_as(self, model, items):
        was = model.training
        model.eval()
        device = next(model.parameters()).device
        vectors = [
            model.picture(self.pixels(items[i : i + 64], None).to(device))["hidden"].mean(1).float().cpu() for i in range(0, len(items), 64)
        ]
        model.train(was)
        return F.normalize(torch.cat(vectors), dim=-1)

    def nearest(self, model, items):
        """Gives each item the numbers of the training images most alike, the nearest last."""
        if self.near and self.vectors is not None and items and "near" not in items[0]:
            scores = self.seen_as(model, items) @ self.vectors.T
            for i, row in zip(items, scores):
                if "number" in i:
                    row[i["number"]] = -2
                i["near"] = row.topk(min(8, len(row))).indices.flip(0).tolist()

    def examples(self, item, count, rng):
        """`count` training items to stand before one."""
        if not count or not self.pool:
            return []
        if self.near and "near" in item:
            return [self.pool[n] for n in item["near"][-count:]]
        return [self.pool[int(n)] for n in rng.integers(0, len(self.pool), count)]

    def rows(self, items, rng, count):
        """([items of each row, the asked one last]); count: examples, None: drawn."""
        out = []
        for i in items:
            draw = drawn_for(i) if rng is None else rng
            shots = int(draw.integers(0, self.shots + 1)) if count is None else count
            out.append([*self.examples(i, shots, draw), i])
        return out

    def media(self, rows, rng):
        """(B, N, C, H, W); rows with fewer images have the last ones empty."""
        most = max(map(len, rows))
        flat = self.pixels([i for row in rows for i in row], rng)
        out, at = flat.new_zeros(len(rows), most, *flat.shape[1:]), 0
        for b, row in enumerate(rows):
            out[b, : len(row)] = flat[at : at + len(row)]
            at += len(row)
        return out

    def pairs(self, items, rng):
        rows = self.rows(items, rng, None if rng is not None else self.shots)
        image, eos = self.config.image, self.config.eos
        texts = [[t for i in row for t in (image, *i["ids"], eos)] for row in rows]
        ids, mask = padded(texts, self.config.pad)
        labels = ids[:, 1:].masked_fill(~mask[:, 1:] | (ids[:, 1:] == image), IGNORE)
        if rng is None:  # the asked text alone
            for b, row in enumerate(rows):
                labels[b, : len(texts[b]) - len(row[-1]["ids"]) - 2] = IGNORE
        inputs = {"input_ids": ids[:, :-1].contiguous(), "attention_mask": mask[:, :-1].long(), "pixel_values": self.media(rows, rng)}
        return Batch(inputs, labels.flatten(), int((labels != IGNORE).sum()), int(mask.sum()))

    def score(self, model, batch):
        out = model(**batch.inputs, labels=batch.labels)
        return Loss(with_auxiliary(out["loss"], out, batch.count), batch.count, {"loss": out["plain"]})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The text of each image."""
        from ..generation import generate

        rows = self.rows(items, None, self.shots)
        image, eos = self.config.image, self.config.eos
        prompts = [[*(t for i in row[:-1] for t in (image, *i["ids"], eos)), image] for row in rows]
        media = model.look(self.media(rows, None).to(device))
        written = generate(model, prompts, most=self.longest, given={"media": media})
        return [self.tokenizer.decode(w).strip() for w in written]

    def show(self, model, run):
        items = run.valid.pairs[:: max(1, len(run.valid.pairs) // 6)][:6]
        self.nearest(model, items)
        return self.told(model, run, items)
