"""A run put together from its recipe: texts or examples, tokenizer, model, objective."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import data as data_of
from .. import models, objectives, runtime
from ..data import examples, media
from ..data import tokenizer as tokenizers
from ..models import account
from . import distributed, folder, machine, recipe


@dataclass
class Run:
    """Everything a run is made of."""

    recipe: recipe.Recipe
    tokenizer: object
    model: torch.nn.Module
    objective: object
    train: object
    valid: object
    key: str
    device: torch.device
    bf16: bool
    arithmetic: str  # in words
    notes: list[str]  # what a user should be told of how the data was read


def threads(asked):
    """How many threads to compute with: what was asked, or all cores that this process may use."""
    cores = runtime.cores()
    if asked > cores:
        raise recipe.RecipeError(f"train.threads={asked}: this process may use {cores} cores")
    return asked or cores


def choose_device(asked):
    """cpu or cuda: what was asked, or the GPU where there is one."""
    if asked not in ("auto", "cpu", "cuda"):
        raise recipe.RecipeError(f"train.device={asked!r}: must be auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise recipe.RecipeError("train.device=cuda: this machine has no GPU that torch can use; leave it out, or device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def assemble(r, weights=None, before=None):
    """Run of a recipe; weights: a checkpoint folder whose model and tokenizer are taken instead of fresh ones; before: how float32
    was multiplied when it was saved."""
    t, d = r.train, r.data
    runtime.keep_memory()
    torch.set_num_threads(max(1, threads(t.threads) // distributed.world()))
    device = torch.device(choose_device(t.device))
    fields = {k: v for k, v in r.model.items() if k != "preset"}
    cfg = models.preset(r.model["preset"], **{k: v for k, v in fields.items() if k != "vocab"})
    asked = {k: getattr(cfg, k) for k in fields if hasattr(cfg, k)}
    has_words = models.has_words(cfg)
    if not models.reads_text(cfg) and not t.task:
        can = [n for n, k in objectives.TASKS.items() if type(cfg).__name__ in k.outputs]
        raise recipe.RecipeError(
            f"{r.model['preset']} reads no text; it is trained with " + (f"task={' or '.join(can)} data=FOLDER" if can else "no task yet")
        )
    task = objectives.task_of(t.task) if t.task else None
    corpus = labelled(d, task, t.seed) if task else data_of.open_corpus(d)
    shown = corpus.first() if task is None else task.described(next((e for e in corpus.train if e.label is not None), corpus.train[0]))
    corpus.notes.insert(0, f"first training example, as it was read: {shown}")
    carried = lambda cfg: {} if task is None else carries(task, cfg, corpus, asked)  # fields that the task asks of a model
    parts, family = models.parts_of(cfg) if weights is None else (), models.presets()[r.model["preset"]][0]
    begun = weights or (folder.weights(t.init) if t.init and not parts else None)
    torch.manual_seed(t.seed)
    tokenizer_of = tokenizers.load if has_words else lambda where: tokenizers.NoTokens()
    if parts:
        tokenizer, model = together(cfg, parts, t.init)
        cfg = model.config
    elif begun is None and not has_words:
        tokenizer, model = tokenizer_of(None), models.build(models.replace(cfg, **carried(cfg)), family=family)
        cfg = model.config
    elif begun is None:
        tokenizer, cfg = fresh(r, models.replace(cfg, **carried(cfg)), fields, corpus)
        model = models.build(cfg, family=family)
    else:
        tokenizer, model = tokenizer_of(begun), models.load(begun)
        check_vocabulary(tokenizer, model.config, begun)
        if weights is None:
            inner = getattr(model, "encoder", None)
            if type(getattr(inner, "config", None)) is type(cfg):
                model = inner  # of an autoencoder
                model.family, model.published = family, models.published_class(model.config, family)
            if type(cfg) is not type(model.config):
                raise recipe.RecipeError(
                    f"train.init={t.init} is of the topology {type(model.config).__name__}; the preset {r.model['preset']} is of {type(cfg).__name__}"
                )
            pad = (
                {}
                if model.config.pad is not None or not has_words
                else {"pad": tokenizer.pad if tokenizer.pad is not None else tokenizer.eos}
            )
            model = models.adapt(model, **{k: v for k, v in fields.items() if k != "vocab"} | pad | carried(model.config))
        cfg = model.config
    if tokenizer.pad is None:
        tokenizer.pad = cfg.pad
    length = d.length or cfg.length
    if length > cfg.length:
        raise recipe.RecipeError(f"data.length={length} is more than the model's {cfg.length} positions (model.length)")
    if task:
        objective = objectives.make_task(t.task, cfg, tokenizer, length, t.smoothing)
        train, valid = (
            data_of.Pairs(items, tokens=1 << 62, seed=t.seed, rows=t.batch, size=[len(i["ids"]) for i in items])
            for items in (objective.encode(corpus.train, training=True), objective.encode(corpus.valid))
        )
        objective.prepare(model)
    else:
        objective = objectives.make(t.objective, cfg, tokenizer, corpus.paired, mask_rate=t.mask_rate, smoothing=t.smoothing)
        torch.manual_seed(t.seed + 1)
        objective.prepare(model)
        train, valid = data_of.rows_of(
            d, corpus, tokenizer, length=length, extra=objective.extra, tokens=t.tokens, seed=t.seed, joined=objective.joined
        )
    freeze(model, t.freeze)
    if hasattr(model, "trained"):
        kept = {id(p) for p in model.trained().values()}
        for p in model.parameters():
            p.requires_grad_(id(p) in kept)
    pairs = isinstance(train, data_of.Pairs) and not task
    rows = t.tokens // length if pairs else t.batch
    fits(model, max(1, rows // distributed.world()), device, "tokens" if pairs else "batch")
    bf16, matmul, arithmetic = machine.settle(t.precision, model, rows * length, device.type, before)
    torch.set_float32_matmul_precision(matmul)
    return Run(r, tokenizer, model.to(device), objective, train, valid, corpus.key, device, bf16, arithmetic, corpus.notes)


def together(cfg, parts, init):
    """(tokenizer, model) of trained parts: init is `words=RUN,picture=RUN`."""
    given = dict(p.strip().partition("=")[::2] for p in (init or "").split(",") if "=" in p)
    if set(given) != set(parts):
        raise recipe.RecipeError(
            f"train.init={init}: this model is put together from trained parts; give init=" + ",".join(f"{p}=RUN" for p in parts)
        )
    found = {p: folder.weights(where) for p, where in given.items()}
    loaded = {p: models.load(where) for p, where in found.items()}
    tokenizer = tokenizers.load(found["words"])
    return tokenizer, models.join(cfg, loaded)


def fresh(r, cfg, fields, corpus):
    """(tokenizer, config) of a model that begins from nothing: the tokenizer decides the vocabulary and the special ids."""
    d, t = r.data, r.train
    vocab = d.vocab if d.vocab is not None else fields.get("vocab") or max(cfg.vocab, 1024)
    marks = 0 if t.task else objectives.kind_of(objectives.usual(cfg, corpus.paired) if t.objective == "auto" else t.objective).sentinels
    tokenizer = data_of.make_tokenizer(dataclasses.replace(d, vocab=vocab), corpus, marks)
    size = fields.get("vocab") or len(tokenizer)
    if size < len(tokenizer):
        raise recipe.RecipeError(
            f"model.vocab={size} is smaller than the tokenizer's {len(tokenizer)} tokens; leave it out, or make it larger"
        )
    cfg = models.replace(cfg, vocab=size, pad=tokenizer.pad, bos=tokenizer.bos, eos=tokenizer.eos)
    if isinstance(cfg, models.EncoderDecoder):
        cfg = models.replace(cfg, start=tokenizer.bos, target_vocab=None)
    return tokenizer, cfg


@dataclass
class Labelled:
    """The examples of a task: what a Corpus is of texts."""

    train: list
    valid: list
    names: tuple | None
    key: str
    task: type
    paired: bool = True
    notes: list[str] = dataclasses.field(default_factory=list)

    def texts(self):
        """All strings of the training examples, what a tokenizer is trained on."""
        return (w for e in self.train for w in self.task.words(e))


def labelled(d, task, seed=0):
    """The examples of a Data config for a kind of task, split into train and held-out; seed: what d.limit is drawn by."""
    train = task.read(d, d.source, "train")
    if d.valid and "*" in d.valid and not Path(d.valid).exists():
        train, valid = media.held(train, d.valid)
    elif d.valid or d.source in data_of.registry.PUBLISHED or d.source == "dial" or d.source.startswith("gate:") or task.parts:
        valid = task.read(d, d.valid or d.source, "valid")
    else:
        train, valid = examples.split(train, d.holdout)
    if d.limit is not None and d.limit < len(train):
        train = [train[i] for i in sorted(data_of.rng(seed, 4).permutation(len(train))[: d.limit])]
    return Labelled(train, valid, task.names(train), examples.digest(train, valid), task)


def carries(task, cfg, corpus, asked):
    """Fields of a model that carries a task. Raises RecipeError where its topology cannot, or where a field that was asked for is not what the examples are like."""
    topology = type(cfg).__name__
    if topology not in task.outputs:
        raise recipe.RecipeError(f"train.task: this task needs the topology {' or '.join(task.outputs)}; the model is of {topology}")
    out = {"output": task.outputs[topology]} | task.shape(corpus.train)
    if corpus.names:
        out |= {"labels": len(corpus.names), "label_names": corpus.names}
    for key in set(out) & set(asked):
        if asked[key] != out[key]:
            raise recipe.RecipeError(f"model.{key}={asked[key]}: the examples ask for {key}={out[key]}; leave it out")
    return out


def freeze(model, count):
    """Keeps the embedding and the first `count` blocks of every stack as they are."""
    if not count:
        return
    blocks = [n for n, _ in model.named_modules() if n.endswith("blocks")]
    most = max(len(model.get_submodule(b)) for b in blocks)
    if count > most:
        raise recipe.RecipeError(f"train.freeze={count}: the model has {most} blocks")
    for name, p in model.named_parameters():
        parts = name.split(".")
        at = parts.index("blocks") if "blocks" in parts else -1
        if parts[0].endswith("embed") or (at >= 0 and int(parts[at + 1]) < count):
            p.requires_grad_(False)


def fits(model, rows, device, key):
    """Raises where a step's memory cannot be had, saying how much it needs and what would fit."""
    need, each = account.training_bytes(model), account.activation_bytes(model)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else runtime.free_memory()
    if free is not None and need + rows * each > free:
        fit = int((free - need) // each)
        length = model.config.length
        asked, would = (rows * length, fit * length) if key == "tokens" else (rows, fit)
        say = f"{key}={would} would fit" if fit > 0 else "not one row fits; take a smaller model or data.length"
        raise recipe.RecipeError(
            f"train.{key}={asked}: a step needs about {(need + rows * each) / 1e9:,.1f} GB ({need / 1e9:,.1f} for weights, gradients and moments, "
            f"the rest for {rows:,} rows of {length} tokens) and {free / 1e9:,.1f} GB are free; {say}"
        )


def check_vocabulary(tokenizer, cfg, where):
    """Raises where a tokenizer has ids that the model has no embedding for."""
    if len(tokenizer) > cfg.vocab:
        raise recipe.RecipeError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary is {cfg.vocab}; they do not belong together"
        )
