"""Shape: the fields that every stack of blocks has, and the building of parts from them.

Slots (position, pattern, kernel, ffn, norm) hold text that names a part: see qkv.core.slots. Those that may differ from layer to
layer (pattern, kernel, ffn) also take a list, which is repeated down the stack.
"""

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass

import torch
from torch import nn

from ..core import (
    FEED_FORWARDS,
    KERNELS,
    NORMS,
    POSITIONS,
    Attention,
    Block,
    Documents,
    Embedding,
    Parallel,
    Residual,
    build,
    read_pattern,
    tokens,
    transformed,
)
from ..core.slots import parse
from ..words import nearest

Slot = str | tuple[str, ...]
hints = functools.cache(typing.get_type_hints)  # read once a class: they are asked for with every config
ORDERS = ("pre", "post", "out", "parallel")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """vocab, length (positions there are), dim, embed_dim (width of the embedding, projected to dim: dim by default), layers, heads, kv_heads, head_dim, hidden (4 dim by default): sizes.
    norm, norm_eps, order (where norms stand: pre, post, out, parallel), final_norm, embed_norm: normalisation.
    ffn, position, pattern, kernel: slots; input_position: a second scheme, added to the embedding beside `position` (Performer). biases: which of attention's qkvo have one. scaled: token embeddings times sqrt(dim).
    types: token types. tie: output matrix = token embedding. numbering: where position numbers come from when none are given:
    index (0, 1, 2 ...), tokens (counts ids that are not `pad`), mask (counts attention_mask).
    pad_trains: does the padding id's vector get gradients?
    output: what stands on top. labels: classes of a classifier, label_names: what they are called. pad, bos, eos (one or several), start: token ids.
    """

    vocab: int
    dim: int
    layers: int
    heads: int
    length: int
    hidden: int | None = None
    embed_dim: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: str = "layer"
    norm_eps: float = 1e-5
    order: str = "pre"
    final_norm: bool = True
    embed_norm: bool = False
    ffn: Slot = "plain(gelu)"
    position: str = "learned"
    input_position: str = "none"
    pattern: Slot = "full"
    kernel: Slot = "softmax"
    biases: str = "qkvo"
    scaled: bool = False
    types: int = 0
    tie: bool = True
    dropout: float = 0.0
    attn_dropout: float = 0.0
    init: str = "normal"
    init_std: float = 0.02
    numbering: str = "index"
    pad_trains: bool = True
    output: str = "hidden"
    labels: int = 2
    label_names: tuple[str, ...] | None = None
    pad: int | None = None
    bos: int | None = None
    eos: int | tuple[int, ...] | None = None
    start: int | None = None

    def __post_init__(self):
        kinds = hints(type(self))
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, coerce(f.name, getattr(self, f.name), kinds[f.name]))
        for name in ("vocab", "dim", "layers", "heads", "length", "hidden", "kv_heads", "head_dim", "embed_dim", "labels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for name in ("norm_eps", "init_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be a number above 0")
        if self.label_names is not None and len(self.label_names) != self.labels:
            raise ValueError(f"label_names has {len(self.label_names)} names and labels={self.labels}")
        if self.types < 0:
            raise ValueError(f"types={self.types}: must be 0 or more")
        if self.numbering == "tokens" and self.pad is None:
            raise ValueError("numbering=tokens counts the ids that are not padding; it needs pad, the padding id")
        for name in ("dropout", "attn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1)")
        one_of("order", self.order, ORDERS)
        one_of("numbering", self.numbering, ("index", "tokens", "mask"))
        one_of("norm", parse(self.norm)[0], NORMS)
        one_of("position", parse(self.position)[0], POSITIONS)
        if set(self.biases) - set("qkvo"):
            raise ValueError(f"biases={self.biases!r}: name those of q, k, v and o that have a bias, e.g. qkvo, or leave it empty")
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}; change one of them or set head_dim")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}")

    @property
    def wide(self):
        """Width of the feed-forward layers."""
        return self.hidden or 4 * self.dim

    def layer(self, slot, i):
        """The text of a slot in layer i."""
        value = getattr(self, slot)
        return value if isinstance(value, str) else value[i % len(value)]


WORDS = frozenset(("vocab", "length", "dim", "heads", "kv_heads", "wide", "embed_dim", "pad", "bos", "eos", "types"))


class AroundWords:
    """A config around that of a model of text: what is asked of any model of text is answered by `words`."""

    inner, asked = "words", WORDS

    def __getattr__(self, name):
        if name in type(self).asked:
            return getattr(self.words, name)
        raise AttributeError(name)

    def part(self, name, kind, **fixed):
        """Makes the field a config of its kind with some fields set; it may be given as a dict (a file's)."""
        value = getattr(self, name)
        fields = dict(value) if isinstance(value, dict) else {f: getattr(value, f) for f in value.__dataclass_fields__}
        object.__setattr__(self, name, kind(**fields | fixed))


def one_of(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: is not one of {', '.join(allowed)}.{nearest(value, allowed)}")


def coerce(name, value, kind):
    """`value` as the field's type: text from a command line is read, anything else must fit already. Raises ValueError."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and str in options and type(None) not in options:
        value = "none"  # position=none on a command line
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and type(None) in options and str not in options):
        if type(None) in options:
            return None
        raise ValueError(f"{name}: a value is needed")
    if isinstance(value, list):
        value = tuple(value)
    for option in options:
        origin = typing.get_origin(option)
        if origin is tuple:
            if isinstance(value, tuple) and all(isinstance(v, typing.get_args(option)[0]) for v in value) and value:
                return value
        elif option is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, float) and value == int(value):
                return int(value)
            if isinstance(value, str):
                try:
                    return int(value.replace("_", ""))
                except ValueError:
                    pass
        elif option is float:
            if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                try:
                    return float(value)
                except ValueError:
                    pass
        elif (option is str and isinstance(value, str)) or (
            option not in (type(None), int, float, str, bool) and isinstance(value, option)
        ):
            return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    wanted = " or ".join(words.get(o, "a list of texts") for o in options if o is not type(None))
    raise ValueError(f"{name}={value!r}: must be {wanted}")


def make_norm(cfg, dim=None):
    return build("norm", cfg.norm, NORMS, dim=dim or cfg.dim, eps=cfg.norm_eps)


def make_position(cfg, *, heads, causal, slot="position"):
    head_dim = cfg.head_dim or cfg.dim // heads
    return build(
        slot, getattr(cfg, slot), POSITIONS, heads=heads, head_dim=head_dim, length=cfg.length, dim=cfg.embed_dim or cfg.dim, causal=causal
    )


def make_embedding(cfg, position, vocab=None):
    """The input embedding. position: the scheme of the model, added here where that is its site."""
    at_input = position if position.site == "embedding" else None
    if cfg.input_position != "none":
        at_input = make_position(cfg, heads=cfg.heads, causal=True, slot="input_position")
        if at_input.site != "embedding" or position.site == "embedding":
            raise ValueError(
                f"input_position={cfg.input_position!r}: learned or sinusoid, beside a position that is not added to the input"
            )
    width = cfg.embed_dim or cfg.dim
    norm = make_norm(cfg, width) if cfg.embed_norm else None
    vocab = vocab or cfg.vocab
    still = None if cfg.pad_trains or cfg.pad is None or not -vocab <= cfg.pad < vocab else cfg.pad
    return Embedding(vocab, width, at_input, cfg.types, norm, cfg.dropout, cfg.dim**0.5 if cfg.scaled else 1.0, still,
                     cfg.dim if cfg.embed_dim else None)  # fmt: skip


def make_blocks(cfg, *, layers, pattern, heads, hidden, cross=False, position=None, ffn=None):
    """The blocks of one stack. position: the scheme of the model, given to attention where that is its site. ffn: the slot, where it
    is not cfg.ffn."""
    blocks = []
    own = position if position is not None and position.site == "layer" else None
    trained = own is not None and any(True for _ in own.parameters())
    for i in range(layers):
        pick = lambda slot, i=i: slot if isinstance(slot, str) else slot[i % len(slot)]
        kernel = lambda i=i: build("kernel", cfg.layer("kernel", i), KERNELS, dropout=cfg.attn_dropout, length=cfg.length, heads=heads,
                                    head_dim=cfg.head_dim or cfg.dim // heads)  # fmt: skip
        see, mine = read_pattern(pick(pattern), longest=cfg.length) & Documents(), kernel()
        if position is not None and position.site == "stack" and not mine.takes_scores:
            raise ValueError(f"kernel={cfg.layer('kernel', i)} forms no scores for position={cfg.position} to add to; use kernel=softmax")
        scheme = make_position(cfg, heads=heads, causal=True) if trained else own
        common = dict(kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, biases=cfg.biases)
        parts = {"attn": Attention(cfg.dim, heads, pattern=see, position=scheme, kernel=mine, **common)}
        if cross:
            parts["cross"] = Attention(cfg.dim, heads, cross=True, kernel=kernel(), **common)
        parts["ffn"] = build("ffn", pick(ffn or cfg.ffn), FEED_FORWARDS, dim=cfg.dim, hidden=hidden)
        if cfg.order == "parallel":
            blocks.append(Block(both=Residual(Parallel(**parts), pre=make_norm(cfg), dropout=cfg.dropout)))
        else:
            norm = lambda: {cfg.order: make_norm(cfg)}
            blocks.append(Block(**{n: Residual(f, dropout=cfg.dropout, **norm()) for n, f in parts.items()}))
    return blocks


def eager():
    """Do tensors have numbers that can be looked at? Not while torch.compile or a transform of torch.func traces."""
    return not torch.compiler.is_compiling() and not transformed()


def locate(cfg, ids, x, mask, position_ids, cache=None, documents=None, prefix=None, vocab=0, packed=False):
    """What a model needs to know of its input tokens.

    ids (B, T) or their vectors x (B, T, D); mask (B, S) of tokens and padding, the newest T last; position_ids (B, T).
    vocab: number of ids there are, to check them against. packed: numbers that jump begin a new document. Returns (number (B|1, T) for a position table, the highest number where it is known, Tokens).
    """
    source = ids if ids is not None else x
    if source.dim() != (2 if ids is not None else 3):
        wanted = "(batch, tokens)" if ids is not None else "(batch, tokens, dim)"
        raise ValueError(f"the input has the shape {tuple(source.shape)}; it must be {wanted}")
    if ids is not None and ids.is_floating_point():
        raise ValueError(f"input ids must be whole numbers, not {ids.dtype}; vectors go in as inputs_embeds")
    B, T = source.shape[:2]
    start, device = 0 if cache is None else cache.length, source.device
    known = eager()
    if known and device.type == "cpu" and ids is not None and ids.numel() and vocab:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab:
            raise ValueError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab} (ids 0 to {vocab - 1})")
    if mask is not None and (mask.dim() != 2 or mask.shape[1] < T or mask.shape[0] not in (1, B)):
        raise ValueError(f"the mask has the shape {tuple(mask.shape)}, {T} tokens need ({B}, {T}): 1 for a token, 0 for padding")
    if mask is not None and mask.is_floating_point() and known and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("the mask must hold 1 for a token and 0 for padding, not numbers to add to scores")
    if position_ids is not None and (position_ids.dim() != 2 or position_ids.shape[1] != T):
        raise ValueError(f"position_ids have the shape {tuple(position_ids.shape)}, {T} tokens need ({B}, {T})")
    marks = {name: m for name, m in (("document", documents), ("prefix", prefix)) if m is not None}
    given = mask is not None
    if given:
        mask = mask[:, -T:].bool()
        if known and device.type == "cpu" and bool(mask.all()):
            mask = None  # nothing is padding: structure can do without a mask
    if cfg.numbering == "tokens" and ids is not None and position_ids is None:
        real = ids != cfg.pad
        number = torch.where(real, real.cumsum(-1) - 1 + start, -1)
    elif cfg.numbering == "mask" and mask is not None and position_ids is None:
        number = torch.where(mask, mask.cumsum(-1) - 1 + start, -1)
    elif position_ids is not None:
        number = position_ids.expand(B, -1) if position_ids.shape[0] == 1 else position_ids
        if packed and not given and not start and not marks:  # numbers that jump begin a new document of a packed row
            jumps = (number.diff(dim=-1, prepend=number[:, :1] - 1) != 1).cumsum(-1)
            if not known or bool((jumps[:, -1] > 0).any()):
                marks["document"] = jumps
    else:
        number = None
    toks = tokens(T, start=start, position=position_ids if number is not None and position_ids is not None else None,
                  valid=mask, marks=marks, device=device)  # fmt: skip
    if number is None:
        return torch.arange(start, start + T, device=device)[None], start + T - 1, toks
    return number, int(number.max()) if known and device.type == "cpu" else None, toks


@torch.no_grad()
def initialise(model, cfg):
    """Random weights as the family draws them.

    normal: N(0, init_std) (BERT, GPT-2). scaled: the same, outputs of residual branches divided by sqrt(2 layers) (GPT-2,
    section 2.3). xavier: uniform by fan-in and fan-out, embeddings N(0, 1/sqrt(dim)) (2017). t5: by fan-in (Raffel et al.).
    """
    one_of("init", cfg.init, ("normal", "scaled", "xavier", "t5"))
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, m in model.named_modules():
        if isinstance(m, nn.Embedding):
            std = {"xavier": cfg.dim**-0.5, "t5": 1.0}.get(cfg.init, cfg.init_std)
            m.weight.normal_(std=std)
        elif isinstance(m, nn.Linear):
            if m.bias is not None:
                m.bias.zero_()
            if id(m.weight) in tied:
                continue
            out, fan = m.weight.shape
            if cfg.init == "xavier":
                nn.init.xavier_uniform_(m.weight)
            elif cfg.init == "t5":
                head = cfg.head_dim or cfg.dim // cfg.heads
                m.weight.normal_(std=(fan * head) ** -0.5 if name.endswith("f.q") else fan**-0.5)
            else:
                last = cfg.init == "scaled" and name.endswith(("f.o", "f.down"))
                m.weight.normal_(std=cfg.init_std / (2 * cfg.layers) ** 0.5 if last else cfg.init_std)
        elif isinstance(m, nn.LayerNorm) and m.elementwise_affine:
            m.weight.fill_(1)
            if m.bias is not None:
                m.bias.zero_()
    return model


class Output(dict):
    """Named tensors of a forward pass, as keys and as attributes."""

    def with_losses(self, losses):
        """The same with `auxiliary`, the sum of what parts left behind to be made small, where they did."""
        if losses:
            self["auxiliary"] = sum(losses)
        return self

    def leave(self, losses):
        """The same, its `auxiliary` put into the list of a model that this one is a part of."""
        if losses is not None and "auxiliary" in self:
            losses.append(self["auxiliary"])
        return self

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this output has no '{name}', it has {', '.join(self)}") from None
