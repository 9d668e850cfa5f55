"""Recipes: what a run is, as TOML, with dotted `key=value` on top. Imports no torch."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from ..words import nearest

PREFIXES = ("model", "data", "train")


@dataclass(frozen=True, kw_only=True)
class Train:
    """objective: auto (what the architecture is made for), or one of qkv.objectives, with its arguments: masked(rate=0.4, unit=word).
    task: fine-tuning on labelled examples, classification, tagging, answers, choice or text, likewise with arguments. init: a run,
    folder or hub id whose weights are begun from. freeze: the embedding and so many blocks stay as they are. layer_decay: learning
    rates fall by this factor from block to block downwards. patience: evaluations without a better metric after which a task ends. steps, epochs, seconds: whatever ends first.
    batch: rows a step (of text), or `tokens` a step (of pairs). accumulate: passes per step. lr, schedule, warmup (steps), optimizer
    (adamw or muon), muon_lr, weight_decay, betas, clip. precision: exact (float32), fast
    (float32 by the fastest accurate product), bf16, or auto (bf16 where the processor has it, else fast). compile: with torch.compile. threads: 0 takes
    all cores this process may use. eval_every, save_every, sample_every: steps; 0 leaves it to the clock. keep: checkpoints
    kept. prompt: what samples begin with. smoothing: of labels. mask_rate: share of masked tokens."""

    objective: str = "auto"
    task: str | None = None
    init: str | None = None
    freeze: int = 0
    layer_decay: float = 1.0
    patience: int = 0
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    batch: int = 16
    tokens: int = 4096
    accumulate: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    optimizer: str = "adamw"
    muon_lr: float = 0.01
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: str = "auto"
    compile: bool = False
    threads: int = 0
    seed: int = 1
    device: str = "auto"
    eval_every: int = 0
    eval_batches: int = 20
    save_every: int = 0
    sample_every: int = 0
    sample_tokens: int = 100
    keep: int = 2
    prompt: str = ""
    smoothing: float = 0.0
    mask_rate: float = 0.15


@dataclass(frozen=True)
class Recipe:
    """model: {"preset": name, field: value}. data, train: sections."""

    model: dict
    data: object
    train: Train
    name: str = field(default="run")


class RecipeError(ValueError):
    """A recipe or an argument that cannot be used."""


def _fields():
    from ..data import Data  # imports tokenizers, not torch models

    return {"data": Data, "train": Train}


def read_value(text):
    """A command line value: a TOML value where it is one, else text."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return None if text.lower() in ("none", "null") else text


def parse_overrides(words, model_fields):
    """['model.position=alibi', 'steps=100', 'data=my.txt'] -> {'model': {...}, 'data': {...}, 'train': {...}}.

    A key without a section is looked for in train, then model, then data. Raises RecipeError with the nearest known key.
    """
    known = {name: {f.name for f in dataclasses.fields(cls)} for name, cls in _fields().items()}
    known["model"] = set(model_fields) | {"preset"}
    out = {p: {} for p in PREFIXES}
    for word in words:
        key, eq, value = word.partition("=")
        if not eq:
            raise RecipeError(f"'{word}' is not understood: write key=value, e.g. steps=100 or model.position=alibi")
        if key == "data":
            key = "data.source"
        section, dot, name = key.partition(".")
        if not dot or key in known["model"]:
            name = key
            section, name = next((s for s in ("train", "model", "data") if key in known[s]), ""), key
        if section not in known or name not in known[section]:
            everything = sorted({f"{s}.{n}" for s, names in known.items() for n in names} | set().union(*known.values()))
            raise RecipeError(f"there is no key '{key}'.{nearest(key, everything)} `qkv train --help` lists the keys")
        out[section][name] = read_value(value)
    return out


def cast(section, cls, values):
    """A dataclass from TOML or command line values; raises RecipeError naming the key, the value and what is allowed."""
    hints = typing.get_type_hints(cls)
    clean = {}
    for key, value in values.items():
        if key not in hints:
            raise RecipeError(f"[{section}] has no key '{key}'.{nearest(key, hints)} It has {', '.join(hints)}")
        options = typing.get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
        if float in options and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if int in options and isinstance(value, float) and value == int(value):
            value = int(value)
        fits = (value is None and type(None) in options) or any(
            isinstance(value, o) and not (isinstance(value, bool) and o is not bool) for o in options
        )
        if not fits:
            if str in options and not isinstance(value, (dict, list)):
                value = str(value)
            else:
                words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
                wanted = " or ".join(words[o] for o in options if o in words)
                raise RecipeError(f"{section}.{key}={value!r}: must be {wanted}")
        clean[key] = value
    made = cls(**clean)
    return made


POSITIVE = ("steps", "epochs", "seconds", "batch", "tokens", "accumulate", "lr", "muon_lr", "eval_batches", "keep")


def check(train):
    """Raises RecipeError for a value that no run can have."""
    for key in POSITIVE:
        value = getattr(train, key)
        if value is not None and value <= 0:
            raise RecipeError(f"train.{key}={value}: must be greater than 0")
    for key in ("warmup", "weight_decay", "clip", "threads", "freeze", "patience", "eval_every", "save_every", "sample_every"):
        if getattr(train, key) < 0:
            raise RecipeError(f"train.{key}={getattr(train, key)}: must not be negative")
    for f in dataclasses.fields(train):
        value = getattr(train, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"train.{f.name}={value}: must be a finite number")
    for key, low, high in (
        ("beta1", 0, 1),
        ("beta2", 0, 1),
        ("mask_rate", 1e-9, 1),
        ("layer_decay", 1e-9, 1 + 1e-9),
        ("smoothing", 0, 1),
        ("seed", 0, 2**63),
        ("sample_tokens", 1, 2**31),
    ):
        if not low <= getattr(train, key) < high:
            raise RecipeError(f"train.{key}={getattr(train, key)}: must be at least {low:g} and below {high:g}")
    for key, allowed in (("precision", ("auto", "exact", "fast", "bf16")), ("schedule", ("cosine", "inverse_sqrt", "constant", "linear"))):
        if getattr(train, key) not in allowed:
            raise RecipeError(
                f"train.{key}={getattr(train, key)!r}: must be one of {', '.join(allowed)}.{nearest(getattr(train, key), allowed)}"
            )
    return train


def find(what):
    """The path of a recipe named `what`: a .toml file, or one of the recipes that come with qkv."""
    path = Path(what)
    if path.suffix == ".toml":
        if not path.exists():
            raise RecipeError(f"there is no recipe {what}. Those that come with qkv: {', '.join(shipped()) or 'none'}")
        return path
    return shipped().get(what)


def shipped() -> dict[str, Path]:
    """{name: path} of the recipes that come with qkv, inside the package."""
    return {p.stem: p for p in sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.toml"))}


def load(path):
    """{'model': {}, 'data': {}, 'train': {}} of a TOML file."""
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path} is not valid TOML: {e}") from None
    except OSError as e:
        raise RecipeError(f"{path} cannot be read: {e.strerror}") from None
    for key in raw:
        if key not in PREFIXES:
            raise RecipeError(f"{path}: [{key}] is not one of [model], [data], [train].{nearest(key, PREFIXES)}")
        if not isinstance(raw[key], dict):
            raise RecipeError(f"{path}: {key} must be a section, [{key}] on a line of its own")
    return {p: dict(raw.get(p, {})) for p in PREFIXES}


def flat(values, before=""):
    """{"picture": {"patch": 8}}, as TOML reads `picture.patch = 8`, as {"picture.patch": 8}."""
    out = {}
    for key, value in values.items():
        out |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return out


def resolve(raw, name="run"):
    """A Recipe from raw sections. The model section must name a preset."""
    sections = _fields()
    model = flat(raw["model"])
    if not isinstance(model.get("preset", ""), str):
        raise RecipeError(f"model.preset={model['preset']!r}: must be the name of a preset")
    if "preset" not in model:
        raise RecipeError('[model] needs preset = "NAME"; `qkv ls` lists the presets')
    data = cast("data", sections["data"], raw["data"])
    return Recipe(model, data, check(cast("train", Train, raw["train"])), name)


def dumps(recipe):
    """The recipe as TOML, every value written out."""
    out = []
    for section in PREFIXES:
        value = getattr(recipe, section)
        value = value if isinstance(value, dict) else dataclasses.asdict(value)
        out.append(f"[{section}]")
        out += [
            f"{k} = {json.dumps(list(v) if isinstance(v, tuple) else v, ensure_ascii=False)}" for k, v in value.items() if v is not None
        ]
        out.append("")
    return "\n".join(out)
