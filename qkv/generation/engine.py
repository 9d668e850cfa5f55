"""Engine: many requests on one model at once, each answered as if it were alone.

Requests join and leave between passes (continuous batching: Yu et al., 2022, Orca). A pass holds the next token of every request that
is writing and pieces of the prompts of those that begin. Rows keep what they have read when a request ends, so that the next one
with the same beginning starts behind it. Guesses (n-grams of the text itself, or a smaller model) are checked several at a pass
(Leviathan et al., 2023; Saxena, 2023): the same tokens, drawn with the same random numbers, in fewer passes.
"""

import collections
import threading
import time
from dataclasses import dataclass, field

import torch

from ..core import Cache
from ..native import Lowered, lower_if
from .decoding import begin, never
from .sampling import Sampling, ends

PIECE = 256  # prompt tokens read in one pass, so that the others go on writing


class Full(RuntimeError):
    """The queue takes no more requests; the message says how many wait."""


@dataclass(eq=False)
class Request:
    """A prompt being answered. tokens: ids written so far. reason: None while it runs, then end (an end token), length (most tokens
    or no position left), cancelled or failed."""

    prompt: list
    sampling: Sampling
    most: int
    end: set
    written: list  # what an encoder-decoder begins with
    engine: object = field(repr=False)
    tokens: list = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None
    generator: object = field(default=None, repr=False)

    def stream(self):
        """Yields the tokens as they come. Raises what the engine failed with."""
        told = 0
        while True:
            self.engine._until(lambda: len(self.tokens) > told or self.reason is not None)
            while told < len(self.tokens):
                yield self.tokens[told]
                told += 1
            if self.reason is not None and told == len(self.tokens):
                if self.error is not None:
                    raise self.error
                return

    def result(self):
        """All tokens, waited for."""
        return list(self.stream())

    def cancel(self):
        """Ends the request; what it has written stays in `tokens`. Nothing happens where it has ended already."""
        self.engine._cancel(self)


class _Row:
    """A row of the store: the tokens whose keys and values it holds, and the request it works for."""

    def __init__(self, number):
        self.number, self.tokens, self.held, self.request, self.used = number, [], 0, None, 0.0


class NGram:
    """Guesses that a text goes on as it did after the last tokens before: the longest of their n-grams decides."""

    def __init__(self, count=8, longest=4):
        self.count, self.longest = count, longest

    def open(self, rows, capacity, vocab):
        """The engine tells what it is."""

    def begin(self, number, prompt):
        """A new request has taken this row."""

    def guess(self, wanted):
        """{row: tokens so far, how many} -> {row: guessed tokens}"""
        return {number: self.one(tokens, min(most, self.count)) for number, (tokens, most) in wanted.items()}

    def one(self, tokens, most):
        for n in range(min(self.longest, len(tokens) - 1), 0, -1):
            tail, last = tokens[-n:], tokens[-1]
            for at in range(len(tokens) - 2, n - 2, -1):
                if tokens[at] == last and tokens[at - n + 1 : at + 1] == tail:
                    return tokens[at + 1 : at + 1 + most]
        return []


class Draft:
    """Guesses what a smaller model of the same vocabulary would write."""

    def __init__(self, model, count=4, precision="fp32", threads=None):
        self.count, self.back, self.read = count, None, {}
        self.model, self.precision, self.threads = model, precision, threads

    def open(self, rows, capacity, vocab):
        if self.model.config.vocab != vocab:
            raise ValueError(f"draft: its vocabulary has {self.model.config.vocab} tokens and the model's {vocab}; they must be the same")
        if getattr(self.model, "keeps_state", False):
            raise ValueError("draft: a recurrent network cannot take back a token that was guessed wrong; take another model")
        self.back = backend(self.model, rows, capacity, self.precision, self.threads)

    def begin(self, number, prompt):
        """A new request has taken this row."""
        if hasattr(self.model, "encode"):
            self.back.remember(number, prompt)
            self.read[number] = []

    def guess(self, wanted):
        out = {number: [] for number in wanted}
        texts = {number: list(tokens) for number, (tokens, most) in wanted.items() if len(tokens) + self.count < self.back.capacity}
        for _ in range(self.count):
            going = [n for n in texts if len(out[n]) < wanted[n][1]]
            if not going:
                break
            entries = []
            for n in going:
                known = self.read.get(n, [])
                same = _common(known, texts[n][:-1])
                entries += [(n, place, token) for place, token in enumerate(texts[n])][same:]
                self.read[n] = list(texts[n])
            last = [i for i, e in enumerate(entries) if i + 1 == len(entries) or entries[i + 1][0] != e[0]]
            for n, token in zip(going, self.back.run(entries, last).argmax(-1).tolist()):
                texts[n].append(token)
                out[n].append(token)
        return out


def _common(a, b):
    """How many tokens two texts begin with in common."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


class Engine:
    """Answers requests on one model. One engine a lowered model: its programs run one pass at a time.

    model: a model, or a lowered one. rows: requests at once. capacity: tokens a request may have with its prompt (the model's
    context by default, at most 2,048 unless asked for). precision: fp32, bf16, int8 or int4, of the weights. queue: requests that
    may wait. guesser: NGram or Draft. With `serve` a thread works on its own; without it, whoever waits for a request does the work.

    Raises ValueError for a precision, threads, rows or a capacity that cannot be, saying what would fit.
    """

    def __init__(self, model, *, rows=8, capacity=None, precision="fp32", queue=64, threads=None, guesser=None, serve=False):
        cfg = model.config
        if cfg.output != "lm":
            raise ValueError(f"the model has output={cfg.output}; writing needs output=lm")
        for name, value in (("rows", rows), ("queue", queue), *([("capacity", capacity)] if capacity is not None else [])):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
        self.model, self.config = getattr(model, "model", model), cfg
        self.pair, self.cuts = hasattr(self.model, "encode"), not getattr(self.model, "keeps_state", False)
        if guesser is not None and not self.cuts:
            raise ValueError("guess: a recurrent network cannot take back a token that was guessed wrong; leave guess out")
        self.back = backend(model, rows, capacity, precision, threads)
        self.capacity, self.precision = self.back.capacity, precision
        self.rows, self.waiting, self.most_waiting = [_Row(i) for i in range(rows)], collections.deque(), queue
        self.guesser = guesser
        if guesser is not None:
            guesser.open(rows, self.capacity, cfg.vocab)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.closed, self.thread = False, None
        self.counts = collections.Counter()  # passes, read (tokens), reused (not read again), written, guessed, accepted
        if serve:
            self.thread = threading.Thread(target=self._serve, daemon=True, name="qkv-engine")
            self.thread.start()

    def submit(self, prompt, sampling=None, *, most=200, end=None):
        """A Request for the ids of a prompt. end: id or ids that end it (the model's eos by default).

        Raises ValueError for a prompt that does not fit, Full where too many requests wait already."""
        if most < 1:
            raise ValueError(f"most={most}: must be at least 1")
        (written,), _ = begin(self.model, [prompt])
        top = max(prompt, default=0)
        if min(prompt) < 0 or top >= self.config.vocab:
            raise ValueError(f"token id {min(prompt) if min(prompt) < 0 else top} is outside the vocabulary of {self.config.vocab}")
        if max(len(prompt), len(written)) > self.capacity:
            raise ValueError(f"the prompt has {len(prompt)} tokens and the cache holds {self.capacity}; shorten it, or raise capacity")
        request = Request(list(prompt), sampling or Sampling(), most, ends(self.model, end), list(written), self)
        request.generator = torch.Generator().manual_seed(request.sampling.seed)
        with self.lock:
            if self.closed:
                raise RuntimeError("the engine is closed")
            if len(self.waiting) >= self.most_waiting:
                raise Full(f"{len(self.waiting)} requests wait already (queue={self.most_waiting}); try again later")
            self.waiting.append(request)
            self.changed.notify_all()
        return request

    def generate(self, prompts, sampling=None, **options):
        """[[new ids]] of several prompts, however many there are."""
        out, waiting = [], collections.deque(prompts)
        while waiting:
            while waiting and len(self.waiting) < self.most_waiting:
                out.append(self.submit(waiting.popleft(), sampling, **options))
            if waiting:
                self._until(lambda: len(self.waiting) < self.most_waiting)
        return [r.result() for r in out]

    def step(self):
        """One pass. Returns False where there was nothing to do. A request that fails takes no other with it."""
        with self.lock:
            self._admit()
            working = [row for row in self.rows if row.request is not None]
            if not working:
                return False
            try:
                self._pass(working)
            except Exception as e:  # no token of this pass was given out: its requests end, the engine goes on
                for row in working:
                    row.held = 0
                    self._finish(row, "failed", e)
            self.changed.notify_all()
            return True

    def close(self):
        """Ends all requests and the thread."""
        with self.lock:
            self.closed = True
            for request in [*self.waiting, *(r.request for r in self.rows if r.request)]:
                self._cancel(request)
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _serve(self):
        while not self.closed:
            if not self.step():
                with self.changed:
                    self.changed.wait_for(lambda: self.closed or self.waiting, timeout=1)

    def _until(self, true):
        """Waits until `true()`, working itself where no thread does."""
        while True:
            with self.changed:
                if true():
                    return
                if self.thread is not None:
                    self.changed.wait(timeout=1)
                    continue
            self.step()

    def _cancel(self, request):
        with self.lock:
            if request.reason is None:
                row = next((r for r in self.rows if r.request is request), None)
                if row is not None:
                    self._finish(row, "cancelled")
                else:
                    self.waiting.remove(request)
                    request.reason = "cancelled"
            self.changed.notify_all()

    def _finish(self, row, reason, error=None):
        row.request.reason, row.request.error = reason, error
        row.request, row.used = None, time.monotonic()
        del row.tokens[row.held :]

    def _admit(self):
        """Gives waiting requests rows, beginning behind what some row has read already."""
        for request in list(self.waiting):
            free = [r for r in self.rows if r.request is None]
            if not free:
                return
            self.waiting.popleft()
            text = request.written
            if self.pair or not self.cuts:
                row, held = min(free, key=lambda r: r.used), 0
                try:
                    if self.pair:
                        self.back.remember(row.number, request.prompt)
                except Exception as e:
                    request.reason, request.error = "failed", e
                    continue
            else:
                known = lambda r: min(_common(r.tokens[: r.held], text), len(text) - 1)  # the last token must be read for its scores
                donor = max(self.rows, key=known)
                held = known(donor)
                row = max(free, key=lambda r: (known(r), -r.used))
                if known(row) < held:
                    self.back.copy(donor.number, row.number, held)
            if self.guesser is not None:
                self.guesser.begin(row.number, request.prompt)
            row.request, row.tokens, row.held = request, list(text), held
            self.counts["reused"] += held

    def _pass(self, working):
        entries, asks, budget = [], [], PIECE
        writing = [r for r in working if r.held == len(r.tokens) - 1 and r.request.tokens]
        guesses = {}
        if self.guesser is not None and writing:
            room = lambda r: min(r.request.most - len(r.request.tokens) - 1, self.capacity - len(r.tokens))
            guesses = self.guesser.guess({r.number: (r.tokens, room(r)) for r in writing if room(r) > 0})
        for row in working:
            guessed = guesses.get(row.number, [])
            new = row.tokens[row.held :] + guessed
            if len(row.tokens) - row.held > 1:  # a prompt, in pieces
                new = new[: max(1, budget)]
                budget -= len(new)
            first = len(entries)
            entries += [(row.number, row.held + i, token) for i, token in enumerate(new)]
            done = row.held + len(new) - len(guessed) == len(row.tokens)
            asks.append((row, new, guessed, list(range(first + len(new) - len(guessed) - 1, first + len(new))) if done else []))
        wanted = [i for *_, places in asks for i in places]
        logits = self.back.run(entries, wanted)
        best = logits.argmax(-1).tolist() if wanted else []
        self.counts["passes"] += 1
        at = 0
        for row, new, guessed, places in asks:
            self.counts["read"] += len(new) - len(guessed)
            if not places:
                row.held += len(new)
                continue
            self.counts["guessed"] += len(guessed)
            row.held = len(row.tokens)  # of the guesses, those that turn out right are added below
            for i in range(len(places)):
                try:
                    token = self._choose(row, logits[at + i], best[at + i])
                except Exception as e:  # scores that are no numbers: of this request alone
                    row.held = 0
                    self._finish(row, "failed", e)
                    break
                right = i < len(guessed) and guessed[i] == token
                if not self._give(row, token) or not right:
                    break
                row.held += 1
                self.counts["accepted"] += 1
            at += len(places)

    def _choose(self, row, logits_V, best):
        sampling = row.request.sampling
        if sampling.temperature == 0 and sampling.repetition == 1.0:
            return best
        return int(sampling.choose(logits_V[None], torch.tensor([row.tokens]), row.request.generator))

    def _give(self, row, token):
        """Hands a token out; False where the request has ended with it."""
        request = row.request
        self.counts["written"] += 1
        row.tokens.append(token)
        if token in request.end:
            self._finish(row, "end")
            return False
        request.tokens.append(token)
        if len(request.tokens) >= request.most or len(row.tokens) > self.capacity or len(row.tokens) > self.back.most:
            self._finish(row, "length")
            return False
        return True


# ---- what passes run on -----------------------------------------------------------------------------------------------------


def backend(model, rows, capacity, precision, threads=None):
    """Lowered where the kernels know every part; else the model itself, where precision=fp32 allows it."""
    _, most = begin(getattr(model, "model", model), [[0]])
    if capacity is not None and most is not None and capacity > most:
        raise ValueError(f"capacity={capacity}: the model's context is {most} tokens")
    capacity = capacity or min(model.config.length, 2048)
    if isinstance(model, Lowered):
        return LoweredRows(model, rows, min(capacity, model.reach))
    low = lower_if(model, precision, capacity, threads)
    return ModelRows(model, rows, capacity) if low is None else LoweredRows(low, rows, capacity)


class LoweredRows:
    """All rows of a pass in one call of the compiled kernels."""

    def __init__(self, low, rows, capacity):
        self.low, self.capacity, self.most = low, capacity, begin(low.model, [[0]])[1] or capacity
        self.store = low.store(rows, capacity)
        self.memory = self.source_length = None
        if low.read is not None:
            self.memory, self.source_length = low.memory(rows, capacity), torch.zeros(rows, dtype=torch.int32)

    def remember(self, row, source):
        self.low.remember([source], self.memory, row)
        self.source_length[row] = len(source)

    def copy(self, source, target, count):
        self.store.copy(source, target, count)

    def run(self, entries, wanted):
        """entries: (row, place, token). Returns the scores (wanted, V) of what follows the wanted ones."""
        row, place, ids = (torch.tensor(x, dtype=d) for x, d in zip(zip(*entries), (torch.int32, torch.int32, torch.int64)))
        want = torch.tensor(wanted, dtype=torch.int32)
        return self.low.write.run(ids, place, row, place, store=self.store, want=want, memory=self.memory,
                                  source=row if self.memory else None, source_length=self.source_length)["logits"]  # fmt: skip


class ModelRows:
    """The plain path: a cache of its own for every row, one row after another. For parts that the kernels do not know."""

    def __init__(self, model, rows, capacity):
        self.model, self.capacity, self.most = model.eval(), capacity, begin(model, [[0]])[1] or capacity
        self.device = next(model.parameters()).device
        self.caches, self.memory = [None] * rows, [None] * rows

    def remember(self, row, source):
        with torch.inference_mode():
            self.memory[row] = self.model.encode(torch.tensor([source], device=self.device))[0]
        self.caches[row] = None

    def copy(self, source, target, count):
        self.caches[target] = self.caches[source].first(count)

    @torch.inference_mode()
    def run(self, entries, wanted):
        out, wanted = [], set(wanted)
        starts = [i for i, e in enumerate(entries) if i == 0 or entries[i - 1][0] != e[0]]
        for a, z in zip(starts, [*starts[1:], len(entries)]):
            row, place, _ = entries[a]
            cache = self.caches[row] if self.caches[row] is not None and place else Cache()
            self.caches[row] = cache = cache.first(place) if cache.length > place else cache
            ids = torch.tensor([[token for *_, token in entries[a:z]]], device=self.device)
            if self.memory[row] is not None:
                logits = self.model(decoder_input_ids=ids, encoder_hidden=self.memory[row], cache=cache)["logits"]
            else:
                logits = self.model(input_ids=ids, cache=cache)["logits"]
            out += [logits[0, i - a] for i in range(a, z) if i in wanted]
        return never(self.model.config, hasattr(self.model, "encode"), torch.stack(out).float()) if out else None
