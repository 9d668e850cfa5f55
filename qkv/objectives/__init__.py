"""Objectives: what a model is trained to do. `batch` makes examples from rows of tokens, `loss` scores a model on them.

A loss is a sum over targets, with their number: whoever adds several up (accumulation, ranks, an evaluation) divides once, by the
global number, and so gets the loss and gradient of one large batch.

Dims: B rows, T tokens, N scored places, V vocabulary.
"""

from dataclasses import dataclass

import torch

from ..core import read_pattern, tokens
from ..data.batches import Batch, padded
from ..models.loss import IGNORE
from ..words import nearest


@dataclass
class Loss:
    """value: sum over targets (carries the gradient). count: targets. metrics: {name: sum over targets}, detached."""

    value: torch.Tensor
    count: int
    metrics: dict


class Tokens:
    """Shared by objectives that predict tokens: the model scores `labels`."""

    joined = False  # does it put a pair into one row?
    extra = 0  # tokens that a row needs beyond the model's length
    smoothing = 0.0

    def loss(self, model, batch):
        out = model(**batch.inputs, labels=batch.labels, smoothing=self.smoothing)
        metrics = {"loss": out["plain"]}
        if not torch.is_grad_enabled():  # evaluation
            metrics["accuracy"] = out["hits"]
        return Loss(out["loss"] + out["auxiliary"] * batch.count if "auxiliary" in out else out["loss"], batch.count, metrics)


def _packed(ids, documents, position):
    inputs = {"input_ids": ids}
    if documents is not None:
        inputs |= {"documents": documents, "position_ids": position}
    return inputs


class Causal(Tokens):
    """Next token (Radford et al., 2018). On pairs: the answer's tokens, after the question and a separator."""

    extra, joined = 1, True
    topologies = ("Decoder",)

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def batch(self, rows, rng):
        ids, documents, position = rows
        labels = ids[:, 1:].clone()
        if documents is not None:
            labels[documents[:, 1:] != documents[:, :-1]] = IGNORE  # a document does not predict the next one
            documents, position = documents[:, :-1].contiguous(), position[:, :-1].contiguous()
            count = int((labels != IGNORE).sum())
        else:
            count = labels.numel()
        return Batch(_packed(ids[:, :-1].contiguous(), documents, position), labels.reshape(-1), count, labels.numel())

    def pairs(self, pairs, rng):
        t = self.tokenizer
        ids, mask = padded([[t.bos, *a, t.sep, *b, t.eos] for a, b in pairs], t.pad)
        labels = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        for row, (a, _) in enumerate(pairs):
            labels[row, : len(a) + 1] = IGNORE  # the question is given
        return Batch({"input_ids": ids[:, :-1].contiguous()}, labels.reshape(-1), int((labels != IGNORE).sum()), int(mask.sum()))


class Masked(Tokens):
    """Masked tokens (Devlin et al., 2018, section 3.1): `rate` of the tokens are chosen anew at every step, `mask` of them become
    [MASK], `random` another token, the rest stay."""

    topologies = ("Encoder",)

    def __init__(self, tokenizer, rate=0.15, mask=0.8, random=0.1):
        if not 0 < rate < 1:
            raise ValueError(f"train.mask_rate={rate}: must be between 0 and 1")
        if tokenizer.mask is None:
            raise ValueError("masked tokens need a tokenizer with a [MASK] token")
        self.tokenizer, self.rate, self.mask, self.random = tokenizer, rate, mask, random
        names = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
        self.special = torch.tensor(sorted({i for n in names if (i := getattr(tokenizer, n)) is not None}))
        self.ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in set(self.special.tolist())])

    def corrupt(self, ids, rng):
        """(corrupted ids (B, T), chosen (B, T) bool); as many are chosen in every row."""
        score = torch.from_numpy(rng.random(tuple(ids.shape), dtype="float32"))
        score[torch.isin(ids, self.special)] = 2.0
        chosen = torch.zeros_like(ids, dtype=torch.bool).scatter_(
            1, score.topk(max(1, round(self.rate * ids.shape[1])), largest=False)[1], True
        )
        chosen &= score < 2.0
        draw = torch.from_numpy(rng.random(tuple(ids.shape), dtype="float32"))
        other = self.ordinary[torch.from_numpy(rng.integers(0, len(self.ordinary), tuple(ids.shape)))]
        out = torch.where(chosen & (draw < self.mask), self.tokenizer.mask, ids)
        return torch.where(chosen & (draw >= self.mask) & (draw < self.mask + self.random), other, out), chosen

    def batch(self, rows, rng):
        ids, documents, position = rows
        corrupted, chosen = self.corrupt(ids, rng)
        at = chosen.flatten().nonzero()[:, 0]
        inputs = _packed(corrupted, documents, position) | {"at": at}
        return Batch(inputs, ids.flatten()[at], len(at), ids.numel())


class SequenceToSequence(Tokens):
    """The target given the source, word by word, shifted right (Sutskever et al., 2014; Vaswani et al., 2017), with label smoothing
    (section 5.4)."""

    topologies = ("EncoderDecoder",)

    def __init__(self, tokenizer, smoothing=0.0, start=None):
        if not 0 <= smoothing < 1:
            raise ValueError(f"train.smoothing={smoothing}: must be in [0, 1)")
        self.tokenizer, self.smoothing = tokenizer, smoothing
        self.start = tokenizer.bos if start is None else start

    def pairs(self, pairs, rng):
        t = self.tokenizer
        source, seen = padded([[*a, t.eos] for a, _ in pairs], t.pad)
        target, mask = padded([[self.start, *b, t.eos] for _, b in pairs], t.pad)
        labels = target[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
        inputs = {"input_ids": source, "attention_mask": seen, "decoder_input_ids": target[:, :-1].contiguous()}
        return Batch(inputs, labels.reshape(-1), int(mask[:, 1:].sum()), int(seen.sum() + mask[:, 1:].sum()))


def _sees_ahead(pattern):
    """Does the first of a few tokens see a later one?"""
    row = tokens(8)
    return bool(read_pattern(pattern).allows(row.as_queries(), row.as_keys()).triu(1).any())


OBJECTIVES = {"causal": Causal, "masked": Masked, "seq2seq": SequenceToSequence}
DEFAULT = {"Decoder": "causal", "Encoder": "masked", "EncoderDecoder": "seq2seq"}


def make(name, config, tokenizer, paired, *, mask_rate=0.15, smoothing=0.0):
    """The objective of that name ("auto": the topology's own), or a ValueError that says what fits."""
    topology = type(config).__name__
    name = DEFAULT[topology] if name == "auto" else name
    if name not in OBJECTIVES:
        raise ValueError(f"train.objective='{name}' is not one of auto, {', '.join(OBJECTIVES)}.{nearest(name, OBJECTIVES)}")
    kind = OBJECTIVES[name]
    if topology not in kind.topologies:
        raise ValueError(
            f"train.objective={name} needs the topology {' or '.join(kind.topologies)}; this model is of {topology}, which carries {DEFAULT[topology]}"
        )
    if kind is Causal and (ahead := next((p for i in range(config.layers) if _sees_ahead(p := config.layer("pattern", i))), None)):
        raise ValueError(
            f"train.objective=causal: under the pattern '{ahead}' a token sees the very tokens it shall predict; use causal or sliding(...)"
        )
    if config.output != "lm":
        raise ValueError(f"train.objective={name} needs a model with output=lm, not {config.output}")
    if not hasattr(kind, "pairs" if paired else "batch"):
        need = (
            "pairs of texts (data.source=task:reverse, or data.source=FILE data.target=FILE)" if not paired else "running text, not pairs"
        )
        raise ValueError(f"train.objective={name} reads {need}")
    if kind is Masked:
        return Masked(tokenizer, mask_rate)
    if kind is SequenceToSequence:
        return SequenceToSequence(tokenizer, smoothing, config.start)
    return kind(tokenizer)
