"""How the next token is chosen (Sampling), token by token."""

import math
from dataclasses import dataclass

import torch

from .decoding import decoding, writing


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
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or a finite number above")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 < self.repetition < math.inf:
            raise ValueError(f"repetition={self.repetition}: must be above 0 (1 is none) and finite")

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
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, 1e-6)  # the likeliest is 0, whatever it is divided by
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            sorted_, order = logits.sort(-1, descending=True)
            p = sorted_.softmax(-1)
            drop = p.cumsum(-1) - p >= self.top_p  # the likeliest always stays
            logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def ends(model, end=None):
    """The ids that end a row: those given (one or several), else the model's eos."""
    end = model.config.eos if end is None else end
    return set() if end is None else {end} if isinstance(end, int) else set(end)


def finish(ids, context):
    """A full context ends the text."""
    return None


def slide(ids, context):
    """A text goes on behind a full context by the last half of it alone."""
    return ids[-max(1, context // 2) :]


@torch.inference_mode()
def steps(model, prompts, sampling=None, *, most=100, end=None, cached=True, prefixes=None, given=None, beyond=finish):
    """Yields, token by token (of a model or a lowered one), a list with the next token of each row, None where a row has ended.

    end: id or ids that end a row (the model's eos by default). A row ends with such a token, after `most` tokens, or, each row for
    itself, where the model has no position left and `beyond` (`finish`, `slide`; the row's ids and the positions there are -> the ids to go
    on from, or None) says so. given: more arguments of the model, a row each (images).
    """
    sampling, end = sampling or Sampling(), ends(model, end)
    with writing(model):
        state = decoding(model, prompts, cached=cached, prefixes=prefixes, room=most, given=given)
        generator = torch.Generator(state.ids.device).manual_seed(sampling.seed)
        done = [False] * len(prompts)
        for i in range(most):
            tokens = sampling.choose(state.logits, state.seen, generator)
            row = tokens.tolist()
            done = [d or t in end for d, t in zip(done, row)]
            yield [None if d else t for d, t in zip(done, row)]
            if all(done) or i == most - 1:
                return
            spent = [bool(s) and not d for s, d in zip(state.spent(), done)]
            if any(spent):
                texts = [[*(t for t in ids if t >= 0), token] for ids, token in zip(state.seen.tolist(), row)]
                on = [beyond(ids, state.limit) if s else ids for ids, s in zip(texts, spent)]
                done = [d or ids is None for d, ids in zip(done, on)]
                if all(done):
                    return
                if any(s and ids for s, ids in zip(spent, on)):  # all are read again; of those that have ended a token, to keep their place
                    state = state.again([ids[-1:] if d else o for ids, o, d in zip(texts, on, done)], most - i)
                    continue
            state.push(tokens)


def generate(model, prompts, sampling=None, **options):
    """[[new ids]] of each prompt; options as for `steps`."""
    out = [[] for _ in prompts]
    for row in steps(model, prompts, sampling, **options):
        for ids, token in zip(out, row):
            if token is not None:
                ids.append(token)
    return out
