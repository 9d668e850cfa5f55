"""qkv cost"""

HELP = """
qkv cost PRESET|RUN|FOLDER [length=512,1024,...] [field=value,value ...] [batch=1] [threads=1] [--plan]

What a model costs as the text grows: FLOPs by part (those of the weights grow with the length, those of exact attention with its square),
memory of a training step, keys and values kept in decoding; and beside what is counted, what is measured: time and memory of one
forward and backward pass, each in a process of its own. --plan leaves the measuring out.

  qkv cost gpt-mini length=256,1024,4096
  qkv cost bert-mini kernel=softmax,linformer,performer length=512,2048
  qkv cost gpt-mini pattern=causal,"sliding(128)" length=1024,4096
  qkv cost llama-3-8b kv_heads=32,8,1 length=8192 --plan          multi-head, grouped-query, multi-query

Values with commas are combined. A field that a model has not is refused; a pattern that a kernel cannot follow too.
"""

WORK = 2e13  # FLOPs of a point that is measured without being asked for


def run(words, verb):
    import json

    from . import sweep
    from .show import config_of

    flags = {w for w in words if w.startswith("--")}
    if flags - {"--plan", "--point"}:
        raise ValueError(f"there is no flag {', '.join(sorted(flags - {'--plan', '--point'}))}. There is --plan")
    plain = [w for w in words if not w.startswith("--") and "=" not in w]
    if len(plain) != 1:
        raise ValueError("name one preset, run or folder: qkv cost gpt-mini. `qkv ls` lists the presets")
    given = dict(w.removeprefix("model.").split("=", 1) for w in words if "=" in w and not w.startswith("--"))
    single = lambda key: sweep.whole_numbers(key, given.pop(key, "1"))[0]
    batch, threads = single("batch"), single("threads")
    lengths = sweep.whole_numbers("length", given.pop("length")) if "length" in given else None
    fixed, _, variants = sweep.variants([f"{k}={v}" for k, v in given.items()])
    fixed = dict(w.split("=", 1) for w in fixed)
    from .. import models

    def config(variant, length=None):
        values = sweep.read(fixed | variant)
        cfg = config_of(plain[0], values)
        return config_of(plain[0], values | {"length": length}) if length and length != cfg.length else cfg

    if "--point" in flags:
        import torch

        from .. import runtime

        runtime.keep_memory()
        torch.set_num_threads(threads)
        print(json.dumps(sweep.point(config({}, lengths[0]), lengths[0], batch)))
        return
    cfg = config(variants[0])
    kind = type(cfg).__name__
    if not models.reads_text(cfg) and kind != "ImageEncoder":
        raise ValueError(f"qkv cost reads models of text, and encoders of images; {plain[0]} is of {kind}")
    if kind == "ImageEncoder" and lengths:
        raise ValueError("the length of an image follows from its pixels: give image=32,64 in place of length")
    lengths = [lengths or [config(v).length] for v in variants]
    show(plain[0], fixed, variants, lengths, batch, threads, config, "--plan" in flags)


def show(what, fixed, variants, lengths, batch, threads, config, planned):
    from rich.console import Console
    from rich.table import Table

    from ..models import account
    from . import sweep

    console, binary = Console(highlight=False), lambda n: account.size(n, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)
    counted = []
    for i, variant in enumerate(variants):
        for n in lengths[i]:
            model = account.blank(config(variant, n))
            counted.append((i, n, model, account.flops(model, n)))
    small = lambda model, work, n: 3 * sum(work.values()) * n * batch <= WORK and account.training_bytes(model) <= 8e9
    wanted = {(i, n) for i, n, model, work in counted if not planned and small(model, work, n)}
    seen = measure(what, fixed, variants, lengths, batch, threads, config, wanted)
    skipped = 0 if planned else len(counted) - len(wanted)
    columns = ["length", "FLOPs", "scores", "training", "decoding"] + ([] if planned else ["measured", "peak", "GFLOP/s"])
    for i, variant in enumerate(variants):
        table = Table(box=None, padding=(0, 2, 0, 0), title=f"[bold]{sweep.named(variant)}[/bold]", title_justify="left")
        for name in columns:
            table.add_column(name, justify="right", min_width=8)
        for _, n, model, work in (c for c in counted if c[0] == i):
            total, scores = sum(work.values()), work.get("scores and values", 0)
            kept = account.cache_bytes(model, 4, n) * batch if "Decoder" in type(model.config).__name__ else 0
            extra = [] if planned else ["-"] * 3
            if (i, n) in seen:
                ms, mib = 1e3 * seen[i, n]["seconds"], seen[i, n]["mib"]
                extra = [f"{ms:,.0f} ms", "-" if mib is None else f"{mib:,.0f} MiB", f"{3 * total * n * batch / ms / 1e6:,.1f}"]
            table.add_row(f"{n:,}", account.size(total * n * batch), f"{100 * scores / total:.0f} %",
                          binary(account.activation_bytes(model, n) * batch), binary(kept) if kept else "-", *extra)  # fmt: skip
        console.print(table)
    console.print(f"\nFLOPs: forward, {batch} text{'s' if batch > 1 else ''}; scores: attention's share of them, O(n^2 d) where exact, beside the weights' O(n d^2)\n"
                  "training: activations in 32 bits; decoding: keys and values, a window of them, or a state")  # fmt: skip
    if not planned:
        console.print("measured: forward and backward; peak: memory above the weights'; GFLOP/s: three forward passes by that time")
    heads(console, counted[-1][2].config, lengths[-1][-1], binary)
    if skipped:
        console.print(f"not measured: {skipped} points over {account.size(WORK)}FLOP or 8 GB of weights, gradients and moments")


def measure(what, fixed, variants, lengths, batch, threads, config, wanted=None):
    """{(number of the variant, length): {seconds, mib}} of the points that are wanted, with a progress bar. lengths: of
    each variant."""
    from rich.progress import track

    from . import sweep

    points = [(i, n) for i in range(len(variants)) for n in lengths[i] if wanted is None or (i, n) in wanted]
    for i, n in points:
        config(variants[i], n)  # refused now
    out = {}
    for i, n in track(points, "measuring", transient=True, disable=not points):
        try:
            out[i, n] = sweep.measured(what, fixed | variants[i], n, batch, threads)
        except ValueError as e:
            raise ValueError(f"{sweep.named(variants[i])} at length {n}: {e}") from None
    return out


def heads(console, cfg, length, binary):
    """What one key-value head, some, or one a query head keep in decoding."""
    from dataclasses import replace

    from ..models import account

    if "Decoder" not in type(cfg).__name__:
        return
    some = next((g for g in range(max(1, cfg.heads // 4), cfg.heads) if cfg.heads % g == 0 and g > 1), None)
    kinds = {"multi-head": cfg.heads, "grouped-query": some, "multi-query": 1}
    kept = {f"{name} ({g})": account.cache_bytes(account.blank(replace(cfg, kv_heads=g)), 4, length) for name, g in kinds.items() if g}
    console.print(f"kept at length {length:,}: " + ", ".join(f"{name} {binary(n)}" for name, n in kept.items()))
