"""Objectives: what a model is trained to do. Each is named like any part: masked(rate=0.4, unit=word), denoise(random_spans)."""

import torch

from ..core import read_pattern, tokens
from ..core.slots import build, parse
from ..words import nearest
from . import decide, forecast, images, recommend, speech, table
from .base import Joint, Loss, Objective, joint
from .language import Causal, Contrastive, Detection, Masked, Prefix, Sentences
from .restore import Corrupt, Denoise, SequenceToSequence
from .tasks import TASKS as ON_TEXT

TASKS = ON_TEXT | {
    "images": images.Images,
    "reconstruct": images.Reconstruct,
    "match": images.Match,
    "caption": images.Caption,
    "draw": images.Draw,
    "transcribe": speech.Transcribe,
    "forecast": forecast.Forecast,
    "recommend": recommend.Recommend,
    "decide": decide.Decide,
    "table": table.Table,
}
OBJECTIVES = {
    "causal": Causal,
    "prefix": Prefix,
    "masked": Masked,
    "sentences": Sentences,
    "detect": Detection,
    "contrastive": Contrastive,
    "seq2seq": SequenceToSequence,
    "denoise": Denoise,
    "corrupt": Corrupt,
}
BY_OUTPUT = {"detect": "detect", "pretraining": "sentences", "pretraining-order": "sentences", "next": "sentences", "hidden": "contrastive"}


def usual(config, paired):
    """The objective that fits a config and its data best."""
    topology = type(config).__name__
    if topology == "Recurrent":
        return "causal"
    if topology == "Decoder":
        return "prefix" if _ahead(config, prefix=True) and not _ahead(config) else "causal"
    if topology == "Encoder":
        return BY_OUTPUT.get(config.output, "masked")
    return "seq2seq" if paired else "denoise"


def _named(slot, text, table, *also):
    """The class in a table that `text` names, `name` or `name(argument=value)`. Raises ValueError."""
    try:
        name = parse(text)[0]
    except ValueError as e:
        raise ValueError(f"{slot}: {e}") from None
    if name not in table:
        raise ValueError(f"{slot}='{name}' is not one of {', '.join((*also, *table))}.{nearest(name, table)}")
    return table[name]


def kind_of(text):
    """The class of an objective that is written so. Raises ValueError."""
    return _named("train.objective", text, OBJECTIVES, "auto")


def _ahead(config, prefix=False):
    """The first pattern under which a token sees a later one, or None. prefix: where the first tokens are marked as one."""
    row = tokens(8, marks={"prefix": torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])} if prefix else None)
    sees = lambda p: bool(read_pattern(p).allows(row.as_queries(), row.as_keys()).triu(1).any())
    return next((p for i in range(config.layers) if sees(p := config.layer("pattern", i))), None)


def make(text, config, tokenizer, paired, *, mask_rate=0.15, smoothing=0.0):
    """The objective that is written so ("auto": what fits the model and the data), or a ValueError that says what fits."""
    topology = type(config).__name__
    text = usual(config, paired) if text == "auto" else text
    kind, name = kind_of(text), parse(text)[0]
    fits = usual(config, paired)
    if topology not in kind.topologies:
        raise ValueError(
            f"train.objective={name} needs the topology {' or '.join(kind.topologies)}; this model is of {topology}, which carries {fits}"
        )
    if config.output not in kind.outputs:
        raise ValueError(f"train.objective={name} needs a model with output={' or '.join(kind.outputs)}, not {config.output}")
    if kind in (Causal, Prefix) and (ahead := _ahead(config)):
        raise ValueError(
            f"train.objective={name}: under the pattern '{ahead}' a token sees the very tokens it shall predict; use causal or sliding(...)"
        )
    if kind is Prefix and not _ahead(config, prefix=True):
        raise ValueError("train.objective=prefix: the model's pattern lets no token look ahead; use pattern=prefix")
    if ("pairs" if paired else "text") not in kind.reads:
        need = (
            "pairs of texts (data.source=task:reverse, or data.source=FILE data.target=FILE)" if not paired else "running text, not pairs"
        )
        raise ValueError(f"train.objective={name} reads {need}")
    given = {"tokenizer": tokenizer, "config": config, "smoothing": smoothing}
    if issubclass(kind, Masked):
        given["rate"] = mask_rate
    return build("train.objective", text, OBJECTIVES, **given)


def task_of(text):
    """The class of a task that is written so. Raises ValueError."""
    return _named("train.task", text, TASKS)


def make_task(text, config, tokenizer, length, smoothing=0.0):
    """The task that is written so, for a model that carries it."""
    return build("train.task", text, TASKS, tokenizer=tokenizer, config=config, length=length, smoothing=smoothing)


__all__ = [
    "OBJECTIVES",
    "TASKS",
    "Causal",
    "Joint",
    "Loss",
    "Masked",
    "Objective",
    "SequenceToSequence",
    "joint",
    "kind_of",
    "make",
    "make_task",
    "task_of",
    "usual",
]
