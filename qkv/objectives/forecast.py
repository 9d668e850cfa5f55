"""Forecasting: the next steps of a series, all at once (Informer, Zhou et al., 2021, section 3.4).

Dims: B windows, C columns, K marks.
"""

import numpy as np
import torch

from ..data import series
from ..data.batches import Batch
from ..data.examples import Example
from ..data.text import DataError
from .base import Loss
from .tasks import Task

SHARES = {"train": (0.0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1.0)}


class Forecast(Task):
    """The next `horizon` steps of one column (data.label) or of all. A series is cut in time: 60 % to train, 20 % held out, 20 % test, of its first `rows` rows, all by
    default; values are standardised by those of the training part, and mse and mae are of standardised values, as in the paper. explained: the share of the variance that is
    foretold. stride: steps from one training window to the next."""

    outputs = {"CalendarEncoderDecoder": "values", "LinearForecaster": "values"}
    metric, kind, parts = "explained", "forecast", True

    def __init__(self, config, rows=0, stride=1):
        if rows < 0 or stride < 1:
            raise ValueError(f"rows={rows} must be 0 (all) or more, and stride={stride} at least 1")
        self.config, self.rows, self.stride = config, rows, stride

    @classmethod
    def read(cls, cfg, source, part):
        """One example: the whole series; its part is cut by `encode`."""
        found = series.read(source, None if cfg.label is None else [str(cfg.label)])
        return [Example(found.values, None, part, str(source), {"series": found})]

    @classmethod
    def shape(cls, examples):
        """Fields of a model that reads these examples."""
        count = examples[0].text.shape[1]
        return {"values": count, "said": count}

    def scaled(self, found):
        """(values (T, C) standardised by the training part, mean, deviation)"""
        values = found.values[: self.rows or None]
        train = values[: int(SHARES["train"][1] * len(values))]
        mean, std = train.mean(0), train.std(0)
        std = np.where(std < 1e-8, 1.0, std)  # a constant column
        return (values - mean) / std, mean, std

    def encode(self, examples, training=False):
        cfg, (e,) = self.config, examples
        values, _, _ = self.scaled(e.more["series"])
        marks = e.more["series"].marks()[: len(values)]
        first, last = (int(s * len(values)) for s in SHARES[e.label])
        first = max(0, first - cfg.context) if e.label != "train" else first  # what is read may lie before
        count = last - first - cfg.context - cfg.horizon + 1
        if count < 1:
            raise DataError(
                f"{e.where}: its {e.label} part has {last - first} steps; a window reads context={cfg.context} and says horizon={cfg.horizon}"
            )
        x, k = torch.from_numpy(values).float(), torch.from_numpy(marks)
        out = []
        for start in range(first, first + count, self.stride if training else 1):
            mid, end = start + cfg.context, start + cfg.context + cfg.horizon
            out.append(
                {
                    "ids": (),
                    "past": x[start:mid],
                    "future": x[mid:end],
                    "marks": k[start:end],
                    "wanted": x[mid:end],
                    "where": f"{e.where}, step {mid}",
                }
            )
        return out

    def pairs(self, items, rng):
        cfg = self.config
        past, future, marks = (torch.stack([i[n] for i in items]) for n in ("past", "future", "marks"))
        inputs = {"x_enc": past}
        if hasattr(cfg, "known"):
            known = past[:, cfg.context - cfg.known :]
            k = marks[..., : cfg.marks]
            inputs |= {
                "x_dec": torch.cat([known, torch.zeros_like(future)], 1),
                "x_mark_enc": k[:, : cfg.context],
                "x_mark_dec": k[:, cfg.context - cfg.known :],
            }
        return Batch(inputs, torch.zeros(len(items), dtype=torch.long), len(items), past.shape[0] * past.shape[1], {"future": future})

    def loss(self, model, batch):
        wrong = model(**batch.inputs)["logits"] - batch.targets["future"]
        value = wrong.square().mean((1, 2)).sum()
        return Loss(value, batch.count, {"loss": value.detach()})

    @torch.no_grad()
    def predict(self, model, items, device="cpu"):
        return list(model(**self.pairs(items, None).to(device).inputs)["logits"].float().cpu())

    def scores(self, items, said):
        wanted, said = torch.stack([i["wanted"] for i in items]), torch.stack(said)
        wrong = said - wanted
        return {
            "explained": float(1 - wrong.square().mean() / wanted.var()),
            "mse": float(wrong.square().mean()),
            "mae": float(wrong.abs().mean()),
        }

    def show(self, model, run):
        items = run.valid.pairs[:: max(1, len(run.valid.pairs) // 3)][:3]
        said = self.answered(model, items, run.device)
        row = lambda x: " ".join(f"{v:.2f}" for v in x[:6, 0].tolist())
        return "\n".join(f"{row(s)} ...   (wanted: {row(i['wanted'])} ...)" for i, s in zip(items, said))
