"""Objectives of an encoder-decoder: translate a given text, or restore one that was spoilt (T5, 2020, table 3; BART, 2020, section 2.2)."""

import numpy as np

from ..data.batches import Batch, padded
from ..data.batches import rng as keyed
from ..models.loss import IGNORE
from . import noise
from .base import Objective


class SequenceToSequence(Objective):
    """The target given the source, word by word, shifted right (Sutskever et al., 2014; Vaswani et al., 2017), with label smoothing
    (section 5.4)."""

    topologies, reads = ("EncoderDecoder", "RecurrentEncoderDecoder"), ("pairs",)

    def __init__(self, tokenizer, config=None, smoothing=0.0):
        if not 0 <= smoothing < 1:
            raise ValueError(f"train.smoothing={smoothing}: must be in [0, 1)")
        self.tokenizer, self.smoothing = tokenizer, smoothing
        self.start = tokenizer.bos if config is None or config.start is None else config.start

    def pairs(self, pairs, rng):
        t = self.tokenizer
        end = [] if t.eos is None else [t.eos]
        source, seen = padded([[*a, *end] for a, _ in pairs], t.pad)
        target, mask = padded([[self.start, *b, *end] for _, b in pairs], t.pad)
        labels = target[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        inputs = {"input_ids": source, "attention_mask": seen, "decoder_input_ids": target[:, :-1].contiguous()}
        return Batch(inputs, labels.reshape(-1), int(mask[:, 1:].sum()), int(seen.sum() + mask[:, 1:].sum()))


class Restoring(SequenceToSequence):
    """Running text: every row is spoilt, and the model asked for what is missing, or for all of it."""

    extra, reads = -1, ("text",)  # room for the end token

    def __init__(self, tokenizer, config, rate, smoothing=0.0):
        super().__init__(tokenizer, config, smoothing)
        if not 0 < rate < 1:
            raise ValueError(f"rate={rate}: must be between 0 and 1")
        self.rate = rate
        self.special = tokenizer.specials().numpy()

    def examples(self, windows, count=3, length=40):
        """A few held-out pairs, short enough to look at."""
        rows = windows.rows(windows.in_order()[:count])[0][:, :length].numpy()
        return [tuple(x.tolist() for x in self.spoil(row, keyed(0, i))) for i, row in enumerate(rows)]

    def batch(self, rows, rng):
        pairs = [self.spoil(row, rng) for row in rows[0].numpy()]
        return self.pairs([(a.tolist(), b.tolist()) for a, b in pairs], rng)


class Denoise(Restoring):
    """A row of T5's table of objectives (2020, table 3): prefix, bert_style, deshuffle, mass_style, replace_spans, drop_tokens, random_spans.

    rate: of corrupted tokens. mean: length of a random span. Sentinels are <extra_id_0>, <extra_id_1> ...
    """

    NOISES = ("random_spans", "replace_spans", "drop_tokens", "mass_style", "bert_style", "deshuffle", "prefix")
    sentinels = 100

    def __init__(self, tokenizer, config, noise="random_spans", rate=0.15, mean=3.0, smoothing=0.0):
        super().__init__(tokenizer, config, rate, smoothing)
        if noise not in self.NOISES:
            raise ValueError(f"noise={noise!r} is not one of {', '.join(self.NOISES)}")
        if mean < 1:
            raise ValueError(f"mean={mean}: a span has at least 1 token")
        self.noise, self.mean = noise, mean
        self.marks = np.array(tokenizer.sentinel_ids())
        if not len(self.marks):
            raise ValueError(f"{noise} needs a tokenizer with sentinels (<extra_id_0> ...); train one, or take T5's")
        self.mask = tokenizer.mask if tokenizer.mask is not None else int(self.marks[0])
        self.ordinary = np.setdiff1d(np.arange(len(tokenizer)), self.special)

    def spoil(self, ids, rng):
        """(inputs, targets) of one row."""
        if self.noise == "prefix":
            return noise.prefix_lm(ids, int(rng.integers(1, max(2, len(ids)))))
        if self.noise == "deshuffle":
            return noise.deshuffle(ids, rng.permutation(len(ids)))
        if self.noise == "random_spans":
            return noise.replace_spans(ids, noise.random_spans(len(ids), self.rate, self.mean, rng), self.marks)
        chosen = rng.random(len(ids)) < self.rate
        if not chosen.any():
            chosen[int(rng.integers(0, len(ids)))] = True
        if chosen.all():
            chosen[int(rng.integers(0, len(ids)))] = False
        if self.noise == "replace_spans":
            while len(noise.runs(chosen)) >= len(self.marks):  # as many as there are sentinels
                chosen[noise.runs(chosen)[-1][0] :] = False
            return noise.replace_spans(ids, chosen, self.marks)
        if self.noise == "drop_tokens":
            return noise.drop_tokens(ids, chosen)
        if self.noise == "mass_style":
            return noise.mass_style(ids, chosen, self.mask)
        others = np.where(rng.random(len(ids)) < 0.1, self.ordinary[rng.integers(0, len(self.ordinary), len(ids))], -1)
        return noise.bert_style(ids, chosen, self.mask, others)


class Corrupt(Restoring):
    """BART's noises, one or several joined by +: masking, deletion, infilling, permutation, rotation; the whole text is asked for.

    rate: of masked, deleted or covered tokens. mean: of the Poisson lengths that are filled in.
    """

    NOISES = ("masking", "deletion", "infilling", "permutation", "rotation")

    def __init__(self, tokenizer, config, noise="infilling", rate=0.3, mean=3.0, smoothing=0.0):
        super().__init__(tokenizer, config, rate, smoothing)
        self.noises = [n.strip() for n in noise.split("+")]
        for n in self.noises:
            if n not in self.NOISES:
                raise ValueError(f"noise={n!r} is not one of {', '.join(self.NOISES)}; join several by +, in quotes")
        if tokenizer.mask is None:
            raise ValueError("these noises need a tokenizer with a [MASK] token")
        self.mean, self.mask, self.ends = mean, tokenizer.mask, tokenizer.sentence_ends().numpy()

    def spoil(self, ids, rng):
        out = ids
        for name in self.noises:
            if name == "masking":
                out = noise.mask_tokens(out, self.rate, self.mask, rng)
            elif name == "deletion":
                out = noise.delete_tokens(out, self.rate, rng)
            elif name == "infilling":
                out = noise.infill(out, self.rate, self.mask, rng, self.mean)
            elif name == "permutation":
                out = noise.permute_sentences(out, self.ends, rng)
            else:
                out = noise.rotate(out, rng)
        return out[: len(ids)], ids
