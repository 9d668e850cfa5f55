"""qkv train"""

import os
import sys

from ..words import nearest

HELP = """
qkv train [WHAT] [key=value ...] [--ranks N] [--profile] [--plain | --quiet]

WHAT is a preset (gpt-mini), a recipe (multi30k, or path/to/recipe.toml), or a run to go on with (last, runs/NAME).
Nothing at all trains a small GPT for a minute on text that ships with Python.

  qkv train gpt-nano data=my.txt tokenizer=char steps=2000
  qkv train gpt-mini position=rope ffn="gated(silu)" norm=rms     replace any slot
  qkv train bert-nano seconds=120                                  masked tokens
  qkv train vit-nano                                               images: digits that ship with scikit-learn
  qkv train vit-nano data=FOLDER valid=FOLDER                      a folder (or zip, tar, IDX file) with a folder a class
  qkv train mae-nano data=FOLDER, then vit-nano init=last          hidden patches first
  qkv train clip-nano data=names.tsv files=images.zip              images and their texts find each other
  qkv train whisper-nano                                           sound: telephone keys; data=fsdd, or a folder, zip or table of your own
  qkv train conformer-nano data=fsdd                               the same by CTC
  qkv train informer-nano data=series.csv label=sales              the next steps of a series; linear-forecaster beside it
  qkv train bert4rec-nano data=items.txt                           what a user takes next (lines `user item`)
  qkv train decision-nano env=CartPole-v1                          decisions: trajectories are collected first; returns=false: behaviour cloning
  qkv train tabnet data=adult.csv target=income                    a column of a table from the others; invase, mlp, perceptron beside it
  qkv train mlp data=gate:xor                                      a logic gate by back-propagation (the perceptron cannot)
  qkv train lstm-nano, bahdanau-nano data=task:date                what came before: recurrent networks, and the first attention
  qkv train transformer-nano data=task:reverse                     an encoder-decoder on generated pairs
  qkv train transformer-mini data=en.txt target=de.txt             your own line-aligned pairs
  qkv train last steps=4000                                        go on, bit for bit, to a later end
  qkv train bert-mini init=last task=classification data=sst2      fine-tune what was just pre-trained
  qkv train bert-mini objective="masked(unit=span, rate=0.2)"      another objective, with its arguments
  qkv train gpt-mini --ranks 2                                     two processes (torchrun), the same losses

keys (model.*, data.*, train.*; the section may be left out):
  data     source target valid holdout field split languages tokenizer vocab length across errors
           text pair label choices task (columns of labelled examples, by name or number) files without limit env policy episodes bins
           valid_target count  too_long (pairs that do not fit: drop, cut, windows or refuse)
  train    objective task init freeze layer_decay patience steps epochs seconds batch tokens accumulate lr schedule warmup optimizer muon_lr weight_decay
           beta1 beta2 clip precision compile threads seed device eval_every eval_batches save_every sample_every
           sample_tokens keep prompt smoothing mask_rate
  model    every field of `qkv show PRESET --fields`

objectives: causal prefix masked sentences detect contrastive (running text), seq2seq denoise corrupt (encoder-decoders)
tasks: images reconstruct (of images), match caption draw (of images and texts), transcribe (of sounds), forecast (of series), recommend (of items), decide (of trajectories), table (of rows), classification tagging answers choice text, on CSV, TSV, JSON lines, CoNLL or SQuAD files; the best epoch is kept

--plain prints lines instead of the live panel, --quiet only the end. --profile says where the time went, and what share of the
machine's peak was used (MFU; `qkv bench` measures the peak).
Everything is written to runs/NAME-TIME: recipe.toml (resolved), metrics.jsonl, samples.md, checkpoints (each a published folder).
Ctrl-C saves and leaves; the run goes on with `qkv train last`.
"""


TASK = {"epochs": 4.0, "batch": 32, "lr": 5e-4, "schedule": "linear", "warmup": 50, "weight_decay": 0.01}  # fine-tuning


def defaults(preset, task=False, data=False):
    """What a preset is trained on when nothing is said. task: labelled examples are given; data: something to train on is."""
    from .. import models

    kind = type(models.preset(preset)).__name__
    heard, images = (
        ("SpeechEncoderDecoder", "SpeechEncoder"),
        {"ImageEncoder": "images", "ConvNet": "images", "MaskedAutoencoder": "reconstruct", "TwoTowers": "match", "Drawer": "draw"},
    )
    if kind in images:
        small = {"image": 16, "channels": 1} if not data and kind not in ("TwoTowers", "Drawer") else {}
        train = {"task": images[kind], "seconds": 60.0, "batch": 64, "lr": 1e-3, "weight_decay": 0.05}
        words = {"tokenizer": "wordpiece", "vocab": 1024} if kind in ("TwoTowers", "Drawer") else {}
        return {"model": {"preset": preset} | small, "data": {"source": "digits"} | words, "train": train}
    if kind in ("CalendarEncoderDecoder", "LinearForecaster"):
        train = {
            "task": "forecast",
            "epochs": 6.0,
            "batch": 32,
            "lr": 5e-4,
            "schedule": "linear",
            "warmup": 100,
            "weight_decay": 0.01,
            "patience": 3,
        }
        return {"model": {"preset": preset}, "data": {"source": "series.csv"}, "train": train}
    if kind in ("TabularDecider", "Selector", "Perceptron"):
        train = {"task": "table", "epochs": 50.0, "batch": 256, "lr": 2e-2, "weight_decay": 0.0, "beta2": 0.999, "patience": 15}
        own = {"Selector": {"lr": 1e-3, "patience": 0}, "Perceptron": {"epochs": 100.0, "batch": 32, "lr": 3e-2, "patience": 0}}
        return {"model": {"preset": preset}, "data": {"source": "gate:xor"}, "train": train | own.get(kind, {})}
    if kind == "TrajectoryDecoder":
        train = {"task": "decide", "steps": 1500, "batch": 64, "lr": 1e-3, "weight_decay": 1e-4, "eval_every": 500}
        return {"model": {"preset": preset}, "data": {} if data else {"env": "CartPole-v1"}, "train": train}
    if preset.startswith(("bert4rec", "gru4rec")):
        train = {"task": "recommend", "seconds": 600.0, "batch": 128, "lr": 1e-3, "warmup": 100, "weight_decay": 0.01}
        return {"model": {"preset": preset}, "data": {"source": "items.txt", "tokenizer": "items"}, "train": train}
    if kind in heard:
        train = {"task": "transcribe", "seconds": 60.0, "batch": 32, "lr": 1e-3, "weight_decay": 0.05, "eval_every": 100}
        return {"model": {"preset": preset}, "data": {"source": "dial", "tokenizer": "char"}, "train": train}
    if task:
        kind = type(models.preset(preset)).__name__
        data = {"tokenizer": "wordpiece"} if kind == "Encoder" else {}
        return {"model": {"preset": preset}, "data": data, "train": dict(TASK)}

    kind, objective = type(models.preset(preset)).__name__, models.objective_of(preset)
    pairs = kind in ("EncoderDecoder", "RecurrentEncoderDecoder") and not objective
    raw = {"model": {"preset": preset}, "data": {"source": "task:reverse" if pairs else "pydoc"}, "train": {"seconds": 60.0}}
    if objective:
        raw["train"]["objective"] = objective
    if kind == "Recurrent":
        raw["data"]["across"] = True  # it cannot keep the documents of a row apart
    if kind.startswith("Recurrent"):
        raw["train"]["lr"] = 3e-3
    if pairs:
        raw["data"]["tokenizer"] = "char"
    if kind == "Encoder":
        raw["data"]["tokenizer"] = "wordpiece"
    return raw


def run(words, verb):
    words, ranks, mode, profile = _flags(words)
    import contextlib
    import shutil

    from ..training import distributed, folder, loop, recipe
    from .panel import Show

    what = words.pop(0) if words and "=" not in words[0] else None
    r, name, where = prepare(what, words)
    if ranks is not None:
        return launch(ranks, [*([what] if what else []), *words, *([f"--{mode}"] if mode else []), *(["--profile"] if profile else [])])
    if os.environ.get("LOCAL_RANK") is not None:
        distributed.start()
    first, resume = distributed.rank() == 0, None
    fresh = where is None
    if fresh:
        where = shared(lambda: folder.new(name))
    show = Show(where, name, mode) if first else None
    write = lambda: first and (where / "recipe.toml").write_text(recipe.dumps(r), encoding="utf-8")
    try:
        with folder.locked(where) if first else contextlib.nullcontext():
            if not fresh:
                resume = newest(where)
            held = loop.train(r, where, resume=resume, show=show, ready=write, profile=profile)
    except loop.Diverged as e:
        print(f"qkv train: {e}", file=sys.stderr)
        return 1
    except BaseException:
        if fresh and first and not (where / "metrics.jsonl").exists():
            shutil.rmtree(where, ignore_errors=True)  # nothing was trained: leave no empty run behind
        raise
    finally:
        if show:
            show.close()
    if first:
        ending(where, held, show, r)
    distributed.finish()
    return 0


FLAGS = ("--ranks", "--profile", "--plain", "--quiet")


def _flags(words):
    """(plain words, ranks or None, "plain", "quiet" or "", profile?). Raises ValueError for an unknown flag."""
    rest, ranks, mode, profile, it = [], None, "", False, iter(words)
    for w in it:
        if w == "--ranks":
            value = next(it, "")
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"--ranks {value}: must be a whole number of at least 1")
            ranks = int(value)
        elif w in ("--plain", "--quiet"):
            mode = w[2:]
        elif w == "--profile":
            profile = True
        elif w.startswith("--"):
            raise ValueError(f"there is no flag {w}.{nearest(w, FLAGS)} There are --ranks N, --profile, --plain, --quiet")
        else:
            rest.append(w)
    return rest, ranks, mode, profile


def prepare(what, words):
    """(recipe, name, run folder to go on with or None) of the words of a command. Raises ValueError for what cannot be."""
    from .. import models
    from ..training import folder, loop, recipe

    where = folder.find(what) if what else None
    path = None if where else recipe.find(what or "quickstart")
    if where is not None:
        raw, name = recipe.load(where / "recipe.toml"), where.name.rsplit("-", 2)[0]
    elif path is not None:
        raw, name = recipe.load(path), path.stem
    else:
        loop.known_presets(what)
        task = any(w.startswith(("task=", "train.task=")) and w.partition("=")[2] not in ("", "none") for w in words)
        raw, name = defaults(what, task, any(w.startswith(("data=", "data.source=")) for w in words)), what
    preset = next((w.partition("=")[2] for w in words if w.startswith(("preset=", "model.preset="))), raw["model"].get("preset"))
    fields = models.fields(models.preset(preset)) if isinstance(preset, str) and words else set()
    over = recipe.parse_overrides(words, fields)
    if {"steps", "epochs", "seconds"} & set(over["train"]):  # a new end replaces the old one
        for key in ("steps", "epochs", "seconds"):
            raw["train"].pop(key, None)
    if where is not None:
        fixed = [
            *over["model"],
            *over["data"],
            *(k for k in over["train"] if k in ("optimizer", "objective", "seed", "batch", "tokens", "accumulate")),
        ]
        if fixed:
            raise recipe.RecipeError(
                f"{where} goes on as it began; {', '.join(fixed)} cannot change. Start a new run instead: qkv train PRESET ..."
            )
    elif path is None and not str(over["data"].get("source", "task:")).startswith("task:") and raw["data"].get("tokenizer") == "char":
        del raw["data"]["tokenizer"]  # characters are for generated tasks
    if over["train"].get("init"):  # `last` means another run once this one is there
        over["train"]["init"] = str(folder.find(str(over["train"]["init"])) or over["train"]["init"])
    if over["train"].get("task") and not {"source", "env"} & {*raw["data"], *over["data"]}:
        raise recipe.RecipeError(f"train.task={over['train']['task']} needs labelled examples: data=FILE, or a data set of `qkv ls data`")
    r = recipe.resolve({s: raw[s] | over[s] for s in raw}, name)
    if where is None:
        models.preset(r.model["preset"], **{k: v for k, v in r.model.items() if k != "preset"})  # refused now, not in every rank
    return r, name, where


def newest(where):
    """The newest whole checkpoint of a run, with notes about those passed over; None where there is none."""
    from ..checkpoints import runs

    resume, notes = runs.newest(where / "checkpoints")
    for note in notes:
        print(f"note: {note}; going on from an older checkpoint", file=sys.stderr)
    return resume


def ending(where, held, show, r):
    """What is printed when a run is over: the result, a sample, and what to do next."""
    from ..evaluation.loss import described, of_how_many
    from ..training import folder
    from .panel import brief

    rows = folder.read_metrics(where / "metrics.jsonl")
    untrained = next((x["valid_loss"] for x in rows if "valid_loss" in x and x["step"] == 0), None)
    if held is None:
        print(f"interrupted at step {show.now}; everything is saved. Go on with: qkv train {where}")
        return
    before = f" (untrained: {untrained:.3f})" if untrained else ""
    print(f"held-out loss {held['loss']:.3f}{before}{of_how_many(held)}, {described(held)}")
    if show.text and show.mode != "plain":
        print(f"sample: {brief(show.text, 110)}")
    more = f"steps={2 * show.now}" if r.train.seconds is None else f"seconds={int(2 * r.train.seconds)}"
    on, answer = f'qkv generate {where} "The "', f'qkv generate {where} "a text to answer"'
    writes = {"Decoder": on, "Recurrent": on, "EncoderDecoder": answer, "RecurrentEncoderDecoder": answer}
    look = writes.get("" if r.train.task else show.kind, f"qkv eval {where}")
    print(f"\nrun folder: {where}\ntry next:\n  {look}\n  qkv train {where} {more}")


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

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "qkv", "train", *words]
    env = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.call(command, env=env)
