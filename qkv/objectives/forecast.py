"""Forecasting: the next steps of a series, all at once (Informer, Zhou et al., 2021, section 3.4).

Dims: B windows, S steps that are read (context), T steps, C columns, K marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import series
from ..data.batches import Batch
from ..data.examples import Example, note
from ..data.series import Series
from ..data.text import DataError
from ..models import CalendarEncoderDecoder
from .base import Loss, with_auxiliary
from .tasks import Task

SHARES = {"train": (0.0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1.0), "other": (0.0, 1.0)}
QUARTERS = torch.tensor([1, 1, 1, 1, 15])  # of month, day, weekday, hour, minute
BAND = (0.1, 0.9)  # quantiles of the errors: eight of ten lie between
WINDOWS = 500  # that the quantiles are taken from, or up to twice as many


class Forecast(Task):
    """The next `horizon` steps of one column (data.label) or of all.

    A series is cut in time: 60 % to train, 20 % held out, 20 % test, of its first `rows` rows (0: of all), or
    of as many as it has; a file of its own (data.valid) is held out whole. Values are standardised by mean
    and deviation of the training part; mse and mae are of standardised values, as in the paper. explained:
    share of the variance (R2). stride: steps between training windows, the last of which ends where the part
    does.
    """

    outputs = {"CalendarEncoderDecoder": "values", "LinearForecaster": "values"}
    metric, kind, parts = "explained", "forecast", True

    def __init__(self, config: Any, rows: int = 0, stride: int = 1):
        for name, value, least in (("rows", rows, 0), ("stride", stride, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value}: must be a whole number of at least {least}")
        self.config, self.rows, self.stride = config, rows, stride

    @classmethod
    def read(cls, cfg: Any, source: str, part: str) -> list[Example]:
        """One example: the whole series; its part is cut by `encode`. Raises DataError."""
        own = found = series.read(
            cfg.source if source == cfg.valid else source,
            None if cfg.label is None else [cfg.label],
            cfg.errors,
        )
        if source == cfg.valid and source != cfg.source:
            found, part = series.read(source, own.names, cfg.errors), "other"
            series.same(own, found, source)
        return [Example(found.values, None, part, str(source), {"series": found, "own": own})]

    @classmethod
    def described(cls, example: Example) -> str:
        """The first step of the series as it was read, its calendar, and how far it goes."""
        found: Series = example.more["series"]
        first, last = found.written(found.times[[0, -1]])
        cells = ", ".join(f"{n}={v:g}" for n, v in zip(found.names[:20], found.values[0]))
        return f"{example.where}: {first}: {cells}; a step of {series.spoken(found.frequency)}, {len(found.values):,} of them to {last}"

    @classmethod
    def shape(cls, examples: list[Example]) -> dict[str, int]:
        """Fields of a model that reads these examples."""
        count = examples[0].text.shape[1]
        return {"values": count, "said": count}

    def scale(self, own: Series) -> tuple[np.ndarray, np.ndarray]:
        """(mean (C,), deviation (C,)) of the training part of the run's own series."""
        values = own.values[: self.rows or None]
        train = values[: max(1, int(SHARES["train"][1] * len(values)))]
        mean, std = train.mean(0), train.std(0)
        return mean, np.where(std < 1e-8, 1.0, std)  # a constant column

    def cut(self, example: Example) -> tuple[np.ndarray, np.ndarray, range]:
        """(standardised values (T, C), marks (T, K), first steps of the horizons) of an example's part.

        The context may lie before a part that is held out. Raises DataError for a part without a window.
        """
        cfg, found = self.config, example.more["series"]
        mean, std = self.scale(example.more["own"])
        rows = None if example.label == "other" else self.rows or None
        values = (found.values[:rows] - mean) / std
        first, last = (int(s * len(values)) for s in SHARES[example.label])
        begin = max(first, cfg.context)
        if last - begin < cfg.horizon:
            raise DataError(
                f"{example.where}: its {example.label} part has {last - first} steps; a window reads "
                f"context={cfg.context}, of the {first} steps before it too, and says horizon={cfg.horizon}"
            )
        return values[:last], found.marks()[:last], range(begin, last - cfg.horizon + 1)

    def encode(self, examples: list[Example], training: bool = False) -> list[dict]:
        cfg, (e,) = self.config, examples
        values, marks, starts = self.cut(e)
        if training:
            starts = starts[(len(starts) - 1) % self.stride :: self.stride]
        if training or e.label == "other":
            for words in e.more["series"].notes:
                note(words)
        x, k = torch.from_numpy(values).float(), torch.from_numpy(marks)
        return [
            {
                "ids": (),
                "past": x[mid - cfg.context : mid],
                "future": x[mid : mid + cfg.horizon],
                "marks": k[mid - cfg.context : mid + cfg.horizon],
                "wanted": x[mid : mid + cfg.horizon],
                "where": f"{e.where}, step {mid}",
            }
            for mid in starts
        ]

    def pairs(self, items: list[dict], rng: Any) -> Batch:
        cfg = self.config
        past, future, marks = (torch.stack([i[n] for i in items]) for n in ("past", "future", "marks"))
        inputs = {"x_enc": past}
        if isinstance(cfg, CalendarEncoderDecoder):
            known = past[:, cfg.context - cfg.known :]
            # tables of minutes have a row a quarter of an hour (Informer's published code)
            k = (marks.float() if cfg.embed == "linear" else marks // QUARTERS)[..., : cfg.marks]
            inputs |= {
                "x_dec": torch.cat([known, torch.zeros_like(future)], 1),
                "x_mark_enc": k[:, : cfg.context],
                "x_mark_dec": k[:, cfg.context - cfg.known :],
            }
        count = past.shape[0] * past.shape[1]
        return Batch(inputs, torch.zeros(len(items), dtype=torch.long), len(items), count, {"future": future})

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        out = model(**batch.inputs)
        wrong = out["logits"] - batch.targets["future"]
        value = wrong.square().mean((1, 2)).sum()
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach()})

    @torch.no_grad()
    def predict(self, model: nn.Module, items: list[dict], device: str = "cpu") -> list[Tensor]:
        return list(model(**self.pairs(items, None).to(device).inputs)["logits"].float().cpu())

    def roll(self, model: nn.Module, past_BSC: np.ndarray, marks_BTK: np.ndarray) -> np.ndarray:
        """(B, T - S, C) the steps after the past, horizon by horizon, each read as if it had come true.

        marks: of the past and of the steps to come, which are whole horizons.
        """
        cfg = self.config
        x, marks = torch.from_numpy(past_BSC).float(), torch.from_numpy(marks_BTK)
        future = torch.zeros(cfg.horizon, x.shape[2])
        while x.shape[1] < marks.shape[1]:
            now = slice(x.shape[1] - cfg.context, x.shape[1] + cfg.horizon)
            items = [{"past": p[-cfg.context :], "future": future, "marks": k[now]} for p, k in zip(x, marks)]
            x = torch.cat([x, torch.stack(self.predict(model, items))], 1)
        return x[:, cfg.context :].numpy()

    def forecast(self, model: nn.Module, own: Series, asked: Series, count: int) -> np.ndarray:
        """(count, C) what comes after a series, in its units. own: the series of the run, which scales it."""
        cfg, (mean, std) = self.config, self.scale(own)
        times = asked.after(-(-count // cfg.horizon) * cfg.horizon)  # the last horizon may reach further
        marks = np.concatenate([asked.marks()[-cfg.context :], asked.marks(times)])
        past = (asked.values[-cfg.context :] - mean) / std
        return self.roll(model, past[None], marks[None])[0, :count] * std + mean

    def band(
        self,
        model: nn.Module,
        held: Example,
        count: int,
        progress: Callable[[list], Iterable] = iter,
    ) -> tuple[np.ndarray, np.ndarray, int, int]:
        """(low (count, C), high (count, C), windows, steps): quantiles of the errors on the held-out part, by
        step.

        They are added to a forecast, in its units, and are of forecasts made in the same way. Steps after the
        first `steps`, for which the part is too short, have the quantiles of the last of these.
        """
        cfg, found = self.config, held.more["series"]
        values, _, starts = self.cut(held)
        starts = starts[:: max(1, len(starts) // WINDOWS)]
        steps = min(count, len(values) - starts[0])
        reach = -(-steps // cfg.horizon) * cfg.horizon
        beyond = starts[-1] + reach - len(found.times)
        marks = found.marks(found.times.append(found.after(beyond)) if beyond > 0 else found.times)
        wrong = np.full((len(starts), reach, values.shape[1]), np.nan)  # none is known after the part
        for part in progress([range(i, min(i + 64, len(starts))) for i in range(0, len(starts), 64)]):
            past = np.stack([values[starts[i] - cfg.context : starts[i]] for i in part])
            seen = np.stack([marks[starts[i] - cfg.context : starts[i] + reach] for i in part])
            for i, said in zip(part, self.roll(model, past, seen)):
                true = values[starts[i] : starts[i] + reach]
                wrong[i, : len(true)] = true - said[: len(true)]
        _, std = self.scale(held.more["own"])
        low, high = np.nanquantile(wrong[:, :steps], BAND, axis=0) * std
        low, high = (np.concatenate([x, np.repeat(x[-1:], count - steps, 0)]) for x in (low, high))
        return low, high, len(starts), steps

    def scores(self, items: list[dict], said: list[Tensor]) -> dict[str, float]:
        from sklearn.metrics import r2_score

        wanted, told = (torch.stack(x).flatten().double() for x in ([i["wanted"] for i in items], said))
        wrong = told - wanted
        return {
            "explained": float(r2_score(wanted, told)),
            "mse": float(wrong.square().mean()),
            "mae": float(wrong.abs().mean()),
        }

    def show(self, model: nn.Module, run: Any) -> str:
        items = run.valid.pairs[:: max(1, len(run.valid.pairs) // 3)][:3]
        said = self.answered(model, items, run.device)
        row = lambda x: " ".join(f"{v:.2f}" for v in x[:6, 0].tolist())
        return "\n".join(f"{row(s)} ...   (wanted: {row(i['wanted'])} ...)" for i, s in zip(items, said))
