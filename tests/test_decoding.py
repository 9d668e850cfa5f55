"""Decoding against plain implementations: what is chosen, searched, served and streamed, on models whose scores are known."""

import dataclasses
import inspect
import itertools
import math
import threading
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from topologies import small

import qkv
from qkv import models
from qkv.core import POSITIONS, tokens
from qkv.data.tokenizer import train
from qkv.generation import Draft, Engine, NGram, Sampling, beam_search, complete, engine, finish, generate, slide, steps, stream
from qkv.generation.decoding import Decoding
from qkv.generation.engine import ModelRows
from qkv.generation.text import encode

EXAMPLES = settings(max_examples=30, deadline=None)
SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True, scope="module")
def uncompiled():
    """Engines of this file run on the model itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "lower_if", lambda *a: None)
        yield


class Table(torch.nn.Module):
    """A decoder whose scores are a function of the whole text, drawn at random for each text or given by `say`. It knows the text from
    its cache alone, and a token at a wrong position is another token to it.

    limit: positions that there are. calls: (tokens in the cache, new ids of the first row) of every pass."""

    def __init__(self, say=None, *, seed=0, vocab=5, eos=0, limit=None, sharp=1.5, pad=None):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.config = SimpleNamespace(vocab=vocab, length=limit or 64, eos=eos, pad=pad, bos=None, start=None, output="lm")
        if limit:
            self.embed = SimpleNamespace(position=SimpleNamespace(length=limit))
        self.say, self.seed, self.sharp, self.known, self.calls = say, seed, sharp, {}, []

    def logits(self, text):
        """Scores of what follows a text, a tuple of ids."""
        if text not in self.known:
            if self.say is not None:
                self.known[text] = torch.as_tensor(self.say(text) if text else [0.0] * self.config.vocab, dtype=torch.float64)
            else:
                draw = torch.Generator().manual_seed(hash((self.seed, text)) % 2**60)
                self.known[text] = self.sharp * torch.randn(self.config.vocab, generator=draw, dtype=torch.float64)
        return self.known[text]

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None):
        T = input_ids.shape[1]
        self.calls.append((cache.length if cache else 0, input_ids[0].tolist()))
        valid = None if attention_mask is None else attention_mask[:, -T:]
        toks = tokens(T, start=cache.length if cache else 0, position=position_ids, valid=valid)
        place, ids = toks.position, input_ids
        if cache is not None:
            place = cache.advance(toks).position
            ids = cache.extend(self, ids[:, None, :, None].double(), ids[:, None, :, None].double())[0][:, 0, :, 0].long()
        rows = []
        for row, where in zip(ids.tolist(), place.expand(len(ids), -1).tolist()):
            told, texts = [], []
            for token, at in zip(row, where):
                if at >= 0:
                    told.append(token if at == len(told) else -1 - token)
                texts.append(tuple(told))
            rows.append(torch.stack([self.logits(text) for text in texts[-T:]]))
        return {"logits": torch.stack(rows) + self.anchor}


def decoder(**kw):
    torch.manual_seed(2)
    sizes = {"vocab": 19, "dim": 16, "layers": 2, "heads": 2, "length": 40, "init_std": 0.4, "eos": 2}
    return qkv.create("gpt-nano", **(sizes | kw)).double().eval()


def shaken(name, **kw):
    """A small preset whose parameters are moved, so that its answers vary."""
    torch.manual_seed(2)
    heads = {} if "Recurrent" in type(models.preset(name)).__name__ else {"heads": 2}
    model = qkv.create(name, **({"vocab": 19, "dim": 32, "layers": 2, "length": 40} | heads | kw)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model


def logits(model, prompt, written):
    """Scores of the next token by one plain forward of everything."""
    if isinstance(model, Table):
        return model.logits((*prompt, *written))
    with torch.no_grad():
        if not hasattr(model, "encode"):
            return model(input_ids=torch.tensor([[*prompt, *written]]))["logits"][0, -1]
        cfg = model.config
        start = cfg.start if cfg.start is not None else cfg.bos
        out = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *written]]))["logits"][0, -1]
        return out.where(torch.arange(len(out)) != cfg.pad, -torch.inf) if cfg.pad is not None and cfg.pad == start else out


def greedy(model, prompt, most, end=(), choose=lambda scores, text: scores.argmax().item(), limit=math.inf):
    """Token by token from plain forwards. limit: positions; the last token is chosen at the last one."""
    out = []
    while len(out) < most and len(prompt) + len(out) <= limit:
        token = choose(logits(model, prompt, out), [*prompt, *out])
        if token in end:
            break
        out.append(token)
    return out


def close(scores):
    """Beams add up in single precision."""
    return pytest.approx(scores, rel=1e-5, abs=1e-5)


PROMPTS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=4)


# ---- greedy ---------------------------------------------------------------------------------------------------------------------

TEXT = {"Decoder", "EncoderDecoder", "Recurrent", "RecurrentEncoderDecoder"}
OTHERS = {"Encoder", "SpeechEncoderDecoder", "SeeingDecoder"}  # they read both ways, sound, or pictures
WRITERS = [name for name in small() if getattr(models.preset(name), "output", None) == "lm"]


def test_every_topology_that_writes_is_known_here():
    assert {type(models.preset(name)).__name__ for name in WRITERS} == TEXT | OTHERS


@pytest.mark.parametrize("name", [n for n in WRITERS if type(models.preset(n)).__name__ in TEXT])
def test_greedy_is_the_argmax_of_the_plain_forward(name):
    """The scores and the choice, with and without cache, padded to the left, alone, and on an engine."""
    model = shaken(name, **({"start": 3} if models.preset(name).start is None else {}))
    prompts = [[5, 6, 7, 8, 5, 6], [9], [10, 11, 5]]
    want = [greedy(model, p, 7) for p in prompts]
    for cached in (True, False):  # the scores themselves, behind tokens that are not the likeliest
        state = Decoding(model, prompts, cached=cached)
        for n in range(4):
            written = [[5 + row, 12, 9 - row][:n] for row in range(3)]
            plain = torch.stack([logits(model, p, w) for p, w in zip(prompts, written)])
            torch.testing.assert_close(state.logits, plain, rtol=1e-9, atol=1e-9)
            if n < 3:
                state.push(torch.tensor([[5, 6, 7], [12] * 3, [9, 8, 7]][n]))
    assert generate(model, prompts, most=7, end=()) == want
    assert generate(model, prompts, most=7, end=(), cached=False) == want
    assert generate(model, prompts[2:], most=7, end=()) == want[2:]
    assert Engine(model, rows=2).generate(prompts, most=7, end=()) == want


PLACES = {"none": "none", "learned": "learned", "sinusoid": "sinusoid", "rope": "rope", "rope_before": None, "rope2d": None, "sinusoid2d": None,
          "alibi": "alibi", "t5": "t5", "shaw": "shaw(2)", "xl": "xl"}  # fmt: skip


def test_every_position_has_a_row_here():
    assert set(PLACES) == set(POSITIONS)


@pytest.mark.parametrize("more", ["causal", ["sliding(3)", "causal"]], ids=str)
@pytest.mark.parametrize("position", [p for p in PLACES.values() if p])
def test_positions_and_windows_write_as_the_plain_forward_does(position, more):
    """A padded batch, its cache and an engine that reuses and guesses, for every position that a text has."""
    model = decoder(position=position, pattern=more)
    prompts = [[5, 6, 7, 8, 5, 6], [5, 6, 7, 8, 11], [9]]
    want = [greedy(model, p, 8) for p in prompts]
    assert generate(model, prompts, most=8, end=()) == want
    served = Engine(model, rows=1, guesser=NGram(3))
    assert served.generate(prompts, most=8, end=()) == want and served.counts["reused"] >= 4


@EXAMPLES
@given(SEEDS, PROMPTS, st.integers(1, 9), st.sets(st.integers(0, 4), max_size=3), st.sampled_from((None, 6, 8)), st.booleans())
def test_each_row_ends_by_itself(seed, prompts, most, end, limit, cached):
    """With one of the end tokens, after `most`, or at the last position."""
    model = Table(seed=seed, limit=limit)
    want = [greedy(model, p, most, end, limit=limit or math.inf) for p in prompts]
    assert generate(model, prompts, most=most, end=end, cached=cached) == want


def test_what_ends_a_row_by_default():
    """The model's eos, one or several; an id or several in its place; nothing where none is named."""
    for eos, end, known in ((0, None, {0}), ((1, 3), None, {1, 3}), (None, None, set()), (0, 2, {2}), (0, (), set()), (0, [1, 2], {1, 2})):
        for seed in range(4):
            model = Table(seed=seed, eos=eos)
            assert generate(model, [[1, 4]], most=12, end=end) == [greedy(model, [1, 4], 12, known)]
            assert Engine(model).generate([[1, 4]], most=12, end=end) == [greedy(model, [1, 4], 12, known)]


@EXAMPLES
@given(SEEDS, PROMPTS, st.integers(1, 20))
def test_a_text_slides_on_by_the_last_half_of_its_context(seed, prompts, most):
    model = Table(seed=seed, limit=7)

    def slid(prompt):
        text, out = list(prompt), []
        while len(out) < most:
            out.append(logits(model, text, []).argmax().item())
            text = [*text, out[-1]] if len(text) < 7 else [*text, out[-1]][-3:]
        return out

    assert generate(model, prompts, most=most, end=(), beyond=slide) == [slid(p) for p in prompts]
    assert [len(row) for row in generate(model, prompts, most=most, end=(), beyond=finish)] == [min(most, 8 - len(p)) for p in prompts]


def test_steps_tell_none_for_a_row_that_has_ended():
    """Row by row: a chosen token, then None for good."""
    say = lambda text: [5.0 if i == (0 if len(text) >= (3 if text[0] == 1 else 5) else 2) else 0.0 for i in range(4)]
    assert list(steps(Table(say, vocab=4), [[1], [3]], most=9)) == [[2, 2], [2, 2], [None, 2], [None, 2], [None, None]]


def test_no_pass_is_made_for_a_token_that_nobody_wants():
    """A pass for each token: none behind the last of `most`, behind the end, or behind the last position."""
    for most, end, limit, passes in ((4, (), None, 4), (9, (0,), None, 3), (9, (), 5, 4)):
        for cached in (True, False):
            model = Table(lambda text: [5.0 if i == (0 if len(text) == 4 else 2) else 0.0 for i in range(4)], vocab=4, limit=limit)
            generate(model, [[1, 1]], most=most, end=end, cached=cached)
            assert len(model.calls) == passes


def test_what_is_beyond_a_full_context_is_asked_of_open_rows_alone():
    """With the row's ids and the positions there are; a row that has ended is not asked, and not read again."""
    say = lambda text: [5.0 if i == (0 if text[0] == 3 and len(text) == 5 else 2) else 0.0 for i in range(4)]
    model, asked = Table(say, vocab=4, limit=5), []
    beyond = lambda ids, context: asked.append((list(ids), context)) or slide(ids, context)
    assert generate(model, [[1, 1], [3, 3]], most=9, beyond=beyond) == [[2] * 9, [2, 2, 2]]
    assert asked == [([1, 1, 2, 2, 2, 2], 5), ([2] * 6, 5)]


@EXAMPLES
@given(SEEDS, st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_rows_that_are_chosen_go_on_as_their_texts_do(seed, rows):
    """Decoding.select takes ids, scores, cache and padding along."""
    model, prompts = Table(seed=seed), [[1, 2, 3], [4], [2, 2]]
    for cached in (True, False):
        state = Decoding(model, prompts, cached=cached)
        state.push(torch.tensor([1, 2, 3]))
        state.select(torch.tensor(rows))
        state.push(torch.full((len(rows),), 4))
        texts = [[*prompts[r], r + 1, 4] for r in rows]
        assert [[t for t in ids if t >= 0] for ids in state.seen.tolist()] == texts
        torch.testing.assert_close(state.logits, torch.stack([model.logits(tuple(t)) for t in texts]))


# ---- sampling -------------------------------------------------------------------------------------------------------------------

VALUES = {
    "temperature": st.sampled_from((0.0, 0.5, 1.0, 1.7)),
    "top_k": st.integers(0, 7),
    "top_p": st.sampled_from((1.0, 0.9, 0.6, 0.3, 1e-6)),
    "repetition": st.sampled_from((1.0, 1.4, 3.0, 0.5)),
    "seed": st.integers(0, 2**40),
}
SAMPLINGS = st.fixed_dictionaries(VALUES).map(lambda given: Sampling(**given))


def distribution(scores, sampling, seen):
    """Probabilities of the next token: repetition, temperature, the k likeliest, the fewest that hold p of what is left."""
    scores = [(s / sampling.repetition if s > 0 else s * sampling.repetition) if i in seen else s for i, s in enumerate(scores)]
    likely = sorted(range(len(scores)), key=lambda i: -scores[i])
    if sampling.temperature == 0:
        return [float(i == likely[0]) for i in range(len(scores))]
    if sampling.top_k:
        likely = likely[: sampling.top_k]
    weight = {i: math.exp((scores[i] - scores[likely[0]]) / sampling.temperature) for i in likely}
    total, held, kept = sum(weight.values()), 0.0, {}
    for i in likely:
        if held >= sampling.top_p and sampling.top_p < 1:
            break
        kept[i] = weight[i]
        held += weight[i] / total
        if sampling.top_p < 1:
            assume(abs(held - sampling.top_p) > 1e-4)
    return [kept.get(i, 0.0) / sum(kept.values()) for i in range(len(scores))]


def drawn(scores, sampling, seen, count=6000):
    """How often each token is chosen."""
    told = torch.tensor([[-1, *seen]]).expand(count, -1)
    chosen = sampling.choose(torch.tensor([scores]).expand(count, -1), told, torch.Generator().manual_seed(sampling.seed))
    return torch.bincount(chosen, minlength=len(scores)).tolist()


def follows(counts, p):
    """Do counts come from this distribution: nothing that it rules out, and the rest by chi-square?"""
    assert all(n == 0 for n, q in zip(counts, p) if q == 0), (counts, p)
    there = [(n, q * sum(counts) / sum(p)) for n, q in zip(counts, p) if q > 0]
    if len(there) > 1:
        assert scipy.stats.chisquare(*zip(*there)).pvalue > 1e-7, (counts, p)


def test_every_field_of_sampling_has_values_here():
    assert set(VALUES) == {f.name for f in dataclasses.fields(Sampling)}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-12, 12), min_size=2, max_size=6, unique=True), SAMPLINGS, st.sets(st.integers(0, 5)))
def test_tokens_are_drawn_from_the_distribution_that_is_named(scores, sampling, seen):
    """All filters together, in their order, with scores of both signs."""
    scores, seen = [s / 4 + 0.01 * i for i, s in enumerate(scores)], {i for i in seen if i < len(scores)}
    follows(drawn(scores, sampling, seen), distribution(scores, sampling, seen))


def test_filters_compose_in_their_order():
    """Where another order keeps other tokens: probability p is of the k likeliest, at the temperature, after repetition."""
    scores = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    keeps = lambda seen=(), **kw: {i for i, n in enumerate(drawn(scores, Sampling(**({"temperature": 1.0} | kw)), seen)) if n}
    assert keeps(top_p=0.5) == {0, 1} and keeps(top_p=0.5, top_k=2) == {0}  # 0.4 of 0.7 are more than a half
    assert keeps(top_p=0.5, temperature=0.5) == {0}  # 0.16 of 0.3 are more than a half
    assert keeps(top_p=0.5, temperature=3.0) == {0, 1} and keeps(top_p=0.75, temperature=3.0) == {0, 1, 2}
    assert keeps(top_k=1, repetition=3.0, seen=(0,)) == {1} and keeps(top_k=9) == {0, 1, 2, 3}


def test_equal_scores_are_treated_alike():
    """top_k keeps all that are as likely as the k-th; top_p the fewest that suffice, whichever; repetition leaves ties among the seen."""
    count = lambda scores, **kw: drawn(scores, Sampling(temperature=1.0, **kw), ())
    follows(count([1.0, 1.0, 1.0, 0.0], top_k=2), [1 / 3, 1 / 3, 1 / 3, 0])
    follows(count([2.0, 1.0, 1.0, 0.0], top_k=1), [1, 0, 0, 0])
    for p, most in ((0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (1.0, 4)):
        assert sum(n > 0 for n in count([1.0] * 4, top_p=p)) == most
    follows(drawn([1.0, 1.0, 0.5], Sampling(temperature=1.0, repetition=2.0), (0, 1)), [1 / 3] * 3)


@pytest.mark.parametrize(("score", "penalised"), [(2.0, 1.0), (-2.0, -4.0), (0.0, 0.0)])
def test_repetition_divides_what_is_positive_and_multiplies_what_is_negative(score, penalised):
    """The score of a seen token, found by the share that it is drawn with; it counts once, however often it was seen."""
    p = torch.tensor([penalised, 0.5, -1.0]).double().softmax(0).tolist()
    follows(drawn([score, 0.5, -1.0], Sampling(temperature=1.0, repetition=2.0), (0, 0, 0), 20000), p)


@EXAMPLES
@given(SEEDS, PROMPTS, st.sampled_from((1.3, 4.0, 0.5)), st.integers(0, 4))
def test_repetition_looks_at_prompt_and_answer_and_not_at_padding(seed, prompts, repetition, pad):
    model, sampling = Table(seed=seed, pad=pad), Sampling(repetition=repetition)

    def choose(scores, text):
        scores = [(s / repetition if s > 0 else s * repetition) if i in text else s for i, s in enumerate(scores.tolist())]
        return max(range(len(scores)), key=scores.__getitem__)

    want = [greedy(model, p, 6, choose=choose) for p in prompts]
    assert generate(model, prompts, sampling, most=6, end=()) == want
    assert Engine(model, rows=2).generate(prompts, sampling, most=6, end=()) == want


def test_a_text_is_drawn_with_its_probability():
    """All texts of three tokens, over many rows: the product of what each step gives, filtered."""
    model, sampling = Table(seed=3, vocab=3), Sampling(temperature=1.3, top_k=2, seed=5)
    step = lambda text: distribution(model.logits(text).tolist(), sampling, set())
    texts = list(itertools.product(range(3), repeat=3))
    p = [math.prod(step((1, *text[:i]))[text[i]] for i in range(3)) for text in texts]
    rows = generate(model, [[1]] * 6000, sampling, most=3, end=())
    follows([sum(tuple(row) == text for row in rows) for text in texts], p)


def test_a_seed_decides_what_is_drawn():
    draw = lambda seed: generate(Table(seed=1, sharp=0.3), [[1], [2, 3]], Sampling(temperature=1.0, seed=seed), most=20, end=())
    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("name", ["t5-nano", "switch-nano"])
def test_the_token_that_only_begins_a_text_is_never_written(name):
    """By no way of writing, even where it is the likeliest."""
    model = shaken(name, pad=0, start=0, eos=1)
    with torch.no_grad():
        model.head.out.weight[0] = 0
    loud = model.head.register_forward_hook(lambda m, i, out: {"logits": out["logits"].index_fill(-1, torch.tensor([0]), 9.0)})
    prompts, hot = [[5, 6, 7], [9, 5]], Sampling(temperature=3.0)
    ways = [generate(model, prompts, s, most=6, end=()) for s in (None, hot)]
    ways += [Engine(model).generate(prompts, s, most=6, end=()) for s in (None, hot)]
    ways += [beam_search(model, prompts, 3, most=6, end=())[0]]
    assert ways[0] == ways[2] == [greedy(model, p, 6) for p in prompts]
    assert all(row and 0 not in row for way in ways for row in way)
    loud.remove()


def test_ids_that_stand_for_something_given_are_never_written():
    """A model's `unwritten` ids are left out of what is chosen, and of what a beam adds up."""
    model = Table(lambda text: [0.0, 3.0, 1.0, 2.0], vocab=4)
    model.unwritten = (1, 3)
    assert generate(model, [[1]], most=3, end=()) == [[2, 2, 2]]
    (ids,), (score,) = beam_search(model, [[1]], 2, most=3, end=())
    assert ids == [2, 2, 2] and score == close(math.log(math.e / (1 + math.e)))


# ---- beam search ----------------------------------------------------------------------------------------------------------------


def exhaustive(model, prompt, most, penalty, end):
    """(score, ids) of the best of all texts, each ended or of `most` tokens. The end token counts in the length and in the probability."""
    best = (-math.inf, None)
    stack = [((), 0.0)]
    while stack:
        ids, total = stack.pop()
        for token, log in enumerate(logits(model, prompt, ids).log_softmax(-1).tolist()):
            score = (total + log) / (len(ids) + 1) ** penalty
            if token in end:
                best = max(best, (score, list(ids)))
            elif len(ids) + 1 == most:
                best = max(best, (score, [*ids, token]))
            else:
                stack.append(((*ids, token), total + log))
    return best


def textbook(model, prompt, K, most, penalty, end):
    """(score, ids, passes): the K best that do not end stay open; an end among the K best of a step is a finished hypothesis, of which
    the K best are kept; it is over when there are K and the best open one, by its length so far, is no better than the worst."""
    still, finished = [(0.0, [])], []
    for n in range(1, most + 1):
        every = [
            (total + log, ids, token)
            for total, ids in still
            for token, log in enumerate(logits(model, prompt, ids).log_softmax(-1).tolist())
        ]
        every.sort(key=lambda e: -e[0])
        finished += [(total / n**penalty, ids) for total, ids, token in every[:K] if token in end]
        finished = sorted(finished, key=lambda f: -f[0])[:K]
        still = [(total, [*ids, token]) for total, ids, token in every if token not in end][:K]
        if len(finished) == K and finished[-1][0] >= still[0][0] / n**penalty:
            break
    else:
        finished += [(total / most**penalty, ids) for total, ids in still]
    return *max(finished, key=lambda f: f[0]), n


PENALTIES = (0.0, 0.6, 1.0, 2.0, -1.0)


def test_every_option_of_beam_search_is_tried_here():
    """A new one needs a test of its own."""
    assert list(inspect.signature(beam_search).parameters) == ["model", "prompts", "beams", "most", "penalty", "end", "cached"]


@EXAMPLES
@given(SEEDS, PROMPTS, st.sampled_from(PENALTIES), st.sampled_from(((0,), (0, 2), (), (4, 1, 3))), st.booleans())
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(seed, prompts, penalty, end, cached):
    """By log probability / length ** penalty, for any number of end tokens, each prompt of a batch."""
    model = Table(seed=seed)
    found, scores = beam_search(model, prompts, 5**2, most=3, penalty=penalty, end=end, cached=cached)
    for prompt, ids, score in zip(prompts, found, scores, strict=True):
        best, want = exhaustive(model, prompt, 3, penalty, end)
        assert ids == want and score == close(best)


@settings(max_examples=120, deadline=None)
@given(SEEDS, PROMPTS, st.integers(1, 4), st.integers(1, 9), st.sampled_from(PENALTIES), st.sampled_from((0.5, 1.5, 4.0)))
def test_narrow_beams_go_the_way_of_the_textbook(seed, prompts, K, most, penalty, sharp):
    """The same answer and score, after as many passes as the longest prompt of the batch takes alone."""
    model = Table(seed=seed, sharp=sharp)
    want = [textbook(model, p, K, most, penalty, {0}) for p in prompts]
    found, scores = beam_search(model, prompts, K, most=most, penalty=penalty)
    assert found == [ids for _, ids, _ in want] and scores == close([score for score, *_ in want])
    assert len(model.calls) == max(passes for *_, passes in want)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize(
    "make", [decoder, lambda: shaken("transformer-nano"), lambda: shaken("gru-nano", eos=2)], ids=("decoder", "pair", "gru")
)
def test_a_prompt_of_a_batch_is_searched_as_if_it_were_alone(make, K, penalty):
    """On real models, with and without a cache, and as in the textbook."""
    model = make()
    prompts = [[3, 4, 5, 6], [8], [9, 10]]
    together = beam_search(model, prompts, K, most=6, penalty=penalty)
    plain = beam_search(model, prompts, K, most=6, penalty=penalty, cached=False)
    alone = [beam_search(model, [p], K, most=6, penalty=penalty) for p in prompts]
    want = [textbook(model, p, K, 6, penalty, {2}) for p in prompts]
    assert together[0] == plain[0] == [ids for (ids,), _ in alone] == [ids for _, ids, _ in want]
    for scores in (together[1], plain[1], [s for _, (s,) in alone]):
        assert scores == close([score for score, *_ in want])


def chain(*rows):
    """A table that gives probabilities by the number of tokens written behind a prompt of one token, the last of them for ever."""
    return Table(lambda text: torch.tensor(rows[min(len(text) - 1, len(rows) - 1)]).log().tolist(), vocab=len(rows[0]))


def test_a_finished_hypothesis_is_kept_and_compared_by_its_penalised_score():
    """Ended at once with 0.3, against six tokens of 0.7 * 0.8 ** 5: less, but more for its length under a penalty of 0.12 and over."""
    model = chain((0.3, 0.7, 0.0), (0.05, 0.8, 0.15))
    long, short = math.log(0.7) + 5 * math.log(0.8), math.log(0.3)
    for penalty, ids, score in (
        (-1.0, [], short),
        (0.0, [], short),
        (0.1, [], short),
        (0.13, [1] * 6, long / 6**0.13),
        (1.0, [1] * 6, long / 6),
    ):
        assert beam_search(model, [[1]], 2, most=6, penalty=penalty) == ([ids], [close(score)])


def test_a_search_stops_when_nothing_open_can_win_and_not_before():
    """Without a penalty scores only fall: K finished ones, and none open that is likelier than the worst of them."""
    sure = chain((0.9, 0.06, 0.04))
    assert beam_search(sure, [[1]], 1, most=20, penalty=0.0)[0] == [[]] and len(sure.calls) == 1
    pair = chain((0.5, 0.4, 0.1), (0.9, 0.06, 0.04))
    assert beam_search(pair, [[1]], 2, most=20, penalty=0.0)[0] == [[]] and len(pair.calls) == 2  # one more is finished in the second step
    late = chain((0.3, 0.36, 0.34), (0.02, 0.97, 0.01), (0.02, 0.97, 0.01), (0.99, 0.005, 0.005))
    assert beam_search(late, [[1]], 2, most=20, penalty=0.0)[0] == [[1, 1, 1]] and len(late.calls) == 4  # 0.335 against 0.3 at the first


def test_an_end_below_the_beam_is_no_hypothesis():
    """The end is the third of three at first: two beams do not take it."""
    model = chain((0.2, 0.45, 0.35), (0.2, 0.45, 0.35))
    assert textbook(model, [1], 2, 1, -3.0, {0})[1] == [1]
    for penalty in (0.0, 1.0, -3.0):
        score, ids, _ = textbook(model, [1], 2, 5, penalty, {0})
        assert beam_search(model, [[1]], 2, most=5, penalty=penalty) == ([ids], [close(score)])


@EXAMPLES
@given(SEEDS, PROMPTS, st.integers(1, 4), st.sampled_from(PENALTIES))
def test_a_beam_without_an_end_has_the_longest_length_that_there_is(seed, prompts, K, penalty):
    """`most` tokens, or all positions: what is open there is compared as it stands, each prompt of a batch for itself."""
    model = Table(seed=seed, limit=7)
    found, scores = beam_search(model, prompts, K, most=5, penalty=penalty, end=())
    room = [min(5, 8 - len(p)) for p in prompts]
    want = [textbook(model, p, K, most, penalty, ()) for p, most in zip(prompts, room)]
    assert list(map(len, found)) == room and found == [ids for _, ids, _ in want]
    assert scores == close([score for score, *_ in want])


@EXAMPLES
@given(SEEDS, PROMPTS, st.integers(1, 4), st.sampled_from(PENALTIES))
def test_finished_hypotheses_count_where_the_positions_end(seed, prompts, K, penalty):
    model = Table(seed=seed, limit=7)
    want = [textbook(model, p, K, 8 - len(p), penalty, {0}) for p in prompts]
    found, scores = beam_search(model, prompts, K, most=30, penalty=penalty)
    assert found == [ids for _, ids, _ in want] and scores == close([score for score, *_ in want])


@EXAMPLES
@given(SEEDS, PROMPTS, st.sampled_from(PENALTIES))
def test_one_beam_is_greedy(seed, prompts, penalty):
    model = Table(seed=seed)
    assert beam_search(model, prompts, 1, most=8, penalty=penalty)[0] == generate(model, prompts, most=8)


# ---- the engine -----------------------------------------------------------------------------------------------------------------


class Told:
    """Guesses what it knows that will be written, with one token in `wrong` replaced; counts what it was asked for."""

    def __init__(self, answers, wrong=(), count=4):
        self.answers, self.wrong, self.count, self.asked, self.of = answers, wrong, count, 0, {}

    def open(self, rows, capacity, vocab):
        self.vocab = vocab

    def begin(self, number, prompt):
        self.of[number] = [*prompt, *self.answers.get(tuple(prompt), ())]

    def guess(self, wanted):
        out = {}
        for number, (text, most) in wanted.items():
            at = range(len(text), min(len(text) + min(most, self.count), len(self.of[number])))
            out[number] = [(self.of[number][i] + (i in self.wrong)) % self.vocab for i in at]
            self.asked += len(out[number])
        return out


def read_of(model):
    """The texts that a table was shown, pass by pass: each what the cache held of the one before, and the new tokens."""
    text, out = [], []
    for start, ids in model.calls:
        text = [*text[:start], *ids]
        out.append(text)
    return out


PREFIXES = {
    "longer than the new prompt": ([1, 2, 3, 4, 1, 2], [1, 2, 3], 2),
    "equal to it": ([1, 2, 3, 4], [1, 2, 3, 4], 3),
    "all of it but the last": ([1, 2, 3], [1, 2, 3, 4], 3),
    "diverges in the middle": ([1, 2, 3, 4], [1, 2, 4, 4, 1], 2),
    "empty": ([1, 2, 3], [2, 2, 3], 0),
    "one token": ([1, 2, 3], [1], 0),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_a_reused_prefix_is_a_fresh_cache(name):
    """So many tokens are not read again (the last one always is), and the answer is that of a new engine."""
    first, second, reused = PREFIXES[name]
    for seed in range(3):
        say = Table(seed=seed).logits
        model = Table(lambda text: say(text) if len(text) > 4 or text[0] == 1 else say(text[::-1]))
        served = Engine(model, rows=1)
        served.submit(first, most=1, end=()).result()
        before = len(model.calls)
        assert served.submit(second, most=6, end=()).result() == greedy(model, second, 6)
        assert served.counts["reused"] == reused and model.calls[before] == (reused, second[reused:])


def test_what_a_request_wrote_is_reused_as_what_it_read():
    """A conversation goes on behind all that was read of its last answer: all but the last token, which was never read."""
    model = Table(seed=4)
    served = Engine(model, rows=1)
    answer = served.submit([1, 2], most=5, end=()).result()
    assert served.submit([1, 2, *answer, 3], most=5, end=()).result() == greedy(model, [1, 2, *answer, 3], 5)
    assert served.counts["reused"] == 6 and model.calls[5] == (6, [answer[-1], 3])


def test_rows_copy_a_beginning_from_each_other_and_keep_their_own():
    """Also of a row that is at work, which goes on undisturbed."""
    model = Table(seed=6)
    served = Engine(model, rows=2)
    first = served.submit([1, 2, 3, 4], most=8, end=())
    while len(first.tokens) < 2:
        served.step()
    second = served.submit([1, 2, 3, 1], most=8, end=())
    assert second.result() == greedy(model, [1, 2, 3, 1], 8) and first.result() == greedy(model, [1, 2, 3, 4], 8)
    assert served.counts["reused"] == 3
    whole, branch = served.submit([4, 1, 4], most=8, end=()), [4, 1, 4, 0]
    served.step()
    assert len(whole.tokens) == 1  # all that has been read of it is copied, and both go on from there
    assert served.submit(branch, most=8, end=()).result() == greedy(model, branch, 8) and served.counts["reused"] == 6
    assert whole.result() == greedy(model, [4, 1, 4], 8)
    served.submit([4, 4], most=1, end=()).result()  # in the row used least lately
    assert served.submit([1, 2, 3, 1, 1], most=3, end=()).result() == greedy(model, [1, 2, 3, 1, 1], 3)


@EXAMPLES
@given(SEEDS, st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=7), min_size=2, max_size=7), st.integers(1, 3), st.integers(1, 4))
def test_any_prompts_one_after_another_equal_fresh_ones(seed, prompts, rows, most):
    """Of two letters, so that they have beginnings in common."""
    model = Table(seed=seed, vocab=3)
    served = Engine(model, rows=rows)
    for prompt in prompts:
        assert served.submit(prompt, most=most).result() == greedy(model, prompt, most, {0})
    read = sum(len(ids) for _, ids in model.calls)
    assert read == served.counts["read"] and served.counts["reused"] + read >= sum(map(len, prompts))


ASKED = st.lists(st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=9), SAMPLINGS, st.integers(1, 9)), min_size=1, max_size=6)
GUESSERS = {
    "none": lambda seed: None,
    "NGram": lambda seed: NGram(3, 2),
    "Draft": lambda seed: Draft(Table(seed=seed + seed % 2), 3),  # itself, or another
}


def test_every_guesser_has_a_row_here():
    there = {n for n, c in vars(engine).items() if inspect.isclass(c) and hasattr(c, "guess")}
    assert there == set(GUESSERS) - {"none"}


@pytest.mark.parametrize("name", GUESSERS)
@EXAMPLES
@given(SEEDS, ASKED, st.integers(1, 3), st.sampled_from((2, 5, 256)), st.sampled_from((None, 12)))
def test_many_requests_are_answered_as_if_each_were_alone(name, seed, asked, rows, piece, limit):
    """Greedy and drawn, prompts in pieces, with guesses and without, to the last position."""
    model = Table(seed=seed, limit=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PIECE", piece)
        served = Engine(model, rows=rows, guesser=GUESSERS[name](seed))
        assert isinstance(served.back, ModelRows)
        requests = [served.submit(p, s, most=most) for p, s, most in asked]
        got = [r.result() for r in requests]
    assert got == [generate(model, [p], s, most=most)[0] for p, s, most in asked]
    full = [len(p) + len(r.tokens) > (limit or 64) or len(r.tokens) == r.most for (p, *_), r in zip(asked, requests)]
    assert [r.reason for r in requests] == ["length" if f else "end" for f in full]
    assert served.counts["accepted"] <= served.counts["guessed"]


@EXAMPLES
@given(SEEDS, st.sets(st.integers(2, 14)), st.integers(1, 5), st.integers(1, 12), SAMPLINGS)
def test_a_wrong_guess_is_taken_back(seed, wrong, count, most, sampling):
    """Guesses that are right, partly right and wrong: the same tokens, every pass begins behind what was truly written, and as many
    guesses are accepted as stand before the first wrong one."""
    model, prompt = Table(seed=seed, eos=None), [1, 2]
    (known,) = generate(model, [prompt], sampling, most=most + 9)
    want, guesser = known[:most], Told({(1, 2): known}, wrong, count)
    text = [*prompt, *want]
    model.calls.clear()
    served = Engine(model, rows=1, guesser=guesser)
    request = served.submit(prompt, sampling, most=most)
    written, guessed, accepted, passes = 1, 0, 0, 1  # by hand: the pass of the prompt writes one token
    while written < most:
        ahead = range(len(prompt) + written, len(prompt) + min(most - 1, written + count))  # the last token is not guessed
        right = len(list(itertools.takewhile(lambda i: i not in wrong, ahead)))
        written, guessed, accepted, passes = written + right + 1, guessed + len(ahead), accepted + right, passes + 1
    assert request.result() == want and request.reason == "length"
    assert served.counts["accepted"] == accepted and served.counts["passes"] == passes == len(model.calls)
    assert served.counts["guessed"] == guesser.asked == guessed and served.counts["written"] == most
    seen = read_of(model)
    for (start, ids), shown in zip(model.calls[1:], seen[1:]):
        assert shown[: start + 1] == text[: start + 1] and len(ids) <= 1 + count
    row = served.rows[0]
    assert row.tokens == text[: row.held] and row.held == len(text) - 1
    assert served.submit([*text, 3], most=3).result() == greedy(model, [*text, 3], 3), "what is kept can be gone on from"
    assert served.counts["reused"] == len(text) - 1


def test_an_end_among_the_guesses_ends_the_request():
    """What was guessed behind it is neither written nor kept."""
    say = lambda text: [5.0 if i == (0 if len(text) == 4 else 2) else 0.0 for i in range(4)]
    model = Table(say, vocab=4)
    served = Engine(model, rows=1, guesser=Told({(1,): [2, 2, 2, 0, 2, 2, 2]}, count=6))
    request = served.submit([1], most=9)
    assert request.result() == [2, 2, 2] and request.reason == "end"
    assert served.rows[0].tokens == [1, 2, 2, 2] and served.counts["accepted"] == 2
    assert served.submit([1, 2, 2, 2, 3], most=2, end=()).result() == greedy(model, [1, 2, 2, 2, 3], 2)


@EXAMPLES
@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 6))
def test_an_ngram_goes_on_as_the_text_did_at_its_longest_and_latest_match(text, count, longest, most):
    def plain():
        for n in range(longest, 0, -1):
            places = [i for i in range(len(text) - n) if text[i : i + n] == text[len(text) - n :]]
            if places:
                return text[places[-1] + n :][: min(most, count)]
        return []

    assert NGram(count, longest).guess({7: (text, most)}) == {7: plain()}


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_draft_guesses_what_its_model_would_write(count):
    """Whatever was taken back, and whatever row was used before."""
    small_one = Table(seed=8, limit=20)
    draft = Draft(small_one, count)
    draft.open(2, 20, 5)
    for text, most in (([1, 2], 9), ([1, 2, 3, 4], 9), ([1, 2, 4], 2), ([3], 9), ([3, 1, 1, 1, 1, 1, 1, 1, 1], 9), ([1, 2], 1)):
        want = {0: greedy(small_one, text, min(count, most)), 1: greedy(small_one, [4, *text], min(count, 2))}
        assert draft.guess({0: (text, most), 1: ([4, *text], 2)}) == want
    assert draft.guess({0: ([1] * 20, 3)}) == {0: []}, "no room for guesses"


def test_a_perfect_draft_takes_a_pass_for_each_of_its_bunches():
    model = Table(seed=3, eos=None)
    served = Engine(model, rows=1, guesser=Draft(Table(seed=3, eos=None), 4))
    assert served.submit([1, 2], most=21).result() == greedy(model, [1, 2], 21)
    assert served.counts["passes"] == 5 and served.counts["accepted"] == served.counts["guessed"] == 16


@pytest.mark.parametrize("guess", [None, 3])
def test_pairs_are_served_as_if_each_were_alone(guess):
    """A source of its own for each row, with the model's own draft too."""
    model = shaken("transformer-nano")
    guesser = guess and Draft(shaken("transformer-nano"), guess)
    served = Engine(model, rows=2, guesser=guesser)
    prompts = [[5, 6, 7], [5, 6], [8, 9, 10, 11, 12], [5, 6, 7], [4]]
    assert served.generate(prompts, most=9, end=()) == [greedy(model, p, 9) for p in prompts]
    assert served.counts["reused"] == 0
    assert served.counts["accepted"] == served.counts["guessed"] and (served.counts["guessed"] > 20 or not guess)


def test_a_cancelled_request_leaves_the_others_and_its_row():
    model = Table(seed=11)
    served = Engine(model, rows=2)
    first, second, third = (served.submit([1, 2, n], most=12, end=()) for n in (1, 2, 3))
    while len(first.tokens) < 3:
        served.step()
    first.cancel()
    assert first.reason == "cancelled" and first.result() == greedy(model, [1, 2, 1], 12)[:3]
    assert second.result() == greedy(model, [1, 2, 2], 12) and third.result() == greedy(model, [1, 2, 3], 12)
    first.cancel()
    assert served.submit([1, 2, 1, *first.tokens], most=4, end=()).result() == greedy(model, [1, 2, 1, *first.tokens], 4)


def test_a_pass_that_fails_ends_its_requests_and_spoils_no_row():
    """What a broken pass left in a cache is read anew."""
    model = Table(seed=2)
    served = Engine(model, rows=1)
    served.submit([1, 2, 3], most=2, end=()).result()
    real = model.forward

    def broken(**given):
        real(**given)
        raise RuntimeError("lost")

    model.forward = broken
    with pytest.raises(RuntimeError, match="lost"):
        served.submit([1, 2, 4, 4], most=3, end=()).result()
    model.forward = real
    before = served.counts["reused"]
    assert served.submit([1, 2, 4, 4, 1], most=5, end=()).result() == greedy(model, [1, 2, 4, 4, 1], 5)
    assert served.counts["reused"] == before


def test_a_capacity_is_the_last_position():
    """The last token is chosen from scores at the last place of the cache, and guesses do not go beyond it."""
    model = Table(seed=5, eos=None)
    for guesser in (None, Told({(1, 2, 3): greedy(model, [1, 2, 3], 30)}, count=9)):
        request = Engine(model, rows=1, capacity=8, guesser=guesser).submit([1, 2, 3], most=30)
        assert request.result() == greedy(model, [1, 2, 3], 6) and request.reason == "length"
    assert max(start + len(ids) for start, ids in model.calls) == 8


def test_a_serving_thread_gives_the_same_answers():
    model = Table(seed=9)
    got = {}
    with Engine(model, rows=2, serve=True) as served:
        ask = lambda n: got.update({n: list(served.submit([n, 4], most=8, end=()).stream())})
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
    assert got == {n: greedy(model, [n, 4], 8) for n in range(1, 5)}


# ---- streaming ------------------------------------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer of pieces of bytes; a text may break within a character."""

    known = [
        b"",
        b"a",
        b"b",
        b"ab",
        b"c",
        b" ",
        "\u00e9".encode()[:1],
        "\u00e9".encode()[1:],
        *(bytes([b]) for b in "\U0001f600".encode()),
        b"bc",
    ]
    eos = 0

    def prompt(self, text):
        return [self.known.index(c.encode()) for c in text]

    def decode(self, ids, special=False):
        return b"".join(self.known[i] for i in ids).decode(errors="replace")


def script(*texts):
    """A table that writes what follows the beginning of one of the texts, and then the end."""

    def say(text):
        now = next((t for t in texts if tuple(t[: len(text)]) == text[: len(t)]), ())
        return [9.0 if i == (now[len(text)] if len(text) < len(now) else 0) else 0.0 for i in range(len(Pieces.known))]

    return Table(say, vocab=len(Pieces.known))


def cut(text, stops):
    """Up to the first stop string."""
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]


WRITTEN = st.lists(st.integers(1, len(Pieces.known) - 1), max_size=14)
STOPS = st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3)


@settings(max_examples=150, deadline=None)
@given(WRITTEN, STOPS, st.integers(1, 16))
def test_a_stream_is_the_text_up_to_the_first_stop_as_early_as_it_is_certain(ids, stops, most):
    """Stops across the borders of tokens; nothing told is taken back; half a character, and what may become a stop, waits, nothing else."""
    model, tokenizer = script([1, *ids]), Pieces()
    told, before = "", ""
    for piece in stream(model, tokenizer, "a", most=most, stop=tuple(stops)):
        told += piece
        if piece and not piece.endswith("\ufffd"):
            before = tokenizer.decode(ids[: len(model.calls)])
            if not before.endswith("\ufffd") and cut(before, stops) == before and len(model.calls) < min(len(ids), most):
                waits = max((n for s in stops for n in range(len(s)) if before.endswith(s[:n])), default=0)
                assert told == before[: len(before) - waits]
    whole = cut(tokenizer.decode(ids[:most]), stops)
    assert told == whole
    assert complete(model, tokenizer, ["a"], most=most, stop=stops) == [whole]


def test_pieces_come_with_their_tokens():
    """One piece a token, where nothing has to wait; the rest of a character with its last byte."""
    pieces = lambda ids, **kw: list(stream(script([1, *ids]), Pieces(), "a", **kw))
    assert pieces([3, 4, 5, 1]) == ["ab", "c", " ", "a", ""]
    assert pieces([1, 8, 9, 10, 11, 2]) == ["a", "\U0001f600", "b", ""]
    assert pieces([1, 8, 9]) == ["a", "\ufffd"], "what stays half a character is told at the end"
    assert pieces([1, 2, 4, 1], stop=("bcb",)) == ["a", "bca", ""]
    assert pieces([1, 2, 4, 2, 1], stop=("bcb",)) == ["a", ""]


def test_a_stop_ends_the_work():
    """No pass is made behind the token that completes it."""
    model = script([1, 2, 4, 1, 1, 1, 1])
    assert "".join(stream(model, Pieces(), "a", stop=("c",))) == "b" and len(model.calls) == 2


@EXAMPLES
@given(st.lists(WRITTEN, min_size=1, max_size=3), STOPS)
def test_texts_of_a_batch_are_completed_as_each_alone(texts, stops):
    """By greedy choice, by guessing and by a beam of one."""
    texts = [[first, *ids] for first, ids in zip((1, 2, 4), texts)]
    model, tokenizer = script(*texts), Pieces()
    prompts = [tokenizer.decode(t[:1]) for t in texts]
    want = [cut(tokenizer.decode(t[1:]), stops) for t in texts]
    assert complete(model, tokenizer, prompts, stop=stops, most=20) == want
    assert complete(model, tokenizer, prompts, stop=stops, most=20, beams=1) == want
    assert ["".join(stream(model, tokenizer, p, stop=stops, most=20, guess=3)) for p in prompts] == want


@EXAMPLES
@given(SEEDS, st.text("abc", min_size=1, max_size=9), SAMPLINGS, st.integers(1, 30), st.integers(1, 4), st.sampled_from((finish, slide)))
def test_a_stream_with_guesses_is_the_stream_without(seed, prompt, sampling, most, guess, beyond):
    """Also where the text slides on behind its context. There a seed begins anew, so it is greedy."""
    assume(beyond is finish or sampling.temperature == 0)
    model, tokenizer = Table(seed=seed, vocab=len(Pieces.known), limit=9, eos=0, sharp=3.0), Pieces()
    plain = list(stream(model, tokenizer, prompt, sampling, most=most, beyond=beyond))
    assert "".join(stream(model, tokenizer, prompt, sampling, most=most, guess=guess, beyond=beyond)) == "".join(plain)


def test_a_completion_searches_with_the_beams_and_the_penalty_that_it_is_given():
    model, tokenizer = Table(seed=2, vocab=len(Pieces.known)), Pieces()
    found = []
    for beams, penalty, most in ((1, 1.0, 8), (3, 2.0, 8), (3, -2.0, 8), (3, 2.0, 5)):
        found.append(complete(model, tokenizer, ["a", "b"], most=most, beams=beams, penalty=penalty))
        want = [textbook(model, [first], beams, most, penalty, {0})[1] for first in (1, 2)]
        assert found[-1] == [tokenizer.decode(ids) for ids in want]
    assert len(set(map(tuple, found))) == 4


def test_real_tokenizers_stream_what_they_complete():
    """Merged bytes, words with their spaces, pieces of words: the joined stream is the completion, and the prompt goes on with it."""
    text = "the cat sat on the mat, h\u00e9h\u00e9 \U0001f600 stop here " * 20
    for kind, size in (("bpe", 280), ("unigram", 60), ("char", 60), ("wordpiece", 60)):
        tokenizer = train(kind, [text], size)
        model, sampling = decoder(vocab=len(tokenizer), eos=tokenizer.eos), Sampling(temperature=1.5, seed=1)
        (whole,) = complete(model, tokenizer, ["the cat"], sampling, most=25)
        assert "".join(stream(model, tokenizer, "the cat", sampling, most=25)) == whole and len(whole) > 5
        before = encode(model, tokenizer, "the cat")
        (written,) = generate(model, [before], sampling, most=25)
        assert tokenizer.decode(before) + whole == tokenizer.decode([*before, *written])
        stop = whole[len(whole) // 2 :][:2]
        assert "".join(stream(model, tokenizer, "the cat", sampling, most=25, stop=(stop,))) == cut(whole, (stop,))


@EXAMPLES
@given(SEEDS, PROMPTS, st.integers(1, 3), st.sampled_from(PENALTIES), st.sampled_from(((0, 2), (4, 1, 3), (0, 1, 2, 3))))
def test_several_ends_leave_the_beams_that_do_not_end(seed, prompts, width, penalty, end):
    model = Table(seed=seed)
    want = [textbook(model, p, width, 6, penalty, end) for p in prompts]
    found, scores = beam_search(model, prompts, width, most=6, penalty=penalty, end=end)
    assert found == [ids for _, ids, _ in want] and scores == close([score for score, *_ in want])


def test_every_token_ends_and_nothing_is_asked_for():
    assert beam_search(Table(vocab=3), [[1]], 2, most=4, end=(0, 1, 2))[0] == [[]]
    assert beam_search(Table(), [[1]], 2, most=0)[0] == [[]] == generate(Table(), [[1]], most=0)


def test_a_stop_string_whose_character_is_split_over_tokens_is_not_told_in_part():
    model = script([1, 2, 6, 7, 1])
    assert complete(model, Pieces(), ["a"], stop=("b\u00e9",)) == [""]
    assert "".join(stream(model, Pieces(), "a", stop=("b\u00e9",))) == ""


def test_a_recurrent_model_drafts_nothing():
    with pytest.raises(ValueError, match="draft: a recurrent network"):
        Engine(decoder(), rows=1, guesser=Draft(shaken("gru-nano", eos=2)))


@pytest.mark.parametrize("first", [True, False], ids=["the failing one first", "the other first"])
def test_a_request_whose_scores_are_no_numbers_fails_alone(first):
    model = Table(seed=1)
    served = Engine(model, rows=2)
    model.known[(1,)] = torch.full((5,), math.nan, dtype=torch.float64)
    ask = [lambda: served.submit([1], Sampling(temperature=1.0), most=4, end=()), lambda: served.submit([2], most=4, end=())]
    asked = {i: ask[i]() for i in ((0, 1) if first else (1, 0))}
    with pytest.raises(RuntimeError):
        asked[0].result()
    assert asked[1].result() == greedy(model, [2], 4)


@pytest.mark.parametrize("name", ["temperature", "repetition"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})


@pytest.mark.parametrize("temperature", [1e-40, 1e-50, 1e-10])
def test_a_temperature_near_0_is_greedy(temperature):
    assert generate(Table(seed=1), [[1]], Sampling(temperature=temperature), most=5, end=()) == [greedy(Table(seed=1), [1], 5)]
