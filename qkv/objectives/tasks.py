"""Ways to fine-tune: what a labelled example becomes, how it is scored, and what the model says of it.

Dims: B examples, C choices, T tokens, N labels.
"""

import typing

import torch
import torch.nn.functional as F

from ..data import examples as read
from ..data.batches import Batch, padded
from ..data.text import DataError
from ..models.loss import IGNORE, token_loss
from .base import Loss, Objective
from .language import Causal
from .restore import SequenceToSequence


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
    def read(cls, cfg, source, part):
        """Examples of a source, for a Data config."""
        return read.table(source, {c: getattr(cfg, c) for c in cls.columns}, part, cfg.errors)

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

    def number(self, label, where):
        """The class number of a label."""
        names = self.config.label_names
        if str(label) not in names:
            raise DataError(f"{where}: the label {str(label)!r} was not seen in training; there were {', '.join(names)}")
        return names.index(str(label))

    def around(self, a, b, where):
        """(ids, types) of one or two texts with what the topology puts around them. Raises DataError for one that is too long."""
        t = self.tokenizer
        ends = [] if t.eos is None or t.eos == t.pad else [t.eos]
        if self.topology == "Encoder":
            first, mid, last = [t.cls], [t.sep], [t.sep]
            if None in (t.cls, t.sep):
                raise ValueError("this task needs a tokenizer with [CLS] and [SEP]")
        elif self.topology == "Decoder":  # delimiters (GPT-1, 2018, section 3.3)
            first = [] if t.bos is None or t.bos == t.pad else [t.bos]
            mid, last = [t.sep if t.sep is not None else t.eos], ends
        else:
            first, mid, last = [], ends, ends
        room = self.length - len(first) - len(last) - (len(mid) if b is not None else 0)
        over = len(a) + len(b or ()) - room
        if over > 0:
            if not self.cut:
                raise DataError(
                    f"{where}: has {len(a) + len(b or ())} tokens and the model reads {room} of them; shorten it, or cut such texts: "
                    f"task='{self.written}(cut=true)'"
                )
            a, b = (a[:room], b) if b is None else _shortened(a, b, room)
        ids = [*first, *a, *last] if b is None else [*first, *a, *mid, *b, *last]
        types = [0] * len(ids) if b is None else [0] * (len(first) + len(a) + len(mid)) + [1] * (len(b) + len(last))
        return ids, types

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


def _shortened(a, b, room):
    """Both cut, the longer one first, until they fit."""
    most = max(room // 2, room - min(len(a), len(b)))
    a, b = (a[:most], b[: room - len(a[:most])]) if len(a) > len(b) else (a, b)
    return (a, b[: room - len(a)]) if len(a) + len(b) > room else (a, b)


class Classification(Task):
    """A label for a text or a pair of texts. An encoder reads [CLS] A [SEP] B [SEP] (BERT, 2018, section 4.1), a decoder A, a
    delimiter, B and an end token, and may go on predicting tokens: `auxiliary` is the weight of that loss (GPT-1, 2018, section 3.2).
    weights: none, or balanced, which weighs classes by the inverse of their frequency. cut: shorten what is too long."""

    outputs = {"Encoder": "sequence", "Decoder": "sequence", "EncoderDecoder": "sequence", "Recurrent": "sequence"}

    @classmethod
    def names(cls, examples):
        for e in examples:
            if e.label is None or e.label == "":
                raise DataError(f"{e.where}: has no label; name its column with data.label=NAME")
        return tuple(sorted({str(e.label) for e in examples}, key=lambda x: (0, int(x), x) if x.lstrip("-").isdigit() else (1, 0, x)))

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
            ids, types = self.around(a, b, e.where)
            label = None if e.label is None else self.number(e.label, e.where)
            out.append({"ids": ids, "types": types, "label": label, "wanted": e.label, "where": e.where})
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
        hits = (scores.argmax(-1) == batch.labels).sum()
        plain = value.detach()
        if self.auxiliary and torch.is_grad_enabled():
            whole = getattr(model, "module", model)
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
            following = ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE).flatten()
            more, _, _ = token_loss(out["hidden"][:, :-1].flatten(0, 1), whole.embed.token.weight, None, following, 0.0)
            value = value + self.auxiliary * more * batch.count / max(1, int((following != IGNORE).sum()))
        if "auxiliary" in out:
            value = value + out["auxiliary"] * batch.count
        return Loss(value, batch.count, {"loss": plain, "accuracy": hits})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The label of each item."""
        batch = self.pairs(items, None).to(device)
        return [self.config.label_names[i] for i in model(**batch.inputs)["logits"].argmax(-1).tolist()]


class Tagging(Task):
    """A tag for every word, at its first piece (BERT, 2018, section 5.3); entities are read off BIO tags."""

    outputs = {"Encoder": "tokens", "Decoder": "tokens", "Recurrent": "tokens"}
    metric, kind = "f1", "tagging"

    @classmethod
    def read(cls, cfg, source, part):
        return read.conll(source, part, cfg.errors)

    @classmethod
    def names(cls, examples):
        return tuple(sorted({t for e in examples for t in e.label}, key=lambda t: (t != "O", t[2:], t)))

    def encode(self, examples, training=False):
        spaced = [w if i == 0 else f" {w}" for e in examples for i, w in enumerate(e.text)]
        pieces, out = iter(self.tokenizer.encode_all(spaced)), []
        for e in examples:
            words = [next(pieces) or [self.tokenizer.unk or 0] for _ in e.text]
            flat = [p for w in words for p in w]
            ids, types = self.around(flat, None, e.where)
            before = 1 if ids[: len(flat)] != flat else 0
            at, first = before, []
            for w in words:
                first.append(at)
                at += len(w)
            first = [f for f in first if f < before + len(ids)]
            labels = [IGNORE] * len(ids)
            for f, tag in zip(first, e.label or ()):
                if f < len(ids):
                    labels[f] = self.number(tag, e.where)
            out.append({"ids": ids, "types": types, "labels": labels, "first": first, "wanted": e.label, "where": e.where})
        return out

    def pairs(self, items, rng):
        inputs = self.inputs(items)
        labels = padded([i["labels"] for i in items], IGNORE)[0]
        return Batch(inputs, labels.flatten(), int((labels != IGNORE).sum()), int(inputs["attention_mask"].sum()))

    def loss(self, model, batch):
        scores = model(**batch.inputs)["logits"].float().flatten(0, 1)
        value = F.cross_entropy(scores, batch.labels, reduction="sum", ignore_index=IGNORE)
        hits = ((scores.argmax(-1) == batch.labels) & (batch.labels != IGNORE)).sum()
        return Loss(value, batch.count, {"loss": value.detach(), "accuracy": hits})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        """The tags of each item's words; O for words that were cut off."""
        best = model(**self.pairs(items, None).to(device).inputs)["logits"].argmax(-1).tolist()
        names = self.config.label_names
        return [[names[row[f]] if f < len(i["ids"]) else "O" for f in i["first"]] for i, row in zip(items, best)]


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

    def encode(self, examples, training=False):
        """One item a window."""
        self.unanswerable = self.unanswerable or any(not e.label for e in examples)
        questions = self.texts(examples, "text")
        encoded = {}
        out = []
        for number, (e, q) in enumerate(zip(examples, questions)):
            if e.pair not in encoded:
                whole = self.tokenizer.engine.encode(e.pair, add_special_tokens=False)
                encoded[e.pair] = whole.ids, whole.offsets
            ids, offsets = encoded[e.pair]
            room = self.length - len(q) - 3
            if room <= self.stride:
                raise DataError(
                    f"{e.where}: the question has {len(q)} tokens, which leaves {room} of {self.length} for the text; lower stride, or shorten it"
                )
            start = 0
            while True:
                part = ids[start : start + room]
                around, types = self.around(q, part, e.where)
                first = next(i for i in range(len(around)) if around[i : i + len(part)] == part and i >= len(q)) if part else len(q)
                label = self._label(e.label, offsets[start : start + len(part)], first)
                if not (training and label == (0, 0) and e.label):  # in training, windows without the answer teach nothing much
                    out.append({"ids": around, "types": types, "label": label, "first": first, "offsets": offsets[start : start + len(part)],
                                "question": number, "context": e.pair, "wanted": [t for _, t in e.label], "where": e.where, **e.more})  # fmt: skip
                if start + room >= len(ids):
                    break
                start += room - self.stride
        return out

    @staticmethod
    def _label(answers, offsets, first):
        if not answers:
            return 0, 0
        a, z = answers[0][0], answers[0][0] + len(answers[0][1])
        inside = [i for i, (x, y) in enumerate(offsets) if x < z and y > a]
        if not inside or offsets[inside[0]][0] > a or offsets[inside[-1]][1] < z:
            return 0, 0
        return first + inside[0], first + inside[-1]

    def pairs(self, items, rng):
        inputs = self.inputs(items)
        return Batch(inputs, torch.tensor([i["label"] for i in items]).flatten(), len(items), int(inputs["attention_mask"].sum()))

    def loss(self, model, batch):
        out, labels = model(**batch.inputs), batch.labels.view(-1, 2)
        hidden = batch.inputs["attention_mask"] == 0
        start, end = (out[k].float().masked_fill(hidden, -torch.inf) for k in ("start_logits", "end_logits"))
        value = (F.cross_entropy(start, labels[:, 0], reduction="sum") + F.cross_entropy(end, labels[:, 1], reduction="sum")) / 2
        hits = ((start.argmax(-1) == labels[:, 0]) & (end.argmax(-1) == labels[:, 1])).sum()
        return Loss(value, batch.count, {"loss": value.detach(), "accuracy": hits})

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
            found.append((float(scores.flatten()[best]), i["context"][x:y], none))
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
            texts = [e.more[f"choice{i}"] for i in range(len(names))]
            e.more = {"choices": texts[0] if isinstance(texts[0], list) else texts}
            if not isinstance(e.more["choices"], list) or len(e.more["choices"]) < 2:
                raise DataError(f"{e.where}: needs a list of at least two choices; name its columns with data.choices=a,b")
            if e.label is not None and not (str(e.label).isdigit() and int(e.label) < len(e.more["choices"])):
                raise DataError(f"{e.where}: the label {e.label!r} must be the number of a choice, 0 to {len(e.more['choices']) - 1}")
        return out

    @classmethod
    def names(cls, examples):
        counts = {len(e.more["choices"]) for e in examples}
        if len(counts) > 1:
            odd = next(e for e in examples if len(e.more["choices"]) != len(examples[0].more["choices"]))
            raise DataError(f"{odd.where}: has {len(odd.more['choices'])} choices, others {len(examples[0].more['choices'])}")
        return None

    def encode(self, examples, training=False):
        out = []
        for e, q in zip(examples, self.texts(examples, "text")):
            rows = [self.around(q, c, e.where) for c in self.tokenizer.encode_all([str(c) for c in e.more["choices"]])]
            out.append({"rows": rows, "ids": max((r[0] for r in rows), key=len), "label": None if e.label is None else int(e.label),
                        "wanted": e.label, "where": e.where})  # fmt: skip
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
            right = F.one_hot(batch.labels, ids.shape[1]).bool()[..., None]
            following = torch.full_like(ids, IGNORE)
            following[..., :-1] = ids[..., 1:].masked_fill(~(mask[..., 1:] & right), IGNORE)
            more = {"labels": following.flatten()}
        out = model(**batch.inputs, **more)
        scores = out["mc_logits" if decoder else "logits"].float()
        value = F.cross_entropy(scores, batch.labels, reduction="sum")
        hits, plain = (scores.argmax(-1) == batch.labels).sum(), value.detach()
        if decoder and self.auxiliary:
            value = value + self.auxiliary * out["loss"] * batch.count / max(1, int((following != IGNORE).sum()))
        return Loss(value, batch.count, {"loss": plain, "accuracy": hits})

    @torch.inference_mode()
    def predict(self, model, items, device="cpu"):
        batch = self.pairs(items, None).to(device)
        out = model(**batch.inputs)
        return out["mc_logits" if "mc_logits" in out else "logits"].argmax(-1).tolist()


class Text(Task):
    """A text for a text: summaries, translations, answers. The column `task` names a row's task, which is put before its text
    ("translate: ..."; T5, 2020, section 2.4); tasks are mixed by their sizes to the power 1 / temperature (section 3.5.2)."""

    outputs = {"EncoderDecoder": "lm", "Decoder": "lm", "RecurrentEncoderDecoder": "lm"}
    metric, kind, columns = "bleu", "text", ("text", "pair")

    def __init__(self, tokenizer, config, length, temperature=1.0, smoothing=0.0, cut=False):
        super().__init__(tokenizer, config, length, cut)
        if temperature < 1:
            raise ValueError(f"temperature={temperature}: 1 mixes tasks by size, more evens them out")
        self.temperature = temperature
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
                e.more.setdefault("task", path.stem.partition(".")[0] if len(paths) > 1 else None)
            out += found
        return out

    def encode(self, examples, training=False):
        before = lambda e: f"{e.more['task']}: {e.text}" if e.more.get("task") else str(e.text)
        a, b = self.tokenizer.encode_all([before(e) for e in examples]), self.tokenizer.encode_all([str(e.pair) for e in examples])
        out = []
        for e, x, y in zip(examples, a, b):
            size = len(x) + len(y) + 3 if self.topology == "Decoder" else max(len(x), len(y)) + 1
            if size > self.length:
                if not self.cut:
                    raise DataError(
                        f"{e.where}: needs {size} tokens and the model reads {self.length}; shorten it, or task='text(cut=true)'"
                    )
                room = self.length - 3 if self.topology != "Decoder" else (self.length - 3) // 2
                x, y = x[:room], y[:room]
            out.append({"ids": x, "target": y, "wanted": e.pair, "source": before(e), "where": e.where, "task": e.more.get("task")})
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
