"""Data: from files, embedded sets, generated tasks or published ones, to token batches."""

import hashlib
import itertools
import platform
from dataclasses import dataclass, field
from typing import Any

from ..words import nearest
from . import registry, shards, tasks, text
from . import tokenizer as tokenizers
from .batches import Batch, Pairs, Windows, padded, rng
from .text import DataError
from .tokenizer import Tokenizer

TOO_LONG = ("drop", "cut", "windows", "refuse")


@dataclass(frozen=True, kw_only=True)
class Data:
    """source: files, a folder, a glob, a data set's name, or task:NAME. target: the file whose lines answer those of source (pairs).
    valid, valid_target: held-out files; without them a share `holdout` is held out, of documents by hash, of fewer than 20 documents
    each one's end. field: of JSON lines. split: a document a file or a line. languages: from-to, of a data set that has several.
    tokenizer: bpe, wordpiece, unigram, char, or a file or folder. vocab: size of a trained one. length: tokens a row.
    across: let attention run over document ends. errors: strict or replace, for bytes that are not UTF-8. count: pairs of a task.
    text, pair, label, choices, task: columns of labelled examples, by name or number from 1 on (choices: one of lists, or several by
    commas; task: what a row's task is called). Of a table of files (images, sounds) text is the column of files and pair that of their texts;
    files: the folder or archive that holds them, by default the table's own; without: rows whose text holds this are left out. limit: so many
    training examples at most, drawn by the seed of the run. env: a gymnasium environment, whose trajectories are read, or collected by `policy` (learned, mixed, scripted or
    random), so many `episodes`. Of a table (task=table) target is the column that is asked for; bins: numbers are read as one of so many bins, too.
    too_long: what becomes of a pair that is longer than the model: drop, cut (both sides), windows (both sides in equally many pieces, for texts
    that run along each other, as translations do), or refuse."""

    source: str = "pydoc"
    target: str | None = None
    valid: str | None = None
    valid_target: str | None = None
    holdout: float = 0.05
    field: str = "text"
    split: str = "file"
    languages: str = "en-de"
    tokenizer: str = "bpe"
    vocab: int | None = None
    length: int | None = None
    across: bool = False
    errors: str = "strict"
    count: int = 20000
    text: str | int | None = None
    pair: str | int | None = None
    label: str | int | None = None
    choices: str | None = None
    task: str | None = None
    files: str | None = None
    without: str | None = None
    limit: int | None = None
    env: str | None = None
    policy: str = "learned"
    bins: int = 0
    episodes: int = 400
    too_long: str = "drop"

    def __post_init__(self):
        if not 0 < self.holdout < 1:
            raise DataError(f"data.holdout={self.holdout}: must be between 0 and 1")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"data.limit={self.limit}: must be at least 1")
        if self.bins < 0 or self.bins == 1:
            raise DataError(f"data.bins={self.bins}: must be 0 (none) or at least 2")
        if self.episodes < 2:
            raise DataError(f"data.episodes={self.episodes}: must be at least 2")
        if self.too_long not in TOO_LONG:
            raise DataError(f"data.too_long={self.too_long!r}: must be one of {', '.join(TOO_LONG)}")
        if self.errors not in ("strict", "replace"):
            raise DataError(f"data.errors={self.errors!r}: must be strict or replace")

    @property
    def paired(self):
        """Is it pairs (of a source and a target text)?"""
        known = registry.PUBLISHED.get(self.source)
        return bool(self.target) or self.source.startswith("task:") or (known is not None and known.kind == "pairs")


@dataclass
class Corpus:
    """train and valid: lists of pairs of texts, or functions that yield documents. key: says what they are. notes: what a user should be told
    of how they were read."""

    train: Any
    valid: Any
    key: str
    paired: bool
    notes: list[str] = field(default_factory=list)

    def first(self, width: int = 160) -> str:
        """The first training text or pair, in a line."""
        found = self.train[0] if self.paired else (next(iter(self.train())),)
        return " | ".join(x if len(x) <= width else f"{x[:width]} ..." for x in (" ".join(t[: 4 * width].split()) for t in found))

    def texts(self):
        """The training texts, what a tokenizer is trained on."""
        return (t for pair in self.train for t in pair) if self.paired else self.train()


def open_corpus(cfg):
    """The texts of a Data config, split into train and held-out. Raises DataError."""
    if cfg.paired:
        return _open_pairs(cfg)
    if cfg.source == "pydoc":
        rows = registry.embedded_reference()
        docs, key = (lambda: (t for _, t in rows)), f"pydoc-{platform.python_version()}"
    elif cfg.source in registry.PUBLISHED:
        path = str(registry.fetch(cfg.source, "train"))
        docs, key = _reader(cfg, path)
    else:
        try:
            docs, key = _reader(cfg, cfg.source)
        except DataError as e:
            hint = nearest(cfg.source, registry.names())
            raise DataError(f"{e}{hint}") from None
    if cfg.valid:
        held, held_key = _reader(cfg, cfg.valid)
        return Corpus(docs, held, f"{key}|{held_key}", False)
    if len(list(itertools.islice(docs(), 20))) < 20:
        cut = lambda t: int(len(t) * (1 - cfg.holdout))
        train, valid = (lambda: (t[: cut(t)] for t in docs())), (lambda: (t[cut(t) :] for t in docs()))
    else:
        held_out = lambda t: int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) < cfg.holdout * 2**32
        train, valid = (lambda: (t for t in docs() if not held_out(t))), (lambda: (t for t in docs() if held_out(t)))
        if next(iter(valid()), None) is None:
            raise DataError(f"data.holdout={cfg.holdout} left no document to hold out; raise it, or give data.valid=FILE")
    return Corpus(train, valid, f"{key}|{cfg.holdout}", False)


def _reader(cfg, source):
    paths = text.files_of(source)
    digest = hashlib.sha256()
    for p in paths:
        digest.update(p.read_bytes())
    options = {"field": cfg.field, "split": cfg.split, "errors": cfg.errors}
    next(iter(text.documents(source, **options)))  # fails now, not in the middle
    return (lambda: text.documents(source, **options)), f"{digest.hexdigest()}|{options}"


def _open_pairs(cfg):
    corpus = _read_pairs(cfg)
    kept = text.both(corpus.train)  # held-out pairs keep their empty lines, which an evaluation counts
    if gone := len(corpus.train) - len(kept):
        corpus.notes.append(f"{gone:,} of {len(corpus.train):,} training pairs have an empty side and are left out")
    corpus.train = kept
    corpus.key = hashlib.sha256(repr((corpus.train, corpus.valid)).encode()).hexdigest()
    return corpus


def _read_pairs(cfg):
    if cfg.source.startswith("task:"):
        name = cfg.source.removeprefix("task:")
        try:
            tasks.read(name)
        except ValueError as e:
            raise DataError(str(e)) from None
        rows = tasks.make(name, cfg.count)
        held = max(1, int(len(rows) * cfg.holdout))
        return Corpus(rows[held:], rows[:held], f"{cfg.source}|{cfg.count}", True)
    if cfg.source in registry.PUBLISHED:
        a, _, b = cfg.languages.partition("-")
        part = lambda split: text.pairs(*(str(registry.fetch(cfg.source, f"{split}.{x}")) for x in (a, b)))
        return Corpus(part("train"), part("val"), f"{cfg.source}|{cfg.languages}", True)
    rows = text.pairs(cfg.source, cfg.target, cfg.errors)
    if cfg.valid:
        if not cfg.valid_target:
            raise DataError("data.valid needs data.valid_target beside it")
        return Corpus(rows, text.pairs(cfg.valid, cfg.valid_target, cfg.errors), cfg.source, True)
    held_out = lambda r: int(hashlib.sha256("\t".join(r).encode()).hexdigest()[:8], 16) < cfg.holdout * 2**32
    return Corpus([r for r in rows if not held_out(r)], [r for r in rows if held_out(r)] or rows[-1:], cfg.source, True)


def make_tokenizer(cfg, corpus, sentinels=0):
    """The tokenizer of a Data config: trained on the training texts, or read from a file or folder; with so many sentinels (T5's
    <extra_id_0> ...) at least."""
    if cfg.tokenizer not in tokenizers.KINDS:
        tokenizer = tokenizers.load(cfg.tokenizer)
    else:
        tokenizer = tokenizers.train(cfg.tokenizer, corpus.texts(), (cfg.vocab or 4096) - sentinels)
    if sentinels > len(tokenizer.sentinel_ids()):
        tokenizer.add_sentinels(sentinels)
    return tokenizer


def encoded(cfg: Data, rows, tokenizer: Tokenizer, length: int, joined: bool, part: str, notes: list[str]) -> list[tuple]:
    """[(ids, ids)] of pairs of texts; with those that are too long for the model's `length` positions, both sides in one row (joined) or
    a side each, is done what data.too_long says. part: what the pairs are called; notes: takes a sentence on the long ones.

    Raises DataError where one is too long and too_long=refuse, and where none is left.
    """
    a, b = (tokenizer.encode_all([r[i] for r in rows]) for i in (0, 1))
    room = length - 2 if joined else length - 1  # beside what stands around them
    fits = (lambda x, y: len(x) + len(y) <= room) if joined else (lambda x, y: max(len(x), len(y)) <= room)
    half = max(1, room // 2) if joined else room
    out, long, lost = [], 0, 0
    for number, (x, y) in enumerate(zip(a, b, strict=True)):
        if fits(x, y):
            out.append((x, y))
            continue
        long += 1
        if cfg.too_long == "refuse":
            raise DataError(
                f"the {part} pair that begins with {' '.join(rows[number][0].split())[:60]!r} has {len(x)} and {len(y)} tokens, too many for the "
                f"model's {length} positions; shorten it, take a longer model (model.length), or let data.too_long be drop, cut or windows"
            )
        if cfg.too_long == "cut":
            out.append((x[: max(half, room - len(y))], y[: max(half, room - len(x))]) if joined else (x[:room], y[:room]))
        elif cfg.too_long == "windows":
            pieces = -(-max(len(x), len(y)) // half)
            cut = lambda ids, n=pieces: [ids[i * len(ids) // n : (i + 1) * len(ids) // n] for i in range(n)]
            if min(len(x), len(y)) < pieces:  # a side that cannot be cut so often does not run along the other
                lost += 1
            else:
                out += zip(cut(x), cut(y), strict=True)
    if long:
        done = {"drop": "left out", "cut": "cut", "windows": "read in pieces"}[cfg.too_long]
        done += f", but for {lost:,}, one side of which is too short for that" if lost else ""
        notes.append(
            f"{long:,} of {len(rows):,} {part} pairs are too long for the model's {length} positions and are {done} "
            f"(data.too_long={cfg.too_long}; {', '.join(w for w in TOO_LONG if w != cfg.too_long)} are the other ways)"
        )
    if not out:
        raise DataError(f"every {part} pair is longer than the model's {length} positions; data.too_long=cut shortens them")
    return out


def rows_of(cfg, corpus, tokenizer, *, length, extra=0, tokens=4096, seed=0, joined=False):
    """(train, valid) as Windows of length + extra tokens, or as Pairs of at most `length` tokens a side
    (joined: in all). What is left out or cut is said in corpus.notes."""
    if corpus.paired:
        parts = ((corpus.train, "training"), (corpus.valid, "held-out"))
        return [Pairs(encoded(cfg, rows, tokenizer, length, joined, part, corpus.notes), tokens=tokens, seed=seed) for rows, part in parts]
    train = shards.build(corpus.train(), tokenizer, f"{corpus.key}|train")
    valid = shards.build(corpus.valid(), tokenizer, f"{corpus.key}|valid")
    valid_length = min(length + extra, len(valid))
    if valid_length < 2:
        raise DataError(f"the held-out text has {len(valid)} tokens, too few to score one; raise data.holdout or give data.valid=FILE")
    return (
        Windows(train, length + extra, seed=seed, across=cfg.across, name=f"{cfg.source} (its training part)"),
        Windows(valid, valid_length, seed=seed, across=cfg.across, name=f"{cfg.source} (its held-out part)"),
    )


__all__ = [
    "Batch",
    "Corpus",
    "Data",
    "DataError",
    "Pairs",
    "Tokenizer",
    "Windows",
    "make_tokenizer",
    "open_corpus",
    "padded",
    "rng",
    "rows_of",
]
