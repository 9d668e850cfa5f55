"""qkv train"""

import os
import sys

HELP = """
qkv train [WHAT] [key=value ...] [--ranks N] [--quiet]

WHAT is a preset (gpt-mini), a recipe (multi30k, or path/to/recipe.toml), or a run to go on with (last, runs/NAME).
Nothing at all trains a small GPT for a minute on text that ships with Python.

  qkv train gpt-nano data=my.txt tokenizer=char steps=2000
  qkv train gpt-mini position=rope ffn="gated(silu)" norm=rms     replace any slot
  qkv train bert-nano seconds=120                                  masked tokens
  qkv train transformer-nano data=task:reverse                     an encoder-decoder on generated pairs
  qkv train transformer-mini data=en.txt target=de.txt             your own line-aligned pairs
  qkv train last steps=4000                                        go on, bit for bit, to a later end
  qkv train gpt-mini --ranks 2                                     two processes (torchrun), the same losses

keys (model.*, data.*, train.*; the section may be left out):
  data     source target valid holdout field split languages tokenizer vocab length across errors
  train    objective steps epochs seconds batch tokens accumulate lr schedule warmup optimizer muon_lr weight_decay
           beta1 beta2 clip precision compile threads seed device eval_every eval_batches save_every sample_every
           sample_tokens keep prompt smoothing mask_rate
  model    every field of `qkv show PRESET --fields`

Everything is written to runs/NAME-TIME: recipe.toml (resolved), metrics.jsonl, samples.md, checkpoints (each a published folder).
Ctrl-C saves and leaves; the run goes on with `qkv train last`.
"""


def defaults(preset):
    """What a preset is trained on when nothing is said."""
    from .. import models

    kind = type(models.preset(preset)).__name__
    pairs = kind == "EncoderDecoder"
    raw = {"model": {"preset": preset}, "data": {"source": "task:reverse" if pairs else "pydoc"}, "train": {"seconds": 60.0}}
    if pairs:
        raw["data"]["tokenizer"] = "char"
    if kind == "Encoder":
        raw["data"]["tokenizer"] = "wordpiece"
    return raw


def merge(raw, over):
    return {s: raw[s] | over[s] for s in raw}


def run(words, verb):
    flags, rest, ranks = set(), [], None
    it = iter(words)
    for w in it:
        if w == "--ranks":
            ranks = int(next(it, "0"))
        elif w == "--quiet":
            flags.add("quiet")
        elif w.startswith("--"):
            raise ValueError(f"there is no flag {w}. There are --ranks N, --quiet")
        else:
            rest.append(w)
    if ranks is not None:
        return launch(ranks, [w for w in rest] + (["--quiet"] if "quiet" in flags else []))
    what = rest.pop(0) if rest and "=" not in rest[0] else None
    import dataclasses

    from .. import models
    from ..training import distributed, folder, loop, recipe
    from .panel import Show

    if os.environ.get("LOCAL_RANK") is not None:
        distributed.start()
    resume = None
    where = folder.find(what) if what else None
    path = None if where else recipe.find(what or "quickstart")
    if where is not None:
        raw, name = recipe.load(where / "recipe.toml"), where.name.rsplit("-", 2)[0]
    elif path is not None:
        raw, name = recipe.load(path), path.stem
    else:
        loop.known_presets(what)
        raw, name = defaults(what), what
    preset = raw["model"].get("preset")
    overrides = {"model": {}, "data": {}, "train": {}}
    if rest:
        for word in rest:  # the preset decides which model fields there are
            if word.startswith(("preset=", "model.preset=")):
                preset = word.partition("=")[2]
        fields = {f.name for f in dataclasses.fields(models.preset(preset))} if preset else set()
        overrides = recipe.parse_overrides(rest, fields)
    if {"steps", "epochs", "seconds"} & set(overrides["train"]):  # a new end replaces the old one
        for key in ("steps", "epochs", "seconds"):
            raw["train"].pop(key, None)
    if where is not None:
        if overrides["model"] or overrides["data"]:
            raise recipe.RecipeError(f"{where} goes on with the model and data it began with; only train.* may change, not {', '.join([*overrides['model'], *overrides['data']])}")
    elif overrides["data"].get("source") and path is None:
        raw["data"].pop("tokenizer", None) if not str(overrides["data"]["source"]).startswith("task:") else None
    r = recipe.resolve(merge(raw, overrides), name)
    if r.data.target or r.data.source in ("multi30k",):
        pass
    if where is None:
        where = shared(lambda: folder.new(name))
        if distributed.rank() == 0:
            (where / "recipe.toml").write_text(recipe.dumps(r), encoding="utf-8")
    else:
        from ..checkpoints import runs

        resume, notes = runs.newest(where / "checkpoints")
        for note in notes:
            print(f"note: {note}; going on from an older checkpoint", file=sys.stderr)
        if distributed.rank() == 0:
            (where / "recipe.toml").write_text(recipe.dumps(r), encoding="utf-8")
    show = Show(where, name, "quiet" in flags) if distributed.rank() == 0 else None
    import contextlib

    try:
        with folder.locked(where) if distributed.rank() == 0 else contextlib.nullcontext():
            held = loop.train(r, where, resume=resume, show=show)
    except loop.Diverged as e:
        if show:
            show.close()
        print(f"qkv train: {e}", file=sys.stderr)
        return 1
    except BaseException:
        if show:
            show.close()
        if resume is None and distributed.rank() == 0 and not (where / "metrics.jsonl").exists():
            import shutil

            shutil.rmtree(where, ignore_errors=True)  # nothing was trained: leave no empty run behind
        raise
    if distributed.rank() == 0:
        ending(where, held, show)
    distributed.finish()
    return 0


def ending(where, held, show):
    if held is not None:
        first = show.held[0][1]["loss"] if show.held else None
        began = f" (untrained: {first:.3f})" if first and show.first == 0 else ""
        print(f"held-out loss {held['loss']:.3f}{began}, perplexity {held['perplexity']:,.1f}")
    if show.text:
        print(f"sample: {show.text[:500]}")
    print(f"\nrun folder: {where}\ntry next:\n  qkv generate {where}\n  qkv train {where} seconds={int(2 * max(60, show.elapsed))}")


def shared(make):
    """What rank 0 makes, on every rank."""
    from ..training import distributed

    if not distributed.active():
        return make()
    import torch.distributed as dist

    box = [make() if distributed.rank() == 0 else None]
    dist.broadcast_object_list(box, 0)
    return box[0]


def launch(ranks, words):
    """Starts `ranks` processes of the same command under torchrun and waits for them."""
    import subprocess

    if ranks < 1:
        raise ValueError(f"--ranks {ranks}: must be at least 1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "qkv", "train", *words]
    env = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.call(command, env=env)
