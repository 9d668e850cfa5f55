"""Every architecture by name: presets with our fields, published classes with published keys."""

import dataclasses
from pathlib import Path

import torch

from ..checkpoints import files
from ..core import Learned
from ..words import nearest
from . import (
    bart,
    bert,
    bert4rec,
    bert_variants,
    bigbird,
    clip,
    cnn,
    conformer,
    drawing,
    efficient,
    gpt2,
    gpts,
    idefics,
    informer,
    layer,
    llama,
    recurrent,
    series,
    switch,
    t5,
    tabular,
    trajectory,
    transformer,
    vit,
    wav2vec2,
    whisper,
)
from .cnn import ConvNet
from .conformer import SpeechEncoder
from .decoder import Decoder, DecoderModel
from .drawing import Drawer
from .encoder import Encoder, EncoderModel
from .encoder_decoder import EncoderDecoder, EncoderDecoderModel
from .family import Unsayable
from .flamingo import CrossModal, SeeingDecoder
from .image import ImageEncoder, MaskedAutoencoder
from .layer import Layer
from .recurrent import Recurrent, RecurrentEncoderDecoder
from .series import CalendarEncoderDecoder, LinearForecaster, SeriesEncoderDecoder
from .shape import Output
from .speech import SpeechEncoderDecoder
from .tabular import Perceptron, Selector, TabularDecider
from .trajectory import TrajectoryDecoder
from .two_towers import TwoTowers

FAMILIES = {
    f.name: f
    for module in (
        gpt2,
        gpts,
        llama,
        bert,
        bert4rec,
        bert_variants,
        t5,
        switch,
        bart,
        bigbird,
        conformer,
        efficient,
        layer,
        vit,
        clip,
        idefics,
        informer,
        tabular,
        trajectory,
        transformer,
        wav2vec2,
        whisper,
    )
    for f in module.FAMILIES
}
OWN = (
    transformer.OWN
    | gpts.OWN
    | clip.OWN
    | cnn.OWN
    | conformer.OWN
    | idefics.OWN
    | drawing.OWN
    | trajectory.OWN
    | series.OWN
    | recurrent.OWN
    | tabular.OWN
)  # presets that no published layout describes
CLASSES = {cls: f for f in FAMILIES.values() for cls in f.classes}
TOPOLOGIES = {
    c.__name__: c
    for c in (
        Decoder,
        Encoder,
        EncoderDecoder,
        SpeechEncoderDecoder,
        SpeechEncoder,
        ConvNet,
        ImageEncoder,
        MaskedAutoencoder,
        TwoTowers,
        SeeingDecoder,
        TrajectoryDecoder,
        SeriesEncoderDecoder,
        CalendarEncoderDecoder,
        LinearForecaster,
        Recurrent,
        RecurrentEncoderDecoder,
        TabularDecider,
        Selector,
        Perceptron,
        CrossModal,
        Drawer,
        Layer,
    )
}


def presets():
    """{name: (family name, published class or None)} of every preset."""
    out = {name: (f.name, next(iter(f.classes))) for f in FAMILIES.values() for name in f.presets}
    return out | dict.fromkeys(OWN, (None, None))


def objective_of(name):
    """The objective that a preset's family was made with, "" where it is what its topology always does."""
    family = presets()[name][0]
    return FAMILIES[family].objective if family else ""


def preset(name, **fields):
    """The config of a preset, with fields replaced. Raises ValueError naming an unknown preset or field."""
    known = presets()
    if name not in known:
        raise ValueError(f"there is no preset '{name}'.{nearest(name, known)} `qkv ls` lists them")
    family, cls = known[name]
    if cls is None:
        cfg = OWN[name]
    else:
        cfg = FAMILIES[family].read({}, cls)
        cfg = dataclasses.replace(cfg, **FAMILIES[family].presets[name])
    return replace(cfg, **fields)


def fields(cfg):
    """Names of the fields of a config, with those of the configs in it as `picture.patch`."""
    out = set()
    for f in dataclasses.fields(cfg):
        out.add(f.name)
        if dataclasses.is_dataclass(inner := getattr(cfg, f.name)):
            out |= {f"{f.name}.{n}" for n in fields(inner)}
    return out


def replace(cfg, **given):
    """A config with fields replaced, those of a config in it as `picture.patch`, or by its plain name where it is that of the words;
    raises ValueError naming an unknown field or an impossible value."""
    names, inner = {f.name for f in dataclasses.fields(cfg)}, {}
    words = getattr(cfg, "inner", None)
    for key in list(given):
        outer, dot, rest = key.partition(".")
        if not dot and key not in names and words:
            outer, dot, rest = words, ".", key
        if dot and outer in names and dataclasses.is_dataclass(getattr(cfg, outer)):
            inner.setdefault(outer, {})[rest] = given.pop(key)
        elif key not in names:
            raise ValueError(
                f"{type(cfg).__name__} has no field '{key}'.{nearest(key, fields(cfg))} Its fields: {', '.join(sorted(names))}"
            )
    return dataclasses.replace(cfg, **given, **{name: replace(getattr(cfg, name), **part) for name, part in inner.items()})


def reads_text(cfg):
    """Is it a model of texts alone (and not of images or sound)?"""
    text = isinstance(cfg, (Decoder, Encoder, EncoderDecoder)) or (isinstance(cfg, Recurrent) and cfg.output != "items")
    return text and not isinstance(cfg, (SpeechEncoderDecoder, TrajectoryDecoder))


def has_words(cfg):
    """Does it read or write tokens of a vocabulary?"""
    others = isinstance(cfg, (SpeechEncoderDecoder, TwoTowers, SeeingDecoder, Drawer, Recurrent))
    return reads_text(cfg) or others or (isinstance(cfg, SpeechEncoder) and cfg.output == "ctc")


def parts_of(cfg):
    """The trained parts that a fresh model is put together from; none for most."""
    return ("words", "picture") if isinstance(cfg, SeeingDecoder) else ()


def join(cfg, loaded):
    """A Flamingo of a language model and an encoder of images, or one tower of two. Raises ValueError for another kind of model."""
    words, picture = loaded["words"], getattr(loaded["picture"], "picture", loaded["picture"])
    if not isinstance(words.config, Decoder) or words.config.output != "lm":
        raise ValueError(
            f"words is of {type(words.config).__name__} with output={words.config.output}; it must be a Decoder with output=lm"
        )
    if not isinstance(picture.config, ImageEncoder):
        raise ValueError(f"picture is of {type(picture.config).__name__}; it must be an ImageEncoder, or TwoTowers that hold one")
    seen = dataclasses.replace(picture.config, output="hidden", projection=None)
    cfg = dataclasses.replace(cfg, words=words.config, picture=seen, more=1, image=words.config.vocab)
    model = build(cfg)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in words.state_dict().items():
            for new in (f"words.{name}", f"words.{name.removesuffix('weight')}base.weight"):
                if new in state:
                    state[new].copy_(value)
        for name, value in picture.state_dict().items():
            if f"picture.{name}" in state:
                state[f"picture.{name}"].copy_(value)
    return model


def create(name, **fields):
    """A model with random weights.

    name: a preset, with our fields (`create("gpt2", position="alibi", kv_heads=2)`), or a published class, with published
    config keys (`create("GPT2LMHeadModel", n_layer=2)`). Raises ValueError for what is unknown or cannot be put together.
    """
    if name in CLASSES:
        return build(CLASSES[name].read(fields, name), name)
    return build(preset(name, **fields), family=presets()[name][0])


def adapt(model, **fields):
    """A model with fields of its config changed, whose weights are those of `model` wherever name and shape agree; the rest, such as
    another head, begins anew. Learned positions are stretched to a greater length."""
    from ..checkpoints import table

    new = build(replace(model.config, **fields), family=model.family).to(next(model.parameters()).dtype)
    mine, theirs = table.parameters(new)[0], table.parameters(model)[0]
    with torch.no_grad():
        for name, value in mine.items():
            if name in theirs and theirs[name].shape == value.shape:
                value.copy_(theirs[name])
    tables = {n: m for n, m in model.named_modules() if isinstance(m, Learned)}
    for name, m in new.named_modules():
        if isinstance(m, Learned) and name in tables and m.length != tables[name].length and m.offset == tables[name].offset:
            m.stretch(tables[name])
    return new


def build(cfg, published=None, family=None):
    """A model of a config. published: the class in whose layout it is saved; without it that of `family` (a name) which says the config, or
    where it is of no family, or its own cannot say it, of the one that can; where several can or none, it is saved in our own layout."""
    model = cfg.build()
    model.family = CLASSES[published].name if published else family
    model.published = published or published_class(cfg, family)
    model.origin = None
    spoken = CLASSES.get(model.published)
    if spoken is not None and spoken.arguments:
        model.register_forward_pre_hook(RenameArguments(spoken.arguments), with_kwargs=True)
    return model


@dataclasses.dataclass(frozen=True)
class RenameArguments:
    """A forward pre-hook: published names of arguments become ours. A hook goes with a copy of the model; a method put over `forward` would
    run the original's weights."""

    names: dict

    def __call__(self, model, args, kwargs):
        return args, {self.names.get(k, k): v for k, v in kwargs.items()}


def published_class(cfg, family=None):
    """The class in whose published layout a config is written: its own family's, else that of the only other family that can say it, else
    None."""

    def said(other):
        cls = other.class_of(cfg)
        try:
            return cls if cls and other.write(cfg, cls) else None
        except Unsayable:
            return None

    if family is not None and (own := said(FAMILIES[family])):
        return own
    found = [cls for other in FAMILIES.values() if other.name != family and (cls := said(other))]
    return found[0] if len(found) == 1 else None


@dataclasses.dataclass
class Origin:
    """Where a loaded model came from: its raw config, and how its file spelt things."""

    raw: dict
    cfg: object
    layout: object


def load(source, *, dtype=None, revision=None):
    """A model from a folder with config.json and model.safetensors (or shards), or from a hub id `owner/name`.

    The class is taken from config.json's `architectures`. Raises CheckpointError or ValueError: a key or tensor that is not
    understood, a missing one, a damaged file, weights that are not finite.
    """
    folder = find(source, revision)
    raw = files.read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise files.CheckpointError(f"{folder}/config.json is not an object of keys")
    tensors = files.read_folder(folder)
    files.check_finite(tensors, folder)
    where = str(folder)
    named = raw.get("architectures") or []
    named = named if isinstance(named, list) and all(isinstance(n, str) for n in named) else []
    if raw.get("model_type") == "qkv":
        cfg, published, family = from_own(raw, where), None, None
    else:
        published = named[0] if named else None
        if published not in CLASSES:
            kinds = ", ".join(sorted(CLASSES))
            raise files.CheckpointError(
                f"{where}/config.json: architectures={named} is not one that qkv loads.{nearest(published, CLASSES)} It loads {kinds}"
            )
        family = CLASSES[published]
        cfg = family.read(raw, published, f"{where}/config.json")
    model = build(cfg, published)
    if dtype is None:
        kinds = {t.dtype for t in tensors.values() if t.is_floating_point()}
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    model.to(dtype)
    try:
        if family is None:
            from ..checkpoints import table

            same = [(n, n) for n in table.parameters(model)[0]]
            layout = table.read(same, model, tensors, where=where)
        else:
            layout = family.load(model, published, tensors, where)
    except ValueError as e:
        raise files.CheckpointError(str(e)) from None
    model.origin = Origin(raw, cfg, layout)
    return model.eval()


def find(source, revision=None):
    """The folder of a checkpoint: a local one, or the hub's, fetched once."""
    if not isinstance(source, (str, Path)) or not str(source):
        raise files.CheckpointError(f"{source!r} names no checkpoint: give a folder or a hub id (owner/name)")
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if str(source).count("/") == 1 and not str(source).startswith((".", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(source), revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
        except Exception as e:
            raise files.CheckpointError(
                f"'{source}' is no folder here, and the hub did not give it: {str(e).splitlines()[0][:200]}"
            ) from None
    raise files.CheckpointError(f"'{source}' is no folder, and no hub id (owner/name)")


def own_config(cfg):
    """Our config as JSON, for models that no published layout describes."""
    return {"model_type": "qkv", "architectures": [type(cfg).__name__], "qkv": dataclasses.asdict(cfg)}


def from_own(raw, where="config.json"):
    kinds = raw.get("architectures")
    kind, fields = kinds[0] if isinstance(kinds, list) and kinds else None, raw.get("qkv")
    if kind not in TOPOLOGIES or not isinstance(fields, dict):
        raise files.CheckpointError(f"{where}: architectures={kind!r} is not one of {', '.join(TOPOLOGIES)}")
    cls = TOPOLOGIES[kind]
    unknown = set(fields) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise files.CheckpointError(f"{where}: {kind} has no field {', '.join(sorted(unknown))}")
    try:
        return cls(**fields)
    except (TypeError, ValueError) as e:
        raise files.CheckpointError(f"{where}: {str(e).replace(f'{kind}.__init__() ', '')}") from None


def published_files(model):
    """(config, {name: tensor}) of a model in its published layout, or in our own where none describes it."""
    cfg, origin, cls = model.config, model.origin, model.published
    family = CLASSES.get(cls)
    if family is not None:
        raw = origin.raw if origin is not None and origin.cfg == cfg else family.write(cfg, cls)
        dtype = next(p.dtype for p in model.parameters())
        key = "torch_dtype" if "torch_dtype" in raw else "dtype"
        return raw | {key: str(dtype).removeprefix("torch.")}, family.save(model, cls, origin.layout if origin else None)
    from ..checkpoints import table

    return own_config(cfg), dict(table.parameters(model)[0])


def save(model, folder, tokenizer=None):
    """Writes config.json and model.safetensors in the layout of the model's published class, so that the reference loads it, and
    tokenizer.json if one is given; in one step, so that a crash leaves what was there before."""
    raw, tensors = published_files(model)

    def make(where):
        files.write_json(where / "config.json", raw)
        files.write_tensors(where / "model.safetensors", tensors)
        if tokenizer is not None:
            tokenizer.save(where)

    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds something that is no checkpoint; choose another folder")
    files.write_folder(folder, make)


__all__ = [
    "CLASSES", "FAMILIES", "TOPOLOGIES", "Decoder", "DecoderModel", "Encoder", "EncoderDecoder", "EncoderDecoderModel",
    "EncoderModel", "Output", "Unsayable", "build", "create", "load", "preset", "presets", "published_class", "replace", "save",
]  # fmt: skip
