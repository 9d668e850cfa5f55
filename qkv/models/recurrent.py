"""What came before attention, and where attention began: networks that read one token after another (Elman, 1990; LSTM, Hochreiter and
Schmidhuber, 1997; GRU, Cho et al., 2014), with one output at the end, one per token, or a text of another length (Sutskever et al., 2014;
Bahdanau et al., 2015). The cells are torch's own.

Dims: B rows, S tokens read, T tokens written, L layers, D model, M width of what the encoder says of a token.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from ..core import KERNELS, Attention, Cache, Context, build, tokens
from ..core.layers import Dropout
from ..core.masks import Full
from . import heads
from .encoder_decoder import EncoderDecoder
from .shape import Output, Shape, Slot, initialise, locate, make_embedding, make_position, one_of

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
OUTPUTS = ("hidden", "items", "lm", "sequence", "tokens")


def without(cfg, *names):
    """Raises ValueError for a slot that is filled and that a recurrent network does not have."""
    usual = {f.name: f.default for f in dataclasses.fields(cfg)}
    for name in names:
        if getattr(cfg, name) != usual[name]:
            about = "knows the order of its tokens by itself" if name == "position" else f"has no {name}"
            raise ValueError(f"{name}={getattr(cfg, name)}: a recurrent network {about}; leave it out")


@dataclass(frozen=True, kw_only=True)
class Recurrent(Shape):
    """cell: rnn, lstm or gru. pattern: causal, which reads from the left, or full, which reads from both sides (output sequence, tokens or hidden). output: one at the
    end (sequence), one per token (tokens; lm, the next token; items, the next thing that a user takes: GRU4Rec, Hidasi et al., 2016), or hidden.
    unsaid: so many last ids are read and never said. It has no position, kernel, heads, ffn or norm."""

    heads: int = 1
    position: str = "none"
    pattern: Slot = "causal"
    cell: str = "gru"
    unsaid: int = 0
    output: str = "items"

    def __post_init__(self):
        super().__post_init__()
        one_of("cell", self.cell, CELLS)
        one_of("output", self.output, OUTPUTS)
        one_of("pattern", self.pattern, ("causal", "full"))
        without(self, "kernel", "ffn", "heads", "kv_heads", "head_dim", "hidden", "position", "norm", "order")

    def build(self):
        return initialise(RecurrentModel(self), self)


@torch.no_grad()
def cells(cfg, width, layers, both=False):
    """torch's module for the cells of a config. Matrices from state to state begin orthogonal (Saxe et al., 2014), and the gates of an LSTM begin by keeping what they hold
    (Jozefowicz et al., 2015, section 2.2)."""
    made = CELLS[cfg.cell](width, cfg.dim, layers, batch_first=True, bidirectional=both, dropout=cfg.dropout if layers > 1 else 0.0)
    for name, p in made.named_parameters():
        if name.startswith("weight_hh") and not p.is_meta:
            for gate in p.split(cfg.dim):
                nn.init.orthogonal_(gate)
        elif name.startswith("bias"):
            p.zero_()
            if cfg.cell == "lstm" and name.startswith("bias_ih"):
                p[cfg.dim : 2 * cfg.dim] = 1.0
    return made


def counted(toks, T):
    """(there (B, T) bool of the newest T tokens, how many each row has, do they stand in front?); None, None, True where nothing is padding."""
    if toks.plain:
        return None, None, True
    there = toks.position[:, -T:] >= 0
    count = there.sum(1)
    return there, count, bool((there == (torch.arange(T, device=there.device) < count[:, None])).all())


def read(cells, x_BTD, toks, state=None):
    """(hidden (B, T, D), state behind the last token). Padding leaves the state as it is, wherever it stands."""
    there, count, front = counted(toks, x_BTD.shape[1])
    if there is None:
        return cells(x_BTD, state)
    if front and bool((count > 0).all()):
        packed = nn.utils.rnn.pack_padded_sequence(x_BTD, count.cpu(), batch_first=True, enforce_sorted=False)
        out, state = cells(packed, state)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x_BTD.shape[1])[0], state
    if cells.bidirectional:
        raise ValueError("padding must stand behind the tokens of a row that is read from both sides")
    out = []
    for t in range(x_BTD.shape[1]):
        y, new = cells(x_BTD[:, t : t + 1], state)
        state = kept(there[:, t], new, state)
        out.append(y)
    return torch.cat(out, 1), state


def kept(there_B, new, old):
    """The new state of rows that have a token, the old one (zeros at first) of the others."""
    if isinstance(new, tuple):
        return tuple(kept(there_B, n, o) for n, o in zip(new, old or (None,) * len(new)))
    return torch.where(there_B[None, :, None], new, torch.zeros_like(new) if old is None else old)


def ends(hidden_BSM, toks, both):
    """(B, M) what was said where each direction ended: at the last token, and at the first one of what is read backwards."""
    _, count, front = counted(toks, hidden_BSM.shape[1])
    if count is None or not front:
        last = hidden_BSM[:, -1]
    else:
        last = heads.at_place(hidden_BSM, (count - 1).clamp(min=0))
    if not both:
        return last
    D = hidden_BSM.shape[2] // 2
    return torch.cat([last[:, :D], hidden_BSM[:, 0, D:]], -1)


def stored(cache, who):
    """The state that a cache keeps, (L, B, D), or None."""
    if cache is None or who not in cache.states:
        return None
    state = tuple(x.transpose(0, 1).contiguous() for x in cache.states[who])
    return state if len(state) > 1 else state[0]


def store(cache, who, state):
    if cache is not None:
        cache.states[who] = tuple(x.transpose(0, 1) for x in (state if isinstance(state, tuple) else (state,)))


class RecurrentModel(nn.Module):
    keeps_state = True  # a cache of it cannot be cut: it holds what all tokens have become

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.both = cfg.pattern == "full"
        if self.both and cfg.output in ("lm", "items"):
            raise ValueError(
                f"pattern=full with output={cfg.output}: a token would see the very token that it shall predict; use pattern=causal"
            )
        self.embed = make_embedding(cfg, make_position(cfg, heads=cfg.heads, causal=True))
        self.cells = cells(cfg, cfg.dim, cfg.layers, self.both)
        self.drop = Dropout(cfg.dropout)
        width = cfg.dim * (1 + self.both)
        tied = self.embed.token.weight if cfg.tie else None
        make = {"lm": lambda: heads.LanguageHead(cfg.dim, cfg.vocab, tied, True), "items": lambda: heads.LanguageHead(cfg.dim, cfg.vocab - cfg.unsaid, tied, True),
                "sequence": lambda: heads.PooledHead(width, cfg.labels), "tokens": lambda: heads.TokenHead(width, cfg.labels)}  # fmt: skip
        self.head = make[cfg.output]() if cfg.output in make else None

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        *,
        documents=None,
        cache=None,
        use_cache=False,
        at=None,
        labels=None,
        smoothing=0.0,
    ):
        """input_ids (B, T), attention_mask 0 is padding (with a cache it covers the past too; position_ids are not read) -> hidden (B, T, D), of a token and all
        before it (D twice with pattern=full), and what the head names (at, labels as for an encoder); cache."""
        if documents is not None:
            raise ValueError("a recurrent network cannot keep packed documents apart; let texts run on: data.across=true")
        cache = Cache() if cache is None and use_cache else cache
        _, _, toks = locate(self.config, input_ids, None, attention_mask, None, cache, vocab=self.config.vocab)
        if cache is not None:
            if self.both:
                raise ValueError("a network that reads from both sides cannot write on")
            cache.advance(toks)
        hidden, state = read(self.cells, self.embed(input_ids, None), toks, stored(cache, self))
        store(cache, self, state)
        hidden = self.drop(hidden)
        out = Output(hidden=hidden) if cache is None else Output(hidden=hidden, cache=cache)
        if self.head is None:
            return out
        facts = {"at": at, "labels": labels, "smoothing": smoothing}
        if self.config.output == "sequence":
            facts["pooled"] = ends(hidden, toks, self.both)
        return Output(out | self.head(hidden, facts))


@dataclass(frozen=True, kw_only=True)
class RecurrentEncoderDecoder(EncoderDecoder):
    """Reads a text, writes another. cell: rnn, lstm or gru. kernel: how the decoder looks at what was read: none, by the fixed vector it begins with alone (Sutskever et
    al., 2014); additive (Bahdanau et al., 2015); softmax, by scaled products (Luong et al., 2015, section 3.1), with `heads`. encoder_pattern: full, from both
    sides, or causal, from the left. reverse: the text is read from its end (Sutskever et al., section 3.3). It has no position, ffn or norm."""

    heads: int = 1
    position: str = "none"
    kernel: Slot = "additive"
    cell: str = "gru"
    reverse: bool = False

    def __post_init__(self):
        super().__post_init__()
        one_of("cell", self.cell, CELLS)
        one_of("output", self.output, ("hidden", "lm"))
        one_of("encoder_pattern", self.encoder_pattern, ("causal", "full"))
        without(
            self,
            "ffn",
            "hidden",
            "kv_heads",
            "head_dim",
            "decoder_ffn",
            "decoder_heads",
            "decoder_hidden",
            "position",
            "norm",
            "order",
            "pattern",
        )

    def build(self):
        return initialise(RecurrentEncoderDecoderModel(self), self)


class RecurrentEncoderDecoderModel(nn.Module):
    """The state before a token asks what to look at; token, and what was found, make the next state; state, token and what was found say the next token, through a layer of maxout
    (Bahdanau et al., 2015, section A.2). What was found is projected once more than there."""

    keeps_state = True

    def __init__(self, cfg):
        super().__init__()
        self.config, D = cfg, cfg.dim
        self.both = cfg.encoder_pattern == "full"
        layers, M, looks = cfg.decoder_layers or cfg.layers, D * (1 + self.both), cfg.kernel != "none"
        position = make_position(cfg, heads=cfg.heads, causal=True)
        self.encoder_embed, self.decoder_embed = make_embedding(cfg, position), make_embedding(cfg, position, cfg.target_vocab)
        if cfg.target_vocab is None:
            self.decoder_embed.token.weight = self.encoder_embed.token.weight
        self.encoder = cells(cfg, D, cfg.layers, self.both)
        self.bridge = nn.Linear(M, (2 if cfg.cell == "lstm" else 1) * layers * D)
        self.cross = None
        if looks:
            kernel = build(
                "kernel",
                cfg.layer("kernel", 0),
                KERNELS,
                dropout=cfg.attn_dropout,
                length=cfg.length,
                heads=cfg.heads,
                head_dim=D // cfg.heads,
            )
            self.cross = Attention(D, cfg.heads, cross=True, memory_dim=M, kernel=kernel)
        self.decoder = cells(cfg, D * (1 + looks), layers)
        self.readout = nn.Linear(D * (2 + looks), 2 * D)
        self.drop = Dropout(cfg.dropout)
        tied = self.decoder_embed.token.weight if cfg.tie else None
        self.head = heads.LanguageHead(D, cfg.target_vocab or cfg.vocab, tied, True) if cfg.output == "lm" else None

    def encode(self, input_ids, attention_mask=None):
        """(B, S) -> hidden (B, S, M) and its Tokens."""
        _, _, toks = locate(self.config, input_ids, None, attention_mask, None, vocab=self.config.vocab)
        x = self.encoder_embed(input_ids, None)
        if not self.config.reverse:
            return read(self.encoder, x, toks)[0], toks
        S = x.shape[1]
        count = counted(toks, S)[1]
        at = torch.arange(S, device=x.device).expand(len(x), S)
        at = (S - 1 - at) if count is None else torch.where(at < count[:, None], count[:, None] - 1 - at, at)
        turn = lambda y: y.gather(1, at[..., None].expand(-1, -1, y.shape[2]))
        return turn(read(self.encoder, turn(x), toks)[0]), toks

    def began(self, memory_BSM, toks):
        """The decoder's first state from the fixed vector: what the encoder said where it ended."""
        if self.config.reverse:
            fixed = (
                memory_BSM[:, 0]
                if not self.both
                else torch.cat([memory_BSM[:, 0, : self.config.dim], ends(memory_BSM, toks, False)[:, self.config.dim :]], -1)
            )
        else:
            fixed = ends(memory_BSM, toks, self.both)
        parts = (
            torch.tanh(self.bridge(fixed)).unflatten(-1, (-1, self.decoder.num_layers, self.config.dim)).permute(1, 2, 0, 3).contiguous()
        )
        return tuple(parts) if len(parts) > 1 else parts[0]

    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None, *, decoder_position_ids=None, encoder_hidden=None,
                cache=None, use_cache=False, at=None, labels=None, smoothing=0.0):  # fmt: skip
        """As EncoderDecoder: input_ids (B, S) or encoder_hidden (B, S, M) as returned before, decoder_input_ids (B, T), masks, 0 is padding; position ids are not
        read. Returns logits (B, T, V) or the loss of labels, hidden (B, T, D), encoder_hidden, cache."""
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids are missing: the tokens written so far, beginning with the start token")
        cache = Cache() if cache is None and use_cache else cache

        def make():
            if encoder_hidden is None:
                if input_ids is None:
                    raise ValueError("give either input_ids or encoder_hidden, the text to read")
                return self.encode(input_ids, attention_mask)
            valid = None if attention_mask is None else attention_mask.bool()
            return encoder_hidden, tokens(encoder_hidden.shape[1], valid=valid, device=encoder_hidden.device)

        memory, memory_tokens = make() if cache is None else cache.once(self, make)
        _, _, toks = locate(
            self.config, decoder_input_ids, None, decoder_attention_mask, None, cache, vocab=self.config.target_vocab or self.config.vocab
        )
        if cache is not None:
            cache.advance(toks)
        x = self.decoder_embed(decoder_input_ids, None)
        state = stored(cache, self)
        state = self.began(memory, memory_tokens) if state is None else state
        if self.cross is None:
            hidden, state = read(self.decoder, x, toks, state)
            said = torch.cat([hidden, x], -1)
        else:
            hidden, found, state = self.look(x, toks, state, memory, memory_tokens, cache)
            said = torch.cat([hidden, x, found], -1)
        store(cache, self, state)
        hidden = self.drop(self.readout(said).unflatten(-1, (-1, 2)).amax(-1))
        out = Output(hidden=hidden, encoder_hidden=memory)
        if self.head is not None:
            out.update(self.head(hidden, {"labels": labels, "smoothing": smoothing, "at": at}))
        if cache is not None:
            out["cache"] = cache
        return out

    def look(self, x_BTD, toks, state, memory_BSM, memory_tokens, cache):
        """(hidden (B, T, D), what was found (B, T, D), state): one token after another, since what to look at depends on the state before."""
        a = self.cross
        make = lambda: (a.split(a.k(memory_BSM)), a.split(a.v(memory_BSM)))
        k, v = make() if cache is None else cache.once(a, make)
        see = Context(tokens(1, device=x_BTD.device), memory_BSM, memory_tokens).see(Full(), cross=True)
        there = counted(toks, x_BTD.shape[1])[0]
        out, found = [], []
        for t in range(x_BTD.shape[1]):
            top = (state[0] if isinstance(state, tuple) else state)[-1]
            c = a.o(a.kernel(a.split(a.q(top[:, None])), k, v, see, a.position).transpose(1, 2).flatten(2))
            y, new = self.decoder(torch.cat([x_BTD[:, t : t + 1], c], -1), state)
            state = new if there is None else kept(there[:, t], new, state)
            out.append(y)
            found.append(c)
        return torch.cat(out, 1), torch.cat(found, 1), state


NANO: dict = dict(vocab=1000, length=256, dim=128, layers=1, dropout=0.1, init="xavier")
OWN = {
    "gru4rec-nano": Recurrent(vocab=1000, length=50, dim=64, layers=1, dropout=0.2, unsaid=1, pad=0),
    "rnn-nano": Recurrent(**NANO, cell="rnn", output="lm"),
    "lstm-nano": Recurrent(**NANO, cell="lstm", output="lm"),
    "gru-nano": Recurrent(**NANO, cell="gru", output="lm"),
    "lstm-seq2seq-nano": RecurrentEncoderDecoder(**NANO, cell="lstm", kernel="none", encoder_pattern="causal", reverse=True),
    "bahdanau-nano": RecurrentEncoderDecoder(**NANO, cell="gru"),
}
