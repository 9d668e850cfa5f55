"""Lowering: from a model put together of known parts to programs of the compiled kernels.

Only parts are looked at, never architectures: what is made of them is lowered, whatever its name; a part that is not known here is
refused (CannotLower), and the caller takes the plain path.
"""

import ctypes
from dataclasses import dataclass, field

import torch
from torch import nn

from ..core import Attention, Causal, FeedForward, Full, GatedFeedForward, Parallel, Residual, Sliding, Softmax, made_of, watched
from ..core.layers import ACTIVATIONS, LayerNorm, RMSNorm
from ..core.positions import ALiBi, NoPosition, RoPE, T5Bias
from ..models.heads import LanguageHead
from ..runtime import check_memory, cores
from . import library
from .weights import PACKINGS, pack

EMBED, NORM, LINEAR, GATE, STORE, ATTEND, ADD, TAKE = range(8)
ACTS = {None: 0, "gelu": 1, "gelu_new": 2, "relu": 3, "silu": 4, "quick_gelu": 5, "tanh": 6}


class CannotLower(ValueError):
    """A part that the compiled kernels do not know; the message names it."""


@dataclass
class Store:
    """Keys and values of every attention layer, (rows, groups, capacity, channels), float32 or bfloat16. Raises ValueError where
    they do not fit into memory, saying how many rows would."""

    shapes: list  # (groups, channels) of each layer
    rows: int
    capacity: int
    dtype: torch.dtype
    tensors: list = field(default_factory=list)

    def __post_init__(self):
        check_memory(
            self.bytes_of(self.shapes, 1, self.capacity, self.dtype), self.rows, f"rows of {self.capacity} tokens (keys and values)", "rows"
        )
        self.tensors = [torch.empty(self.rows, g, self.capacity, c, dtype=self.dtype) for g, c in self.shapes for _ in "kv"]
        self.pointers = (ctypes.c_void_p * max(1, len(self.tensors)))(*(t.data_ptr() for t in self.tensors))

    @staticmethod
    def bytes_of(shapes, rows, capacity, dtype):
        return sum(2 * g * c for g, c in shapes) * rows * capacity * dtype.itemsize

    def copy(self, source, target, count):
        """The first `count` tokens of row `source` become those of row `target`."""
        for t in self.tensors:
            t[target, :, :count] = t[source, :, :count]


class Program:
    """Steps over rows of tokens. `run` fills the registers; `out` names those that are read afterwards."""

    def __init__(self, steps, widths, out, kept, shapes, memories, team, vocab, reach):
        self.vocab, self.reach = vocab, reach
        self.steps, self.widths, self.out, self.kept = (library.Step * len(steps))(*steps), widths, out, kept
        self.shapes, self.memory_shapes, self.team = shapes, memories, team
        self.registers, self.room = [], 0

    def run(self, ids, number, row, position, *, store=None, want=None, length=None, table=None, memory=None, source=None,
            source_length=None, count=None):  # fmt: skip
        """One pass. ids, number, row, position: int tensors, one entry a token (id int64, the others int32): what it is, its number
        for positions, its row of the store and its place there. want: tokens whose outputs are wanted. count: run so many steps
        only. Returns {name: tensor}, valid until the next pass. Raises ValueError for a token, position or row that there is none of.
        """
        tokens = len(row)
        _within("token id", ids, self.vocab, "the vocabulary")
        _within("position", number, self.reach, "the positions that the model was lowered for")
        if store is not None:
            _within("place", position, store.capacity, "the cache")
            _within("row", row, store.rows, "the cache's rows")
        if tokens > self.room:
            self.room = max(tokens, min(2 * self.room, 4096))
            self.registers = [torch.empty(self.room, w) for w in self.widths]
            self.pointers = (ctypes.c_void_p * len(self.widths))(*(t.data_ptr() for t in self.registers))
        at = lambda t: None if t is None else t.data_ptr()
        wanted = tokens if want is None else len(want)
        made = library.Pass(
            tokens, wanted, store.capacity if store else 0, memory.capacity if memory else 0,
            at(ids), at(number), at(row), at(position), at(length), at(want), at(table), at(source), at(source_length),
            ctypes.addressof(self.pointers), ctypes.addressof(store.pointers) if store else None,
            ctypes.addressof(memory.pointers) if memory else None, int((store or memory).dtype is torch.bfloat16),
        )  # fmt: skip
        self.team.run(self.steps, count or len(self.steps), made)
        return {name: self.registers[r][: wanted if taken else tokens] for name, (r, taken) in self.out.items()}


def _within(what, values, most, where):
    """The kernels do not look: what is out of bounds must not reach them."""
    low, high = (int(x) for x in values.aminmax())
    if low < 0 or high >= most:
        raise ValueError(f"{what} {low if low < 0 else high} is outside {where} of {most} (0 to {most - 1})")


class _Writer:
    """Collects the steps of a program, its registers and everything whose memory they point to."""

    def __init__(self, packing, reach, lib):
        self.packing, self.reach, self.lib = packing, reach, lib
        self.steps, self.widths, self.names, self.kept, self.packed = [], [], {}, [], []
        self.shapes, self.memory_shapes, self.tables, self.done_with = [], [], {}, {}

    def register(self, name, width):
        if (name, width) not in self.names:
            self.names[name, width] = len(self.widths)
            self.widths.append(width)
        return self.names[name, width]

    def keep(self, tensor):
        """Address of a tensor, as float32, that lives as long as the program."""
        if tensor is None:
            return None
        tensor = tensor.detach().float().contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def step(self, kind, source, out, **fields):
        self.steps.append(library.Step(kind=kind, in_=source, out=out, **({"scale": 1.0} | fields)))

    def linear(self, layers, source, out, act=None, add=False, scale=1.0, bias=None):
        """out (+)= act(scale * source W' + b); several layers stand side by side."""
        for m in layers:
            if type(m) is not nn.Linear:
                raise CannotLower(f"{type(m).__name__} in place of a linear layer")
        own = bias is not None
        if bias is None and any(m.bias is not None for m in layers):
            bias = torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in layers])
        key = (*map(id, layers), id(bias) if own else None)
        if key not in self.done_with:  # layers that run several times are packed once
            packed = pack(torch.cat([m.weight for m in layers]) if len(layers) > 1 else layers[0].weight, bias, self.packing, self.lib)
            self.done_with[key] = packed
            self.kept += [packed, bias]
            self.packed.append(packed)
        packed = self.done_with[key]
        at = lambda t: None if t is None else t.data_ptr()
        self.step(LINEAR, source, out, n=packed.n, k=packed.k, act=ACTS[act], packing=PACKINGS.index(self.packing), flags=int(add),
                  scale=scale, w=at(packed.data), b=at(packed.bias), s=at(packed.scale))  # fmt: skip

    def norm(self, m, source, out):
        if isinstance(m, nn.Identity):
            return
        if type(m) not in (LayerNorm, RMSNorm):
            raise CannotLower(f"the norm {type(m).__name__}")
        self.step(NORM, source, out, n=self.widths[out], flags=int(type(m) is RMSNorm), eps=m.eps, w=self.keep(m.weight),
                  b=self.keep(getattr(m, "bias", None)))  # fmt: skip

    def stack(self, stack, x, causal):
        """The blocks and the last norm of a stack, in place on register x."""
        bias = self.bias(stack.shared)
        for i in stack.order:
            for branch in stack.blocks[i].children():
                self.residual(branch, x, bias, causal)
        self.norm(stack.norm, x, x)

    def residual(self, r, x, bias, causal):
        if type(r) is not Residual or not isinstance(r.gate, nn.Identity) or r.scale != 1.0:
            raise CannotLower(f"{type(r).__name__} with a gate or a scale")
        width, source, out = self.widths[x], x, x
        if not isinstance(r.pre, nn.Identity):
            source = self.register("normed", width)
            self.norm(r.pre, x, source)
        if not isinstance(r.out, nn.Identity):
            out = self.register("branch", width)
        self.sublayer(r.f, source, out, bias, causal)
        if out != x:
            self.norm(r.out, out, out)
            self.step(ADD, out, x, n=width)
        self.norm(r.post, x, x)

    def sublayer(self, f, source, out, bias, causal):
        """out = f(source), added to it where out is not a register of its own."""
        add = out != self.names.get(("branch", self.widths[out]))
        if type(f) is Attention:
            self.attention(f, source, out, add, bias, causal)
        elif type(f) is FeedForward:
            hidden = self.register("hidden", f.up.out_features)
            self.linear([f.up], source, hidden, act=_name(f.act))
            self.linear([f.down], hidden, out, add=add)
        elif type(f) is GatedFeedForward:
            both, hidden = self.register("gates", 2 * f.up.out_features), self.register("hidden", f.up.out_features)
            self.linear([f.gate, f.up], source, both)
            self.step(GATE, both, hidden, n=f.up.out_features, act=ACTS[_name(f.act)])
            self.linear([f.down], hidden, out, add=add)
        elif type(f) is Parallel and source != out and add:
            for part in f.children():
                self.sublayer(part, source, out, bias, causal)
        else:
            raise CannotLower(f"the sublayer {type(f).__name__}")

    def attention(self, a, source, out, add, bias, causal):
        if type(a.kernel) is not Softmax or type(a.kernel.weights) is not nn.Identity:
            raise CannotLower(f"the kernel {type(a.kernel).__name__}, or something in place of its weights")
        if not isinstance(a.q_norm, nn.Identity):
            raise CannotLower("norms of queries and keys")
        H, G, C = a.heads, a.kv_heads, a.head_dim
        joined = self.register("heads", H * C)
        shape = dict(n=H, k=C, groups=G, scale=a.kernel.scale or C**-0.5)
        if a.cross:
            q = self.register("queries", H * C)
            self.linear([a.q], source, q)
            self.step(ATTEND, q, joined, **shape, layer=len(self.memory_shapes), flags=2)
            self.memory_shapes.append((G, C))
        else:
            window, full = _pattern(a.pattern)
            if full == causal:
                raise CannotLower(f"the pattern {a.pattern} in {'a decoder' if causal else 'an encoder'}")
            qkv = self.register("qkv", (H + 2 * G) * C)
            self.linear([a.q, a.k, a.v], source, qkv)
            angles, turned, paired = self.rope(a.position)
            self.step(STORE, qkv, qkv, **shape, layer=len(self.shapes), offset=turned, flags=int(paired), t=angles)
            table, far = bias if bias else (None, 0)
            self.step(ATTEND, qkv, joined, **shape, layer=len(self.shapes), offset=window, flags=int(full), aux=far, t=table)
            self.shapes.append((G, C))
        self.linear([a.o], joined, out, add=add)

    def rope(self, position):
        """(address of the cosines and sines, channels that turn, are pairs neighbours?)"""
        if type(position) is RoPE:
            if id(position) not in self.tables:
                angle = torch.arange(self.reach).double()[:, None] * position.frequencies(torch.float64, "cpu")
                self.tables[id(position)] = self.keep(torch.cat([angle.cos(), angle.sin()], 1) * position.sharper)
            return self.tables[id(position)], position.dim, position.interleaved
        if type(position) is not NoPosition and type(position).site == "layer":
            raise CannotLower(f"the position {type(position).__name__} in attention")
        return None, 0, False

    def bias(self, shared):
        """(address of (heads, 2 far + 1) scores by key minus query, far) of a stack's position scheme."""
        if shared is None:
            return None
        if type(shared) is T5Bias:
            far = max(shared.far, 2 * shared.buckets)
            distance = torch.arange(-far, far + 1)
            return self.keep(shared.weight[shared.bucket(distance)].T), far
        if type(shared) is ALiBi:
            far = self.reach
            return self.keep(-torch.tensor(shared.slopes)[:, None] * torch.arange(-far, far + 1).abs()), far
        raise CannotLower(f"the position {type(shared).__name__}")

    def embed(self, e, x):
        table = None
        if e.position is not None:
            table, offset = self.keep(e.position.weight), e.position.offset
        types = None if e.types is None else self.keep(e.types.weight[0])
        self.vocab = e.token.num_embeddings
        if e.position is not None:
            self.reach = min(self.reach, e.position.length)
        out = x if e.project is None else self.register("embedded", e.token.embedding_dim)
        self.step(EMBED, out, out, n=self.widths[out], scale=e.scale, w=self.keep(e.token.weight), b=types, t=table,
                  offset=offset if table else 0)  # fmt: skip
        self.norm(e.norm, out, out)
        if e.project is not None:
            self.linear([e.project], out, x)

    def head(self, head, x, never=None):
        """Scores of the vocabulary for the tokens that are wanted. never: an id that is never written."""
        if type(head) is not LanguageHead:
            raise CannotLower(f"the head {type(head).__name__}")
        width = self.widths[x]
        taken = self.register("taken", width)
        self.step(TAKE, x, taken, n=width)
        if head.dense is not None:
            changed = self.register("changed", head.dense.out_features)
            self.linear([head.dense], taken, changed, act=_name(head.act))
            self.norm(head.norm, changed, changed)
            taken = changed
        bias = head.bias
        if never is not None:
            bias = head.out.weight.new_zeros(head.out.out_features) if bias is None else bias.clone()
            bias[never] = -torch.inf
        logits = self.register("logits", head.out.out_features)
        self.linear([head.out], taken, logits, scale=head.scale, bias=bias)
        return logits

    def done(self, out, team):
        return Program(self.steps, self.widths, out, self.kept, self.shapes, self.memory_shapes, team, self.vocab, self.reach)


def _pattern(pattern):
    """(window or 0, full?)"""
    simple = pattern.within(float("inf"))
    if isinstance(simple, Causal):
        return 0, False
    if isinstance(simple, Sliding):
        return simple.window, False
    if isinstance(simple, Full):
        return 0, True
    raise CannotLower(f"the pattern {pattern}")


def _name(act):
    name = next((n for n, f in ACTIVATIONS.items() if f is act), None)
    if name not in ACTS:
        raise CannotLower(f"the activation {name or act}")
    return name


@dataclass
class Lowered:
    """The programs of a model. read: what an encoder does, for encoder-decoders up to the keys and values of cross-attention.
    write: what a decoder does for the next tokens."""

    model: nn.Module
    packing: str
    read: Program | None
    write: Program | None
    reach: int  # positions that there are
    error: float  # relative root-mean-square error of the rounded weights
    nbytes: int  # of the packed weights
    encoding: int  # steps of `read` until hidden states are there

    @property
    def config(self):
        return self.model.config

    @property
    def dtype(self):
        """Of keys and values."""
        return torch.float32 if self.packing == "fp32" else torch.bfloat16

    def store(self, rows, capacity):
        """Room for the keys and values of `rows` rows of `capacity` tokens. Raises ValueError where memory does not suffice."""
        return Store(self.write.shapes, rows, capacity, self.dtype)

    def flat(self, texts):
        """Lists of ids one after another, without padding: ids, the row and the place of each, and the lengths of the texts."""
        lengths = torch.tensor([len(t) for t in texts], dtype=torch.int32)
        longest = int(lengths.max())
        if longest > self.reach:
            raise ValueError(f"a text has {longest} tokens and the model's context is {self.reach}; shorten it by {longest - self.reach}")
        row = torch.arange(len(texts), dtype=torch.int32).repeat_interleave(lengths)
        place = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths.tolist()])
        return torch.tensor([i for t in texts for i in t]), row, place, lengths

    def hidden(self, texts):
        """(tokens, D) hidden states of an encoder for lists of ids, one after another, and the lengths of the texts."""
        ids, row, place, lengths = self.flat(texts)
        store = Store(self.read.shapes, len(texts), int(lengths.max()), torch.float32)
        return self.read.run(ids, place, row, place, store=store, length=lengths, count=self.encoding)["hidden"], lengths

    def memory(self, rows, capacity):
        """Room for what cross-attention reads of `rows` sources."""
        return Store(self.read.memory_shapes, rows, capacity, self.dtype)

    def remember(self, sources, memory=None, first=0):
        """Reads sources; (keys and values of cross-attention for each, their lengths). memory: where to put them, from row `first`."""
        ids, row, place, lengths = self.flat(sources)
        longest = int(lengths.max())
        memory = memory or self.memory(len(sources), longest)
        aside = Store(self.read.shapes, first + len(sources), longest, self.dtype)
        length = torch.cat([torch.zeros(first, dtype=torch.int32), lengths])
        self.read.run(ids, place, row + first, place, store=aside, length=length, memory=memory)
        return memory, lengths


def lower(model, packing, reach, threads=None, short=False):
    """Lowered programs of a model. packing: fp32, bf16, int8 or int4. reach: the highest position that will be asked for, plus one.
    short: round activations to 7 or 8 bits with int8 weights even where 16 are to be had (dynamic int8: faster in tall products).

    Raises CannotLower naming the part that the kernels do not know, and NoLibrary where they cannot be built.
    """
    lib = library.short() if short else library.load()
    if any(map(watched, model.modules())):
        raise CannotLower("a hook on a module, or a forward of its own")
    with torch.device("meta"):
        built, found = made_of(model.config.build()), made_of(model)
    if changed := sorted(n for n in built.keys() | found.keys() if built.get(n) is not found.get(n)):
        raise CannotLower(f"{changed[0]} is not what this model was built of")
    with torch.no_grad():
        return _lower(model, packing, reach, lib, library.Team(threads or torch.get_num_threads(), lib))


def lower_if(model, packing, reach, threads=None, short=False):
    """lower(), or None where the plain path must serve: on a GPU, without a compiler, with a part that the kernels do not know.

    Raises ValueError for threads that there are not, an unknown packing, and one that only the kernels have where they cannot be used.
    """
    if threads is not None and not 1 <= threads <= cores():
        raise ValueError(f"threads={threads}: this process may use 1 to {cores()}")
    if packing not in PACKINGS:
        raise ValueError(f"precision={packing!r} is not one of {', '.join(PACKINGS)}")
    try:
        if next(model.parameters()).device.type != "cpu":
            raise CannotLower("the model is on a GPU; load it with that dtype there")
        return lower(model, packing, reach, threads, short)
    except (CannotLower, library.NoLibrary) as e:
        if packing != "fp32":
            raise ValueError(f"precision={packing} needs the compiled kernels, and they cannot be used here: {e}") from None
        return None


def _lower(model, packing, reach, lib, team):
    pair, cfg = hasattr(model, "encode"), model.config
    read = write = None
    used, encoding = [], 0
    if getattr(model, "keeps_state", False):
        raise CannotLower("recurrent cells")
    if pair or type(cfg).__name__ == "Encoder":
        w = _Writer(packing, reach, lib)
        x = w.register("x", cfg.dim)
        w.embed(model.encoder_embed if pair else model.embed, x)
        w.stack(model.encoder if pair else model, x, causal=False)
        memories, encoding = [], len(w.steps)
        if pair:
            for layer, branch in enumerate(b for block in model.decoder.blocks for b in _attentions(block) if b.cross):
                kv = w.register("memory", 2 * branch.kv_heads * branch.head_dim)
                w.linear([branch.k, branch.v], x, kv)
                w.step(STORE, kv, kv, n=branch.heads, k=branch.head_dim, groups=branch.kv_heads, layer=layer, flags=2)
                memories.append((branch.kv_heads, branch.head_dim))
        read = w.done({"hidden": (x, False)}, team)
        read.memory_shapes = memories
        used += w.packed
    if pair or type(cfg).__name__ == "Decoder":
        w = _Writer(packing, reach, lib)
        x = w.register("x", cfg.dim)
        w.embed(model.decoder_embed if pair else model.embed, x)
        w.stack(model.decoder if pair else model, x, causal=True)
        logits = w.head(model.head, x, cfg.pad if pair and cfg.pad == cfg.start else None)
        write = w.done({"hidden": (x, False), "logits": (logits, True)}, team)
        used += w.packed
    if read is None and write is None:
        raise CannotLower(f"{type(cfg).__name__} as a whole")
    count = sum(p.n * p.k for p in used)
    error = (sum(p.error**2 * p.n * p.k for p in used) / max(1, count)) ** 0.5
    return Lowered(model, packing, read, write, reach, error, sum(p.nbytes for p in used), encoding)


def _attentions(module):
    return [m for m in module.modules() if isinstance(m, Attention)]
