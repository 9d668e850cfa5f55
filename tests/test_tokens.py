"""Tokens: text to ids and back, what stands around documents, prompts and pairs, and who reads which token when."""

import itertools
import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Engine

from qkv import objectives
from qkv.data import batches, shards
from qkv.data import tokenizer as tokenizers
from qkv.data.text import DataError
from qkv.objectives.tasks import Task

SENTENCES = [
    "the cat sat on the mat .",
    "a dog ran ; naïve café",
    "Äpfel und Öl 😀",
    "def f(x):\n\treturn x ** 2\n",
    "the cats were unbelievable !",
]
WIDE = "".join(sorted(set("".join(SENTENCES)) | set("abcdefghijklmnopqrstuvwxyz")))
ITEMS = sorted({w for s in SENTENCES for w in s.split()})
made = st.text(st.sampled_from(WIDE), max_size=30)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ascii_ = st.text(st.characters(max_codepoint=127), max_size=30)
words = st.lists(st.sampled_from(ITEMS), max_size=8).map(" ".join)
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def lowered(text):
    """What a lower-cased tokenizer of words without accents keeps of a text."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(bare.split())


def squeezed(text):
    """What SentencePiece keeps: compatible characters are one, and so are runs of spaces."""
    text = unicodedata.normalize("NFKC", text)
    while "  " in text:
        text = text.replace("  ", " ")
    return text


PROMISES = {  # {kind: (texts, what decode(encode(text)) is)}
    "bpe": (anything, lambda text: text),
    "wordpiece": (words, lowered),
    "unigram": (made.map(lambda t: t.replace("\n", "").replace("\t", "").strip(" ")), squeezed),
    "char": (made, lambda text: text),
    "items": (words, lambda text: text),
}
UNKNOWN = {"bpe": None, "wordpiece": "[UNK]", "unigram": "[UNK]", "char": "[UNK]", "items": "[PAD]"}  # what strange text becomes
TEXTS = {kind: [*SENTENCES, WIDE] * 20 for kind in PROMISES}
TOKENIZERS = {}


def tokenizer_of(kind):
    """A tokenizer of the kind, trained once. Raises KeyError for a kind without a row."""
    if kind not in TOKENIZERS:
        TOKENIZERS[kind] = tokenizers.train(kind, iter(TEXTS[kind]), 400)
    return TOKENIZERS[kind]


@pytest.fixture(params=tokenizers.KINDS)
def tokenizer(request):
    return tokenizer_of(request.param)


def test_every_kind_has_its_row():
    assert set(PROMISES) == set(UNKNOWN) == set(tokenizers.KINDS)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@given(data=st.data())
@quick
def test_what_is_encoded_is_decoded(kind, data):
    """All of it where the kind loses nothing; else what its normaliser leaves."""
    t, (texts, kept) = tokenizer_of(kind), PROMISES[kind]
    text = data.draw(texts)
    back = t.decode(t.encode(text))
    assert ("".join(back.split()) if kind == "wordpiece" else back) == kept(text)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@given(texts=st.lists(anything.filter(lambda t: not any(n in t for n in tokenizers.SPECIAL)), max_size=6))
@quick
def test_many_texts_are_encoded_as_each_is(kind, texts):
    """Without any special token around them, whatever stands in them; ids are of the vocabulary."""
    t = tokenizer_of(kind)
    rows = [t.encode(x) for x in texts]
    assert t.encode_all(texts) == rows == t.encode_all(iter(texts))
    assert all(0 <= i < len(t) for row in rows for i in row) and t.encode("") == []
    named = [t.token(i) for row in rows for i in row]
    assert not {"[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]"} & set(named)
    assert not any(n == "[PAD]" for n in named) or kind == "items"


def test_special_tokens_in_a_text_are_read_as_themselves_and_are_not_shown(tokenizer):
    specials = [n for n in tokenizers.SPECIAL if tokenizer.engine.token_to_id(n) is not None]
    ids = [tokenizer.engine.token_to_id(n) for n in specials]
    assert tokenizer.specials().tolist() == sorted(ids)
    text = tokenizer.encode("the cat")
    around = [*ids, *text, *ids]
    assert tokenizer.decode(around) == tokenizer.decode(text)
    assert all(n in tokenizer.decode(around, special=True) for n in specials)
    assert tokenizer.decode(torch.tensor(around)) == tokenizer.decode(np.array(around)) == tokenizer.decode(around)


def test_the_size_of_a_vocabulary(tokenizer):
    """Ids are numbered from 0 without a gap; each stands for a piece, and each piece for its id."""
    pieces = tokenizer.pieces()
    assert len(pieces) == len(tokenizer) == len(set(pieces))
    assert [tokenizer.engine.token_to_id(p) for p in pieces] == list(range(len(tokenizer)))
    assert [tokenizer.token(i) for i in range(len(tokenizer))] == pieces
    exact = {"char": len(WIDE) + 7, "items": len({w for x in (*SENTENCES, WIDE) for w in x.split()}) + 2}
    kind = next(k for k in tokenizers.KINDS if tokenizer_of(k) is tokenizer)
    assert len(tokenizer) == exact[kind] if kind in exact else len(tokenizer) <= 400
    assert {c for p in pieces for c in p} >= set("abc") and (kind != "bpe" or len(tokenizer) >= 263)


def test_what_is_first_and_last_in_a_vocabulary():
    """Special tokens in their order, then characters in theirs; padding, items as they first appear, and the mask last of all."""
    assert tokenizers.train("char", ["cab", "Zd"]).pieces() == [*tokenizers.SPECIAL, "Z", "a", "b", "c", "d"]
    assert tokenizers.train("items", ["q p q", "r p"]).pieces() == ["[PAD]", "q", "p", "r", "[MASK]"]
    for kind in ("bpe", "wordpiece", "unigram"):
        assert tokenizer_of(kind).pieces()[:7] == tokenizers.SPECIAL


@pytest.mark.parametrize(("kind", "floor"), (("bpe", 263), ("wordpiece", 8), ("unigram", 8)))
def test_a_vocabulary_has_room_for_its_alphabet(kind, floor):
    with pytest.raises(DataError, match=f"needs at least {floor}"):
        tokenizers.train(kind, SENTENCES, floor - 1)
    with pytest.raises(DataError, match="is not one of bpe, wordpiece"):
        tokenizers.train("words", SENTENCES)
    assert len(tokenizers.train("bpe", SENTENCES, 263)) == 263


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_unknown_characters(kind):
    """Each becomes the unknown token; a byte-level tokenizer knows all."""
    t, strange = tokenizer_of(kind), "кот 猫"
    ids = t.encode(strange)
    if UNKNOWN[kind] is None:
        assert t.decode(ids) == strange and t.unk not in ids
        return
    unknown = t.engine.token_to_id(UNKNOWN[kind])
    assert ids.count(unknown) >= 2 and not t.decode([i for i in ids if i == unknown])
    assert unknown not in t.encode("cat") and t.encode("猫") == ([unknown] if kind != "unigram" else t.encode("猫"))


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@given(data=st.data())
@quick
def test_bytes_of_tokens_are_those_of_the_text(kind, data):
    """Of a character or a byte; of a kind that keeps words alone, those of each piece at the beginning of a text."""
    t = tokenizer_of(kind)
    text = data.draw({"bpe": ascii_, "char": made}.get(kind, words))
    ids = t.encode(text)
    if kind in ("bpe", "char"):
        assert sum(map(t.nbytes, ids)) == len(text.encode())
    assert all(t.nbytes(i) == len(t.decode([i]).replace("\ufffd", "?").encode()) for i in ids)
    assert all(t.nbytes(i) == 0 for i in t.specials().tolist())


BYTES = tokenizers.train("bpe", SENTENCES, 263)  # no merges: every byte is a token


@given(text=anything)
@quick
def test_a_piece_of_a_character_counts_as_a_byte(text):
    ids = BYTES.encode(text)
    assert len(ids) == len(text.encode()) and all(BYTES.nbytes(i) == 1 for i in ids)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@given(data=st.data())
@quick
def test_a_tokenizer_is_what_its_file_says(kind, data, tmp_path_factory):
    """Saved and loaded, from the folder and from the file: the same ids, roles, special tokens and hash."""
    folder = tmp_path_factory.mktemp("kept")
    t = tokenizer_of(kind)
    t.save(folder)
    for again in (tokenizers.load(folder), tokenizers.load(folder / "tokenizer.json")):
        text = data.draw(anything)
        assert again.encode(text) == t.encode(text) and again.prompt(text) == t.prompt(text) and len(again) == len(t)
        assert again.digest() == t.digest() and torch.equal(again.specials(), t.specials())
        assert all(getattr(again, role) == getattr(t, role) for role in tokenizers.ROLES)
    other = tokenizers.train(kind, ["quite other words"] * 5, 300)
    assert other.digest() != t.digest()


# --- roles ---------------------------------------------------------------------------------------------------------------------------


def vocabulary(*names):
    """A tokenizer of these tokens, numbered from 0, and two words behind them."""
    engine = Engine(models.WordLevel({n: i for i, n in enumerate([*names, "cat", "dog"])}, unk_token="dog"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizers.Tokenizer(engine)


NAMINGS = {  # {whose: {role: name}}, as their published vocabularies have them
    "own": dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]", bos="[BOS]", eos="[EOS]"),
    "BERT": dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    "RoBERTa, BART": dict(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>", bos="<s>", eos="</s>"),
    "T5": dict(pad="<pad>", unk="<unk>", sep="</s>", eos="</s>"),
    "LLaMA 1, 2": dict(unk="<unk>", cls="<s>", sep="</s>", bos="<s>", eos="</s>"),
    "LLaMA 3": dict(bos="<|begin_of_text|>", eos="<|end_of_text|>"),
    "GPT-2": dict(bos="<|endoftext|>", eos="<|endoftext|>"),
    "angle brackets": dict(pad="<pad>", unk="<unk>", cls="<cls>", sep="<sep>", mask="<mask>", bos="<s>", eos="</s>"),
    "GPT-2 with padding": dict(pad="<pad>", bos="<|endoftext|>", eos="<|endoftext|>"),
}


@pytest.mark.parametrize("whose", NAMINGS)
def test_special_tokens_are_known_by_every_published_naming(whose):
    named = NAMINGS[whose]
    t = vocabulary(*dict.fromkeys(named.values()))
    order = list(dict.fromkeys(named.values()))
    for role in tokenizers.ROLES:
        assert getattr(t, role) == (order.index(named[role]) if role in named else None), role
    assert t.specials().tolist() == list(range(len(order)))


@pytest.mark.parametrize("role", tokenizers.ROLES)
def test_every_name_of_a_role_is_tried_and_the_first_is_taken(role):
    names = tokenizers.ROLES[role]
    assert {n for used in NAMINGS.values() for r, n in used.items() if r == role} == set(names)  # each is somebody's
    for i, name in enumerate(names):
        assert getattr(vocabulary("x", *reversed(names[i:])), role) == len(names[i:])
        assert getattr(vocabulary("x", name), role) == 1
    assert getattr(vocabulary("x"), role) is None


# --- sentinels -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.parametrize("count", (1, 3, 100))
def test_sentinels_are_special_tokens_the_first_one_last(kind, count, tmp_path):
    t = tokenizers.train(kind, iter(TEXTS[kind]), 400)
    size, before = len(t), t.specials().tolist()
    assert t.sentinel_ids() == []
    t.add_sentinels(count)
    ids = t.sentinel_ids()
    assert len(t) == size + count and ids == list(range(size + count - 1, size - 1, -1))
    assert [t.token(i) for i in ids] == [f"<extra_id_{n}>" for n in range(count)]
    assert t.specials().tolist() == sorted([*before, *ids])
    assert t.decode([*ids, *t.encode("the cat")]) == t.decode(t.encode("the cat"))
    assert "<extra_id_0>" in t.decode(ids, special=True) and t.encode("<extra_id_0>") == [ids[0]]
    t.save(tmp_path)
    assert tokenizers.load(tmp_path).sentinel_ids() == ids


def test_sentinels_end_at_the_first_that_is_missing():
    assert vocabulary("<extra_id_0>", "<extra_id_1>", "<extra_id_3>").sentinel_ids() == [0, 1]


@given(count=st.integers(1, 8), seed=st.integers(0, 50))
@quick
def test_noise_begins_with_the_first_sentinel(count, seed):
    """Each sentinel stands once in what is read, in their order, and once behind the last span in what is asked for."""
    t = tokenizers.train("char", ["abcdefgh"])
    t.add_sentinels(9)
    o = objectives.OBJECTIVES["denoise"](t, SimpleNamespace(start=None), rate=0.25, mean=1.0)
    ids = np.array([7 + i % 8 for i in range(4 * count)])
    a, b = o.spoil(ids, batches.rng(seed))
    marks = t.sentinel_ids()
    assert [i for i in a if i in marks] == marks[:count] and [i for i in b if i in marks] == marks[: count + 1]


# --- around prompts and pairs --------------------------------------------------------------------------------------------------------


def template(single, *names):
    """The tokenizer of `names` that puts special tokens around every text by a template."""
    t = vocabulary(*names)
    t.engine.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(n, i) for i, n in enumerate(names)])
    return t


PROMPTS = {  # {template: (names, what a prompt of "cat" is)}; nobody writes behind an end
    "$A": (("<s>", "</s>"), ["cat"]),
    "<s> $A": (("<s>", "</s>"), ["<s>", "cat"]),
    "<s> $A </s>": (("<s>", "</s>"), ["<s>", "cat"]),
    "$A </s>": (("<s>", "</s>"), ["cat"]),
    "[CLS] $A [SEP]": (("[CLS]", "[SEP]"), ["[CLS]", "cat"]),
    "<|begin_of_text|> $A": (("<|begin_of_text|>",), ["<|begin_of_text|>", "cat"]),
    "<|endoftext|> $A": (("<|endoftext|>",), ["<|endoftext|>", "cat"]),
}


@pytest.mark.parametrize("single", PROMPTS)
def test_a_prompt_has_what_stands_before_every_text_and_no_end(single):
    names, wanted = PROMPTS[single]
    t = template(single, *names)
    assert [t.token(i) for i in t.prompt("cat")] == wanted
    assert [t.token(i) for i in t.encode("cat")] == ["cat"] and t.encode_all(["cat"]) == [t.encode("cat")]
    if wanted == ["cat"] and single == "$A":
        assert [t.token(i) for i in t.prompt("cat </s>")] == ["cat", "</s>"]  # an end that was written stays
    if t.bos != t.eos:
        assert [t.token(i) for i in t.prompt("")] == wanted[:-1]


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_a_prompt_of_a_trained_tokenizer_is_its_text(kind):
    t = tokenizer_of(kind)
    assert t.prompt("the cat") == t.encode("the cat") and t.prompt("") == []


AROUND = {  # {topology: (of one text, of two)} with the tokenizer's own special tokens
    "Encoder": ("[CLS] x [SEP]", "[CLS] x [SEP] y [SEP]"),
    "Decoder": ("[BOS] x [EOS]", "[BOS] x [SEP] y [EOS]"),
    "EncoderDecoder": ("x [EOS]", "x [EOS] y [EOS]"),
    "Recurrent": ("x [EOS]", "x [EOS] y [EOS]"),
}


def test_every_topology_of_texts_has_its_row():
    assert set(AROUND) == {t for kind in objectives.TASKS.values() if {"text", "pair"} & set(kind.columns) and kind.__module__.endswith("tasks")
                           for t in kind.outputs} - {"RecurrentEncoderDecoder"} | {"Encoder"}  # fmt: skip


@pytest.mark.parametrize("topology", AROUND)
@pytest.mark.parametrize("kind", [k for k in tokenizers.KINDS if k != "items"])
def test_what_stands_around_texts_and_pairs(kind, topology):
    t = tokenizer_of(kind)
    task = Task(t, type(topology, (), {"types": 0})(), 12)
    x, y = [300, 301], [302]
    named = {f"[{role.upper()}]": [getattr(t, role)] for role in tokenizers.ROLES} | {"x": x, "y": y}
    for b, written in ((None, AROUND[topology][0]), (y, AROUND[topology][1])):
        row = task.around(x, b, "row 1")
        assert row.ids == [i for w in written.split() for i in named[w]]
        second = written.split().index("y") if b else None
        assert row.types == [0] * (len(row.ids) if b is None else row.starts[1]) + [1] * (0 if b is None else 1 + len(y))
        assert [row.ids[s : s + n] for s, n in zip(row.starts, row.kept)] == ([x] if second is None else [x, y])


def test_pairs_of_objectives_have_their_begin_and_end():
    """Between question and answer a separator, behind the answer the end; a source ends too, and its target begins with the start."""
    t, (x, y) = tokenizer_of("char"), ([10, 11], [12])
    batch = objectives.Causal(t).pairs([(x, y)], None)
    assert batch.inputs["input_ids"].tolist() == [[t.bos, *x, t.sep, *y]] and batch.labels.tolist()[-2:] == [12, t.eos]
    batch = objectives.SequenceToSequence(t).pairs([(x, y)], None)
    assert batch.inputs["input_ids"].tolist() == [[*x, t.eos]] and batch.inputs["decoder_input_ids"].tolist() == [[t.bos, *y]]
    endless = vocabulary("<s>", "<pad>")
    batch = objectives.SequenceToSequence(endless).pairs([(x, y)], None)
    assert batch.inputs["input_ids"].tolist() == [x] and batch.labels.tolist() == y


# --- shards --------------------------------------------------------------------------------------------------------------------------

documents = st.lists(st.one_of(st.just(""), st.sampled_from("abc"), made), max_size=12)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@given(texts=documents, batch=st.integers(1, 5))
@quick
def test_the_end_stands_behind_every_document_and_nowhere_else(kind, texts, batch, tmp_path):
    """Empty ones and those of one token too, in any number at a time; bytes are those of all texts."""
    t = tokenizer_of(kind)
    key = json.dumps([texts, batch, kind])
    kept = shards.build(iter(texts), t, key, batch)
    wanted, ends = [], []
    for text in texts:
        wanted += [*t.encode(text), *([] if kind == "items" else [t.engine.token_to_id("[EOS]")])]
        ends.append(len(wanted))
    assert kept.ids.tolist() == wanted and kept.ends.tolist() == ends and len(kept) == len(wanted)
    assert kept.nbytes == sum(len(x.encode()) for x in texts)
    if kind != "items":
        assert [int(i) + 1 for i in np.flatnonzero(kept.ids == t.eos)] == ends
        assert t.eos not in (t.pad, t.sep) and not np.isin(kept.ids, [t.pad, t.sep, t.bos, t.cls]).any()
    again = shards.build(iter(()), t, key, batch)
    assert again.ids.tolist() == wanted and again.ends.tolist() == ends and again.nbytes == kept.nbytes


@pytest.mark.parametrize(("names", "end"), ((("<s>", "</s>", "<pad>"), "</s>"), (("<|endoftext|>",), "<|endoftext|>"), (("[CLS]", "[SEP]"), None),
                                            (("<pad>", "<|end_of_text|>", "<|begin_of_text|>"), "<|end_of_text|>")))  # fmt: skip
def test_the_end_of_a_document_by_every_naming(names, end):
    """No separator and no padding stands for an end that a tokenizer has not."""
    t = vocabulary(*names)
    kept = shards.build(["cat cat", "", "cat"], t, "k")
    tail = [] if end is None else [end]
    assert [t.token(i) for i in kept.ids] == ["cat", "cat", *tail, *tail, "cat", *tail]


def test_ids_beyond_two_bytes_are_kept():
    t = vocabulary(*(f"w{i}" for i in range(65_600)))
    few = vocabulary(*(f"w{i}" for i in range(65_534)))  # the largest vocabulary of two bytes
    kept, small = shards.build(["w65599 cat w0"], t, "wide"), shards.build(["w65533 dog"], few, "narrow")
    assert kept.ids.tolist() == [65_599, 65_600, 0] and kept.ids.dtype == np.uint32
    assert small.ids.tolist() == [65_533, 65_535] and small.ids.dtype == np.uint16


def test_shards_of_other_texts_or_another_tokenizer_are_others():
    a, b = tokenizer_of("char"), tokenizer_of("bpe")
    one = shards.build(["cat"], a, "same")
    assert shards.build(["dog"], a, "same").ids.tolist() == one.ids.tolist()  # the key says what the texts are
    assert shards.build(["dog"], a, "other").ids.tolist() == [*a.encode("dog"), a.eos]
    assert shards.build(["dog"], b, "same").ids.tolist() == [*b.encode("dog"), b.eos]


# --- windows -------------------------------------------------------------------------------------------------------------------------


def packed(lengths):
    """Documents whose ids number the tokens of the whole text."""
    return shards.Shards(np.arange(sum(lengths)), np.cumsum(lengths), sum(lengths))


texts = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda x: sum(x) >= 2)


@given(
    lengths=texts, length=st.integers(1, 12), epoch=st.integers(0, 5), seed=st.integers(0, 9), across=st.booleans(), cut=st.integers(1, 40)
)
@quick
def test_an_epoch_reads_every_token_once_but_the_spare_ones(lengths, length, epoch, seed, across, cut):
    """By the rows of consecutive batches, whatever their size, over epochs that follow one another."""
    text = packed(lengths)
    length = min(length, len(text))
    w = batches.Windows(text, length, seed=seed, across=across)
    first, n = epoch * len(w), len(w)
    starts = np.concatenate([w.starts_of(i, min(cut, first + n - i)) for i in range(first, first + n, cut)])
    ids = w.rows(starts)[0]
    read = sorted(ids.flatten().tolist())
    spare = len(text) - n * length
    assert read == list(range(read[0], read[0] + n * length)) and 0 <= read[0] <= spare < length
    assert np.array_equal(starts, w.epoch(epoch)) and ids.shape == (n, length)
    over = w.starts_of(first + n - 1, 2)  # from one epoch into the next
    assert over.tolist() == [w.epoch(epoch)[-1], w.epoch(epoch + 1)[0]]


@given(lengths=texts, length=st.integers(1, 9), row=st.integers(0, 40), across=st.booleans())
@quick
def test_rows_know_where_documents_begin(lengths, length, row, across):
    """documents: numbered within a row; positions: counted from the document's beginning, or the row's; nothing where there is one document."""
    text = packed(lengths)
    length = min(length, len(text))
    start = row % (len(text) - length + 1)
    ids, which, position = batches.Windows(text, length, across=across).rows(np.array([start]))
    owner = [n for n, size in enumerate(lengths) for _ in range(size)]
    held = owner[start : start + length]
    assert ids[0].tolist() == list(range(start, start + length))
    if across or len(set(held)) == 1:
        assert which is None and position is None
        return
    assert [[a == b for b in which[0].tolist()] for a in which[0].tolist()] == [[a == b for b in held] for a in held]
    assert which[0, 0] == 0 and position[0].tolist() == [held[:i].count(d) for i, d in enumerate(held)]


@given(lengths=texts, across=st.booleans())
@quick
def test_unpredicted_are_the_first_tokens_of_documents(lengths, across):
    """Or of the text alone, where windows run across; an empty document has none."""
    w = batches.Windows(packed(lengths), 1, across=across)
    begins, at = [], 0
    for n in lengths:
        begins += [at] if n else []
        at += n
    assert w.unpredicted().tolist() == (begins[:1] if across else begins)


def test_offsets_differ_between_epochs_and_all_are_met():
    w = batches.Windows(packed([27]), 10, seed=3)
    offsets = [int(w.epoch(e).min()) for e in range(100)]
    assert set(offsets) == set(range(8)) and len(set(map(tuple, map(w.epoch, range(100))))) > 10
    assert [int(batches.Windows(packed([27]), 10, seed=3).epoch(e).min()) for e in (5, 99)] == [offsets[5], offsets[99]]
    assert {int(batches.Windows(packed([27]), 10, seed=s).epoch(0).min()) for s in range(60)} == set(range(8))
    even = batches.Windows(packed([30]), 10)
    assert {int(even.epoch(e).min()) for e in range(20)} == {0}
    assert {tuple(even.epoch(e)) for e in range(60)} == {
        (a, b, c) for a in (0, 10, 20) for b in (0, 10, 20) for c in (0, 10, 20) if len({a, b, c}) == 3
    }


@given(lengths=texts, length=st.integers(2, 9), rows=st.integers(1, 4), overlap=st.integers(0, 1), least=st.integers(1, 5))
@quick
def test_a_cover_leaves_out_a_last_row_that_is_too_short(lengths, length, rows, overlap, least):
    text = packed(lengths)
    if len(text) < length:
        return
    cover = [ids for ids, _, _ in batches.Windows(text, length, across=True).cover(rows, overlap, least)]
    flat = [row for ids in cover for row in ids.tolist()]
    read = [t for n, row in enumerate(flat) for t in row[overlap if n else 0 :]]
    assert read == list(range(len(read)))  # each once, from the first on
    left = len(text) - len(read)
    assert left == 0 or left + overlap < least
    assert all(len(row) == length for row in flat[:-1]) and len(flat[-1]) >= min(least, length)
    assert all(len(ids) <= rows for ids in cover)


# --- pairs ---------------------------------------------------------------------------------------------------------------------------

sizes = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40)


@given(
    sizes=sizes, tokens=st.integers(1, 120), rows=st.one_of(st.none(), st.integers(1, 9)), seed=st.integers(0, 5), pool=st.integers(1, 5)
)
@quick
def test_pairs_keep_their_budget_and_are_read_once_an_epoch(sizes, tokens, rows, seed, pool):
    """With padding on the longer side a batch has no more than `tokens` a side and `rows` pairs; a pair beyond the budget is alone."""
    given_pairs = [([n] * a, [n] * b) for n, (a, b) in enumerate(sizes)]
    p = batches.Pairs(given_pairs, tokens=tokens, rows=rows, seed=seed, pool=pool)
    largest = lambda group: max(max(map(len, pair)) for pair in group) * len(group)
    number = 0
    for epoch in range(3):
        count = len(p.epoch(epoch))
        groups = [p.batch(number + i) for i in range(count)]
        number += count
        assert sorted(map(str, (pair for g in groups for pair in g))) == sorted(map(str, given_pairs))
        assert sorted(i for g in p.epoch(epoch) for i in g) == list(range(len(sizes)))
        assert all(len(g) == 1 or largest(g) <= tokens for g in groups) and all(len(g) <= (rows or len(g)) for g in groups)
    again = batches.Pairs(given_pairs, tokens=tokens, rows=rows, seed=seed, pool=pool)
    assert again.batch(number - 1) == groups[-1] and again.batch(0) == p.batch(0)


@given(sizes=sizes, tokens=st.integers(1, 120), fewest=st.integers(1, 3))
@quick
def test_held_out_pairs_are_read_once_by_length(sizes, tokens, fewest):
    given_pairs = [([n] * a, [n] * b) for n, (a, b) in enumerate(sizes)]
    groups = batches.Pairs(given_pairs, tokens=tokens).in_order(fewest)
    flat = [pair for g in groups for pair in g]
    assert sorted(map(str, flat)) == sorted(map(str, given_pairs))
    assert [(len(b), len(a)) for a, b in flat] == sorted((len(b), len(a)) for a, b in flat)
    assert all(len(g) >= min(fewest, len(sizes)) for g in groups)


def test_batches_of_an_epoch_are_full_and_of_similar_length():
    """A batch is closed only where the next pair would not fit; lengths in it are near each other."""
    r = np.random.default_rng(0)
    rows = [([1] * int(n), [2] * int(n)) for n in r.integers(1, 60, 600)]
    p = batches.Pairs(rows, tokens=240, seed=2, pool=1000)
    order = sorted(p.epoch(0), key=lambda g: p.size[g].tolist())
    open_ = [a for a, b in itertools.pairwise(order) if p.size[b[0]].max() * (len(a) + 1) <= 240]
    assert len(open_) <= 1  # the rest
    assert p.epoch(0) != order  # batches come in another order than that of their lengths
    spread = [np.ptp(p.size[g].max(1)) for g in p.epoch(0)]
    assert max(spread) <= 20 and np.mean(spread) < 2
    assert p.epoch(0) != p.epoch(1) and {tuple(sorted(g)) for g in p.epoch(0)} != {tuple(sorted(g)) for g in p.epoch(1)}


def test_other_items_go_by_their_sizes():
    p = batches.Pairs(list("abcde"), tokens=20, size=[3, 9, 1, 30, 10])
    groups = ["".join(g) for g in p.in_order()]
    assert groups == ["ca", "be", "d"] and sorted("".join("".join(p.batch(i)) for i in range(len(p.epoch(0))))) == list("abcde")
    with pytest.raises(DataError, match="there are no pairs"):
        batches.Pairs([])
    assert len(p) == 5


@given(rows=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=5), side=st.sampled_from(["right", "left"]))
@quick
def test_padding_adds_nothing(rows, side):
    """What is not padding is each row, in its order, on its side."""
    ids, mask = batches.padded(rows, 77, side)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [i[m].tolist() for i, m in zip(ids, mask)] == rows and (ids[~mask] == 77).all() and (ids[mask] != 77).all()
    first = slice(0, 1) if side == "right" else slice(-1, None)
    assert all(m[first].all() for m, row in zip(mask, rows) if row)


@given(text=anything)
@example("\U0001f000 \ufffd")  # pieces of two bytes of a character; a character that stands for none
@quick
def test_bytes_of_any_text(text):
    t = tokenizer_of("bpe")
    assert sum(map(t.nbytes, t.encode(text))) == len(text.encode())


def test_a_begin_that_is_an_end_too_stays():
    t = template("<|endoftext|> $A", "<|endoftext|>")
    assert [t.token(i) for i in t.prompt("")] == ["<|endoftext|>"] == [t.token(i) for i in t.prompt("cat")][:1]
