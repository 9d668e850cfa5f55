"""qkv compare"""

HELP = """
qkv compare PRESET|RECIPE|RUN key=a,b,... [key=value ...] [seeds=1] [evaluate=256,512,...] [out=FOLDER] [--time]

Trains variants on the same data, each seed in a process of its own, and prints a table: held-out loss before and after, tokens a
second, memory. Keys with commas are combined; the others hold for all. A run's variants begin from its weights: what does it lose when
a part is swapped, and what does fine-tuning bring back?

  qkv compare gpt-nano position=rope,alibi,learned steps=300 seeds=3
  qkv compare bert-nano kernel=softmax,performer,linformer length=128,512 across=true steps=300
  qkv compare gpt-nano position=sinusoid,learned,rope,alibi,t5,none length=256 evaluate=256,512,1024,2048 steps=1000
  qkv compare last kernel=softmax,"performer(features=64)" across=true steps=200 lr=3e-4
  qkv compare bert-mini kernel=softmax,performer length=512,1024,2048,4096 --time

evaluate=N,... reads the held-out text in rows of other lengths than trained (learned positions are stretched to them).
--time trains nothing: one forward and backward pass a length, and the length from which a variant is faster than the first.
Everything is kept below out (compare/NAME-TIME): results.jsonl, table.txt, picture.png and a run folder each. The same command with the
same out= goes on where it was interrupted.
"""


def run(words, verb):
    from . import sweep

    flags = {w for w in words if w.startswith("--")}
    if flags - {"--time"}:
        raise ValueError(f"there is no flag {', '.join(sorted(flags - {'--time'}))}. There is --time")
    own = ("seeds", "evaluate", "out")
    given = dict(w.split("=", 1) for w in words if w.partition("=")[0] in own and "=" in w)
    words = [w for w in words if w not in flags and w.partition("=")[0] not in own]
    if not words or "=" in words[0]:
        raise ValueError("name one preset, recipe or run first: qkv compare gpt-nano position=rope,alibi")
    what, *words = words
    seeds = sweep.whole_numbers("seeds", given.get("seeds", "1"))[0]
    at = sweep.whole_numbers("evaluate", given["evaluate"]) if "evaluate" in given else []
    single, several, variants = sweep.variants(words)
    if not several:
        raise ValueError("give at least one key several values, with commas: position=rope,alibi")
    if flags:
        return timed(what, single, several, given.get("out"))
    return trained(what, single, several, variants, seeds, at, given.get("out"))


def place(what, out):
    """The folder of a comparison, made."""
    import time
    from pathlib import Path

    folder = Path(str(out)) if out else Path("compare") / f"{Path(what).stem}-{time.strftime('%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def timed(what, single, several, out):
    """Times one pass of each variant at each length."""
    from rich.console import Console

    from .. import pictures
    from . import sweep
    from .cost import measure
    from .show import config_of

    values = dict(w.removeprefix("model.").split("=", 1) for w in single)
    if "length" not in several:
        raise ValueError("--time needs several lengths: length=512,1024,2048")
    lengths = sorted(sweep.whole_numbers("length", ",".join(several.pop("length"))))
    batch, threads = (sweep.whole_numbers(k, values.pop(k, "1"))[0] for k in ("batch", "threads"))
    _, _, variants = sweep.variants([f"{k.removeprefix('model.')}={','.join(v)}" for k, v in several.items()])
    config = lambda variant, n: config_of(what, sweep.read(values | variant) | {"length": n})
    rows = measure(what, values, variants, [lengths] * len(variants), batch, threads, config)
    folder, console = place(what, out), Console(highlight=False)
    lines = {sweep.named(v): [(n, 1e3 * rows[i, n]["seconds"]) for n in lengths] for i, v in enumerate(variants)}
    heavy = {sweep.named(v): [(n, rows[i, n]["mib"]) for n in lengths] for i, v in enumerate(variants)}
    first = next(iter(lines))
    table = grid(["ms, forward + backward", *(f"{n:,}" for n in lengths), f"faster than {first} from"])
    for name, points in lines.items():
        table.add_row(name, *(f"{ms:,.1f}" for _, ms in points), "" if name == first else crossover(lines[first], points))
    console.print(table)
    more = grid(["MiB at most", *(f"{n:,}" for n in lengths)])
    for name, points in heavy.items():
        more.add_row(name, *("-" if mib is None else f"{mib:,.0f}" for _, mib in points))
    console.print(more)
    finish(folder, [table, more], [{"variant": n, "length": x, "ms": ms} for n, points in lines.items() for x, ms in points])
    pictures.curves(folder / "picture.png", lines, x="length", y="ms, forward and backward", title=what, log="xy")
    console.print(f"\n{folder}: results.jsonl, table.txt, picture.png")


def crossover(base, points):
    """The length from which on `points` lie below `base`, between two measured lengths by a straight line on logarithmic axes."""
    import math

    wins = [b < a for (_, a), (_, b) in zip(base, points)]
    if not wins[-1]:
        return f"over {points[-1][0]:,}"
    i = len(wins) - 1
    while i and wins[i - 1]:
        i -= 1
    if i == 0:
        return f"{points[0][0]:,} or less"
    gap = [math.log(b) - math.log(a) for (_, a), (_, b) in zip(base[i - 1 : i + 1], points[i - 1 : i + 1])]
    low, high = math.log(points[i - 1][0]), math.log(points[i][0])
    return f"about {math.exp(low + (high - low) * gap[0] / (gap[0] - gap[1])):,.0f}"


def grid(columns):
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def finish(folder, tables, rows):
    """table.txt, and results.jsonl where it was not written on the way."""
    import json

    from rich.console import Console

    with open(folder / "table.txt", "w", encoding="utf-8") as f:
        for t in tables:
            Console(file=f, width=200).print(t)
    if rows is not None:
        (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def begin(what, single, folder):
    """The recipe that all variants share, written to folder/base.toml; of a run, to begin from its weights."""
    from ..training import folder as runs
    from ..training import recipe
    from . import train

    source = runs.find(what)
    words = [w for w in single if not w.startswith(("seed=", "train.seed="))]
    if source is not None:
        raw = recipe.load(source / "recipe.toml")
        raw["train"] = {k: v for k, v in raw["train"].items() if k not in ("steps", "epochs", "seconds", "init")} | {
            "init": str(source.resolve())
        }
        base = folder / "source.toml"
        base.write_text(recipe.dumps(recipe.resolve(raw | {"train": raw["train"] | {"steps": 300}}, source.name)), encoding="utf-8")
        what = str(base)
    if not any(w.partition("=")[0].removeprefix("train.") in ("steps", "epochs", "seconds") for w in words):
        words.append("steps=300")
    r, _, _ = train.prepare(what, words)
    (folder / "base.toml").write_text(recipe.dumps(r), encoding="utf-8")
    return r


def trained(what, single, several, variants, seeds, at, out):
    import json
    import tempfile
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from .. import models
    from ..models import account
    from ..training import recipe
    from . import sweep, train

    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as aside:  # refused now, not after an hour, and nothing is left behind
        base = begin(what, single, Path(aside))
        for variant in variants:
            try:
                r, _, _ = train.prepare(str(Path(aside) / "base.toml"), [f"{k}={v}" for k, v in variant.items()])
                account.blank(models.preset(r.model["preset"], **{k: v for k, v in r.model.items() if k != "preset"}))
            except ValueError as e:
                raise ValueError(f"{sweep.named(variant)}: {e}") from None
    folder = place(what, out)
    (folder / "base.toml").write_text(recipe.dumps(base), encoding="utf-8")
    results = folder / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
    done = {(r["variant"], r["seed"]) for r in rows}
    console.print(f"{len(variants)} variants x {seeds} seed{'s' if seeds > 1 else ''} on {base.data.source}, into {folder}")
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training", total=len(variants) * seeds)
        for seed in range(1, seeds + 1):
            for variant in variants:
                name = sweep.named(variant)
                progress.update(bar, description=f"{name}, seed {seed}")
                if (name, seed) not in done:
                    row = one(folder, variant, seed, at)
                    rows.append(row)
                    with open(results, "a", encoding="utf-8") as f:
                        f.write(json.dumps(row) + "\n")
                    progress.console.print(f"{name}, seed {seed}: held-out loss {row['loss']:.4f}")
                progress.advance(bar)
    order = [sweep.named(v) for v in variants]
    tables = tabulate(rows, order, at, bool(base.train.init))
    for t in tables:
        console.print(t)
    finish(folder, tables, None)
    picture(folder, rows, order, variants, several, at, what)
    console.print(f"\n{folder}: results.jsonl, table.txt, picture.png, and a run of each")


def one(folder, variant, seed, at):
    """The row of one run, trained in a process of its own."""
    import shutil

    from ..training import folder as runs
    from . import sweep

    where = folder / ("".join(c if c.isalnum() else "-" for c in sweep.named(variant)).strip("-")[:80] + f"-{seed}")
    shutil.rmtree(where, ignore_errors=True)  # what an interrupted run left
    words = ["train", str(folder / "base.toml"), *(f"{k}={v}" for k, v in variant.items()), f"seed={seed}", "--quiet"]
    try:
        _, mib = sweep.child(words, {"QKV_RUNS": str(where.resolve())})
    except ValueError as e:
        raise ValueError(f"{sweep.named(variant)}, seed {seed}: {e}") from None
    run = next(where.glob("*/recipe.toml")).parent
    metrics = runs.read_metrics(run / "metrics.jsonl")
    held = [m for m in metrics if "valid_loss" in m]
    steps = [m for m in metrics if "seconds" in m and "tokens" in m]
    half = steps[len(steps) // 2 :]
    rate = (half[-1]["tokens"] - half[0]["tokens"]) / max(1e-9, half[-1]["seconds"] - half[0]["seconds"]) if len(half) > 1 else None
    row = {"variant": sweep.named(variant), "seed": seed, "before": held[0]["valid_loss"], "loss": held[-1]["valid_loss"],
           "accuracy": held[-1].get("valid_accuracy"), "tokens_per_second": rate, "mib": mib, "run": str(run),
           "curve": [(m["step"], m["valid_loss"]) for m in held]}  # fmt: skip
    return row | ({"lengths": dict(zip(map(str, at), at_lengths(run, at)))} if at else {})


def at_lengths(run, lengths):
    """Held-out loss of a run on rows of each length, or None where its parts cannot read them. About 40,000 tokens each, the same text."""
    import itertools

    from .. import data as data_of
    from .. import models, objectives
    from ..evaluation.loss import evaluate
    from ..training import recipe
    from .common import open_model

    r = recipe.resolve(recipe.load(run / "recipe.toml"), run.name)
    model, tokenizer, _ = open_model(str(run))
    corpus, out = data_of.open_corpus(r.data), []
    for n in lengths:
        try:
            longer = models.adapt(model, length=n).eval() if n > model.config.length else model
            objective = objectives.make(r.train.objective, longer.config, tokenizer, corpus.paired, mask_rate=r.train.mask_rate)
            _, valid = data_of.rows_of(r.data, corpus, tokenizer, length=n, extra=objective.extra)
            batches = itertools.islice(objective.held_out(valid, 1), max(1, 40960 // n))
            out.append(evaluate(longer, objective, batches)["loss"])
        except ValueError:
            out.append(None)
    return out


def spread(values):
    """(mean, standard deviation or 0) of the numbers among them; None where there are none."""
    import statistics

    values = [v for v in values if v is not None]
    return (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0) if values else None


def cell(values, form="{:.4f}"):
    found = spread(values)
    if found is None:
        return "-"
    return form.format(found[0]) + (f" ± {form.format(found[1])}" if len(values) > 1 else "")


def tabulate(rows, order, at, begun):
    of = lambda name: [r for r in rows if r["variant"] == name]
    table = grid(["variant", *(["before"] if begun else []), "held-out loss", "accuracy", "tokens/s", "peak MiB"])
    for name in order:
        mine = of(name)
        get = lambda key: [r[key] for r in mine]
        percent = [None if a is None else 100 * a for a in get("accuracy")]
        table.add_row(name, *([cell(get("before"))] if begun else []), cell(get("loss")), cell(percent, "{:.1f}") + (" %" if percent[0] is not None else ""),
                      cell(get("tokens_per_second")[:1], "{:,.0f}"), cell(get("mib")[:1], "{:,.0f}"))  # fmt: skip
    tables = [table]
    if at:
        tables.append(grid(["held-out loss in rows of", *(f"{n:,}" for n in at)]))
        for name in order:
            tables[1].add_row(name, *(cell([r["lengths"][str(n)] for r in of(name)]) for n in at))
    return tables


def picture(folder, rows, order, variants, several, at, what):
    """Loss by the length read, by a swept key that is a number, or by the step."""
    from .. import pictures

    of = lambda name, get: [get(r) for r in rows if r["variant"] == name]
    numeric = next((k for k, values in several.items() if len(several) > 1 and all(v.replace(".", "", 1).isdigit() for v in values)), None)
    lines = {}
    if at:
        x = "tokens of a row"
        for name in order:
            points = [(n, *found) for n in at if (found := spread(of(name, lambda r, n=n: r["lengths"][str(n)]))) is not None]
            lines[name] = points
    elif numeric:
        from . import sweep

        x = numeric
        for variant, name in zip(variants, order):
            label = sweep.named({k: v for k, v in variant.items() if k != numeric})
            lines.setdefault(label, []).append((float(variant[numeric]), *spread(of(name, lambda r: r["loss"]))))
    else:
        x = "step"
        for name in order:
            curves = of(name, lambda r: r["curve"])
            steps = [s for s, _ in curves[0]]
            together = [[dict(map(tuple, c)).get(s) for c in curves] for s in steps]
            lines[name] = [(s, *spread(values)) for s, values in zip(steps, together) if None not in values]
    pictures.curves(folder / "picture.png", lines, x=x, y="held-out loss", title=what, log="x" if at or numeric else "")
