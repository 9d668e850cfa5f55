"""Losses worked out by hand from known scores, for every objective and task there is; what is masked; optimisers and schedules."""

import dataclasses
import itertools
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import data, models, objectives
from qkv.data import tokenizer as tokenizers
from qkv.data.examples import Example
from qkv.data.trajectories import Trajectory
from qkv.models.loss import loss_of_scores
from qkv.objectives import noise
from qkv.objectives.language import Masked
from qkv.objectives.restore import Restoring
from qkv.training import optim

LETTERS = tokenizers.train("char", ["abcdefgh "])
PAD, UNK, CLS, SEP, MASK, BOS, EOS, BLANK, A, B, C, D, E, F, G, H = range(len(LETTERS))
SPOILT = tokenizers.train("char", ["abcdefgh "])
SPOILT.add_sentinels(4)
S3, S2, S1, S0 = range(16, 20)
SOURCE = 0.1  # of what the tokens of a source add to every score


# --- sums written out --------------------------------------------------------------------------------------------------------------


def nats(scores, target):
    """-ln of the share that a target has of the scores."""
    return math.log(sum(math.exp(s) for s in scores)) - scores[target]


def total(terms):
    return sum(nats(scores, target) for scores, target in terms)


def hits(terms):
    return sum(max(range(len(scores)), key=scores.__getitem__) == target for scores, target in terms)


def smoothed(terms, share):
    """Of the wanted distribution a part of this share is spread evenly over all."""
    even = lambda scores: sum(nats(scores, v) for v in range(len(scores))) / len(scores)
    return sum((1 - share) * nats(scores, target) + share * even(scores) for scores, target in terms)


def logistic(score, true):
    return math.log(1 + math.exp(-score if true else score))


# --- models whose scores are known ---------------------------------------------------------------------------------------------------


class Known(torch.nn.Module):
    """Scores of a place are the row of a table that the token there names; where a source is read, its tokens' rows are added.

    Padding and what a mask hides adds nothing.
    """

    def __init__(self, rows=20, columns=None, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(rows, columns or rows, generator=g, dtype=torch.float64))

    def row(self, token):
        return self.table[token].tolist()

    def terms(self, *steps):
        return [(self.row(seen), target) for seen, target in steps]

    def summed(self, ids, mask):
        return torch.where(mask[..., None].bool(), self.table[ids], 0.0).sum(-2)

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None, at=None, labels=None, smoothing=0.0, **facts):
        self.facts = facts
        scores = self.table[input_ids if decoder_input_ids is None else decoder_input_ids]
        if decoder_input_ids is not None:
            scores = scores + SOURCE * self.summed(input_ids, attention_mask)[:, None]
        scores = scores if at is None else scores.flatten(0, 1)[at]
        if labels is None:
            return {"logits": scores, "hidden": scores}
        loss, plain, right = loss_of_scores(scores.flatten(0, -2), labels, smoothing)
        return {"loss": loss, "plain": plain, "hits": right}


class Labels(Known):
    """Scores of labels: a tenth of the sum over tokens that are no padding, of a token's row and its type."""

    def forward(self, input_ids, attention_mask, token_type_ids=None, **facts):
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        each = self.table[input_ids] + types[..., None]
        return {"logits": torch.where(attention_mask[..., None].bool(), each, 0.0).sum(-2) / 10}

    def scores(self, *tokens):
        """Of (token, type) by hand."""
        return [sum(self.row(t)[n] + kind for t, kind in tokens) / 10 for n in range(self.table.shape[1])]


class Says(torch.nn.Module):
    """A model that says what a function makes of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function, self.scale = function, torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, *args, **inputs):
        return {k: v * self.scale if torch.is_tensor(v) and v.is_floating_point() else v for k, v in self.function(*args, **inputs).items()}


class Drawn:
    """A random generator that draws what is written, in turn, whatever it is asked."""

    def __init__(self, *values):
        self.left = list(values)

    def _next(self, *args, **kwargs):
        return np.asarray(self.left.pop(0))

    integers = random = choice = permutation = poisson = _next


class Even:
    """A random generator that draws one number, in the size that is asked for."""

    def __init__(self, value):
        self.value = value

    def integers(self, low, high, size):
        return np.full(size, self.value)


@dataclasses.dataclass
class Case:
    """A batch and what its loss is by hand.

    value: of training; held: without gradients, where it is another; plain: what is reported of training, where it is another than the
    value; accuracy: hits, and whether they are counted in training too. reads: inputs by name. again: (numbers of rows) -> their batch.
    """

    objective: Any
    model: Any
    batch: Any
    value: float
    count: int
    hits: int | None = None
    always: bool = True
    plain: float | None = None
    held: float | None = None
    reads: dict = dataclasses.field(default_factory=dict)
    again: Any = None
    shares: bool = True

    def unhit(self):
        """Of a task that counts no hits."""
        return dataclasses.replace(self, hits=None)


def known(objective, model, make, terms, rows, *, reads, smoothing=0.0, again=True, always=False, **more):
    """A Case of targets that are scored one by one."""
    value = smoothed(terms, smoothing) if smoothing else total(terms)
    return Case(
        objective,
        model,
        make(range(rows)),
        value,
        len(terms),
        hits(terms),
        always,
        total(terms),
        reads=reads,
        again=make if again else None,
        **more,
    )


def some(rows, numbers):
    return [rows[i] for i in numbers]


# --- objectives ----------------------------------------------------------------------------------------------------------------------


def causal():
    o, m = objectives.Causal(LETTERS), Known()
    ids = torch.tensor([[A, B, C, D], [E, A, A, B]])
    steps = m.terms((A, B), (B, C), (C, D), (E, A), (A, A), (A, B))
    yield known(o, m, lambda n: o.batch((ids[list(n)], None, None), None), steps, 2, reads={"input_ids": [[A, B, C], [E, A, A]]})
    documents, position = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]), torch.tensor([[0, 1, 0, 1], [0, 0, 1, 2]])
    rows = lambda n: o.batch((ids[list(n)], documents[list(n)], position[list(n)]), None)
    reads = {"documents": [[0, 0, 1], [0, 1, 1]], "position_ids": [[0, 1, 0], [0, 0, 1]]}
    yield known(o, m, rows, m.terms((A, B), (C, D), (A, A), (A, B)), 2, reads=reads)
    pairs = [([A, B], [C]), ([D], [E, F, G]), ([], [H])]
    steps = m.terms((SEP, C), (C, EOS), (SEP, E), (E, F), (F, G), (G, EOS), (SEP, H), (H, EOS))
    reads = {"input_ids": [[BOS, A, B, SEP, C, EOS], [BOS, D, SEP, E, F, G], [BOS, SEP, H, EOS, PAD, PAD]]}
    yield known(o, m, lambda n: o.pairs(some(pairs, n), None), steps, 3, reads=reads)


def prefix():
    o, m = objectives.OBJECTIVES["prefix"](LETTERS), Known()
    ids, cuts = torch.tensor([[A, B, C, D, E], [F, G, H, A, B]]), np.array([1, 3])
    rows = lambda n: o.batch((ids[list(n)], None, None), Drawn(cuts[list(n)]))
    steps = m.terms((A, B), (B, C), (C, D), (D, E), (H, A), (A, B))  # the last token of a prefix says the first one behind it
    reads = {"input_ids": [[A, B, C, D], [F, G, H, A]], "prefix": [[1, 0, 0, 0], [1, 1, 1, 0]]}
    yield known(o, m, rows, steps, 2, reads=reads)
    pairs = [([A, B], [C]), ([D], [E])]
    reads = {"prefix": [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], "input_ids": [[BOS, A, B, SEP, C], [BOS, D, SEP, E, EOS]]}
    steps = m.terms((SEP, C), (C, EOS), (SEP, E), (E, EOS))
    yield known(o, m, lambda n: o.pairs(some(pairs, n), None), steps, 2, reads=reads)


def chosen(objective, fates):
    """The objective with the places that are chosen, and what becomes of them, written down by the second token of a row."""

    def choose(ids, rng):
        fate = torch.tensor([fates[int(row[1])] for row in ids])
        return fate >= 0, fate, None

    objective.choose = choose
    return objective


def masked():
    fates = {A: [-1, 0.79, 0.81, -1, -1], D: [-1, -1, 0.91, 0.0, -1], F: [-1, 0.89, 0.5, -1, -1]}
    o, m = chosen(Masked(LETTERS), fates), Known()
    ids = torch.tensor([[CLS, A, B, C, SEP], [CLS, D, E, F, SEP], [CLS, F, G, H, SEP]])
    other = o.ordinary.tolist().index(G)
    rows = lambda n: o.batch((ids[list(n)], None, None), Even(other))
    reads = {"input_ids": [[CLS, MASK, G, C, SEP], [CLS, D, E, MASK, SEP], [CLS, G, MASK, H, SEP]], "at": [1, 2, 7, 8, 11, 12]}
    steps = m.terms((MASK, A), (G, B), (E, E), (MASK, F), (G, F), (MASK, G))
    yield known(o, m, rows, steps, 3, reads=reads)
    documents, position = torch.tensor([[0, 0, 0, 1, 1]] * 3), torch.tensor([[0, 1, 2, 0, 1]] * 3)
    rows = lambda n: o.batch((ids[list(n)], documents[list(n)], position[list(n)]), Even(other))
    yield known(o, m, rows, steps, 3, reads={"documents": documents.tolist(), "position_ids": position.tolist()})


class Pretrained(Known):
    """Scores of the second question stand in two columns of the token behind the first separator."""

    name = ""

    def forward(self, input_ids, **inputs):
        first = (input_ids == SEP).int().argmax(1)
        behind = input_ids[torch.arange(len(input_ids)), first + 1]
        return super().forward(input_ids, **inputs) | {self.name: self.table[behind][:, 3:5]}


def sentences():
    ids, kind = torch.tensor([[A, B, C, D], [E, F, G, H], [B, D, F, H]]), objectives.OBJECTIVES["sentences"]
    config = lambda output: SimpleNamespace(output=output, types=2)
    following = [[CLS, A, B, SEP, F, H, SEP], [CLS, E, F, SEP, G, H, SEP], [CLS, B, D, SEP, G, H, SEP]]
    types = [[0, 0, 0, 0, 1, 1, 1]] * 3
    draws = lambda: Drawn(2, [0.4, 0.6, 0.3], 1, np.zeros((3, 7), int))  # cut at 2; the first and the last are wrong; by one row

    m = Pretrained()
    m.name, o = "seq_relationship_logits", kind(LETTERS, config("pretraining"))
    chosen(o, {A: [-1, -1, 0.1, -1, 0.1, -1, -1], E: [-1, 0.1, 0.1, -1, -1, -1, -1], B: [-1, -1, -1, -1, 0.1, 0.1, -1]})
    steps = m.terms((MASK, B), (MASK, F), (MASK, E), (MASK, F), (MASK, G), (MASK, H))
    hidden = [[CLS, A, MASK, SEP, MASK, H, SEP], [CLS, MASK, MASK, SEP, G, H, SEP], [CLS, B, D, SEP, MASK, MASK, SEP]]
    behind = [(m.row(t)[3:5], wrong) for t, wrong in ((MASK, 1), (G, 0), (MASK, 1))]
    value = total(steps) + total(behind) * 6 / 3  # as heavy as all tokens together, whatever their number
    yield Case(
        o, m, o.batch((ids, None, None), draws()), value, 6, hits(steps), False, reads={"input_ids": hidden, "token_type_ids": types}
    )

    m = Pretrained(seed=1)
    m.name, o = "logits", kind(LETTERS, config("next"))
    second = [(m.row(behind)[3:5], wrong) for behind, wrong in ((F, 1), (G, 0), (G, 1))]
    reads = {"input_ids": following, "token_type_ids": types}
    yield Case(o, m, o.batch((ids, None, None), draws()), total(second), 3, hits(second), reads=reads)
    alone = o.batch((ids[:1], None, None), Drawn(2, [0.4]))  # no other text is there to stand behind it
    yield Case(o, m, alone, total([(m.row(C)[3:5], 0)]), 1, reads={"input_ids": [[CLS, A, B, SEP, C, D, SEP]]})

    m = Pretrained(seed=2)
    m.name, o = "sop_logits", kind(LETTERS, config("pretraining-order"))
    chosen(o, {B: [-1, 0.1, -1, -1, -1, -1, -1], E: [-1, 0.1, -1, -1, -1, -1, -1]})
    batch = o.batch((ids[:2], None, None), Drawn(1, [0.2, 0.7], np.zeros((2, 7), int)))
    swapped = [[CLS, MASK, C, D, SEP, A, SEP], [CLS, MASK, SEP, F, G, H, SEP]]
    types = [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    steps, second = m.terms((MASK, B), (MASK, E)), [(m.row(A)[3:5], 1), (m.row(F)[3:5], 0)]
    yield Case(o, m, batch, total(steps) + total(second), 2, hits(steps), False, reads={"input_ids": swapped, "token_type_ids": types})


def detect():
    o, judge, filler = objectives.OBJECTIVES["detect"](LETTERS, weight=7.0), Known(columns=1), Known(seed=1)
    filler.table.data[MASK, C] = 60.0  # what the generator says of a masked place
    chosen(o, {B: [-1, 0.5, 0.5, -1], F: [0.5, -1, -1, 0.5]})
    o.module = filler
    ids = torch.tensor([[A, B, C, D], [E, F, G, C]])
    m = objectives.Joint(Says(lambda input_ids: {"logits": judge.table[input_ids][..., 0]}), o)
    wrote, replaced = [A, C, C, D, C, F, G, C], [0, 1, 0, 0, 1, 0, 0, 0]  # C for C is no replacement
    filled = total(filler.terms((MASK, B), (MASK, C), (MASK, E), (MASK, C)))
    told = [logistic(judge.row(t)[0], r) for t, r in zip(wrote, replaced)]
    right = sum((judge.row(t)[0] > 0) == bool(r) for t, r in zip(wrote, replaced))
    rows = lambda n: o.batch((ids[list(n)], None, None), Halves())
    reads = {"input_ids": [[A, MASK, MASK, D], [MASK, F, G, MASK]], "at": [1, 2, 4, 7]}
    value = filled + 7.0 * sum(told) / 8 * 4
    yield Case(o, m, rows(range(2)), value, 4, right / 8 * 4, reads=reads, again=rows)


class Halves:
    """Draws the first of several, and a half of one."""

    def integers(self, low, high, size):
        return np.zeros(size, int)

    def random(self, shape, dtype):
        return np.full(shape, 0.5, dtype)


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def both_ways(scores):
    """Half of what rows lose to tell their column, and columns their row."""
    across = [list(c) for c in zip(*scores)]
    own = [(row, i) for i, row in enumerate(scores)], [(row, i) for i, row in enumerate(across)]
    return sum(map(total, own)) / 2, hits(own[0])


class Suffix(Known):
    """The state of a token is the sum of the rows from it on; padding adds nothing, and its own states are ones."""

    def forward(self, input_ids, attention_mask):
        each = torch.where(attention_mask[..., None].bool(), self.table[input_ids], 0.0)
        states = each.flip(1).cumsum(1).flip(1)
        return {"hidden": torch.where(attention_mask[..., None].bool(), states, 1.0)}

    def states(self, ids):
        return [[sum(self.row(t)[n] for t in ids[at:]) for n in range(self.table.shape[1])] for at in range(len(ids))]


def contrastive():
    pairs = [([A, B], [C]), ([D], [E, F, G]), ([H, A], [A])]
    whole = [[CLS, *side, SEP] for pair in pairs for side in pair]
    mean = lambda states: [sum(column) / len(states) for column in zip(*states)]
    for pool, vector in (("mean", mean), ("cls", lambda states: states[0])):
        o, m = objectives.OBJECTIVES["contrastive"](LETTERS, temperature=0.5, pool=pool), Suffix()
        vectors = [vector(m.states(text)) for text in whole]
        value, right = both_ways([[cosine(a, b) / 0.5 for b in vectors[1::2]] for a in vectors[::2]])
        reads = {"input_ids": [[*text, *[PAD] * (5 - len(text))] for text in whole]}
        make = lambda n, o=o: o.pairs(some(pairs, n), None)
        yield Case(o, m, make(range(3)), value, 3, right, reads=reads, again=make)
    halves = o.batch((torch.tensor([[A, B, C, D, E], [F, G, H, A, B]]), None, None), None)
    assert halves.inputs["input_ids"].tolist() == [[CLS, A, B, SEP, PAD], [CLS, C, D, E, SEP], [CLS, F, G, SEP, PAD], [CLS, H, A, B, SEP]]


def decided(model, source, target):
    """(scores, token) of a target given a source: each from the token before it and all of the source."""
    add = [SOURCE * sum(model.row(t)[n] for t in source) for n in range(model.table.shape[1])]
    return [([s + a for s, a in zip(model.row(seen), add)], wanted) for seen, wanted in itertools.pairwise(target)]


def seq2seq():
    pairs = [([A, B, C], [C, D]), ([E], [F]), ([], [])]
    for share, start in ((0.0, None), (0.1, None), (0.3, PAD)):
        o, m = objectives.SequenceToSequence(LETTERS, SimpleNamespace(start=start), smoothing=share), Known()
        first = BOS if start is None else start
        terms = [t for a, b in pairs for t in decided(m, [*a, EOS], [first, *b, EOS])]
        reads = {
            "input_ids": [[A, B, C, EOS], [E, EOS, PAD, PAD], [EOS, PAD, PAD, PAD]],
            "attention_mask": [[True] * 4, [True, True, False, False], [True, False, False, False]],
            "decoder_input_ids": [[first, C, D], [first, F, EOS], [first, EOS, PAD]],
        }
        yield known(o, m, lambda n, o=o: o.pairs(some(pairs, n), None), terms, 3, reads=reads, smoothing=share)


def restored(objective, rows, draws, spoilt, smoothing=0.0):
    """A Case of rows of text that are spoilt in a way that is written down: [(inputs, targets)]."""
    m = Known()
    terms = [t for a, b in spoilt for t in decided(m, [*a, EOS], [BOS, *b, EOS])]
    longest = max(len(a) for a, _ in spoilt) + 1
    reads = {"input_ids": [[*a, EOS, *[PAD] * (longest - len(a) - 1)] for a, _ in spoilt]}
    make = lambda n: objective.batch((torch.tensor(some(rows, n)), None, None), Drawn(*(x for i in n for x in draws[i])))
    return known(objective, m, make, terms, len(rows), reads=reads, smoothing=smoothing)


ROWS = [[A, B, C, D, E, F], [G, H, A, C, E, G]]
FEW = [0.9, 0.1, 0.2, 0.9, 0.9, 0.3]  # of these the second, third and last are below a rate of 0.35
T5 = {  # {noise: (what is drawn for a row, what becomes of each of the two rows)}
    "random_spans": ([[0], [0]], [([A, S0, C, D, E, S1], [S0, B, S1, F, S2]), ([G, S0, A, C, E, S1], [S0, H, S1, G, S2])]),
    "replace_spans": ([FEW], [([A, S0, D, E, S1], [S0, B, C, S1, F, S2]), ([G, S0, C, E, S1], [S0, H, A, S1, G, S2])]),
    "drop_tokens": ([FEW], [([A, D, E], [B, C, F]), ([G, C, E], [H, A, G])]),
    "mass_style": ([FEW], [([A, MASK, MASK, D, E, MASK], ROWS[0]), ([G, MASK, MASK, C, E, MASK], ROWS[1])]),
    "bert_style": (
        [FEW, [0.05, 0.5, 0.05, 0.5, 0.5, 0.5], [8, 8, 8, 8, 8, 8]],
        [([A, MASK, H, D, E, MASK], ROWS[0]), ([G, MASK, H, C, E, MASK], ROWS[1])],
    ),
    "deshuffle": ([[5, 0, 1, 4, 2, 3]], [([F, A, B, E, C, D], ROWS[0]), ([G, G, H, E, A, C], ROWS[1])]),
    "prefix": ([4], [([A, B, C, D], [E, F]), ([G, H, A, C], [E, G])]),
}


def denoise():
    kind = objectives.OBJECTIVES["denoise"]
    for name in kind.NOISES:
        draws, spoilt = T5[name]
        o = kind(SPOILT, SimpleNamespace(start=None), name, rate=0.35, mean=1.0, smoothing=0.2)
        assert o.ordinary[8] == H
        yield restored(o, ROWS, [draws, draws], spoilt, 0.2)


BART = {  # {noise: (what is drawn for each of the two rows, what becomes of them)}
    "masking": ([[FEW], [FEW]], [[A, MASK, MASK, D, E, MASK], [G, MASK, MASK, C, E, MASK]]),
    "deletion": ([[FEW], [FEW]], [[A, D, E], [G, C, E]]),
    "infilling": ([[0, 2, [0, 4]]] * 2, [[MASK, A, B, C, D, MASK], [MASK, G, H, A, C, MASK]]),  # a span of none and one of two
    "permutation": ([[[1, 0]], [[2, 0, 1]]], [[D, E, F, A, B, C], [E, G, G, H, A, C]]),
    "rotation": ([[2], [2]], [[C, D, E, F, A, B], [A, C, E, G, G, H]]),
}


def corrupt():
    kind = objectives.OBJECTIVES["corrupt"]
    for name in kind.NOISES:
        draws, spoilt = BART[name]
        o = kind(LETTERS, SimpleNamespace(start=None), name, rate=0.35, smoothing=0.1)
        o.ends = np.array([i in (C, F, G) for i in range(len(LETTERS))])
        yield restored(o, ROWS, draws, list(zip(spoilt, ROWS)), 0.1)


# --- tasks on text -------------------------------------------------------------------------------------------------------------------


def config_of(preset, **fields):
    return models.preset(preset, **dict(vocab=len(LETTERS), pad=PAD, bos=BOS, eos=EOS) | fields)


def task_of(name, config, length=16, **options):
    return objectives.TASKS[name](LETTERS, config, length, **options)


class Delimited(Labels):
    """A decoder with a head of labels, whose embedding scores tokens by the states below it."""

    def __init__(self):
        super().__init__(columns=2)
        self.embed = torch.nn.Module()
        self.embed.token = torch.nn.Embedding.from_pretrained(Known(columns=3, seed=5).table.data, freeze=False)
        self.states = Known(columns=3, seed=6)

    def forward(self, input_ids, attention_mask, labels=None, **inputs):
        out = super().forward(input_ids, attention_mask) | {"hidden": self.states.table[input_ids]}
        out["mc_logits"] = out["logits"][..., 0]
        if labels is not None:
            words = out["hidden"] @ self.embed.token.weight.T
            out["loss"] = loss_of_scores(words.flatten(0, -2), labels)[0]
        return out

    def following(self, *rows):
        words = lambda t: (self.embed.token.weight @ self.states.table[t]).tolist()
        return [(words(a), b) for row in rows for a, b in itertools.pairwise(row)]


def classification():
    found = [Example("ab", label="x", where="1"), Example("c", "de", "y", "2"), Example("h", label="x", where="3")]
    kind, config = "classification", config_of("bert-nano", output="sequence", labels=2, label_names=("x", "y"))
    m = Labels(columns=2)
    rows = [[(CLS, 0), (A, 0), (B, 0), (SEP, 0)], [(CLS, 0), (C, 0), (SEP, 0), (D, 1), (E, 1), (SEP, 1)], [(CLS, 0), (H, 0), (SEP, 0)]]
    terms = [(m.scores(*row), y) for row, y in zip(rows, (0, 1, 0))]
    reads = {
        "input_ids": [[*(t for t, _ in r), *[PAD] * (6 - len(r))] for r in rows],
        "token_type_ids": [[*(k for _, k in r), *[0] * (6 - len(r))] for r in rows],
    }
    for weights, each in (("none", (1, 1, 1)), ("balanced", (3 / 4, 3 / 2, 3 / 4))):
        task = task_of(kind, config, weights=weights)
        items = task.encode(found, training=True)
        make = lambda n, task=task, items=items: task.pairs(some(items, n), None)
        value = sum(w * nats(*t) for w, t in zip(each, terms))
        yield Case(task, m, make(range(3)), value, 3, hits(terms), plain=total(terms), reads=reads, again=make)

    m, config = Delimited(), config_of("gpt-nano", output="sequence", labels=2, label_names=("x", "y"))
    task = task_of(kind, config, auxiliary=0.5)
    items, ids = task.encode(found, training=True), [[BOS, A, B, EOS], [BOS, C, SEP, D, E, EOS], [BOS, H, EOS]]
    terms = [(m.scores(*((t, 0) for t in row)), y) for row, y in zip(ids, (0, 1, 0))]
    words = m.following(*ids)
    value = total(terms) + 0.5 * total(words) / len(words) * 3
    reads = {"input_ids": [[*r, *[PAD] * (6 - len(r))] for r in ids]}
    # a mean over tokens is no sum over rows: batches of other lengths weigh their tokens otherwise
    yield Case(task, m, task.pairs(items, None), value, 3, hits(terms), plain=total(terms), held=total(terms), reads=reads, shares=False)


def tagging():
    config = config_of("bert-nano", output="tokens", labels=3, label_names=("O", "B-x", "I-x"))
    task, m = task_of("tagging", config), Known(columns=3)
    found = [Example(["ab", "c", "de"], None, ["B-x", "I-x", "O"], "1"), Example(["h"], None, ["O"], "2")]
    items = task.encode(found)
    make = lambda n: task.pairs(some(items, n), None)
    reads = {"input_ids": [[CLS, A, B, BLANK, C, BLANK, D, E, SEP], [CLS, H, SEP, *[PAD] * 6]]}
    terms = m.terms((A, 1), (C, 2), (D, 0), (H, 0))
    yield known(task, m, make, terms, 2, reads=reads, always=True)


def answers():
    task, m = task_of("answers", config_of("bert-nano", output="span"), stride=2), Known(columns=2)
    found = [Example("a", "bc de", [(3, "de")], "1"), Example("ab", "c", [], "2")]
    items = task.encode(found)
    said = Says(lambda input_ids, attention_mask, token_type_ids: dict(zip(("start_logits", "end_logits"), m.table[input_ids].unbind(-1))))
    rows, labels = [[CLS, A, SEP, B, C, BLANK, D, E, SEP], [CLS, A, B, SEP, C, SEP]], [(6, 7), (0, 0)]
    column = lambda row, n: [m.row(t)[n] for t in row]
    terms = [(column(row, n), label[n]) for row, label in zip(rows, labels) for n in (0, 1)]
    right = sum(hits(terms[i : i + 2]) == 2 for i in (0, 2))
    reads = {"input_ids": [rows[0], [*rows[1], PAD, PAD, PAD]], "token_type_ids": [[0] * 3 + [1] * 6, [0] * 4 + [1] * 2 + [0] * 3]}
    make = lambda n: task.pairs(some(items, n), None)
    yield Case(task, said, make(range(2)), total(terms) / 2, 2, right, reads=reads, again=make, shares=False)


def choice():
    found = [
        Example("a", label="1", where="1", more={"choices": ["b", "cd"]}),
        Example("e", label="0", where="2", more={"choices": ["f", "g"]}),
    ]
    task, m = task_of("choice", config_of("bert-nano", output="choice")), Labels(columns=1)
    items = task.encode(found)
    row = lambda a, b: [(t, 0) for t in (CLS, *a, SEP)] + [(t, 1) for t in (*b, SEP)]
    score = lambda a, b: m.scores(*row(a, b))[0]
    terms = [([score([A], [B]), score([A], [C, D])], 1), ([score([E], [F]), score([E], [G])], 0)]
    said = Says(lambda **inputs: {"logits": m(**inputs)["logits"][..., 0]})
    make = lambda n: task.pairs(some(items, n), None)
    reads = {
        "input_ids": [[[CLS, A, SEP, B, SEP, PAD], [CLS, A, SEP, C, D, SEP]], [[CLS, E, SEP, F, SEP, PAD], [CLS, E, SEP, G, SEP, PAD]]]
    }
    yield Case(task, said, make(range(2)), total(terms), 2, hits(terms), reads=reads, again=make)

    m = Delimited()
    task = task_of("choice", config_of("gpt-nano", output="double"), auxiliary=0.5)
    items = task.encode(found)
    row = lambda a, b: [BOS, *a, SEP, *b, EOS]
    score = lambda a, b: m.scores(*((t, 0) for t in row(a, b)))[0]
    terms = [([score([A], [B]), score([A], [C, D])], 1), ([score([E], [F]), score([E], [G])], 0)]
    words = m.following(row([A], [C, D]), row([E], [F]))  # of the right choice alone
    value = total(terms) + 0.5 * total(words) / len(words) * 2
    reads = {"mc_token_ids": [[4, 5], [4, 4]]}
    yield Case(task, m, task.pairs(items, None), value, 2, hits(terms), plain=total(terms), reads=reads, shares=False)


def text():
    found = [Example("abc", "cd", where="1"), Example("e", "f", where="2", more={"task": "h"})]
    task, m = task_of("text", config_of("transformer-nano", start=BOS), smoothing=0.1), Known()
    items = task.encode(found)
    sources = [[A, B, C, EOS], [H, UNK, BLANK, E, EOS]]  # ":" is not in the alphabet
    terms = [t for a, b in zip(sources, ([BOS, C, D, EOS], [BOS, F, EOS])) for t in decided(m, a, b)]
    make = lambda n: task.pairs(some(items, n), None)
    yield known(task, m, make, terms, 2, reads={"input_ids": [[*sources[0], PAD], sources[1]]}, smoothing=0.1)
    task = task_of("text", config_of("gpt-nano"))
    items = task.encode(found)
    make = lambda n: task.pairs(some(items, n), None)
    reads = {"input_ids": [[BOS, A, B, C, SEP, C, D], [BOS, H, UNK, BLANK, E, SEP, F]]}
    yield known(task, m, make, m.terms((SEP, C), (C, D), (D, EOS), (SEP, F), (F, EOS)), 2, reads=reads)


# --- tasks on images, sounds, series, items, trajectories and tables -----------------------------------------------------------------


def picture(*bytes_, channels=1):
    return torch.tensor(bytes_, dtype=torch.uint8).view(1, 2, 2).expand(channels, 2, 2)


SEEN = SimpleNamespace(channels=1, image=2, grid=1)


def images():
    task = objectives.TASKS["images"](SimpleNamespace(**vars(SEEN), label_names=("x", "y")))
    items = [
        {"pixels": picture(*p), "ids": (), "label": y, "wanted": "xy"[y]}
        for p, y in (((0, 0, 255, 255), 0), ((255, 255, 255, 0), 1), ((51, 0, 0, 0), 1))
    ]
    m = Says(lambda pixel_values: {"logits": torch.stack([pixel_values.sum((1, 2, 3)), pixel_values[:, 0, 0, 0]], 1).double()})
    sums = [0.0, 2.0, -3.6]  # of pixels from -1 to 1
    terms = [([s, first], y) for s, first, y in zip(sums, (-1.0, 1.0, -0.6), (0, 1, 1))]
    make = lambda n: task.pairs(some(items, n), None)
    yield Case(task, m, make(range(3)), total(terms), 3, hits(terms), again=make)


def reconstruct():
    cfg = models.preset(
        "mae-nano",
        image=4,
        patch=2,
        channels=1,
        dim=8,
        layers=1,
        heads=2,
        hidden=8,
        decoder_dim=8,
        decoder_layers=1,
        decoder_heads=2,
        rate=0.5,
    )
    task, m = objectives.TASKS["reconstruct"](cfg), models.build(cfg).double()
    pixels = np.arange(2 * 16).reshape(2, 1, 4, 4) * 8
    items = [{"pixels": torch.from_numpy(p).byte(), "ids": (), "where": f"row {i}", "wanted": ""} for i, p in enumerate(pixels)]
    with torch.no_grad():
        out = m(**{k: v.double() for k, v in task.pairs(items, None).inputs.items()})
    value = 0.0
    for b, p in enumerate(pixels[:, 0] / 127.5 - 1):
        patches = [p[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2)]
        wrong = [float(((said - patch) ** 2).mean()) for said, patch in zip(out["logits"][b].numpy(), patches)]
        hidden = out["mask"][b].bool().tolist()
        assert sum(hidden) == 2
        value += sum(w for w, h in zip(wrong, hidden) if h) / 2
    make = lambda n: doubled(task.pairs(some(items, n), None))
    yield Case(task, m, make(range(2)), value, 2, again=make)


def doubled(batch):
    return dataclasses.replace(batch, inputs={k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()})


def match():
    cfg = SimpleNamespace(picture=SEEN, length=8, bos=BOS, eos=EOS, pad=PAD)
    task, table = objectives.TASKS["match"](cfg, LETTERS), Known()
    texts = [[BOS, A, EOS], [BOS, B, C, EOS]]
    items = [
        {"pixels": picture(*p), "ids": task.text(t, "x"), "wanted": t} for p, t in (((0, 0, 255, 255), "a"), ((255, 255, 255, 0), "bc"))
    ]
    score = lambda seen, ids: [[s * sum(table.row(t)[0] for t in text) for text in ids] for s in seen]

    def said(pixel_values, input_ids, attention_mask):
        words = table.summed(input_ids, attention_mask)[:, 0]
        return {"logits_per_image": (pixel_values.sum((1, 2, 3)).double() + 1)[:, None] * words[None]}

    value, _ = both_ways(score([1.0, 3.0], texts))
    yield Case(task, Says(said), task.pairs(items, None), value, 2, reads={"input_ids": [[*texts[0], PAD], texts[1]]}, shares=False,
               again=lambda n: task.pairs(some(items, n), None))  # fmt: skip


def caption():
    image = len(LETTERS)
    cfg = SimpleNamespace(picture=SEEN, length=24, image=image, bos=BOS, eos=EOS, pad=PAD)
    task, m = objectives.TASKS["caption"](cfg, LETTERS, shots=1, near=False), Known()
    task.pool = [{"pixels": picture(9, 9, 9, 9), "ids": [G, H], "wanted": "gh", "where": "p"}]
    items = [
        {"pixels": picture(0, 0, 9, 9), "ids": [A, B], "wanted": "ab", "where": "1"},
        {"pixels": picture(1, 1, 1, 1), "ids": [C], "wanted": "c", "where": "2"},
    ]
    make = lambda n: task.pairs(some(items, n), None)  # held out: the asked text alone
    reads = {"input_ids": [[image, G, H, EOS, image, A, B], [image, G, H, EOS, image, C, EOS]]}
    yield known(task, m, make, m.terms((image, A), (A, B), (B, EOS), (image, C), (C, EOS)), 2, reads=reads).unhit()
    drawn = lambda: Drawn(1, [0], 0)  # one example before the first, none before the second
    steps = m.terms((image, G), (G, H), (H, EOS), (image, A), (A, B), (B, EOS), (image, C), (C, EOS))
    reads = {"input_ids": [[image, G, H, EOS, image, A, B], [image, C, EOS, PAD, PAD, PAD, PAD]]}
    yield known(task, m, lambda n: task.pairs(some(items, n), drawn()), steps, 2, reads=reads, again=False).unhit()


def draw():
    cfg = SimpleNamespace(picture=SEEN, length=8, bos=BOS, eos=EOS, pad=PAD, noise=3)
    task = objectives.TASKS["draw"](cfg, LETTERS)
    items = [{"pixels": picture(0, 0, 9, 9), "ids": [BOS, A, EOS], "wanted": "a", "where": "1"}] * 2
    m = Says(lambda: {})
    m.losses = lambda **inputs: {"judge": 1.5 * m.scale, "match": 2.0 * m.scale, "draw": inputs["noise"].shape[1] * m.scale}
    yield Case(task, m, task.pairs(items, None), 6.5, 2, shares=False)


def transcribe():
    cfg = SimpleNamespace(output="ctc", pad=PAD)
    task = objectives.TASKS["transcribe"](LETTERS, cfg)
    shares = torch.rand(2, 3, len(LETTERS), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    shares = shares / shares.sum(-1, keepdim=True)
    m = Says(lambda input_features, lengths: {"logits": shares[input_features[:, 0, 0].long()].log(), "lengths": lengths})
    items = [{"frames": torch.full((n, 2), float(i)), "target": t} for i, (n, t) in enumerate(((3, [A, B]), (2, [C])))]

    def told(path):  # repeats are one, blanks are none
        return [k for k, _ in itertools.groupby(path) if k != PAD]

    value = 0.0
    for i, (n, target) in enumerate(((3, [A, B]), (2, [C]))):
        ways = [p for p in itertools.product((PAD, A, B, C), repeat=n) if told(p) == target]
        value -= math.log(sum(math.prod(float(shares[i, t, k]) for t, k in enumerate(p)) for p in ways))
    make = lambda n: task.pairs(some(items, n), None)
    yield Case(task, m, make(range(2)), value, 3, again=make)

    cfg = SimpleNamespace(output="lm", start=BOS, frames=2, length=8)
    task, m = objectives.TASKS["transcribe"](LETTERS, cfg, smoothing=0.1), Known()
    make = lambda n: task.pairs(some(items, n), None)
    terms = m.terms((BOS, A), (A, B), (B, EOS), (BOS, C), (C, EOS))
    yield known(task, Deaf(m), make, terms, 2, reads={"decoder_input_ids": [[BOS, A, B], [BOS, C, EOS]]}, smoothing=0.1)


class Deaf(torch.nn.Module):
    """Scores by the words that were written alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_features, decoder_input_ids, **inputs):
        return self.inner(decoder_input_ids, **inputs)


def forecast():
    series = [([1.0, 2.0], [3.0, 5.0]), ([0.0, 4.0], [4.0, 4.0]), ([2.0, 2.0], [0.0, 1.0])]
    column = lambda x: torch.tensor(x, dtype=torch.float64)[:, None]
    items = [{"past": column(p), "future": column(f), "marks": torch.zeros(4, 5, dtype=torch.long)} for p, f in series]
    task = objectives.TASKS["forecast"](SimpleNamespace(context=2, horizon=2))
    m = Says(lambda x_enc: {"logits": x_enc[:, -1:].expand(-1, 2, -1)})  # it goes on as it was
    value = (1 + 9) / 2 + 0 + (4 + 1) / 2
    make = lambda n: task.pairs(some(items, n), None)
    yield Case(task, m, make(range(3)), value, 3, again=make)
    cfg = models.preset("informer-nano", context=2, horizon=2, known=1, marks=4)
    task = objectives.TASKS["forecast"](cfg)
    m = Says(lambda x_enc, x_dec, x_mark_enc, x_mark_dec: {"logits": x_dec[:, -2:] + x_enc[:, -1:]})  # what is asked for is not given
    yield Case(task, m, task.pairs(items, None), value, 3, reads={"x_dec": [[[2.0], [0], [0]], [[4.0], [0], [0]], [[2.0], [0], [0]]]})


def recommend():
    items_of = tokenizers.train("items", ["p q r s t u"])  # 0 padding, 1 to 6, 7 a mask
    cfg = models.preset("bert4rec-nano", vocab=len(items_of), length=5, dim=8, heads=2, layers=1)
    task, m = objectives.TASKS["recommend"](items_of, cfg, 5), Known(8)
    found = [{"ids": [1, 2, 3], "wanted": "s", "taken": [1, 2, 3]}, {"ids": [5], "wanted": "p", "taken": [5]}]
    make = lambda n: task.pairs(some(found, n), None)
    yield known(task, m, make, m.terms((7, 4), (7, 1)), 2, reads={"input_ids": [[1, 2, 3, 7], [5, 7, 0, 0]], "at": [3, 5]}).unhit()
    rng = lambda: Drawn([[0.1, 0.9, 0.19], [0.9, 0.0, 0.0]], 1, 0)  # a share of 0.2 is hidden; of the second row the last alone
    reads = {"input_ids": [[7, 2, 7], [7, 0, 0]], "at": [0, 2, 3]}
    yield known(task, m, lambda n: task.pairs(found, rng()), m.terms((7, 1), (7, 3), (7, 5)), 2, reads=reads, again=False).unhit()
    task = objectives.TASKS["recommend"](items_of, models.preset("gru4rec-nano", vocab=len(items_of)), 5)
    make = lambda n: task.pairs(some(found, n), None)
    reads = {"input_ids": [[1, 2, 3], [5, 0, 0]], "at": [2, 3]}
    yield known(task, m, make, m.terms((3, 4), (5, 1)), 2, reads=reads).unhit()
    longer = [*found[:1], {"ids": [5, 6], "wanted": "p"}]
    make = lambda n: task.pairs(some(longer, n), np.random.default_rng(0))
    yield known(task, m, make, m.terms((1, 2), (2, 3), (5, 6)), 2, reads={"at": [0, 1, 3]}).unhit()


def decide():
    steps = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    walks = [Trajectory(steps[:n], np.arange(n) % 2, np.ones(n, np.float32)) for n in (3, 2)]
    for discrete in (True, False):
        cfg = SimpleNamespace(
            steps=4,
            states=1,
            actions=2,
            discrete=discrete,
            mean=(1.0,),
            deviation=(2.0,),
            scale=2.0,
            episode=9,
            environment=None,
            target=1.0,
            length=12,
        )
        task = objectives.TASKS["decide"](cfg)
        acts = lambda t, discrete=discrete: t.actions if discrete else np.stack([t.actions, -t.actions], 1).astype(np.float32)
        found = [Example(Trajectory(t.states, acts(t), t.rewards), where=str(i)) for i, t in enumerate(walks)]
        items = task.encode(found)
        m = Says(lambda states, **inputs: {"action_preds": torch.cat([states, -2 * states], -1).double()})
        states = [(s - 1) / 2 for n in (3, 2) for s in range(n)]
        wanted = [s % 2 for n in (3, 2) for s in range(n)]
        terms = [([s, -2 * s], w) for s, w in zip(states, wanted)]
        off = sum(((s - w) ** 2 + (-2 * s + w) ** 2) / 2 for s, w in zip(states, wanted))
        reads = {"timesteps": [[0, 1, 2, 0], [0, 1, 0, 0]], "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
                 "returns_to_go": [[[1.5], [1.0], [0.5], [0]], [[1.0], [0.5], [0], [0]]]}  # fmt: skip
        make = lambda n, task=task, items=items: task.pairs(some(items, n), None)
        yield Case(task, m, make(range(2)), total(terms) if discrete else off, 5, reads=reads, again=make, shares=False)


def table():
    more = {"names": ("p", "q"), "bins": 0}
    rows, labels = [["0", "1"], ["2", "5"], ["4", "3"], ["2", "3"]], (("x", "y", "y", "x"), ("0.5", "1.5", "2.5", "3.5"))
    for named in labels:
        found = [Example(r, label=y, where=f"row {i}", more=more) for i, (r, y) in enumerate(zip(rows, named))]
        kind = objectives.TASKS["table"]
        fields = kind.shape(found)
        task = kind(models.preset("perceptron", **fields), sparsity=0.25)
        items = task.encode(found)
        deviation = math.sqrt(2.0)  # of both columns
        cells = [[(float(v) - mean) / deviation for v, mean in zip(r, (2.0, 3.0))] for r in rows]
        if named[0] == "x":
            terms = [([a + b, a], "xy".index(y)) for (a, b), y in zip(cells, named)]
            value = total(terms)
        else:
            value = sum((a + b - (float(y) - 2.0) / math.sqrt(1.25)) ** 2 for (a, b), y in zip(cells, named))
        plain = lambda x: {"logits": torch.stack([x.sum(1), x[:, 0]], 1).double()}
        make = lambda n, task=task, items=items: task.pairs(some(items, n), None)
        whole = len(rows)
        yield Case(task, Says(plain), make(range(whole)), value, whole, again=make)
        masks = lambda x, plain=plain: plain(x) | {"m_loss": torch.tensor([2.0]).double()}
        yield Case(task, Says(masks), make(range(whole)), value + whole * 0.25 * 2.0, whole, plain=value, held=value, again=make)


CASES = {f.__name__: f for f in (
    causal, prefix, masked, sentences, detect, contrastive, seq2seq, denoise, corrupt, classification, tagging, answers, choice, text, images,
    reconstruct, match, caption, draw, transcribe, forecast, recommend, decide, table,
)}  # fmt: skip
EVERY = {**objectives.OBJECTIVES, **objectives.TASKS}


def cases(name):
    """The cases of an entry, one after another. Raises KeyError for an entry without any."""
    return CASES[name]()


def test_every_entry_has_its_row():
    assert list(CASES) == [*objectives.OBJECTIVES, *objectives.TASKS]
    assert set(T5) == set(objectives.OBJECTIVES["denoise"].NOISES) and set(BART) == set(objectives.OBJECTIVES["corrupt"].NOISES)


@pytest.mark.parametrize("name", EVERY)
def test_the_loss_of_a_batch_by_hand(name):
    """In training the sum over targets carries the gradient; what is reported is plain, and carries none."""
    for case in cases(name):
        for key, rows in case.reads.items():
            assert torch.equal(case.batch.inputs[key], torch.tensor(rows)), key
        loss = case.objective.loss(case.model.train(), case.batch)
        assert loss.count == case.batch.count == case.count
        assert loss.value.item() == pytest.approx(case.value, rel=1e-5, abs=1e-6)
        plain = case.value if case.plain is None else case.plain
        assert float(loss.metrics["loss"]) == pytest.approx(plain, rel=1e-5, abs=1e-6)
        assert not any(torch.is_tensor(x) and x.requires_grad for x in loss.metrics.values())
        gradients = torch.autograd.grad(loss.value, [p for p in case.model.parameters() if p.requires_grad], allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in gradients)
        if case.hits is not None and case.always:
            assert float(loss.metrics["accuracy"]) == pytest.approx(case.hits)


@pytest.mark.parametrize("name", EVERY)
def test_the_held_out_loss_of_a_batch_by_hand(name):
    """Nothing but the loss itself: no weight of classes, no smoothing, no auxiliary loss is in what is reported."""
    for case in cases(name):
        with torch.no_grad():
            loss = case.objective.loss(case.model.eval(), case.batch)
        plain = case.value if case.plain is None else case.plain
        assert loss.value.item() == pytest.approx(case.value if case.held is None else case.held, rel=1e-5, abs=1e-6)
        assert float(loss.metrics["loss"]) == pytest.approx(plain, rel=1e-5, abs=1e-6) and loss.count == case.count
        assert case.hits is None or float(loss.metrics["accuracy"]) == pytest.approx(case.hits)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_the_sum_of_its_rows_in_any_order(name):
    """Rows alone, built without those beside them and so without their padding; what is scored against each other is no sum."""
    summed = 0
    for case in cases(name):
        if case.again is None:
            continue
        with torch.no_grad():
            lose = lambda numbers, case=case: case.objective.loss(case.model.eval(), case.again(numbers))
            rows = rows_of(case)
            back = lose(range(rows)[::-1])
            assert back.value.item() == pytest.approx(case.value if case.held is None else case.held, rel=1e-5, abs=1e-6)
            assert back.count == case.count
            if case.batch.whole:
                one = lose([0])
                assert one.value.item() == pytest.approx(0.0, abs=1e-6)  # alone there is nothing to choose
                assert one.count == 0 or case.objective.fewest == 1
                continue
            alone = [lose([i]) for i in range(rows)]
            assert sum(a.value.item() for a in alone) == pytest.approx(back.value.item(), rel=1e-5, abs=1e-6)
            assert sum(a.count for a in alone) == case.count
        summed += 1
    assert summed or name in ("sentences", "contrastive", "match", "draw")


def rows_of(case):
    given = case.batch.inputs
    return len(next(given[k] for k in ("decoder_input_ids", "input_ids", *given) if k in given)) // (2 if case.objective.fewest == 2 else 1)


@pytest.mark.parametrize("name", EVERY)
def test_ranks_share_a_batch(name):
    """Unequal shares, and ranks without a row: values and counts add up to those of the batch; what is scored together stays together."""
    for case in cases(name):
        if case.batch.whole:
            assert case.batch.share(1, 2) is case.batch
            continue
        if not case.shares:
            continue
        whole = case.objective.loss(case.model, case.batch)
        rows = rows_of(case)
        for world in (2, 3, rows):
            parts = [case.batch.share(r, world) for r in range(min(world, rows))]
            assert sum(p.count for p in parts) == case.count, world
            assert sum(p.tokens for p in parts) <= case.batch.tokens
            value = sum(case.objective.loss(case.model, p).value for p in parts)
            torch.testing.assert_close(value, whole.value, rtol=1e-5, atol=1e-6)
        idle = case.batch.share(rows, rows + 1)
        assert idle.count == 0 and idle.tokens == 0


# --- what is masked and spoilt -------------------------------------------------------------------------------------------------------


def within(hit, tried, share):
    """A count of independent draws, no further from its mean than five deviations."""
    assert abs(hit - share * tried) <= 5 * math.sqrt(tried * share * (1 - share)), (hit, tried, hit / tried, share)


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer whose words have several pieces, with sentinels among its special tokens."""
    text = ["the unbelievable transformers are reading unreadable letters slowly . they do so again and again !"] * 50
    tokenizer = tokenizers.train("wordpiece", text, 80)
    tokenizer.add_sentinels(5)
    return tokenizer


MASKING = [name for name, kind in objectives.OBJECTIVES.items() if issubclass(kind, Masked)]
FATES = {"masked": (0.8, 0.1, 0.1), "sentences": (0.8, 0.1, 0.1), "detect": (1.0, 0.0, 0.0)}  # [MASK], another token, itself
UNITS = ("token", "word", "span")


def masker(name, tokenizer, **options):
    more = {"config": SimpleNamespace(output="pretraining", types=2)} if name == "sentences" else {}
    return objectives.OBJECTIVES[name](tokenizer, **more, **options)


def text_rows(tokenizer, rows, length, seed):
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.specials().tolist()))
    return torch.from_numpy(data.rng(seed).choice(ordinary, (rows, length)))


def spoilt_places(objective, rows, times=30, length=120):
    """(what was there, what is read) at every scored place of many batches."""
    was, now = [], []
    for i in range(times):
        ids = text_rows(objective.tokenizer, rows, length, i)
        batch = objective.batch((ids, None, None), data.rng(7, i))
        was.append(batch.labels)
        now.append(batch.inputs["input_ids"].flatten()[batch.inputs["at"]])
    return torch.cat(was), torch.cat(now)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", MASKING)
def test_what_becomes_of_masked_tokens(pieces, name, unit):
    """Shares of chosen tokens as their papers have them; another token is any ordinary one, as likely as every other."""
    o = masker(name, pieces, unit=unit, rate=0.3)
    was, now = spoilt_places(o, 24)
    mask, other, same = FATES[name]
    slack = 12 if unit == "span" else 1  # tokens of a span share one fate, so that there are fewer draws
    n = len(was) // slack
    masked, changed = now == pieces.mask, (now != was) & (now != pieces.mask)
    luck = other / len(o.ordinary)
    within(int(masked.sum()) // slack, n, mask)
    within(int(changed.sum()) // slack, n, other - luck)
    within(int((now == was).sum()) // slack, n, same + luck)
    assert not torch.isin(now[changed], pieces.specials()).any() and not torch.isin(was, pieces.specials()).any()
    if other and unit == "token":
        for token in o.ordinary.tolist():
            within(int((now[changed] == token).sum()), len(now[changed]), 1 / len(o.ordinary))


@pytest.mark.parametrize("rate", (0.15, 0.4))
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", MASKING)
def test_how_many_tokens_are_masked(pieces, name, unit, rate):
    """Of tokens as many as the rate says; of words, whole ones until there are so many; of spans, the last one where that comes nearer."""
    o = masker(name, pieces, unit=unit, rate=rate)
    ids = text_rows(pieces, 40, 97, 3)
    batch = o.batch((ids, None, None), data.rng(5))
    length = batch.inputs["input_ids"].shape[1]
    each = torch.bincount(batch.inputs["at"] // length, minlength=40)
    wanted = round(rate * length)
    words = [
        len(list(run)) for row in ids.tolist() for _, run in itertools.groupby(itertools.accumulate(pieces.word_starts()[row].tolist()))
    ]
    if unit == "token":
        assert set(each.tolist()) == {wanted}
    elif unit == "word":
        assert each.min() >= wanted and each.max() < wanted + max(words) and each.min() < wanted + 4
    else:
        assert abs(each.double().mean() - wanted) < 2 and (each - wanted).abs().max() <= 10 * max(words) / 2


@given(
    marked=st.sets(st.integers(0, 19), min_size=1, max_size=19),
    unit=st.sampled_from(UNITS),
    name=st.sampled_from(MASKING),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_special_tokens_are_never_masked(pieces, marked, unit, name, seed):
    """Wherever they stand: those of every role, and sentinels."""
    o = masker(name, pieces, unit=unit, rate=0.8)
    ids = text_rows(pieces, 3, 20, seed)
    special = pieces.specials().tolist()
    ids[:, sorted(marked)] = torch.tensor([special[(seed + i) % len(special)] for i in range(len(marked))])
    batch = o.batch((ids, None, None), data.rng(seed))
    assert not torch.isin(batch.labels, pieces.specials()).any()
    kept = torch.ones(batch.inputs["input_ids"].numel(), dtype=torch.bool)
    kept[batch.inputs["at"]] = False
    read = batch.inputs["input_ids"].flatten()[kept]
    assert int(torch.isin(read, pieces.specials()).sum()) == 3 * (len(marked) + (3 if name == "sentences" else 0))


def restoring():
    """(objective, noise) of every noise there is."""
    return [(name, n) for name, kind in objectives.OBJECTIVES.items() if issubclass(kind, Restoring) for n in kind.NOISES]


def sentinels_in(a, tokenizer):
    return int(np.isin(a, tokenizer.sentinel_ids()).sum())


SPOILS = {  # {noise: (tokens, read, asked for, tokenizer, rate) -> (how many were spoilt, of how many, each with which chance)}
    "random_spans": lambda ids, a, b, t, rate: (len(ids) - len(a) + sentinels_in(a, t), len(ids), None),
    "replace_spans": lambda ids, a, b, t, rate: (len(ids) - len(a) + sentinels_in(a, t), len(ids), rate),
    "drop_tokens": lambda ids, a, b, t, rate: (len(b), len(ids), rate),
    "mass_style": lambda ids, a, b, t, rate: (int((a == t.mask).sum()), len(ids), rate),
    "bert_style": lambda ids, a, b, t, rate: (int((a == t.mask).sum()), len(ids), 0.9 * rate),
    "deshuffle": lambda ids, a, b, t, rate: (int(a[0] in ids[:10]), 1, 10 / len(ids)),
    "prefix": lambda ids, a, b, t, rate: (int(len(a) <= 20), 1, 20 / (len(ids) - 1)),
    "masking": lambda ids, a, b, t, rate: (int((a == t.mask).sum()), len(ids), rate),
    "deletion": lambda ids, a, b, t, rate: (len(ids) - len(a), len(ids), rate),
    "infilling": lambda ids, a, b, t, rate: (len(ids) - int((a != t.mask).sum()), len(ids), None),
    "permutation": lambda ids, a, b, t, rate: (int(a[0] == ids[0]), 1, 1 / 4),
    "rotation": lambda ids, a, b, t, rate: (int(a[0] in ids[:10]), 1, 10 / len(ids)),
}


@pytest.mark.parametrize(("name", "kind"), restoring())
def test_how_much_a_noise_spoils(name, kind):
    """Within binomial bounds over many rows; where a paper fixes the number, exactly."""
    tokenizer = tokenizers.train("char", ["".join(map(chr, range(200, 450))), "."])
    tokenizer.add_sentinels(100)
    rate, length, letters = 0.25, 80, [tokenizer.encode(chr(i))[0] for i in range(200, 450)]
    o = objectives.OBJECTIVES[name](tokenizer, SimpleNamespace(start=None), kind, rate=rate)
    spoilt = tried = 0
    for i in range(400):
        ids = data.rng(3, i).permutation(letters)[:length]  # no token twice
        ids[[19, 39, 59, 79]] = tokenizer.encode(".")[0] if kind == "permutation" else ids[[19, 39, 59, 79]]
        a, b = o.spoil(ids.copy(), data.rng(4, i))
        hit, n, share = SPOILS[kind](ids, a, b, tokenizer, rate)
        spoilt, tried = spoilt + hit, tried + n
        if share is None:
            assert hit == rate * length, (hit, i)
    if share is not None:
        within(spoilt, tried, share)


@pytest.mark.parametrize("mean", (2.0, 5.0))
@pytest.mark.parametrize(("name", "kind"), (("denoise", "random_spans"), ("corrupt", "infilling")))
def test_the_mean_length_of_a_span(name, kind, mean):
    tokenizer = tokenizers.train("char", ["".join(map(chr, range(200, 450)))])
    tokenizer.add_sentinels(100)
    o = objectives.OBJECTIVES[name](tokenizer, SimpleNamespace(start=None), kind, rate=0.4, mean=mean)
    spans, rows, ids = 0, 300, np.arange(20, 220)
    for i in range(rows):
        a, _ = o.spoil(ids, data.rng(1, i))
        spans += sentinels_in(a, tokenizer) if kind == "random_spans" else int((a == tokenizer.mask).sum())
    # the last of Poisson lengths is cut to what is left, which makes up to half a span more
    assert 80 * rows / spans == pytest.approx(mean, rel=0.002 if kind == "random_spans" else 0.06)


def test_every_noise_has_its_row():
    assert list(FATES) == MASKING and set(SPOILS) == {n for _, n in restoring()}


@pytest.mark.parametrize("last", (0, 4))
def test_items_are_hidden_at_a_rate_and_the_last_alone_in_some_rows(last):
    items_of = tokenizers.train("items", [" ".join(f"i{n}" for n in range(60))])
    cfg = models.preset("bert4rec-nano", vocab=len(items_of))
    task = objectives.TASKS["recommend"](items_of, cfg, 50, rate=0.3, last=last)
    rows = [{"ids": list(range(1, 51))}, {"ids": list(range(1, 31))}]
    hidden = tried = alone = 0
    for i in range(1500):
        batch = task.pairs(rows, data.rng(2, i))
        at, asked = batch.inputs["at"], batch.inputs["input_ids"] == task.mask
        assert torch.equal(asked.flatten().nonzero()[:, 0], at) and not asked[1, 30:].any()  # none in the padding
        assert torch.equal(batch.labels, (at % 50) + 1) and batch.count == len(at)
        for row, size in zip(asked, (50, 30)):
            if row.sum() == 1 and row[size - 1]:
                alone += 1
            else:
                hidden, tried = hidden + int(row.sum()), tried + size
    within(alone, 3000, 1 / last if last else 0.0)
    within(hidden, tried, 0.3)


def test_tokens_of_a_text_are_left_out_at_a_rate():
    cfg = SimpleNamespace(picture=SEEN, length=60, bos=BOS, eos=EOS, pad=PAD)
    task = objectives.TASKS["match"](cfg, LETTERS, drop=0.3)
    item = {"pixels": picture(0, 0, 0, 0), "ids": [BOS, *[A, B] * 25, EOS], "wanted": "", "where": ""}
    kept = 0
    for i in range(400):
        (row,) = task.pairs([item], data.rng(1, i)).inputs["input_ids"].tolist()
        assert row[0] == BOS and row[-1] == EOS and BOS not in row[1:]
        kept += len(row) - 2
    within(kept, 400 * 50, 0.7)
    assert task.pairs([item], None).inputs["input_ids"].tolist() == [item["ids"]]


# --- optimisers and schedules --------------------------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    """Parameters of every kind that optimisers tell apart, under the names that models give them."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        make = lambda *shape: torch.nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64))
        self.embed = torch.nn.Module()
        self.embed.weight = make(6, 4)
        self.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
        for block in self.blocks:
            block.wide, block.tall, block.again, block.bias, block.convs = make(4, 6), make(9, 4), make(4, 6), make(4), make(2, 3, 4)
        self.head, self.frozen, self.idle = make(4, 6), make(3, 3), make(3, 3)
        self.frozen.requires_grad_(False)


RATES = {"embed": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "head": 1.0}  # each level learns half as fast as the one above it


def rate_of(name):
    return next(rate for start, rate in RATES.items() if name.startswith(start))


def adamw(p, gradients, lr, decay, betas=(0.8, 0.9), eps=1e-8):
    """Loshchilov and Hutter, 2019, algorithm 2."""
    m = v = torch.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)).sqrt() + eps) + decay * p)
    return p


def muon(p, gradients, lr, decay, momentum=0.95):
    """Jordan et al., 2024: Nesterov momentum, made nearly orthogonal by five steps of a polynomial of degree five."""
    m = torch.zeros_like(p)
    for g in gradients:
        m = momentum * m + (1 - momentum) * g
        x = (1 - momentum) * g + momentum * m
        u, s, v = torch.linalg.svd(x / torch.linalg.matrix_norm(x), full_matrices=False)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5  # of singular values alone
        rows, columns = p.shape
        p = p - lr * decay * p - lr * max(1.0, rows / columns) ** 0.5 * (u * s) @ v
    return p


def optimizers():
    """The names that the refusal of another one lists."""
    with pytest.raises(ValueError, match="is not one of") as refused:
        optim.make(Small(), "none of these")
    return re.search(r"is not one of ([\w, ]+)\.", str(refused.value)).group(1).split(", ")


STEPS = {"adamw": lambda name, p: adamw, "muon": lambda name, p: muon if p.ndim == 2 and name.startswith("blocks.") else adamw}


def test_every_optimizer_has_its_row():
    assert optimizers() == list(STEPS) and set(SCALES) == set(optim.SCHEDULES)


def stepped(model, optimizer, gradients):
    for i in range(3):
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        for name, p in model.named_parameters():
            if name in gradients:
                p.grad = gradients[name][i].clone()
        optimizer.step()


def gradients_of(model):
    """Three for every parameter that is trained, but for one that is idle."""
    return {n: torch.randn(3, *p.shape, dtype=torch.float64) for n, p in model.named_parameters() if n not in ("frozen", "idle")}


@pytest.mark.parametrize("layers", (1.0, 0.5))
@pytest.mark.parametrize("name", STEPS)
def test_three_steps_of_every_optimizer_by_hand(name, layers):
    """Matrices and what has more dimensions decay, vectors do not; each level has its rate; what is frozen or has no gradient stays."""
    model = Small()
    before, gradients = {n: p.detach().clone() for n, p in model.named_parameters()}, gradients_of(model)
    optimizer = optim.make(model, name, 0.01, 0.3, (0.8, 0.9), 0.02, layers)
    held = [id(p) for o in optimizer.members for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)  # each once
    stepped(model, optimizer, gradients)
    for n, p in model.named_parameters():
        if n in ("frozen", "idle"):
            assert torch.equal(p, before[n]), n
            continue
        step = STEPS[name](n, p)
        lr = (0.02 if step is muon else 0.01) * (rate_of(n) if layers != 1 else 1.0)
        torch.testing.assert_close(p.detach(), step(before[n], gradients[n], lr, 0.3 if p.ndim > 1 else 0.0), rtol=1e-5, atol=2e-6, msg=n)


@pytest.mark.parametrize("name", STEPS)
def test_an_optimizer_goes_on_from_its_state(name):
    """Scaled rates are those of its groups times a factor, always of the first ones; a state that is kept and read goes on bit for bit."""
    models_ = [Small(), Small()]
    made = [optim.make(m, name, 0.01, 0.1, layer_decay=0.5) for m in models_]
    gradients = gradients_of(models_[0])
    base = [g["lr"] for o in made[0].members for g in o.param_groups]
    for factor in (0.5, 0.25):
        made[0].scale(factor)
        assert [g["lr"] for o in made[0].members for g in o.param_groups] == [factor * lr for lr in base]
    made[1].scale(0.25)
    stepped(models_[0], made[0], gradients)
    names = [{p: n for n, p in m.named_parameters()} for m in models_]
    kept = {k: v.clone() for k, v in made[0].state(names[0]).items()}
    assert {k.rpartition("/")[0] for k in kept} == set(gradients)
    models_[1].load_state_dict(models_[0].state_dict())
    read = {k: v.clone() for k, v in kept.items()}
    made[1].load(read, names[1])
    for m, o in zip(models_, made):
        stepped(m, o, gradients)
    assert all(torch.equal(a, b) for a, b in zip(models_[0].parameters(), models_[1].parameters()))
    assert all(torch.equal(v, read[k]) for k, v in kept.items())  # what was read is copied, not worked on


SCALES = {  # {schedule: (step from 1 on, share done, warm-up, floor, decay) -> factor behind the warm-up}
    "cosine": lambda s, done, w, floor, decay: floor + (1 - floor) * math.cos(math.pi * min(done, 1.0) / 2) ** 2,
    "linear": lambda s, done, w, floor, decay: 1.0 - min(done, 1.0),
    "inverse_sqrt": lambda s, done, w, floor, decay: math.sqrt(max(w, 1) / s),
    "constant": lambda s, done, w, floor, decay: min(1.0, (1.0 - min(done, 1.0)) / decay),
}


@given(
    schedule=st.sampled_from(optim.SCHEDULES),
    warmup=st.integers(0, 300),
    steps=st.integers(1, 1000),
    at=st.floats(0, 1),
    floor=st.floats(0, 1),
    decay=st.floats(0.01, 1),
)
@settings(max_examples=300, deadline=None)
def test_the_rate_of_any_step_of_any_run(schedule, warmup, steps, at, floor, decay):
    """step / warm-up while it rises; each schedule's formula, written otherwise, whatever the length; never above the peak."""
    step = min(int(at * steps), steps - 1)
    rise = (step + 1) / warmup if step < warmup else 1.0
    tail = SCALES[schedule](step + 1, step / steps, warmup, floor, decay)
    wanted = rise * min(1.0, tail)
    assert optim.factor(schedule, step, step / steps, warmup, floor, decay) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert 0 <= wanted <= 1


@pytest.mark.parametrize("schedule", SCALES)
@pytest.mark.parametrize("warmup", (1, 2, 100))
def test_the_borders_of_a_schedule(schedule, warmup):
    """The peak is met at the last step of the warm-up and not before; the end is where the schedule says, however late the clock runs."""
    f = lambda step, done: optim.factor(schedule, step, done, warmup)
    assert f(0, 0.0) == pytest.approx(1 / warmup) and f(warmup - 1, 0.0) == 1.0
    assert all(f(s, 0.0) < f(s + 1, 0.0) for s in range(warmup - 1))
    ends = {"cosine": 0.1, "linear": 0.0, "constant": 0.0, "inverse_sqrt": math.sqrt(warmup / 1000)}
    for done in (1.0, 1.5):  # where seconds end a run, its last step may end late
        assert f(999, done) == pytest.approx(ends[schedule], abs=1e-12)
    falling = [f(999, d / 50) for d in range(51)]
    assert all(a >= b for a, b in itertools.pairwise(falling))
    if schedule == "constant":
        assert f(999, 0.799) == 1.0 and f(999, 0.9) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="is not one of cosine"):
        optim.factor("step", 0, 0.0, warmup)


@pytest.mark.parametrize("name", EVERY)
def test_any_number_of_ranks_share_a_batch(name):
    """Ranks without a row, too: what counts nothing adds nothing."""
    for case in cases(name):
        if case.batch.whole or getattr(case.objective, "auxiliary", 0.0):
            continue
        whole, rows = case.objective.loss(case.model, case.batch), rows_of(case)
        for world in (2, rows, rows + 2):
            parts = [case.batch.share(r, world) for r in range(world)]
            losses = [case.objective.loss(case.model, p) for p in parts]  # none is refused
            assert sum(p.count for p in parts) == case.count, world
            value = sum(loss.value for loss in losses if loss.count)
            torch.testing.assert_close(value, whole.value, rtol=1e-5, atol=1e-6)


def test_a_rank_without_a_row_scores_choices_too():
    case = list(cases("choice"))[1]
    assert case.objective.loss(case.model, case.batch.share(2, 3)).count == 0


def test_a_last_sentence_that_does_not_end_is_one():
    ends = np.array([False, False, True])
    ids = np.array([0, 2, 1, 2, 0, 1])
    found = {tuple(noise.permute_sentences(ids, ends, np.random.default_rng(s)).tolist()) for s in range(60)}
    assert len(found) == 6 and (0, 1, 0, 2, 1, 2) in found
