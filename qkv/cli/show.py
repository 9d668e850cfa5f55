"""qkv show"""

import dataclasses

HELP = """
qkv show PRESET|RUN|FOLDER [field=value ...] [--fields]

Prints a model's block tree, parameters by part, FLOPs a token, KV-cache and memory, without allocating its weights.

  qkv show gpt2
  qkv show llama-3-8b kv_heads=32            what grouped-query attention saves
  qkv show gpt-mini position=alibi ffn="gated(silu)"
  qkv show bert-base --fields                every field that may be replaced, with its value
"""


def config_of(what, fields):
    """The config of a preset, a run or a folder, with fields replaced."""
    from pathlib import Path

    from .. import models
    from ..checkpoints import files
    from ..training import folder

    known = models.presets()
    if what not in known:
        run = folder.find(what)
        where = _newest(run) if run else Path(what)
        if (where / "config.json").exists():
            raw = files.read_json(where / "config.json")
            name = (raw.get("architectures") or [None])[0]
            if raw.get("model_type") == "qkv":
                return models.replace(models.from_own(raw), **fields)
            if name not in models.CLASSES:
                raise ValueError(f"{where}: architectures={name!r} is not one that qkv loads")
            return models.replace(models.CLASSES[name].read(raw, name), **fields)
        if what in models.CLASSES:
            return models.CLASSES[what].read(fields, what)
    return models.preset(what, **fields)


def _newest(run):
    from ..checkpoints import runs

    path, _ = runs.newest(run / "checkpoints")
    if path is None:
        raise ValueError(f"{run} has no checkpoint yet")
    return path


def run(words, verb):
    from ..training.recipe import read_value

    flags = {w for w in words if w.startswith("--")}
    if flags - {"--fields"}:
        raise ValueError(f"there is no flag {', '.join(flags - {'--fields'})}. There is --fields")
    plain = [w for w in words if not w.startswith("--") and "=" not in w]
    if len(plain) != 1:
        raise ValueError("name one preset, run or folder: qkv show gpt2. `qkv ls` lists the presets")
    fields = {
        k.removeprefix("model."): read_value(v) for k, _, v in (w.partition("=") for w in words if "=" in w and not w.startswith("--"))
    }
    cfg = config_of(plain[0], fields)
    from rich.console import Console
    from rich.table import Table
    from rich.tree import Tree

    from ..models import account

    console = Console(highlight=False)
    if flags:
        table = Table("field", "value", box=None)
        for f in dataclasses.fields(cfg):
            table.add_row(f.name, repr(getattr(cfg, f.name)))
        console.print(table)
        return
    model = account.blank(cfg)
    total = sum(p.numel() for p in model.parameters())
    tree = Tree(f"[bold]{plain[0]}[/bold]  {type(cfg).__name__}, {total:,} parameters")
    branch(tree, model)
    console.print(tree)
    table = Table("part", "parameters", "share", box=None, padding=(0, 2))
    for part, n in sorted(account.parameters(model).items(), key=lambda x: -x[1]):
        table.add_row(part, f"{n:,}", f"{100 * n / total:.1f} %")
    console.print(table)
    binary = lambda n: account.size(n, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)
    one = {"ConvNet": "an image", "SpeechEncoder": "a sound" if cfg.length == 1 else f"a sound of {cfg.length / 100:g} s",
           "SpeechEncoderDecoder": f"a sound and {cfg.length} tokens"}.get(type(cfg).__name__)  # fmt: skip
    if one:
        if (work := account.of_example(model)) is not None:
            console.print(f"\nFLOPs of {one}, forward: [bold]{account.size(work)}[/bold]")
        console.print(f"memory: weights {binary(4 * total)} in 32 bits, with gradients and moments {binary(account.training_bytes(model))}")
        return
    if type(cfg).__name__ == "Drawer":
        return
    for name in ("picture", "words") if hasattr(model, "picture") else ():
        tower = getattr(model, name)
        console.print(
            f"\nFLOPs of a {name}, forward: [bold]{account.size(sum(account.flops(tower).values()) * tower.config.length)}[/bold]"
        )
    if hasattr(model, "picture"):
        return
    work = account.flops(model)
    each = ", ".join(f"{k} {account.size(v)}" for k, v in work.items())
    console.print(f"\nFLOPs a token, forward, at {cfg.length} tokens of context: [bold]{account.size(sum(work.values()))}[/bold] ({each})")
    if type(cfg).__name__ in ("Decoder", "EncoderDecoder"):
        b = account.cache_bytes(model)
        console.print(
            f"KV cache: [bold]{b:,}[/bold] bytes a token in 16 bits, {account.size(b * cfg.length, ('B', 'KiB', 'MiB', 'GiB', 'TiB'), 1024)} for a whole context"
        )
    console.print(f"memory: weights {binary(4 * total)} in 32 bits, {binary(2 * total)} in 16; training with AdamW in 32 bits: "
                  f"weights, gradients, moments {binary(account.training_bytes(model))}, a row of {cfg.length} tokens {binary(account.activation_bytes(model))}")  # fmt: skip


def branch(tree, model):
    """Adds a model's parts; equal blocks in a row are shown once, and a tensor that two parts share is counted at the first."""
    from torch import nn

    owner: dict[int, str] = {}  # the first name of each tensor
    for path, p in model.named_parameters(remove_duplicate=False):
        owner.setdefault(id(p), path)

    def line(name, m, path):
        first = {id(p): owner[id(p)] for p in m.parameters()}
        n = sum(p.numel() for p in m.parameters() if first[id(p)].startswith(f"{path}."))
        shared = [w for w in first.values() if not w.startswith(f"{path}.")] if not list(m.children()) else []
        about = ""
        if hasattr(m, "kernel"):
            groups = f", {m.kv_heads} key-value heads" if m.kv_heads != m.heads else ""
            source = "cross, " if m.cross else ""
            place = type(m.position).__name__ if type(m.position).__name__ != "NoPosition" else ""
            about = (
                f"{source}{m.heads} heads of {m.head_dim}{groups}, {words(m.pattern)}"
                + (f", {place}" if place else "")
                + f", {type(m.kernel).__name__}"
            )
        elif isinstance(m, nn.Embedding):
            about = f"{m.num_embeddings:,} x {m.embedding_dim}"
        elif isinstance(m, nn.Linear):
            about = f"{m.in_features:,} -> {m.out_features:,}" + ("" if m.bias is not None else ", no bias")
        about += f", shared with {', '.join(shared)}" if shared else ""
        return f"{name}: [cyan]{type(m).__name__}[/cyan]" + (f" {about}" if about else "") + (f"  [dim]{n:,}[/dim]" if n else "")

    def walk(node, m, before=""):
        for name, child in m.named_children():
            if isinstance(child, (nn.Identity,)) or (type(child).__name__ in ("Dropout", "Softmax", "NoPosition", "RoPE")):
                continue
            if isinstance(child, nn.ModuleList):
                at = 0
                while at < len(child):
                    same = at
                    while same + 1 < len(child) and str(child[same + 1]) == str(child[at]):
                        same += 1
                    label = f"{name}.{at}" if same == at else f"{name}.{at}-{same}  ({same - at + 1} alike)"
                    path = f"{before}{name}.{at}"
                    walk(node.add(line(label, child[at], path)), child[at], f"{path}.")
                    at = same + 1
            else:
                path = f"{before}{name}"
                walk(node.add(line(name, child, path)), child, f"{path}.")

    walk(tree, model)


def words(pattern):
    """And(Causal(), Documents()) -> 'causal'"""
    kind = type(pattern).__name__
    if kind not in ("And", "Or"):
        return "" if kind == "Documents" else repr(pattern).replace("()", "").lower()
    sides = [words(p) for p in (pattern.left, pattern.right)]
    sides = [f"({s})" if kind == "And" and " | " in s and all(sides) else s for s in sides if s]
    return (" & " if kind == "And" else " | ").join(sides) or "documents"
