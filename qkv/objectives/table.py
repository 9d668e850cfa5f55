"""The column of a table that is asked for: a class or a number.

Dims: B rows, N columns that the model reads, C columns of the file, K outputs.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..data import columns
from ..data.batches import Batch
from ..data.columns import Columns
from ..data.examples import Example, classes, gone, note
from ..data.text import DataError
from ..models.loss import IGNORE
from .base import Loss
from .tasks import Task


def right(logits, wanted):
    """(B,) cross-entropy of classes (whole numbers), or squared error of numbers."""
    if wanted.is_floating_point():
        return (logits[:, 0] - wanted).square()
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, reduction="none")


def losses(model, x, wanted, sparsity):
    """(B,) what is made small of each row, and (B,) how wrong its answer is. wanted: numbers of classes, or numbers. sparsity: weight of the entropy of masks (TabNet, section 3.3), or of
    the share of columns that is selected (INVASE, section 3, whose selector is an actor and whose predictor and baseline are critics)."""
    if "baseline_logits" not in (out := model(x, draw=True) if hasattr(model, "selector") else model(x)):
        wrong = right(out["logits"], wanted)
        return (wrong + sparsity * out["m_loss"][0] if "m_loss" in out else wrong), wrong
    wrong, plain = right(out["logits"], wanted), right(out["baseline_logits"], wanted)
    likely = -F.binary_cross_entropy_with_logits(out["scores"], out["chosen"], reduction="none").sum(1)
    return wrong + plain + (wrong - plain).detach() * likely + sparsity * out["selection"].mean(1), wrong


def _mixed(name: str, cells: Sequence[Any], where: Sequence[str]) -> None:
    """Says where a column of numbers is read as one of categories because of a few words."""
    words = [i for i, cell in enumerate(cells) if columns.number(cell) is None]
    if words and 10 * len(words) < sum(not gone(cell) for cell in cells):
        what = f"column '{name}' is read as categories, not numbers, because of {len(words)} cells"
        note(f"{where[words[0]]}: {what} as {cells[words[0]]!r} here")


def _cells(names: Sequence[str], examples: Sequence[Example]) -> list[list[Any]]:
    """The cells of each column, by its name. Raises DataError for a row that has none of that name."""
    for given, e in {e.more["names"]: e for e in examples}.items():
        missing = [n for n in names if n not in given]
        if missing:
            what = f"there is no column '{missing[0]}', which the model reads"
            raise DataError(f"{e.where}: {what}; it reads {', '.join(names)}")
    return [[e.text[e.more["names"].index(n)] for e in examples] for n in names]


class Table(Task):
    """The column data.target of a CSV, TSV or JSON lines file, from all others: numbers (standardised; a
    missing one is the mean), and categories, which are words, or numbers that a column mixes with words. A
    class if it holds words, or at most twenty whole numbers; else a number. sparsity: weight of what keeps
    masks sparse, by default that of the model's kind. auc (of two classes), accuracy, or explained, the share
    of the variance."""

    outputs = {"TabularDecider": "table", "Selector": "table", "Perceptron": "table"}
    kind = "table"

    def __init__(self, config, sparsity=None):
        if not config.columns:
            raise ValueError("the model does not know its columns: train it with task=table")
        self.config, self.columns = config, Columns.from_plain(config.columns)
        self.sparsity = (0.1 if type(config).__name__ == "Selector" else 1e-3) if sparsity is None else sparsity
        if self.sparsity < 0:
            raise ValueError(f"sparsity={sparsity}: must be 0 or more")
        self.names_ = config.label_names
        self.metric = "explained" if self.names_ is None else "auc" if len(self.names_) == 2 else "accuracy"

    @classmethod
    def read(cls, cfg, source, part):
        return columns.read(cfg, source, part)

    @classmethod
    def described(cls, example: Example) -> str:
        cells = ", ".join(f"{n}={cell}" for n, cell in zip(example.more["names"], example.text))
        return f"{example.where}: {cells[:400]}  ->  {example.label}"

    @classmethod
    def shape(cls, examples: list[Example]) -> dict[str, Any]:
        """What the training rows say of a model: its columns, and the classes or the scale of what is asked
        for. Raises DataError where that is always the same, or not finite."""
        named = [e for e in examples if e.label is not None]
        if not named:
            raise DataError(f"{examples[0].where}: the column that is asked for holds nothing")
        names, where = named[0].more["names"], [e.where for e in named]
        table = _cells(names, named)
        for name, cells in zip(names, table):
            _mixed(name, cells, where)
        found = Columns.of(names, table, bins=named[0].more["bins"], where=where)
        out = found.fields() | {"columns": found.plain()}
        kinds = classes(e.label for e in named)
        if len(kinds) < 2:
            raise DataError(f"{named[0].where}: the column that is asked for is always {kinds[0]}")
        values = [v for e in named if (v := columns.number(e.label)) is not None]
        if len(values) < len(named) or (len(kinds) <= 20 and all(v == v // 1 for v in values)):
            return out | {"outputs": len(kinds), "label_names": kinds}
        odd = next((e for e, v in zip(named, values) if not math.isfinite(v)), None)
        if odd is not None:
            raise DataError(f"{odd.where}: {odd.label!r}, which is asked for, is not finite")
        middle, spread = float(np.mean(values)), float(np.std(values))
        return out | {"outputs": 1, "label_names": None, "middle": middle, "spread": spread}

    def encode(self, examples, training=False):
        bare = [e for e in examples if e.label is None] if training else []
        if bare:
            what = f"{len(bare)} of {len(examples)} rows have nothing in the column that is asked for"
            note(f"{bare[0].where}: {what}, this one the first; they are left out of training")
        examples = [e for e in examples if e.label is not None] if training else examples
        names, where = self.columns.names, [e.where for e in examples]
        surplus = {n: e.where for e in reversed(examples) for n in e.more["names"] if n not in names}
        for name, row in surplus.items():
            note(f"{row}: the column '{name}' is not read, since training did not have it")
        table = _cells(names, examples)
        x = torch.from_numpy(self.columns.read(table, where))
        for at, (column, cells) in enumerate(zip(self.columns.columns, table)):
            new = (x[:, self.columns.owner == at] == 0).nonzero()[:, 0].tolist() if column.levels else []
            if new:
                what = f"{len(new)} cells of column '{column.name}' hold categories that training did not see"
                note(f"{where[new[0]]}: {what}, as {cells[new[0]]!r} here")
        said = [self.wanted(e) for e in examples]
        return [
            {"ids": (), "row": row, "wanted": wanted, "target": self.target(e), "where": e.where}
            for row, wanted, e in zip(x, said, examples)
        ]

    def target(self, e: Example) -> int | float:
        """Number of the class, or the standardised number; IGNORE of a row without one."""
        if e.label is None:
            return IGNORE
        if self.names_ is not None:
            return self.number(e.label, e.where)
        value = columns.number(e.label)
        if value is None or not math.isfinite(value):
            raise DataError(f"{e.where}: {e.label!r}, which is asked for, is no finite number")
        return (value - self.config.middle) / self.config.spread

    def wanted(self, e: Example) -> str | None:
        """What is asked for, as the model says it: the name of a class, or the number as it is written."""
        named = e.label is not None and self.names_ is not None
        return self.names_[self.number(e.label, e.where)] if named else e.label

    def pairs(self, items, rng):
        kind = torch.long if self.names_ is not None else torch.float32
        return Batch(
            {"x": torch.stack([i["row"] for i in items])}, torch.tensor([i["target"] for i in items], dtype=kind), len(items), len(items)
        )

    def loss(self, model, batch):
        if not torch.is_grad_enabled():
            value = right(model(**batch.inputs)["logits"], batch.labels).sum()
            return Loss(value, batch.count, {"loss": value})
        value, wrong = losses(model, batch.inputs["x"], batch.labels, self.sparsity)
        return Loss(value.sum(), batch.count, {"loss": wrong.sum().detach()})

    @torch.no_grad()
    def logits(self, model, items, device="cpu"):
        rows = [i["row"] for i in items]
        return torch.cat([model(torch.stack(rows[i : i + 1024]).to(device))["logits"].double().cpu() for i in range(0, len(rows), 1024)])

    def answer(self, logits):
        if self.names_ is None:
            return float(logits[0] * self.config.spread + self.config.middle)
        return self.names_[int(logits.argmax())]

    def predict(self, model, items, device="cpu"):
        """The class or number of each row."""
        return [self.answer(x) for x in self.logits(model, items, device)]

    def judge_all(self, model, items, device="cpu"):
        """({loss, and the metrics of classes or numbers}, what is said of each row)."""
        from sklearn.metrics import roc_auc_score

        logits = self.logits(model, items, device)
        said = [self.answer(x) for x in logits]
        there = [n for n, i in enumerate(items) if i["target"] != IGNORE]
        if not there:
            return {}, said
        wanted = torch.tensor([items[n]["target"] for n in there], dtype=torch.long if self.names_ is not None else torch.float64)
        logits = logits[there]
        held = {"loss": right(logits, wanted).mean().item()}
        if self.names_ is None:
            return held | {"explained": float(1 - right(logits, wanted).mean() / wanted.var(unbiased=False).clamp(min=1e-12))}, said
        held["accuracy"] = (logits.argmax(1) == wanted).double().mean().item()
        if len(self.names_) == 2 and len(set(wanted.tolist())) == 2:
            held["auc"] = float(roc_auc_score(wanted, logits[:, 1] - logits[:, 0]))
        elif len(self.names_) == 2:
            held["auc"] = held["accuracy"]
        return held, said

    def picture(self, model, items, path, count=24):
        """How much each column counted for some rows: in all, and at each step where there are steps."""
        from .. import pictures

        items = items[:: max(1, len(items) // count)][:count]
        with torch.no_grad():
            out = model.eval()(torch.stack([i["row"] for i in items]))
        if "importance" not in out:
            raise ValueError("picture=: this model has no masks to draw; TabNet and INVASE have")
        share = lambda x: self.columns.together((x / x.sum(-1, keepdim=True).clamp(min=1e-9)).numpy())
        parts = {"in all": share(out["importance"])} | {f"step {n}": share(m) for n, m in enumerate(out.get("masks", ()), 1)}
        return pictures.masks(path, parts, [f"{self.answer(x)}"[:12] for x in self.logits(model, items)], self.columns.names)

    def show(self, model, run):
        items = run.valid.pairs[:: max(1, len(run.valid.pairs) // 5)][:5]
        return ", ".join(
            f"{i['wanted']}" + ("" if str(s) == str(i["wanted"]) else f" (said: {s if isinstance(s, str) else f'{s:.4g}'})")
            for i, s in zip(items, self.answered(model, items, run.device))
        )
