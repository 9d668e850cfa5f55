"""What every objective shares. A loss is a sum over targets, with their number: whoever adds several up (accumulation, ranks, an
evaluation) divides once, by the global number, and so gets the loss and gradient of one large batch."""

from dataclasses import dataclass

import torch
from torch import nn

from ..data.batches import rng


@dataclass
class Loss:
    """value: sum over targets (carries the gradient). count: targets. metrics: {name: sum over targets}, detached."""

    value: torch.Tensor
    count: int
    metrics: dict


def with_auxiliary(value: torch.Tensor, out, count: int) -> torch.Tensor:
    """A summed loss and, for each of its `count` targets, what the parts of the model left behind to be made small (the balance of experts)."""
    return value + out["auxiliary"] * count if "auxiliary" in out else value


class Objective:
    """`batch` makes examples from rows of running text, `pairs` from pairs of texts (or other examples); `loss` scores a model on
    them.

    module: parameters of the objective's own (ELECTRA's generator, SpanBERT's boundary head), trained with the model and left behind
    when the objective is done; then `run` works with both.
    """

    topologies: tuple = ("Decoder", "Encoder", "EncoderDecoder", "Recurrent", "RecurrentEncoderDecoder")
    outputs: tuple = ("lm",)  # of models that can carry it
    reads: tuple = ("text",)  # running text, pairs, or both
    joined = False  # does it put a pair into one row?
    extra = 0  # tokens that a row needs beyond the model's length
    sentinels = 0  # <extra_id_N> tokens that its tokenizer must have
    smoothing = 0.0
    least = 2  # tokens that a row must have for something to be scored
    fewest = 1  # examples that a batch must have for that
    scores_tokens = True  # is the loss that of tokens, so that perplexity means something?
    predicts_all = False  # does it predict every token from those before it alone, so that its loss is the length of a code for the text?
    module: nn.Module | None = None

    def held_out(self, windows, rows):
        """Batches of about `rows` rows that score a held-out text whole, each token once."""
        cover = windows.cover(rows, max(0, self.extra), self.least)
        return (self.batch(cut, rng(0, i)) for i, cut in enumerate(cover))

    def prepare(self, model):
        """Called once with the model before training; makes `module` where there is one."""

    def loss(self, model, batch):
        """Of a model that scores tokens by itself; model: it, or `Joint`."""
        out = model(**batch.inputs, labels=batch.labels, smoothing=self.smoothing)
        metrics = {"loss": out["plain"]}
        if not torch.is_grad_enabled():  # evaluation
            metrics["accuracy"] = out["hits"]
        return Loss(with_auxiliary(out["loss"], out, batch.count), batch.count, metrics)


class Joint(nn.Module):
    """A model and what its objective trains beside it, as one module with one forward pass."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.beside = model, objective.module
        self._objective = (objective,)  # in a tuple: it is no part of the module

    def forward(self, **inputs):
        return self._objective[0].run(self.model, **inputs)


def joint(model, objective):
    """The model, or where the objective has parameters of its own, both."""
    return model if objective.module is None else Joint(model, objective)
