"""qkv forecast"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from ..data.series import Series

HELP = """
qkv forecast WHAT [FILE] [key=value ...]

The next steps of a series, by a run that was trained with task=forecast. FILE is a CSV of the same columns
and the same frequency (months, business days, hours), by default the run's own; dates go on by the calendar.
The fan is what the run's errors on held-out windows were, step by step: eight of ten fell within it.

  qkv forecast last
  qkv forecast last newer.csv picture=next.png out=next.csv

keys: steps (the model's horizon; more are foretold piece by piece, each read as if it had come true)
out (a .csv file)  picture (a .png file)
"""
KEYS = ("steps", "out", "picture")


def run(words: list[str], verb: str) -> int:
    from .main import options

    plain, given, _ = options(words, KEYS)
    if not plain or len(plain) > 2:
        raise ValueError("name a run and at most one file: qkv forecast last series.csv")
    import numpy as np
    import torch

    from .. import objectives
    from ..data import DataError, series
    from ..training import assemble, folder, recipe
    from ..words import track
    from .common import open_model

    model, _, _ = open_model(plain[0])
    where = folder.find(plain[0])
    whole = recipe.resolve(recipe.load(where / "recipe.toml")) if where else None
    if whole is None or not str(whole.train.task).startswith("forecast"):
        raise ValueError(f"{plain[0]} is no run of task=forecast")
    cfg, kind = model.config, objectives.task_of(whole.train.task)
    count = given.get("steps", cfg.horizon)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"steps={count!r}: must be a whole number of at least 1")
    task = objectives.make_task(whole.train.task, cfg, None, 0)
    corpus = assemble.labelled(whole.data, kind, whole.train.seed)
    own = asked = corpus.train[0].more["own"]
    if len(plain) > 1:
        asked = series.read(plain[1], list(own.names), whole.data.errors)
        series.same(own, asked, plain[1])
        for note in asked.notes:
            print(f"note: {note}")
    if len(asked.values) < cfg.context:
        raise DataError(f"{plain[-1]} has {len(asked.values)} steps; the model reads {cfg.context}")
    torch.manual_seed(0)  # some kernels draw which keys to look at: the same file gives the same forecast
    times, said = asked.after(count), task.forecast(model, own, asked, count)
    progress = lambda parts: track(parts, "held-out windows")
    low, high, windows, known = task.band(model, corpus.valid[0], count, progress)
    cells = np.stack([said, said + low, said + high], 2).reshape(count, -1).tolist()
    rows = [(date, *numbers) for date, numbers in zip(asked.written(times), cells)]
    header = ("date", *(f"{n}{end}" for n in own.names for end in ("", " low", " high")))
    show(header, rows)
    late = "" if known == count else f"; they tell of {known} steps, and later ones have the band of the last"
    print(f"low, high: eight of ten errors on {windows} held-out windows{late}")
    if given.get("out"):
        write(given["out"], header, rows)
    if given.get("picture"):
        draw(given["picture"], asked, cfg.context, times, (said, said + low, said + high))
    return 0


def show(header: tuple, rows: list[tuple]) -> None:
    """Prints the first steps, of the first columns."""
    wide = max(19, *(len(row[0]) for row in rows))
    print("  ".join(f"{c:>{12 if i else wide}}" for i, c in enumerate(header[:7])))
    for row in rows[:12]:
        print("  ".join([f"{row[0]:>{wide}}", *(f"{c:>12.4g}" for c in row[1:7])]))
    if len(rows) > 12 or len(header) > 7:
        print(f"... {len(rows)} steps of {(len(header) - 1) // 3} columns in all; out=next.csv writes them")


def write(path: object, header: tuple, rows: list[tuple]) -> None:
    import csv

    with open(str(path), "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([header, *rows])
    print(f"{len(rows)} steps are in {path}")


def draw(path: object, asked: Series, context: int, times: pd.DatetimeIndex, lines: tuple) -> None:
    from .. import pictures

    said, low, high = lines
    before, after = asked.times[-context:].to_pydatetime(), times.to_pydatetime()
    past = asked.values[-context:]
    print(f"picture: {pictures.fan(path, before, past, after, said, low, high, asked.names)}")
    if len(asked.names) > 8:
        print(f"it shows the first 8 of {len(asked.names)} columns")
