"""Token by token: what a model has read so far (Decoding), and how the next token is chosen (Sampling)."""

from dataclasses import dataclass

import torch

from ..core import Cache
from ..data.batches import padded


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature 0 is greedy. top_k, top_p: choose among the k likeliest, or the fewest that hold probability p (Holtzman et al.,
    2020). repetition: divides positive and multiplies negative scores of tokens already there (Keskar et al., 2019). seed: of the
    choices. Raises ValueError for values that mean nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.repetition <= 0:
            raise ValueError(f"repetition={self.repetition}: must be above 0 (1 is none)")

    def choose(self, logits_BV, seen_BT, generator):
        """The next token of each row (B,). seen (B, T): tokens so far, -1 where there is none."""
        logits = logits_BV.float()
        if self.repetition != 1.0:
            V = logits.shape[1]
            there = torch.zeros(len(logits), V + 1, dtype=torch.bool, device=logits.device)
            there = there.scatter(1, seen_BT.where(seen_BT >= 0, V), True)[:, :V]  # padding goes to a column of its own
            logits = torch.where(there, torch.where(logits > 0, logits / self.repetition, logits * self.repetition), logits)
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            sorted_, order = logits.sort(-1, descending=True)
            p = sorted_.softmax(-1)
            drop = p.cumsum(-1) - p >= self.top_p  # the likeliest always stays
            logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


class Decoding:
    """A batch of texts being written. `logits` (B, V) are the scores of the next tokens; `push` appends the chosen ones.

    prompts: lists of ids of any lengths; for an encoder-decoder they are the sources, and prefixes (if any) what is written already.
    cached=False reads everything again at every token (the plain way, for comparison).
    Raises ValueError for an empty prompt or one longer than the model's positions.
    """

    def __init__(self, model, prompts, *, prefixes=None, cached=True, room=64):
        self.model, cfg = model, model.config
        device = next(model.parameters()).device
        self.pair = hasattr(model, "encode")
        start = cfg.start if cfg.start is not None else cfg.bos
        if self.pair:
            if start is None:
                raise ValueError("the model's config names no start token (start) to begin writing with")
            written = prefixes or [[start]] * len(prompts)
        else:
            written = prompts
        for side in (prompts, written):
            for row in side:
                if not row:
                    raise ValueError("the prompt is empty: it needs at least one token")
        table = _table(model)
        self.most = table.length if table is not None else None
        longest = max(map(len, [*written, *prompts]))
        if self.most is not None and longest > self.most:
            raise ValueError(f"the prompt has {longest} tokens and the model's context is {self.most}; shorten it by {longest - self.most}")
        pad = cfg.pad if cfg.pad is not None else 0
        self.ids, mask = (x.to(device) for x in padded(written, pad, "left"))
        self.number = (mask.cumsum(-1) - 1).clamp(min=-1) if not bool(mask.all()) else None
        self.seen = torch.where(mask, self.ids, -1)
        self.cache = Cache(self.ids.shape[1] + room) if cached else None
        self.extra = {}
        if self.pair:
            source, there = (x.to(device) for x in padded(prompts, pad))
            hidden, _ = model.encode(source, there)
            self.extra = {"encoder_hidden": hidden, "attention_mask": there}
        self.logits = self._read(self.ids, self.number)

    @property
    def length(self):
        """Tokens of the longest row so far."""
        return self.seen.shape[1]

    def full(self):
        """Is there no position left for one more token?"""
        return self.most is not None and self.length >= self.most

    def _read(self, ids, number):
        if self.pair:
            mask = None if number is None else self.seen >= 0
            place = None if number is None else number.clamp(min=0)
            out = self.model(decoder_input_ids=ids, decoder_attention_mask=mask, decoder_position_ids=place, cache=self.cache, **self.extra)
        elif number is None:
            out = self.model(input_ids=ids, cache=self.cache)
        else:
            out = self.model(input_ids=ids, attention_mask=self.seen >= 0, position_ids=number.clamp(min=0), cache=self.cache)
        logits = out["logits"][:, -1]
        cfg = self.model.config
        if self.pair and cfg.pad is not None and cfg.pad == cfg.start:
            logits = logits.index_fill(1, torch.tensor([cfg.pad], device=logits.device), -torch.inf)  # begins a text, is never written
        return logits

    def push(self, tokens_B):
        """Appends one token to every row and works out the scores of the next."""
        self.seen = torch.cat([self.seen, tokens_B[:, None]], 1)
        self.ids = torch.cat([self.ids, tokens_B[:, None]], 1)
        if self.number is not None:
            self.number = torch.cat([self.number, self.number[:, -1:] + 1], 1)
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


def _table(model):
    embed = getattr(model, "decoder_embed", None) or getattr(model, "embed", None)
    return None if embed is None else embed.position


def ends(model, end=None):
    """The ids that end a row: those given (one or several), else the model's eos."""
    end = model.config.eos if end is None else end
    return set() if end is None else {end} if isinstance(end, int) else set(end)


@torch.inference_mode()
def steps(model, prompts, sampling=None, *, most=100, end=None, cached=True, prefixes=None):
    """Yields, token by token, a list with the next token of each row, None where a row has ended.

    end: id or ids that end a row (the model's eos by default). Stops when all rows have ended, after `most` tokens, or where the
    model has no position left.
    """
    was = model.training
    model.eval()
    try:
        sampling = sampling or Sampling()
        end = ends(model, end)
        state = Decoding(model, prompts, cached=cached, prefixes=prefixes, room=most)
        generator = torch.Generator(state.ids.device).manual_seed(sampling.seed)
        done = [False] * len(prompts)
        for i in range(most):
            tokens = sampling.choose(state.logits, state.seen, generator)
            row = tokens.tolist()
            done = [d or t in end for d, t in zip(done, row)]
            yield [None if d else t for d, t in zip(done, row)]
            if all(done) or i == most - 1 or state.full():
                return
            state.push(tokens)
    finally:
        model.train(was)


def generate(model, prompts, sampling=None, **options):
    """[[new ids]] of each prompt; options as for `steps`."""
    out = [[] for _ in prompts]
    for row in steps(model, prompts, sampling, **options):
        for ids, token in zip(out, row):
            if token is not None:
                ids.append(token)
    return out
