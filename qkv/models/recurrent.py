"""Recurrent: what came before attention, reading one token after another (Elman, 1990; LSTM, Hochreiter and Schmidhuber, 1997; GRU, Cho et al., 2014).

Dims: B rows, T tokens, D model.
"""

from dataclasses import dataclass

from torch import nn

from ..core.layers import Dropout, Embedding
from . import heads
from .shape import Output, Shape, initialise, one_of

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True, kw_only=True)
class Recurrent(Shape):
    """cell: rnn, lstm or gru, of torch. unsaid: so many last ids are read and never said. output: items (the next thing that a user takes, GRU4Rec, Hidasi et al., 2016) or
    hidden. length is the longest row; position and heads are not used."""

    heads: int = 1
    position: str = "none"
    cell: str = "gru"
    unsaid: int = 0
    output: str = "items"

    def build(self):
        return initialise(RecurrentModel(self), self)


class RecurrentModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        one_of("cell", cfg.cell, CELLS)
        one_of("output", cfg.output, ("hidden", "items"))
        self.config = cfg
        self.embed = Embedding(cfg.vocab, cfg.dim, dropout=cfg.dropout)
        self.cells = CELLS[cfg.cell](cfg.dim, cfg.dim, cfg.layers, batch_first=True, dropout=cfg.dropout if cfg.layers > 1 else 0.0)
        self.drop = Dropout(cfg.dropout)
        tied = self.embed.token.weight if cfg.tie else None
        self.head = heads.LanguageHead(cfg.dim, cfg.vocab - cfg.unsaid, tied, True) if cfg.output == "items" else None

    def forward(self, input_ids, attention_mask=None, *, at=None, labels=None, smoothing=0.0):
        """input_ids (B, T), padding behind the tokens -> hidden (B, T, D), of a token and all before it, and what the head names (at, labels as for an
        encoder)."""
        if input_ids.dim() != 2 or (input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.config.vocab):
            raise ValueError(
                f"input_ids have the shape {tuple(input_ids.shape)}; they must be (batch, tokens), ids from 0 to {self.config.vocab - 1}"
            )
        hidden = self.drop(self.cells(self.embed(input_ids, None))[0])
        out = Output(hidden=hidden)
        return out if self.head is None else Output(out | self.head(hidden, {"at": at, "labels": labels, "smoothing": smoothing}))


OWN = {"gru4rec-nano": Recurrent(vocab=1000, length=50, dim=64, layers=1, dropout=0.2, unsaid=1, pad=0)}
