"""Tokenizers: trained from text, or read from any of the published file formats. The `tokenizers` library does the work."""

import hashlib
import itertools
import json
import struct
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

from .text import DataError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]"]
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("[BOS]", "<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("[EOS]", "</s>", "<|end_of_text|>", "<|endoftext|>"),
}
KINDS = ("bpe", "wordpiece", "unigram", "char", "items")


class Tokenizer:
    """Text to ids and back. pad, unk, cls, sep, mask, bos, eos: ids of the special tokens, None where there is none."""

    def __init__(self, engine):
        self.engine = engine
        engine.no_padding()
        engine.no_truncation()
        for role, names in ROLES.items():
            setattr(self, role, next((i for n in names if (i := engine.token_to_id(n)) is not None), None))

    def __len__(self):
        return self.engine.get_vocab_size()

    def encode(self, text):
        """Ids of a text, without special tokens around it."""
        return self.engine.encode(text, add_special_tokens=False).ids

    def prompt(self, text):
        """Ids of a text that a decoder goes on from: with what the tokenizer puts before every text (LLaMA's <s>)."""
        ids, like = self.engine.encode(text).ids, self.engine.encode(text or "a")
        ended = like.ids[-1:] and like.special_tokens_mask[-1] and like.ids[-1] in (self.eos, self.sep)  # by the template, not by the text
        return ids[:-1] if ended else ids

    def encode_all(self, texts):
        """Ids of many texts, on several threads."""
        return [e.ids for e in self.engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids, special=False):
        """Text of ids. special: show special tokens too."""
        return self.engine.decode([int(i) for i in ids], skip_special_tokens=not special)

    def nbytes(self, i):
        """Bytes of UTF-8 that an id stands for at the beginning of a text."""
        text = self.decode([i])
        if "\ufffd" in text and isinstance(self.engine.decoder, decoders.ByteLevel):
            return len(self.token(i))  # a part of a character: its piece has a letter for each byte
        return len(text.replace("\ufffd", "?").encode())

    def token(self, i):
        """The piece that an id stands for."""
        return self.engine.id_to_token(int(i))

    def specials(self):
        """Ids of the special tokens, sentinels among them, as a sorted tensor."""
        roles = {i for role in ROLES if (i := getattr(self, role)) is not None}
        return torch.tensor(sorted(roles | set(self.sentinel_ids())))

    def sentinel_ids(self):
        """Ids of <extra_id_0>, <extra_id_1> ... (T5); empty where there are none."""
        return list(itertools.takewhile(lambda i: i is not None, (self.engine.token_to_id(f"<extra_id_{n}>") for n in itertools.count())))

    def add_sentinels(self, count):
        """Adds <extra_id_N>, the first one last, as T5 numbers them."""
        names = [f"<extra_id_{n}>" for n in reversed(range(count))]
        self.engine.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])

    def pieces(self):
        """The text of every id as the model spells it, "" where there is none."""
        return [self.engine.id_to_token(i) or "" for i in range(len(self))]

    def word_starts(self):
        """(V,) bool: does this piece begin a word? Raises DataError for a tokenizer whose pieces do not tell."""
        pieces = self.pieces()
        if sum(p.startswith("##") for p in pieces) > 1:
            return torch.tensor([not p.startswith("##") for p in pieces])
        for mark in ("\u0120", "\u2581"):  # what byte-level BPE and SentencePiece write for a space
            if sum(p.startswith(mark) for p in pieces) > 1:
                return torch.tensor([p.startswith(mark) or not any(c.isalnum() for c in p) for p in pieces])
        raise DataError("whole words cannot be told from this tokenizer's pieces (it has no ##, and no mark of spaces)")

    def sentence_ends(self):
        """(V,) bool: does this piece end a sentence (. ! ?)?"""
        return torch.tensor([p.strip("\u0120\u2581#") in (".", "!", "?") for p in self.pieces()])

    def digest(self):
        """A hash of everything that decides its output."""
        return hashlib.sha256(Engine.from_str(self.engine.to_str()).to_str().encode()).hexdigest()  # as it is once saved and loaded

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "tokenizer.json").write_text(self.engine.to_str(pretty=True), encoding="utf-8")


def train(kind, texts, vocab=4096):
    """Trains a tokenizer of a kind on texts.

    bpe: byte-level BPE (GPT-2), nothing is unknown. wordpiece: lower-cased words with ## continuations (BERT). unigram: pieces
    with a probability (T5, SentencePiece). char: every character seen, items: every word seen; vocab is not used.
    """
    if kind not in KINDS:
        raise DataError(f"tokenizer '{kind}' is not one of {', '.join(KINDS)}, nor a file or folder")
    if kind == "items":
        return Tokenizer(_items(texts))
    if kind == "char":
        return Tokenizer(_characters(sorted(set().union(*map(set, texts)))))
    floor = len(SPECIAL) + (256 if kind == "bpe" else 1)
    if vocab < floor:
        raise DataError(f"data.vocab={vocab}: a {kind} tokenizer needs at least {floor} (its special tokens and alphabet)")
    special = [AddedToken(s, special=True, normalized=False) for s in SPECIAL]
    common = {"vocab_size": vocab, "special_tokens": special, "show_progress": False}
    if kind == "bpe":
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    elif kind == "wordpiece":
        engine = Engine(models.WordPiece(unk_token="[UNK]"))
        engine.normalizer = normalizers.BertNormalizer(lowercase=True)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.decoder = decoders.WordPiece(prefix="##")
        trainer = trainers.WordPieceTrainer(continuing_subword_prefix="##", **common)
    else:
        engine = Engine(models.Unigram())
        engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        engine.pre_tokenizer = pre_tokenizers.Metaspace()
        engine.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **common)
    engine.train_from_iterator(texts, trainer)
    return Tokenizer(engine)


def _items(texts):
    """Whole words, each an item: padding first, in the order of their first appearance, a mask last."""
    seen = {w: None for t in texts for w in t.split()}
    engine = Engine(models.WordLevel({t: i for i, t in enumerate(["[PAD]", *seen, "[MASK]"])}, unk_token="[PAD]"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ("[PAD]", "[MASK]")])
    return engine


def _characters(characters):
    vocab = {t: i for i, t in enumerate([*SPECIAL, *characters])}
    engine = Engine(models.WordLevel(vocab, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return engine


def load(path):
    """Reads a tokenizer from a file or a folder: tokenizer.json; vocab.json + merges.txt or encoder.json + vocab.bpe (GPT-2);
    vocab.txt (BERT); *.model (SentencePiece). Raises DataError for what is none of these, or damaged."""
    path = Path(path)
    if path.is_dir():
        for name in ("tokenizer.json", "vocab.json", "encoder.json", "vocab.txt", "spiece.model", "tokenizer.model"):
            if (path / name).exists():
                return load(path / name)
        raise DataError(f"{path} holds no tokenizer (tokenizer.json, vocab.json + merges.txt, vocab.txt, or a SentencePiece .model)")
    if not path.exists():
        raise DataError(f"there is no tokenizer {path}")
    try:
        if path.name in ("vocab.json", "encoder.json"):
            merges = path.with_name("merges.txt" if path.name == "vocab.json" else "vocab.bpe")
            if (path.parent / "source.spm").exists():
                raise DataError(f"{path.parent} has two SentencePiece models (source.spm, target.spm); load each of them by its file")
            if not merges.exists():
                raise DataError(f"{path} needs {merges.name} beside it")
            return Tokenizer(_gpt2(path, merges))
        if path.suffix == ".json":
            return Tokenizer(Engine.from_file(str(path)))
        if path.suffix == ".txt":
            return Tokenizer(_bert(path))
        if ".model" in path.name or path.suffix == ".spm":
            return Tokenizer(_sentencepiece(path))
    except DataError:
        raise
    except Exception as e:  # the library raises bare Exceptions
        raise DataError(f"{path} cannot be read as a tokenizer: {str(e)[:200]}") from None
    raise DataError(f"{path} is no known kind of tokenizer file")


def _gpt2(vocab, merges):
    table = json.loads(vocab.read_text(encoding="utf-8"))
    rules = [tuple(r.split(" ")) for r in merges.read_text(encoding="utf-8").split("\n") if r and not r.startswith("#version")]
    engine = Engine(models.BPE(vocab=table, merges=rules))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    if "<|endoftext|>" in table:
        engine.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return engine


def _bert(path):
    words = path.read_text(encoding="utf-8").split("\n")
    vocab = {w.rstrip("\r"): i for i, w in enumerate(words) if w.strip()}
    if "[UNK]" not in vocab:
        raise DataError(f"{path} has no [UNK]; it is no WordPiece vocabulary")
    cased = any(w.isalpha() and w != w.lower() for w in vocab if not w.startswith("["))
    engine = Engine(models.WordPiece(vocab, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL if s in vocab])
    if "[CLS]" in vocab and "[SEP]" in vocab:
        engine.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return engine


# --- SentencePiece: a protobuf of pieces, scores and a normaliser ------------------------------------------------------
def _fields(data):
    """Yields (field number, value) of one protobuf message: integers, 4-byte floats, or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
        elif kind == 2:
            size = varint()
            yield key >> 3, data[at : at + size]
            at += size
        else:
            size = {1: 8, 5: 4}[kind]
            yield key >> 3, struct.unpack("<d" if size == 8 else "<f", data[at : at + size])[0]
            at += size


def _sentencepiece(path):
    pieces, trainer, normalizer = [], {}, {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), piece.get(2, 0.0), piece.get(3, 1)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, TypeError):
        raise DataError(f"{path} is not a SentencePiece model, or is truncated") from None
    if not pieces:
        raise DataError(f"{path} is not a SentencePiece model: it has no pieces")
    unknown = next((i for i, (_, _, kind) in enumerate(pieces) if kind == 2), 0)
    fallback = any(kind == 6 for _, _, kind in pieces)
    steps = []
    if normalizer.get(2):
        steps.append(normalizers.Precompiled(normalizer[2]))
    if normalizer.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    prefix = bool(normalizer.get(3, 1))
    if trainer.get(3, 1) == 2:
        engine = _bpe_pieces(pieces, steps, prefix, unknown, fallback)
    else:
        engine = Engine(models.Unigram([(p, s) for p, s, _ in pieces], unknown, fallback))
        if steps:
            engine.normalizer = normalizers.Sequence(steps)
        engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never", split=True)
        engine.decoder = decoders.Metaspace(prepend_scheme="always" if prefix else "never")
    control = [p for p, _, kind in pieces if kind in (2, 3)]
    engine.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in control])
    return engine


def _bpe_pieces(pieces, steps=(), prefix=True, unknown=0, fallback=True):
    """A LLaMA-like engine: BPE over scored pieces (text, score, kind), bytes where nothing fits, <s> before every text."""
    vocab = {p: i for i, (p, _, _) in enumerate(pieces)}
    engine = Engine(models.BPE(vocab, _merges(pieces, vocab), unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=fallback))
    before = [normalizers.Prepend("▁")] if prefix else []
    engine.normalizer = normalizers.Sequence([*steps, *before, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    if "<s>" in vocab:
        engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return engine


def from_pieces(pieces):
    """A tokenizer of scored byte pieces [(bytes, score)] whose first three are unknown, begin and end (llama2.c)."""
    named = ["<unk>", "<s>", "</s>"]
    rows = [
        (named[i] if i < 3 else p.decode("utf-8", "replace").replace(" ", "▁"), s, 3 if i < 3 else 1) for i, (p, s) in enumerate(pieces)
    ]
    rows = [(p, s, 6 if p.startswith("<0x") and len(p) == 6 else k) for p, s, k in rows]
    engine = _bpe_pieces(rows)
    engine.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in named])
    return Tokenizer(engine)


def _merges(pieces, vocab):
    """SentencePiece keeps no merge list: a merge is any split of a piece into two pieces, best score first."""
    found = []
    for piece, score, kind in pieces:
        if kind != 1:
            continue
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        found += [(-score, vocab[a], vocab[b], a, b) for a, b in halves]
    return [(a, b) for *_, a, b in sorted(found, key=lambda f: f[0])]


class NoTokens:
    """What stands in a tokenizer's place where a model reads no text."""

    pad = bos = eos = cls = sep = mask = None

    def __len__(self):
        return 0

    def save(self, where):
        """Writes nothing."""
