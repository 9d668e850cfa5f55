"""Ways to fine-tune: what a labelled example becomes, how it is scored, and what the model says of it.

Dims: B examples, C choices, T tokens, N labels.
"""

import functools
import itertools
import math
import typing
from pathlib import Path

import torch
import torch.nn.functional as F

from ..data import examples as read
from ..data.batches import Batch, padded
from ..data.examples import Example
from ..data.text import DataError
from ..models.loss import IGNORE, token_loss
from .base import Loss, Objective, with_auxiliary
from .language import Causal
from .restore import SequenceToSequence


class Row(typing.NamedTuple):
    """What a model reads of one text or two: ids, types (0 of the first, 1 of the second), and of each text
    where it begins in ids and how many of its tokens are there."""

    ids: list[int]
    types: list[int]
    starts: tuple[int, ...]
    kept: tuple[int, ...]

    def cut(self, *texts: list[int] | None) -> bool:
        """Were these texts shortened?"""
        return sum(self.kept) < sum(len(t) for t in texts if t is not None)


def brief(value: typing.Any, width: int = 160) -> str:
    """A value of an example in a line of at most `width` characters; what is no text by its size or kind."""
    if isinstance(value, (list, tuple)):
        value = ", ".join(brief(v) for v in value[:width])
    elif hasattr(value, "shape"):
        value = f"{' x '.join(map(str, value.shape))} values"
    elif isinstance(value, bytes):
        value = f"{len(value):,} bytes"
    elif not isinstance(value, (str, int, float)):
        value = f"a {type(value).__name__}"
    line = " ".join(str(value).split())
    return line if len(line) <= width else f"{line[: width - 4]} ..."


class Task(Objective):
    """Reads examples instead of running text. `read` gets them from files, `names` their labels, `encode` makes items of them,
    `pairs` a batch of items, `predict` says what the model thinks of some."""

    reads = ("examples",)
    scores_tokens = False
    outputs: typing.Any = None  # {topology: output of the model that carries it}
    metric = "accuracy"  # that decides which checkpoint is best
    kind = "classification"
    columns: tuple = ("text", "pair", "label")
    parts = False  # does `read` cut a source into train, valid and test by itself?

    def __init__(self, tokenizer, config, length, cut=False):
        self.tokenizer, self.config, self.length, self.cut = tokenizer, config, length, cut
        self.topology = type(config).__name__
        if tokenizer.pad is None:
            raise ValueError("fine-tuning pads texts, and this tokenizer has no padding token")

    def answered(self, model, items, device, **more):
        """What the model says of items, in evaluation mode; it keeps its own."""
        was = model.training
        said = [s for i in range(0, len(items), 64) for s in self.predict(model.eval(), items[i : i + 64], device, **more)]
        model.train(was)
        return said

    def told(self, model, run, items, word="said"):
        """A line of what was wanted, and what was said where it is something else."""
        said = self.answered(model, items, run.device)
        return ", ".join(i["wanted"] + ("" if s == i["wanted"] else f" ({word}: {s})") for i, s in zip(items, said))

    @classmethod
    def read(cls, cfg: typing.Any, source: str, part: str) -> list[Example]:
        """Examples of a source, for a Data config. Those to train on and to choose the best model by must
        have a label where the task has any; of others (part=test) the model only says something."""
        found = read.table(source, {c: getattr(cfg, c) for c in cls.columns}, part, cfg.errors)
        return cls.labelled(found) if "label" in cls.columns and part in ("train", "valid") else found

    @classmethod
    def labelled(cls, examples: list[Example]) -> list[Example]:
        """The examples. Raises DataError for one without a label."""
        for e in examples:
            if e.label in (None, ""):
                what = "has no label (an empty cell, null or NaN is none)"
                raise DataError(f"{e.where}: {what}; leave it out, or name the column: data.label=NAME")
        return examples

    @classmethod
    def described(cls, example: Example) -> str:
        """An example as it was read, in a line: where it stands, its texts and its label."""
        e = example
        texts = [brief(x) for x in (e.text, e.pair) if not (x is None or isinstance(x, Path))]
        line = ": ".join([e.where, *texts[:1]]) + "".join(f" | {t}" for t in texts[1:])
        return line if e.label is None else f"{line}  ->  {brief(e.label)}"

    @classmethod
    def names(cls, examples):
        """The labels of the training examples, in order; None where a task has none."""

    @classmethod
    def shape(cls, examples):
        """Fields that a model of these examples must have."""
        return {}

    @classmethod
    def words(cls, example):
        """The texts of an example, what a tokenizer is trained on."""
        e = example
        for part in (e.text, e.pair, e.more.get("choices"), e.more.get("task") and f"{e.more['task']}: "):
            yield from [] if part is None else [part] if isinstance(part, str) else map(str, part)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """{what a class is known by: its number}."""
        return {read.spelled(name): i for i, name in enumerate(self.config.label_names)}

    def number(self, label: typing.Any, where: str) -> int:
        """The class number of a label."""
        if read.spelled(label) not in self.numbers:
            names = ", ".join(self.config.label_names)
            raise DataError(f"{where}: the label {str(label)!r} was not seen in training; there were {names}")
        return self.numbers[read.spelled(label)]

    def marks(self, paired: bool) -> tuple[list[int], list[int], list[int]]:
        """Ids that the topology puts before, between and behind texts. Raises ValueError for a tokenizer that
        lacks one which the task cannot do without."""
        t = self.tokenizer
        ends = [] if t.eos is None or t.eos == t.pad else [t.eos]
        if self.topology == "Encoder":
            if None in (t.cls, t.sep):
                raise ValueError("this task needs a tokenizer with [CLS] and [SEP]")
            first, mid, last = [t.cls], [t.sep], [t.sep]
        elif self.topology == "Decoder":  # delimiters (GPT-1, 2018, section 3.3)
            first = [] if t.bos is None or t.bos == t.pad else [t.bos]
            mid, last = [i for i in (t.sep, t.eos) if i is not None][:1], ends
        else:
            first, mid, last = [], ends, ends
        if paired and not mid:
            raise ValueError("this task reads two texts, and the tokenizer has no token to put between them")
        return first, mid if paired else [], last

    def around(self, a: list[int], b: list[int] | None, where: str) -> Row:
        """The Row of one or two texts with what the topology puts around them. Raises DataError for one that
        is too long, or that is nothing at all."""
        first, mid, last = self.marks(b is not None)
        room = self.length - len(first) - len(mid) - len(last)
        size = len(a) + len(b or ())
        if size > room and (not self.cut or room < 1):
            what = f"has {size} tokens and the model reads {max(0, room)} of them"
            raise DataError(f"{where}: {what}; shorten it, or cut all such: task='{self.written}(cut=true)'")
        if size > room:
            a, b = (a[:room], b) if b is None else _shortened(a, b, room)
        front = [*first, *a, *mid]
        ids = [*front, *(b or ()), *last]
        if not ids:
            raise DataError(f"{where}: has no tokens, and the model puts none around a text; leave it out")
        behind = 0 if b is None else 1  # of a single text all is of the first
        types = [0] * len(front) + [behind] * (len(ids) - len(front))
        if b is None:
            return Row(ids, types, (len(first),), (len(a),))
        return Row(ids, types, (len(first), len(front)), (len(a), len(b)))

    def note_cut(self, items: list[dict]) -> None:
        """Says how many of the items were shortened, where some were."""
        count = sum(i["cut"] for i in items)
        if count:
            read.note(f"{count} of {len(items)} texts are cut to what the model reads of them (cut=true)")

    @property
    def written(self):
        return next(n for n, c in TASKS.items() if c is type(self))

    def inputs(self, items):
        """ids, mask and, where the model has them, token types of items."""
        ids, mask = padded([i["ids"] for i in items], self.tokenizer.pad)
        out = {"input_ids": ids, "attention_mask": mask.long()}
        if self.config.types > 1:
            out["token_type_ids"] = padded([i["types"] for i in items], 0)[0]
        return out

    def texts(self, examples, key):
        """Ids of the texts of examples, None where they have none."""
        have = [e for e in examples if getattr(e, key) is not None]
        ids = iter(self.tokenizer.encode_all([str(getattr(e, key)) for e in have]))
        return [None if getattr(e, key) is None else next(ids) for e in examples]

    def show(self, model, run):
        """A few held-out examples, with what the model says."""
        items = run.valid.pairs[:3]
        said = self.answered(model, items, run.device)
        word = lambda i, s: f"{self.tokenizer.decode(i['ids'])[:100]}  ->  {s}   (wanted: {i['wanted']})"
        return "\n".join(word(i, s) for i, s in zip(items, said))


def _shortened(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Both cut, token by token from the longer one, until they fit."""
    most = max((room + 1) // 2, room - len(b))
    return a[:most], b[: room - len(a[:most])]


class Classification(Task):
    """A label for a text or a pair of texts. An encoder reads [CLS] A [SEP] B [SEP] (BERT, 2018, section 4.1), a decoder A, a
    delimiter, B and an end token, and may go on predicting tokens: `auxiliary` is the weight of that loss (GPT-1, 2018, section 3.2).
    weights: none, or balanced, which weighs classes by the inverse of their frequency. cut: shorten what is too long."""

    outputs = {"Encoder": "sequence", "Decoder": "sequence", "EncoderDecoder": "sequence", "Recurrent": "sequence"}

    @classmethod
    def names(cls, examples: list[Example]) -> tuple[str, ...]:
        """The classes. Raises DataError for an example without a label, and for labels that are measures."""
        names = read.classes(e.label for e in cls.labelled(examples))
        values = [v for name in names if (v := read.number(name)) is not None]
        if len(names) > 20 and len(values) == len(names) and any(v % 1 for v in values if math.isfinite(v)):
            odd = next(e for e in examples if float(e.label) % 1)
            what = f"the label {odd.label} is one of {len(names)} different numbers, which are no classes"
            raise DataError(f"{odd.where}: {what}; round them")
        return names

    def __init__(self, tokenizer, config, length, auxiliary=0.0, weights="none", cut=False):
        super().__init__(tokenizer, config, length, cut)
        if weights not in ("none", "balanced"):
            raise ValueError(f"weights={weights!r} is not none or balanced")
        if auxiliary < 0 or (auxiliary and self.topology != "Decoder"):
            raise ValueError(f"auxiliary={auxiliary}: the weight of a decoder's language model loss, 0 or more")
        self.auxiliary, self.weights, self.weigh = auxiliary, weights, None

    def encode(self, examples, training=False):
        out = []
        for e, a, b in zip(examples, self.texts(examples, "text"), self.texts(examples, "pair")):
            row = self.around(a, b, e.where)
            label = None if e.label is None else self.number(e.label, e.where)
            wanted = None if label is None else self.config.label_names[label]
            item = {"ids": row.ids, "types": row.types, "label": label, "wanted": wanted, "where": e.where}
            out.append(item | {"cut": row.cut(a, b)})
        self.note_cut(out)
        if training and self.weights == "balanced":
            counts = torch.bincount(torch.tensor([i["label"] for i in out]), minlength=self.config.labels).clamp(min=1)
            self.weigh = len(out) / (self.config.labels * counts.float())
        return out

    def pairs(self, items, rng):
        labels = torch.tensor([IGNORE if i["label"] is None else i["label"] for i in items])
        inputs = self.inputs(items)
        return Batch(inputs, labels, len(items), int(inputs["attention_mask"].sum()))

    def loss(self, model, batch):
        out = model(**batch.inputs)
        scores = out["logits"].float()
        weigh = None if self.weigh is None else self.weigh.to(scores.device)
        value = F.cross_entropy(scores, batch.labels, weigh, reduction="sum")
        hits = (scores.argmax(-1) == batch.labels).sum()  # what is reported weighs every example alike
        plain = value.detach() if weigh is None else F.cross_entropy(scores.detach(), batch.labels, reduction="sum")
        if self.auxiliary and torch.is_grad_enabled():
            whole = getattr(model, "module", model)
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
            following = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE).flatten()
            more, _, _ = token_loss(out["hidden"][:, :-1].flatten(0, 1), whole.embed.token.weight, None, following, 0.0)
            value = value + self.auxiliary * more * batch.count / max(1, int((following != IGNORE).sum()))
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": plain, "accuracy": hits})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The label of each item."""
        batch = self.pairs(items, None).to(device)
        return [self.config.label_names[i] for i in model(**batch.inputs)["logits"].argmax(-1).tolist()]


class Tagging(Task):
    """A tag for every word, at its first piece (BERT, 2018, section 5.3); entities are read off BIO tags."""

    outputs = {"Encoder": "tokens", "Decoder": "tokens", "Recurrent": "tokens"}
    metric, kind, columns = "f1", "tagging", ("text", "label")

    @classmethod
    def read(cls, cfg, source, part):
        return read.conll(source, part, cfg.errors, cfg.text, cfg.label)

    @classmethod
    def words(cls, example):
        yield " ".join(example.text)  # words as they are encoded, with blanks before them

    @classmethod
    def described(cls, example: Example) -> str:
        return f"{example.where}: {brief(' '.join(map('/'.join, zip(example.text, example.label))), 300)}"

    @classmethod
    def names(cls, examples):
        return tuple(sorted({t for e in examples for t in e.label}, key=lambda t: (t != "O", t[2:], t)))

    @functools.cached_property
    def blanks(self) -> set[int]:
        """Ids of pieces that are nothing but blanks."""
        return {i for i, piece in enumerate(self.tokenizer.pieces()) if not piece.strip(" \u0120\u2581")}

    def pieces(self, ids: list[int], word: str, where: str) -> tuple[list[int], int]:
        """(ids of a word, at which of them it begins): an unknown one for a word that encodes to nothing, and
        the first that is no blank. Raises DataError for a word that no token stands for."""
        if not ids and self.tokenizer.unk is None:
            raise DataError(f"{where}: the tokenizer has no token for the word {word!r}; leave it out")
        ids = ids or [self.tokenizer.unk]
        return ids, next((k for k, piece in enumerate(ids) if piece not in self.blanks), 0)

    def encode(self, examples, training=False):
        """first: where each word begins in ids, None for words that were cut off."""
        spaced = [w if i == 0 else f" {w}" for e in examples for i, w in enumerate(e.text)]
        encoded, out = iter(self.tokenizer.encode_all(spaced)), []
        for e in examples:
            words = [self.pieces(next(encoded), w, e.where) for w in e.text]
            flat = [p for ids, _ in words for p in ids]
            row = self.around(flat, None, e.where)
            ends = itertools.accumulate((len(ids) for ids, _ in words), initial=0)
            begins = [end + k for end, (_, k) in zip(ends, words)]
            first = [row.starts[0] + at if at < row.kept[0] else None for at in begins]
            labels = [IGNORE] * len(row.ids)
            for at, tag in zip(first, e.label or ()):
                if at is not None:
                    labels[at] = self.number(tag, e.where)
            item = {"ids": row.ids, "types": row.types, "labels": labels, "first": first}
            out.append(item | {"wanted": e.label, "where": e.where, "cut": row.cut(flat)})
        self.note_cut(out)
        return out

    def pairs(self, items, rng):
        inputs = self.inputs(items)
        labels = padded([i["labels"] for i in items], IGNORE)[0]
        return Batch(inputs, labels.flatten(), int((labels != IGNORE).sum()), int(inputs["attention_mask"].sum()))

    def loss(self, model, batch):
        out = model(**batch.inputs)
        scores = out["logits"].float().flatten(0, 1)
        value = F.cross_entropy(scores, batch.labels, reduction="sum", ignore_index=IGNORE)
        hits = ((scores.argmax(-1) == batch.labels) & (batch.labels != IGNORE)).sum()
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach(), "accuracy": hits})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The tags of each item's words; O for words that were cut off."""
        best = model(**self.pairs(items, None).to(device).inputs)["logits"].argmax(-1).tolist()
        names = self.config.label_names
        return [["O" if at is None else names[row[at]] for at in i["first"]] for i, row in zip(items, best)]


def covered(answer: tuple[int, str], offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and the last token that hold some of an answer (its place and text); None where none does."""
    start, end = answer[0], answer[0] + len(answer[1])
    inside = [i for i, (x, y) in enumerate(offsets) if x < end and y > start]
    return (inside[0], inside[-1]) if inside else None


class Answering(Task):
    """Where in a text the answer to a question stands: [CLS] question [SEP] text [SEP] (BERT, 2018, section 4.2). A long text is read
    in windows that overlap by `stride` tokens; a question without an answer points at the first token (section 4.3). longest: tokens of
    an answer."""

    outputs = {"Encoder": "span", "EncoderDecoder": "span"}
    metric, kind, columns = "f1", "answers", ()

    def __init__(self, tokenizer, config, length, stride=64, longest=30):
        super().__init__(tokenizer, config, length)
        if stride < 1 or longest < 1:
            raise ValueError(f"stride={stride} and longest={longest} must be at least 1")
        self.stride, self.longest, self.unanswerable = stride, longest, False

    @classmethod
    def read(cls, cfg, source, part):
        return read.squad(source, part, cfg.errors)

    @classmethod
    def described(cls, example: Example) -> str:
        e = example
        answers = " | ".join(text for _, text in e.label) or "no answer"
        return f"{e.where}: {brief(e.text)} | {brief(e.pair, 240)}  ->  {brief(answers)}"

    def encode(self, examples, training=False):
        """One item a window. label: the first and the last token of the first answer that lies in it, (0, 0)
        where none does; in training such windows of questions with answers are left out. Says how many
        questions have no answer that fits a window, or that is short enough to be said. Raises DataError for
        a question that leaves no room for the text, and where nothing is left to train on."""
        self.unanswerable = self.unanswerable or any(not e.label for e in examples)
        questions = self.texts(examples, "text")
        encoded, lost, long, out = {}, [], [], []
        for number, (e, q) in enumerate(zip(examples, questions)):
            if e.pair not in encoded:
                whole = self.tokenizer.engine.encode(e.pair, add_special_tokens=False)
                encoded[e.pair] = whole.ids, whole.offsets
            ids, offsets = encoded[e.pair]
            room = self.length - len(q) - sum(map(len, self.marks(True)))
            if room <= self.stride:
                what = f"the question has {len(q)} tokens, which leaves {room} of {self.length} for the text"
                raise DataError(f"{e.where}: {what}; lower stride={self.stride}, or shorten it")
            spans = [span for a in e.label or () if (span := covered(a, offsets)) is not None]
            fits = False
            for start in range(0, max(1, len(ids) - self.stride), room - self.stride):
                part = offsets[start : start + room]
                row = self.around(q, ids[start : start + room], e.where)
                first = row.starts[1]
                inside = next(((a, z) for a, z in spans if start <= a and z < start + len(part)), None)
                label = (0, 0) if inside is None else tuple(first + at - start for at in inside)
                fits = fits or inside is not None
                if inside is not None or not e.label or not training:
                    item = {"ids": row.ids, "types": row.types, "label": label, "first": first}
                    item |= {"question": number, "context": e.pair, "wanted": [t for _, t in e.label]}
                    out.append(item | {"offsets": part, "where": e.where} | e.more)
            if e.label and not fits:
                lost.append(e.where)
            elif e.label and all(z - a >= self.longest for a, z in spans):
                long.append(e.where)
        if lost:
            what = f"{len(lost)} of {len(examples)} questions have no answer that fits a window"
            read.note(f"{lost[0]}: {what}, this one the first; windows share stride={self.stride} tokens")
        if long:
            what = f"{len(long)} of {len(examples)} questions have answers of more than longest={self.longest} tokens"
            read.note(f"{long[0]}: {what}, this one the first; so many are never said")
        if training and not out:
            raise DataError(f"{lost[0]}: no answer of any question fits a window; raise stride or data.length")
        return out

    def pairs(self, items, rng):
        inputs = self.inputs(items)
        return Batch(inputs, torch.tensor([i["label"] for i in items]), len(items), int(inputs["attention_mask"].sum()))

    def loss(self, model, batch):
        out, labels = model(**batch.inputs), batch.labels
        hidden = batch.inputs["attention_mask"] == 0
        start, end = (out[k].float().masked_fill(hidden, -torch.inf) for k in ("start_logits", "end_logits"))
        value = (F.cross_entropy(start, labels[:, 0], reduction="sum") + F.cross_entropy(end, labels[:, 1], reduction="sum")) / 2
        hits = ((start.argmax(-1) == labels[:, 0]) & (end.argmax(-1) == labels[:, 1])).sum()
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": value.detach(), "accuracy": hits})

    @torch.inference_mode()
    def spans(self, model, items, device="cpu"):
        """(score, answer, score of no answer) of each window."""
        out = model(**self.pairs(items, None).to(device).inputs)
        found = []
        for i, start, end in zip(items, out["start_logits"].float(), out["end_logits"].float()):
            a, n = i["first"], len(i["offsets"])
            none = float(start[0] + end[0])
            if not n:
                found.append((-float("inf"), "", none))
                continue
            scores = start[a : a + n, None] + end[None, a : a + n]
            allowed = torch.ones_like(scores).triu().tril(self.longest - 1).bool()
            best = int(scores.masked_fill(~allowed, -torch.inf).argmax())
            x, y = i["offsets"][best // n][0], i["offsets"][best % n][1]
            found.append((float(scores.flatten()[best]), i["context"][x:y].strip(), none))
        return found

    def predict(self, model, items, device="cpu"):
        return self.joined(items, self.spans(model, items, device))

    def joined(self, items, found):
        """The answer of each question, the best of all its windows, at each of its items."""
        best, none = {}, {}
        for i, (score, text, null) in zip(items, found):
            q = i["question"]
            best[q] = max(best.get(q, (-float("inf"), "")), (score, text))
            none[q] = min(none.get(q, float("inf")), null)
        says = {q: "" if self.unanswerable and none[q] > score else text for q, (score, text) in best.items()}
        return [says[i["question"]] for i in items]


class Choice(Task):
    """Which of several texts goes with a question; the label is its number, from 0 on. A decoder (GPT-1, 2018, section 3.3) goes on
    predicting the right one's tokens, with weight `auxiliary`."""

    outputs = {"Encoder": "choice", "Decoder": "double"}
    kind = "choice"
    columns = ("text", "label")

    def __init__(self, tokenizer, config, length, auxiliary=0.0, cut=False):
        super().__init__(tokenizer, config, length, cut)
        if auxiliary < 0 or (auxiliary and self.topology != "Decoder"):
            raise ValueError(f"auxiliary={auxiliary}: the weight of a decoder's language model loss, 0 or more")
        self.auxiliary = auxiliary

    @classmethod
    def read(cls, cfg, source, part):
        names = [c.strip() for c in (cfg.choices or "choices").split(",")]
        columns = {c: getattr(cfg, c) for c in cls.columns} | {f"choice{i}": n for i, n in enumerate(names)}
        out = read.table(source, columns, part, cfg.errors)
        for e in out:
            given = [e.more[f"choice{i}"] for i in range(len(names))]
            given = given[0] if len(given) == 1 and isinstance(given[0], list) else given
            choices = [read.written(c, e.where, "choices") for c in given]
            if len(choices) < 2 or None in choices:
                what = "needs a list of at least two choices, none of them null"
                raise DataError(f"{e.where}: {what}; name its columns with data.choices=a,b")
            e.more = {"choices": choices}
            cls.chosen(e)
        if part in ("train", "valid"):
            cls.labelled(out)
        if len(out) > 20 and all(cls.chosen(e) for e in out):
            read.note(f"{out[0].where}: no label of {len(out)} is 0; labels number choices from 0 on")
        return out

    @classmethod
    def chosen(cls, e: Example) -> int | None:
        """The number of the choice that a label names, from 0. Raises DataError for one that names none."""
        label, count = None if e.label is None else read.spelled(e.label), len(e.more["choices"])
        if label is not None and label not in map(str, range(count)):
            hint = "; number them from 0 on" if label == str(count) else ""
            what = f"the label {e.label} must be the number of a choice, 0 to {count - 1}"
            raise DataError(f"{e.where}: {what}{hint}")
        return None if label is None else int(label)

    @classmethod
    def described(cls, example: Example) -> str:
        e, right = example, cls.chosen(example)
        choices = [f"{'*' if i == right else ''}{brief(c)}" for i, c in enumerate(e.more["choices"])]
        line = " | ".join([brief(e.text), *choices])
        return f"{e.where}: {line}" + ("" if right is None else f"  ->  {e.label}")

    @classmethod
    def names(cls, examples):
        cls.alike(cls.labelled(examples))

    @classmethod
    def alike(cls, examples: list[Example]) -> None:
        """Raises DataError where not all examples have as many choices."""
        for e in examples:
            there, others = len(e.more["choices"]), len(examples[0].more["choices"])
            if there != others:
                raise DataError(f"{e.where}: has {there} choices, others {others}")

    def encode(self, examples, training=False):
        self.alike(examples)
        out = []
        for e, q in zip(examples, self.texts(examples, "text")):
            choices = self.tokenizer.encode_all(e.more["choices"])
            rows = [self.around(q, c, e.where) for c in choices]
            right = self.chosen(e)
            item = {"rows": [(r.ids, r.types) for r in rows], "ids": max((r.ids for r in rows), key=len)}
            item |= {"label": right, "wanted": right, "where": e.where}
            out.append(item | {"cut": any(r.cut(q, c) for r, c in zip(rows, choices))})
        self.note_cut(out)
        return out

    def pairs(self, items, rng):
        flat = [{"ids": ids, "types": types} for i in items for ids, types in i["rows"]]
        C = len(items[0]["rows"])
        inputs = {k: v.unflatten(0, (-1, C)) for k, v in self.inputs(flat).items()}
        tokens = int(inputs["attention_mask"].sum())
        if self.topology == "Decoder":
            inputs["mc_token_ids"] = inputs["attention_mask"].sum(-1) - 1
        labels = torch.tensor([IGNORE if i["label"] is None else i["label"] for i in items])
        return Batch(inputs, labels, len(items), tokens)

    def loss(self, model, batch):
        decoder = self.topology == "Decoder"
        more = {}
        if decoder:
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
            right = (batch.labels[:, None] == torch.arange(ids.shape[1], device=ids.device))[..., None]
            following = torch.full_like(ids, IGNORE)
            following[..., :-1] = ids[..., 1:].masked_fill(~(mask[..., 1:] & right), IGNORE)
            more = {"labels": following.flatten()}
        out = model(**batch.inputs, **more)
        scores = out["mc_logits" if decoder else "logits"].float()
        value = F.cross_entropy(scores, batch.labels, reduction="sum")
        hits, plain = (scores.argmax(-1) == batch.labels).sum(), value.detach()
        if decoder and self.auxiliary:
            value = value + self.auxiliary * out["loss"] * batch.count / max(1, int((following != IGNORE).sum()))
        return Loss(with_auxiliary(value, out, batch.count), batch.count, {"loss": plain, "accuracy": hits})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        batch = self.pairs(items, None).to(device)
        out = model(**batch.inputs)
        return out["mc_logits" if "mc_logits" in out else "logits"].argmax(-1).tolist()


class Text(Task):
    """A text for a text: summaries, translations, answers. The column `task` names a row's task, which is put before its text
    ("translate: ..."; T5, 2020, section 2.4); tasks are mixed by their sizes to the power 1 / temperature (section 3.5.2). tokenize: how BLEU
    splits texts (see metrics.bleu), by their script where it is auto."""

    outputs = {"EncoderDecoder": "lm", "Decoder": "lm", "RecurrentEncoderDecoder": "lm"}
    metric, kind, columns = "bleu", "text", ("text", "pair")

    def __init__(self, tokenizer, config, length, temperature=1.0, smoothing=0.0, cut=False, tokenize="auto"):
        super().__init__(tokenizer, config, length, cut)
        if temperature < 1:
            raise ValueError(f"temperature={temperature}: 1 mixes tasks by size, more evens them out")
        self.temperature, self.tokenize = temperature, tokenize
        self.inner = Causal(tokenizer) if self.topology == "Decoder" else SequenceToSequence(tokenizer, config, smoothing)

    @classmethod
    def read(cls, cfg, source, part):
        out = []
        paths = read.paths_of(source, part)
        for path in paths:
            task = {"task": cfg.task} if cfg.task else {}
            found = read.table(str(path), {c: getattr(cfg, c) for c in cls.columns} | task, part, cfg.errors)
            for e in found:
                if e.pair in (None, ""):
                    raise DataError(f"{e.where}: has no target text; name its column with data.pair=NAME")
                if task:
                    e.more["task"] = read.written(e.more["task"], e.where, "task")
                e.more.setdefault("task", path.stem.partition(".")[0] if len(paths) > 1 else None)
            out += found
        return out

    @staticmethod
    def source(e: Example) -> str:
        """What is read of an example: its text, behind the name of its task where it has one."""
        return f"{e.more['task']}: {e.text}" if e.more.get("task") else e.text

    @classmethod
    def described(cls, example: Example) -> str:
        return f"{example.where}: {brief(cls.source(example))}  ->  {brief(example.pair)}"

    def encode(self, examples, training=False):
        sources = [self.source(e) for e in examples]
        a, b = self.tokenizer.encode_all(sources), self.tokenizer.encode_all([e.pair for e in examples])
        joined, out = self.topology == "Decoder", []
        for e, source, x, y in zip(examples, sources, a, b):
            room = self.length - 3 if joined else self.length - 1  # with what stands around them
            long = len(x) + len(y) > room if joined else max(len(x), len(y)) > room
            if long and not self.cut:
                size = len(x) + len(y) if joined else max(len(x), len(y))
                what = f"has {size} tokens and the model reads {room} of them"
                raise DataError(f"{e.where}: {what}; shorten it, or task='text(cut=true)'")
            if long:
                x, y = _shortened(x, y, room) if joined else (x[:room], y[:room])
            item = {"ids": x, "target": y, "wanted": e.pair, "source": source, "where": e.where}
            out.append(item | {"task": e.more.get("task"), "cut": long})
        self.note_cut(out)
        return self.mixed(out) if training and self.temperature > 1 else out

    def mixed(self, items):
        """Items of small tasks repeated until the sizes are those to the power 1 / temperature; the largest task keeps its size."""
        groups = {}
        for i in items:
            groups.setdefault(i["task"], []).append(i)
        most = max(map(len, groups.values()))
        wanted = {k: round(most * (len(g) / most) ** (1 / self.temperature)) for k, g in groups.items()}
        return [g[j % len(g)] for k, g in groups.items() for j in range(wanted[k])]

    def pairs(self, items, rng):
        return self.inner.pairs([(i["ids"], i["target"]) for i in items], rng)

    def loss(self, model, batch):
        return self.inner.loss(model, batch)

    def show(self, model, run):
        return ""


TASKS = {"classification": Classification, "tagging": Tagging, "answers": Answering, "choice": Choice, "text": Text}
