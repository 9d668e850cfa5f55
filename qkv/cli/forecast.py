"""qkv forecast"""

HELP = """
qkv forecast WHAT [FILE] [key=value ...]

The next steps of a series, by a run that was trained with task=forecast. FILE is a CSV of the same columns, by default the run's own. The fan is
what the run's errors on held-out windows were: eight of ten fell within it.

  qkv forecast last
  qkv forecast last newer.csv picture=next.png out=next.csv

keys: steps (the model's horizon; more are foretold piece by piece, each read as if it had come true)  out (a .csv file)  picture (a .png file)
"""
KEYS = ("steps", "out", "picture")


def run(words, verb):
    import csv

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
    torch.manual_seed(0)  # some kernels draw which keys to look at: the same file gives the same forecast
    cfg, kind = model.config, objectives.task_of(whole.train.task)
    task = objectives.make_task(whole.train.task, cfg, None, 0)
    own = assemble.labelled(whole.data, kind, whole.train.seed)
    found = own.train[0].more["series"]
    _, mean, std = task.scaled(found)
    asked = series.read(plain[1], list(found.names)) if len(plain) > 1 else found
    count = given.get("steps", cfg.horizon)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"steps={count!r}: must be a whole number of at least 1")
    if len(asked.values) < cfg.context:
        raise DataError(f"{plain[1]} has {len(asked.values)} steps; the model reads {cfg.context}")
    held = task.encode(own.valid)[:: max(1, cfg.horizon // 4)]
    wrong = np.stack([(s - i["wanted"]).numpy() for part in track([held[i : i + 64] for i in range(0, len(held), 64)], "held-out windows")
                      for i, s in zip(part, task.predict(model, part))])  # fmt: skip
    low, high = (np.quantile(-wrong, q, axis=0) for q in (0.1, 0.9))  # (horizon, C)
    times = asked.after(count)
    marks = np.concatenate([asked.marks()[-cfg.context :], asked.marks(times)])
    past = (asked.values[-cfg.context :] - mean) / std
    for at in range(0, count, cfg.horizon):  # a piece may reach beyond the last step that is asked for
        seen = np.pad(marks[at : at + cfg.context + cfg.horizon], ((0, max(0, at + cfg.horizon - count)), (0, 0)), mode="edge")
        item = {
            "past": torch.from_numpy(past[-cfg.context :]).float(),
            "future": torch.zeros(cfg.horizon, past.shape[1]),
            "marks": torch.from_numpy(seen),
        }
        past = np.concatenate([past, task.predict(model, [item])[0].numpy()])
    said = past[cfg.context :][:count]
    low, high = (np.concatenate([x, np.repeat(x[-1:], max(0, count - len(x)), 0)])[:count] for x in (low, high))
    back = lambda x: x * std + mean
    rows = [(t, *np.stack([back(said)[i], back(said + low)[i], back(said + high)[i]], 1).flatten()) for i, t in enumerate(times)]
    header = ["date", *(f"{n}{end}" for n in found.names for end in ("", " low", " high"))]
    for row in [header, *rows[:12]]:
        print(
            "  ".join(
                f"{c:>12.4g}" if not isinstance(c, str) and i else f"{c!s:>19}" if i == 0 else f"{c:>12}" for i, c in enumerate(row[:7])
            )
        )
    if len(rows) > 12:
        print(f"... {len(rows)} steps in all; out=next.csv writes them")
    if given.get("out"):
        with open(str(given["out"]), "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows([header, *rows])
        print(f"{len(rows)} steps are in {given['out']}")
    if given.get("picture"):
        from .. import pictures

        print(
            f"picture: {pictures.fan(given['picture'], asked.times[-cfg.context :], asked.values[-cfg.context :], times, back(said), back(said + low), back(said + high), found.names)}"
        )
    return 0
