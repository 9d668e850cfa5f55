"""Family: what turns the published checkpoints of one architecture into one of our configs, and back."""

import dataclasses
from dataclasses import dataclass, field

from ..checkpoints import config as keys_of
from ..checkpoints import table as tables
from ..checkpoints.config import Key
from ..core.slots import parse

SPECIAL = (
    Key("pad_token_id", "pad", None),
    Key("bos_token_id", "bos", None),
    Key("eos_token_id", "eos", None, lambda v: tuple(v) if isinstance(v, list) else v, lambda v: list(v) if isinstance(v, tuple) else v),
)


def activation_name(name):
    """A published activation's name as ours; raises ValueError for one that is not built."""
    names = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
    allowed = ("gelu", "gelu_new", "relu", "silu", "quick_gelu", "tanh")
    ours = names.get(name, name)
    if ours not in allowed:
        raise ValueError(f"activation {name!r} is not one of {', '.join((*allowed, *names))}")
    return ours


def inside(text):
    """'plain(gelu, bias=False)' -> 'gelu': the first argument of a slot's text. Raises ValueError where it is not written."""
    _, args, kwargs = parse(text if isinstance(text, str) else "")
    if not args and "act" not in kwargs:
        raise ValueError(f"{text!r} names no activation")
    return str(args[0] if args else kwargs["act"])


def arguments(text, *names):
    """[value] of the arguments of those names that a slot's text writes out. Raises ValueError where one is not written."""
    _, _, given = parse(text if isinstance(text, str) else "")
    for name in names:
        if name not in given:
            raise ValueError(f"{text!r} does not say {name}")
    return [given[n] for n in names]


class Unsayable(ValueError):
    """A config that a family's published keys have no words for; the message says why."""


@dataclass(frozen=True)
class Family:
    """name: the published model_type. config: our dataclass. keys: published keys. classes: {published class: fields it fixes};
    the first is what a fresh model is saved as. table: rows of tensors, or config -> rows, and heads: {output: rows} of what stands on top. prefix: what head classes put before base names, which
    the classes named in `bare` do not, and those in `prefixes` spell otherwise. before/after: adapt a raw config before it is read and after it is written. fix: fields that
    follow from the others. spare: {class: regular expressions of
    tensors of other heads that its files may hold}. presets: {name: fields that differ from the published defaults}. objective: what the
    paper pre-trained with, where it is not what every model of this topology does."""

    name: str
    config: type
    keys: tuple
    classes: dict
    table: object
    heads: dict = field(default_factory=dict)
    prefix: str = ""
    bare: tuple = ()
    prefixes: dict = field(default_factory=dict)
    neutral: tuple = ()
    fixed: dict = field(default_factory=dict)
    before: object = staticmethod(lambda raw, cls: raw)
    after: object = staticmethod(lambda raw, cfg: raw)
    constants: dict = field(default_factory=dict)
    buffers: tuple = ()
    spare: dict = field(default_factory=dict)
    aliases: tuple = ()
    optional: tuple = ()
    arguments: dict = field(default_factory=dict)
    objective: str = ""
    presets: dict = field(default_factory=dict)

    def read(self, raw, cls, where="config.json"):
        """A published config as ours. Raises ValueError for one that is not built, whatever is wrong with it."""
        try:
            return self.parsed(raw, cls, where)
        except (ValueError, TypeError, AttributeError, KeyError) as e:
            if str(e).startswith(where):
                raise
            ours = str(e).split("=")[0]
            theirs = next((k.theirs for k in self.keys if k.ours == ours and not k.theirs.startswith("_")), None)
            raise ValueError(f"{where}: {e}" + (f" ({ours} is its key '{theirs}')" if theirs else "")) from None

    def parsed(self, raw, cls, where="config.json"):
        """What `read` reads; a fault in the family's own code shows as it is."""
        raw = self.before(dict(raw), cls)
        fields = keys_of.read(raw, self.keys, neutral=self.neutral, fixed=self.fixed, where=where)
        named = raw.get("id2label") or {}
        labels = raw.get("num_labels") or len(named) or 2
        names = tuple(str(named[k]) for k in sorted(named, key=int)) if len(named) == labels else None
        names = None if names == tuple(f"LABEL_{i}" for i in range(labels)) else names
        return self.make(cls, **(fields | {"labels": labels, "label_names": names}))

    def kinds(self, cls):
        """The configs of ours that a published class may be of."""
        config = self.classes[cls].get("config", self.config)
        return config if isinstance(config, tuple) else (config,)

    def make(self, cls, **fields):
        kind, kinds = self.classes[cls], self.kinds(cls)
        config = kinds[bool(fields.pop("_decoder", False))] if len(kinds) > 1 else kinds[0]  # an encoder, or where it says so a decoder
        names = {f.name for f in dataclasses.fields(config)}
        fixed = self.constants | {k: v for k, v in kind.items() if k != "config"}
        return config(**{k: v for k, v in (fields | fixed).items() if k in names})

    def write(self, cfg, cls):
        """Our config as a published one. Raises Unsayable where the family's keys have no words for it."""
        kinds = self.kinds(cls)
        if type(cfg) not in kinds:
            raise Unsayable(f"{self.name}: {cls} is of {' or '.join(k.__name__ for k in kinds)}, not of {type(cfg).__name__}")
        have = {f.name for f in dataclasses.fields(cfg)}
        try:
            raw = {k.theirs: k.save(getattr(cfg, k.ours)) for k in self.keys if k.ours in have}
            if cfg.output in ("sequence", "tokens"):
                names = cfg.label_names or tuple(f"LABEL_{i}" for i in range(cfg.labels))
                raw["id2label"], raw["label2id"] = {str(i): n for i, n in enumerate(names)}, {n: i for i, n in enumerate(names)}
            raw = self.after(raw, cfg) | {"architectures": [cls], "model_type": self.name}
            same = self.parsed(raw, cls)
        except ValueError as e:
            raise Unsayable(f"{self.name}: {e}") from e
        if type(same) is not type(cfg):
            raise Unsayable(f"{self.name}: {cls} is of {type(same).__name__}, not of {type(cfg).__name__}")
        lost = sorted(n for n in have - {"init", "init_std"} if getattr(same, n) != getattr(cfg, n))
        if lost:
            raise Unsayable(f"{self.name}: it has no key for " + ", ".join(f"{n}={getattr(cfg, n)!r}" for n in lost))
        return raw

    def class_of(self, cfg):
        """The published class that a config of ours would be."""
        for cls, kind in self.classes.items():
            if type(cfg) in self.kinds(cls) and all(getattr(cfg, k) == v for k, v in kind.items() if k != "config"):
                return cls
        return None

    def layout(self, cfg, cls):
        """Arguments for checkpoints.table.read and write."""
        prefix = "" if cls in self.bare else self.prefixes.get(cls, self.prefix)
        return dict(prefix=prefix, layers=cfg.layers, decoder_layers=getattr(cfg, "decoder_layers", None) or cfg.layers)

    def rows(self, cfg):
        """The table of a model: its base rows and those of its head."""
        base = self.table(cfg) if callable(self.table) else self.table
        return (*base, *self.heads.get(cfg.output, ()))

    def load(self, model, cls, tensors, where):
        return tables.read(self.rows(model.config), model, tensors, other=self.prefix, spare=self.spare.get(cls, ()), buffers=self.buffers, aliases=self.aliases, optional=self.optional, where=where,
                           **self.layout(model.config, cls))  # fmt: skip

    def save(self, model, cls, layout=None):
        return tables.write(self.rows(model.config), model, layout=layout, skip=self.optional, **self.layout(model.config, cls))
