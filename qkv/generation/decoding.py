"""Token by token: what a model, or its lowered form, has read so far.

Dims: B rows, T tokens, V vocabulary.
"""

import contextlib
import math

import torch

from ..core import Cache
from ..data.batches import padded
from ..native import Lowered


def begin(model, prompts, prefixes=None):
    """(what each row has written before it begins, tokens that the model's positions allow or None). Raises ValueError for an empty
    prompt, one longer than the model's positions, or a config without a start token."""
    cfg, written = model.config, prompts
    if hasattr(model, "encode"):
        start = cfg.start if cfg.start is not None else cfg.bos
        if start is None and prefixes is None:
            raise ValueError("the model's config names no start token (start) to begin writing with")
        written = prefixes or [[start]] * len(prompts)
    heard = not isinstance(prompts[0], list)  # frames of sound, which are not tokens
    texts = written if heard else [*written, *prompts]
    if not all(texts):
        raise ValueError("the prompt is empty: it needs at least one token")
    embed = getattr(model, "decoder_embed", None) or getattr(model, "embed", None)
    most = embed.position.length if embed is not None and embed.position is not None else None
    longest = max(map(len, texts))
    if most is not None and longest > most:
        raise ValueError(f"the prompt has {longest} tokens and the model's context is {most}; shorten it by {longest - most}")
    return written, most


def never(cfg, pair, logits_BV):
    """Scores without the token that only begins a text and is never written."""
    if pair and cfg.pad is not None and cfg.pad == cfg.start:
        return logits_BV.index_fill(1, torch.tensor([cfg.pad], device=logits_BV.device), -torch.inf)
    return logits_BV


def decoding(model, prompts, *, cached=True, prefixes=None, room=64, spread=1, given=None):
    """The state of writing on `prompts`: of a model, or of a lowered one. spread: rows that each prompt will become (beams). given: more
    arguments of the model, a row each (images)."""
    if isinstance(model, Lowered):
        return LoweredDecoding(model, prompts, prefixes=prefixes, room=room, spread=spread)
    return Decoding(model, prompts, cached=cached, prefixes=prefixes, room=room, given=given)


@contextlib.contextmanager
def writing(model):
    """The model in evaluation mode, and as it was afterwards."""
    if isinstance(model, Lowered):
        yield
        return
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


class Decoding:
    """A batch of texts being written. `logits` (B, V) are the scores of the next tokens; `push` appends the chosen ones.

    prompts: lists of ids of any lengths; for an encoder-decoder they are the sources (lists of ids, or tensors of frames), and prefixes (if any) what is written already.
    cached=False reads everything again at every token (the plain way, for comparison).
    Raises ValueError for an empty prompt or one longer than the model's positions.
    """

    def __init__(self, model, prompts, *, prefixes=None, cached=True, room=64, given=None):
        self.model, cfg = model, model.config
        device = next(model.parameters()).device
        self.pair = hasattr(model, "encode")
        written, self.most = begin(model, prompts, prefixes)
        pad = cfg.pad if cfg.pad is not None else 0
        self.ids, mask = (x.to(device) for x in padded(written, pad, "left"))
        self.number = (mask.cumsum(-1) - 1).clamp(min=-1) if not bool(mask.all()) else None
        self.seen = torch.where(mask, self.ids, -1)
        self.cache = Cache(self.ids.shape[1] + room, rolling=True) if cached else None
        self.prompts, self.given = prompts, given
        self.extra = dict(given or {})
        if self.pair:
            source, there = padded(prompts, pad) if isinstance(prompts[0], list) else (torch.stack(list(prompts)), None)
            hidden, _ = model.encode(source.to(device), there if there is None else there.to(device))
            self.extra |= {"encoder_hidden": hidden} | ({} if there is None else {"attention_mask": there.to(device)})
        self.logits = self._read(self.ids, self.number)

    @property
    def length(self):
        """Tokens of the longest row so far."""
        return self.seen.shape[1]

    @property
    def limit(self):
        """Positions that a row can have, None where there is no end of them."""
        return self.most

    def spent(self):
        """(B,) bool: which rows have no position left for one more token."""
        return (self.seen >= 0).sum(1) >= (math.inf if self.most is None else self.most)

    def again(self, texts, room):
        """The same prompts' rows begun anew with what is written of them (lists of ids)."""
        prompts, prefixes = (self.prompts, texts) if self.pair else (texts, None)
        return Decoding(self.model, prompts, prefixes=prefixes, cached=self.cache is not None, room=room, given=self.given)

    def _read(self, ids, number):
        if self.pair:
            mask = None if number is None else self.seen >= 0
            place = None if number is None else number.clamp(min=0)
            out = self.model(decoder_input_ids=ids, decoder_attention_mask=mask, decoder_position_ids=place, cache=self.cache, **self.extra)
        elif number is None:
            out = self.model(input_ids=ids, cache=self.cache, **self.extra)
        else:
            out = self.model(input_ids=ids, attention_mask=self.seen >= 0, position_ids=number.clamp(min=0), cache=self.cache, **self.extra)
        logits = never(self.model.config, self.pair, out["logits"][:, -1])
        unwritten = getattr(self.model, "unwritten", ())
        return logits if not unwritten else logits.index_fill(1, torch.tensor(unwritten, device=logits.device), -torch.inf)

    def push(self, tokens_B):
        """Appends one token to every row and works out the scores of the next, which mean nothing for a row that is spent."""
        self.seen = torch.cat([self.seen, tokens_B[:, None]], 1)
        self.ids = torch.cat([self.ids, tokens_B[:, None]], 1)
        if self.number is not None:
            newest = self.number[:, -1:] + 1
            self.number = torch.cat([self.number, newest if self.most is None else newest.clamp(max=self.most - 1)], 1)
        if self.cache is None:
            self.logits = self._read(self.ids, self.number)
        else:
            self.logits = self._read(tokens_B[:, None], None if self.number is None else self.number[:, -1:])

    def select(self, rows):
        """Keeps the given rows, in that order (beams)."""
        self.seen, self.ids, self.logits = self.seen[rows], self.ids[rows], self.logits[rows]
        self.number = None if self.number is None else self.number[rows]
        self.extra = {k: v[rows] for k, v in self.extra.items()}
        if self.cache is not None:
            self.cache.select(rows)


class LoweredDecoding:
    """Decoding on compiled kernels. Rows of any length stand side by side without padding; beams share the keys and values that they
    have in common (`table` says which row of the store holds each position), so that choosing rows copies none of them.

    spread: rows that each prompt will become by `select`. Raises ValueError as Decoding does, and where the positions that the model
    was lowered for do not suffice.
    """

    def __init__(self, low, prompts, *, prefixes=None, room=64, spread=1):
        written, self.most = begin(low.model, prompts, prefixes)
        self.low, self.prompts, B = low, prompts, len(prompts)
        lengths = torch.tensor([len(row) for row in written])
        if int(lengths.max()) > low.reach:
            raise ValueError(
                f"the prompt has {int(lengths.max())} tokens and the model was lowered for {low.reach}; lower it with a longer reach"
            )
        self.store = low.store(B * spread, min(int(lengths.max()) + room, low.reach))
        self.past = lengths.int()  # tokens of each row
        self.row = torch.arange(0, B * spread, spread, dtype=torch.int32)
        self.table = self.memory = self.source = self.source_length = None
        if low.read is not None:
            self.memory, self.source_length = low.remember(prompts)
            self.source = torch.arange(B, dtype=torch.int32)
        self.seen = self.ids = padded(written, -1, "left")[0]
        of = torch.arange(B).repeat_interleave(lengths)
        place = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths.tolist()])
        self._read(torch.tensor([i for row in written for i in row]), of, place, want=(lengths.cumsum(0) - 1).int())

    def _read(self, ids, of, place, want=None):
        row, source = self.row[of], None if self.source is None else self.source[of]
        out = self.low.write.run(ids, place, row, place, store=self.store, want=want, table=self.table, memory=self.memory,
                                 source=source, source_length=self.source_length)  # fmt: skip
        self._logits, self._chosen = out["logits"], None

    @property
    def logits(self):
        """(B, V); rows chosen by `select` are taken from it only where somebody looks."""
        if self._chosen is not None:
            self._logits, self._chosen = self._logits[self._chosen], None
        return self._logits

    @property
    def length(self):
        """Tokens of the longest row so far."""
        return self.seen.shape[1]

    @property
    def limit(self):
        """Positions that a row can have."""
        return self.store.capacity if self.most is None else min(self.store.capacity, self.most)

    def spent(self):
        """(B,) bool: which rows have no position left for one more token."""
        return self.past >= self.limit

    def again(self, texts, room):
        """The same prompts' rows begun anew with what is written of them (lists of ids)."""
        prompts, prefixes = (texts, None) if self.low.read is None else (self.prompts, texts)
        return LoweredDecoding(self.low, prompts, prefixes=prefixes, room=room)

    def push(self, tokens_B):
        """Appends one token to every row and works out the scores of the next, which mean nothing for a row that is spent."""
        self.seen = self.ids = torch.cat([self.seen, tokens_B[:, None]], 1)
        place = self.past.clamp(max=self.limit - 1)
        self.past = self.past + 1
        self._read(tokens_B, slice(None), place)

    def select(self, rows):
        """Keeps the given rows, in that order. A row goes on in the store's row of its new number, so rows must stay among those of
        their prompt, as beams do."""
        table = self.row[:, None].expand(-1, self.store.capacity) if self.table is None else self.table
        self.past, self.row = self.past[rows], torch.arange(len(rows), dtype=torch.int32)
        mine = torch.arange(self.store.capacity) >= self.past[:, None]
        self.table = torch.where(mine, self.row[:, None], table[rows]).contiguous()
        self.seen, self.ids, self._chosen = self.seen[rows], self.ids[rows], rows if self._chosen is None else self._chosen[rows]
        self.source = None if self.source is None else self.source[rows]
