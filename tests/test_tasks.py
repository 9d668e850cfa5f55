"""Fine-tuning: labelled examples in, heads on top, metrics and predictions out."""

import gzip
import itertools
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers.processors import TemplateProcessing

import qkv
from qkv import data, models, objectives
from qkv.checkpoints import runs
from qkv.data import DataError, examples
from qkv.data import tokenizer as tokenizers
from qkv.evaluation import metrics
from qkv.evaluation.tasks import judge
from qkv.training import folder, loop, optim, recipe

GOOD, BAD = ("a fine and moving film", "wonderful , warm and clever", "the best of the year"), ("a dull and empty film", "cold , lazy and stupid", "the worst of the year")  # fmt: skip


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows(d, source, **fields):
    return examples.table(source, {"text": None, "pair": None, "label": None} | fields)


def test_tables_of_every_kind(tmp_path):
    tsv = write(tmp_path / "a.tsv", "good film\t1\nbad film\t0\n")
    csv = write(tmp_path / "a.csv", 'label,sentence\n1,"good, film"\n0,bad\n')
    jsonl = write(tmp_path / "a.jsonl", '{"premise": "x", "hypothesis": "y", "label": "yes"}\n')
    assert [(e.text, e.label) for e in rows(None, tsv)] == [("good film", "1"), ("bad film", "0")]
    assert [(e.text, e.label) for e in rows(None, csv)] == [("good, film", "1"), ("bad", "0")]
    (one,) = rows(None, jsonl)
    assert (one.text, one.pair, one.label) == ("x", "y", "yes") and one.where.endswith("a.jsonl, row 1")
    wide = write(tmp_path / "b.tsv", "gj04\t1\t\tThe sailors rode.\n")
    assert [(e.text, e.label) for e in examples.table(wide, {"text": 4, "label": 2})] == [("The sailors rode.", "1")]
    with gzip.open(tmp_path / "c.tsv.gz", "wt") as f:
        f.write("text\tlabel\nhello\t3\n")
    assert rows(None, str(tmp_path / "c.tsv.gz"))[0].label == "3"


BROKEN = (
    ("x.tsv", "a\tb\tc\n", {}, "has 3 columns and no header: give data.text=1"),
    ("x.csv", "text,label\nhi,1\n", {"label": "mood"}, "has no column 'mood'"),
    ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, "row 2: no column 'label'"),
    ("x.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, "row 2: not valid JSON"),
    ("x.tsv", "text\tlabel\nonly text\n", {}, "row 2: has 1 columns"),
    ("x.csv", "", {}, "is empty"),
    ("x.tsv", "a\t1\nb\t0\n", {"text": 5}, "row 1: has 2 columns, and column 5 is wanted"),
)


@pytest.mark.parametrize("name,text,fields,say", BROKEN)
def test_a_broken_table_names_its_row(tmp_path, name, text, fields, say):
    with pytest.raises(DataError, match=say):
        rows(None, write(tmp_path / name, text), **fields)


def test_conll_and_its_errors(tmp_path):
    good = write(tmp_path / "a.conll", "Jim B-per\nSmith I-per\nran O\n\nRome\tB-loc\n\n")
    a, b = examples.conll(good)
    assert a.text == ["Jim", "Smith", "ran"] and a.label == ["B-per", "I-per", "O"] and b.text == ["Rome"] and b.where.endswith("row 5")
    for text, say in (
        ("Jim B-per\nran\n", "row 2: 'ran' has no tag"),
        ("the O\nJim B-per\n\nthe O\nSmith I-per\n", "row 5: I-per goes on from O"),
        ("Jim B-per\nRome I-loc\n", "row 2: I-loc goes on from B-per"),
        ("Jim X-per\n", "row 1: the tag 'X-per' is none of"),
    ):
        with pytest.raises(DataError, match=say):
            examples.conll(write(tmp_path / "b.conll", text))


def squad_file(path, start=4, text="Romans", impossible=False):
    qa = {"id": "q1", "question": "Who came?", "answers": [{"answer_start": start, "text": text}], "is_impossible": impossible}
    return write(path, json.dumps({"data": [{"paragraphs": [{"context": "The Romans came in the morning.", "qas": [qa]}]}]}))


def test_squad_and_its_errors(tmp_path):
    (e,) = examples.squad(squad_file(tmp_path / "a.json"))
    assert (e.text, e.label) == ("Who came?", [(4, "Romans")])
    assert examples.squad(squad_file(tmp_path / "n.json", impossible=True))[0].label == []
    with pytest.raises(DataError, match="question q1: the answer 'Romans' is not at 5 of the text; 'omans ' stands there"):
        examples.squad(squad_file(tmp_path / "b.json", start=5))
    with pytest.raises(DataError, match="is not SQuAD JSON"):
        examples.squad(write(tmp_path / "c.json", '{"rows": []}'))


def test_entities_are_whole_or_wrong():
    truth = [["B-per", "I-per", "O", "B-loc"], ["O", "B-loc", "B-loc"]]
    assert metrics.entities(truth[1]) == {("loc", 1, 1), ("loc", 2, 2)}
    said = [["B-per", "O", "O", "B-loc"], ["O", "I-loc", "B-loc"]]  # half a name is no name; an I- alone begins one
    got = metrics.entity_f1(truth, said)
    assert got == {"precision": 3 / 4, "recall": 3 / 4, "f1": 0.75}
    assert metrics.entity_f1(truth, [["O"] * 4, ["O"] * 3])["f1"] == 0.0


def test_answers_are_compared_as_squad_does():
    got = metrics.answers([["the Romans", "Romans"], [], ["Rome"]], ["Romans.", "", "a city near Rome"])
    assert got["exact"] == 2 / 3 and abs(got["f1"] - (1 + 1 + 0.5) / 3) < 1e-9


def train(tmp_path, preset, section, source, **fields):
    raw = {"model": {"preset": preset, "dim": 32, "length": 48, "hidden": 64} | fields.pop("model", {}),
           "data": {"source": str(source), "tokenizer": "wordpiece", "vocab": 300} | fields.pop("data", {}),
           "train": {"threads": 1, "batch": 8, "lr": 3e-3, "warmup": 2, "epochs": 25.0, "schedule": "constant"} | section}  # fmt: skip
    where = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    where.mkdir()
    (where / "recipe.toml").write_text(recipe.dumps(recipe.resolve(raw)))
    return loop.train(recipe.resolve(raw), where), where


def sentiment(tmp_path, names=("neg", "pos")):
    lines = [f"{t}\t{names[1]}" for t in GOOD] + [f"{t}\t{names[0]}" for t in BAD]
    return write(tmp_path / "train.tsv", "text\tlabel\n" + "\n".join(lines * 4) + "\n")


@pytest.mark.parametrize("preset,task", (("bert-nano", "classification(weights=balanced)"), ("gpt1-nano", "classification(auxiliary=0.5)"),
                                         ("bart-nano", "classification"), ("roberta-nano", "classification")))  # fmt: skip
def test_a_classifier_learns_and_keeps_its_labels(tmp_path, preset, task):
    path = sentiment(tmp_path)
    known = {"tokenizer": "char"} if preset == "gpt1-nano" else {}  # a trained one breaks ties anew in every process
    held, where = train(tmp_path, preset, {"task": task}, path, data={"valid": path} | known)
    assert held["accuracy"] == 1.0 and held["f1"] == 1.0
    model = qkv.load(runs.newest(where / "checkpoints")[0])
    assert model.config.label_names == ("neg", "pos")
    raw = json.loads((runs.newest(where / "checkpoints")[0] / "config.json").read_text())
    assert raw.get("id2label", raw.get("qkv", {}).get("label_names")) in ({"0": "neg", "1": "pos"}, ["neg", "pos"])


def test_eval_writes_what_the_model_says(tmp_path, monkeypatch, capsys):
    from qkv.cli.main import main

    path = sentiment(tmp_path)
    _, where = train(tmp_path, "bert-nano", {"task": "classification"}, path, data={"valid": path})
    other = write(tmp_path / "test.tsv", f"text\tlabel\n{GOOD[0]}\tpos\n{BAD[0]}\tneg\n")
    assert main(["eval", str(where), other, f"out={tmp_path / 'p.jsonl'}"]) == 0
    said = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [s["said"] for s in said] == ["pos", "neg"] and said[1]["where"].endswith("test.tsv, row 3")
    assert "accuracy    100.00 %" in capsys.readouterr().out


def test_pairs_are_read_with_types(tmp_path):
    tokenizer = tokenizers.train("wordpiece", ["a b c d e f"] * 9, 60)
    cfg = models.preset("bert-nano", vocab=len(tokenizer), output="sequence", label_names=("n", "y"), pad=tokenizer.pad)
    o = objectives.make_task("classification", cfg, tokenizer, 16)
    (item,) = o.encode([examples.Example("a b", "c", "y", "here")])
    t = tokenizer
    assert item["ids"] == [t.cls, *t.encode("a b"), t.sep, *t.encode("c"), t.sep] and item["types"] == [0, 0, 0, 0, 1, 1]
    assert item["label"] == 1


def tagged(tmp_path):
    text = "".join(
        f"{n} B-per\nwent O\nto O\n{p} B-loc\n{q} I-loc\n\n"
        for n in ("Jim", "Ann", "Bob")
        for p, q in (("New", "York"), ("Los", "Angeles"))
    )
    return write(tmp_path / "train.conll", text * 3)


def test_a_tagger_learns_entities(tmp_path):
    path = tagged(tmp_path)
    held, where = train(tmp_path, "distilbert-nano", {"task": "tagging"}, path, data={"valid": path})
    assert held["f1"] == 1.0
    model = qkv.load(runs.newest(where / "checkpoints")[0])
    assert model.config.label_names == ("O", "B-loc", "I-loc", "B-per")


def test_only_the_first_piece_of_a_word_has_a_tag():
    tokenizer = tokenizers.train("wordpiece", ["unbelievable things happen"], 40)
    cfg = models.preset("bert-nano", vocab=len(tokenizer), output="tokens", labels=2, label_names=("O", "B-x"), pad=tokenizer.pad)
    o = objectives.make_task("tagging", cfg, tokenizer, 64)
    (item,) = o.encode([examples.Example(["unbelievable", "thingy"], None, ["B-x", "O"], "here")])
    first = len(tokenizer.encode("unbelievable"))
    assert first > 1 and [i for i, x in enumerate(item["labels"]) if x >= 0] == [1, 1 + first] and item["labels"][1] == 1


WORDS = ["unbelievable", "things", "don't", "happen", "U.S.", "\u200b", "x-ray", "to", "me", "naïve"]
TOPOLOGIES = {"Encoder": "bert-nano", "Decoder": "gpt1-nano", "Recurrent": "lstm-nano"}


def tagger(kind, topology, length, marks, cut=True):
    """A tagging task with a tokenizer that has these special tokens, and no others that it could put around a text."""
    tokenizer = tokenizers.train(
        kind, ["unbelievable things don't happen to me in the U.S. x-ray naive"] * 9, 90 if kind == "wordpiece" else 300
    )
    for role in {"bos", "eos"} - set(marks):
        setattr(tokenizer, role, None)
    cfg = models.preset(TOPOLOGIES[topology], vocab=len(tokenizer), output="tokens", label_names=("O", "B-x"), pad=tokenizer.pad)
    return objectives.make_task(f"tagging(cut={str(cut).lower()})", cfg, tokenizer, length)


def aligned(tokenizer, words, tags, front, back, length):
    """(ids, labels) as the `tokenizers` library aligns words that it is given apart, cuts them and puts tokens around."""
    engine = Engine.from_str(tokenizer.engine.to_str())
    name = lambda role: engine.id_to_token(getattr(tokenizer, role))
    special = [(name(role), getattr(tokenizer, role)) for role in {*front, *back}]
    engine.post_processor = TemplateProcessing(single=" ".join([*map(name, front), "$A", *map(name, back)]), special_tokens=special)
    engine.enable_truncation(length)
    known = [w if tokenizer.encode(w) else "[UNK]" for w in words]
    found = engine.encode(known, is_pretokenized=True)
    begins = [w is not None and w != before for before, w in itertools.pairwise([None, *found.word_ids])]
    return found.ids, [("O", "B-x").index(tags[w]) if b else -100 for w, b in zip(found.word_ids, begins)]


@settings(max_examples=60, deadline=None)
@given(
    sentence=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["O", "B-x"])), min_size=1, max_size=8),
    topology=st.sampled_from(list(TOPOLOGIES)),
    marks=st.sampled_from([("bos", "eos"), ("bos",), ("eos",), ()]),
    length=st.integers(4, 40),
)
def test_tags_stand_where_the_tokenizers_library_puts_them(sentence, topology, marks, length):
    words, tags = map(list, zip(*sentence))
    task = tagger("wordpiece", topology, length, marks)
    front, back = {"Encoder": (["cls"], ["sep"]), "Decoder": ([m for m in marks if m == "bos"], [m for m in marks if m == "eos"]),
                   "Recurrent": ([], [m for m in marks if m == "eos"])}[topology]  # fmt: skip
    (item,) = task.encode([examples.Example(words, None, tags, "here")])
    ids, labels = aligned(task.tokenizer, words, tags, front, back, length)
    assert item["ids"] == ids and item["labels"] == labels
    there = [at for at in item["first"] if at is not None]
    assert there == [i for i, x in enumerate(labels) if x >= 0]
    assert item["cut"] == (sum(len(task.tokenizer.encode(w)) or 1 for w in words) > length - len(front) - len(back))
    scores = torch.nn.functional.one_hot(torch.tensor([max(0, x) for x in labels]), 2).float()[None]
    said = task.predict(lambda **_: {"logits": scores}, [item])[0]
    assert said == tags[: len(there)] + ["O"] * (len(words) - len(there))


@settings(max_examples=30, deadline=None)
@given(
    words=st.lists(st.sampled_from(["things", "don't", "happen", "to", "me"]), min_size=1, max_size=6),
    kind=st.sampled_from(["char", "bpe"]),
)
def test_a_word_begins_behind_the_blank_before_it(words, kind):
    """Against the places in the running text that the tokenizer itself gives."""
    task = tagger(kind, "Decoder", 128, ("bos",))
    (item,) = task.encode([examples.Example(words, None, ["B-x"] * len(words), "here")])
    text = " ".join(words)
    whole = task.tokenizer.engine.encode(text, add_special_tokens=False)
    starts = [text.index(" ", a - 1) + 1 if a else 0 for a in itertools.accumulate((len(w) + 1 for w in words[:-1]), initial=0)]
    solid = [bool(text[x:y].strip()) for x, y in whole.offsets]
    want = [next(i for i, (x, y) in enumerate(whole.offsets) if y > s and solid[i]) for s in starts]
    assert item["ids"][1:] == whole.ids and [f - 1 for f in item["first"]] == want


def test_what_tagging_refuses():
    task = tagger("char", "Recurrent", 6, (), cut=False)
    with pytest.raises(DataError, match=r"file, row 2: has 12 tokens and the model reads 6.*tagging\(cut=true\)"):
        task.encode([examples.Example(["don't", "happen"], None, ["O", "O"], "file, row 2")])
    task.tokenizer.unk = None
    with pytest.raises(DataError, match="file, row 3: the tokenizer has no token for the word ''"):
        task.encode([examples.Example(["", "me"], None, ["O", "O"], "file, row 3")])


@settings(max_examples=60, deadline=None)
@given(
    a=st.integers(0, 12), b=st.one_of(st.none(), st.integers(0, 12)), length=st.integers(4, 20), marks=st.sampled_from(["be", "b", "e", ""])
)
def test_a_row_says_where_its_texts_are(a, b, length, marks):
    for topology in TOPOLOGIES:
        task = tagger("char", topology, length, [{"b": "bos", "e": "eos"}[m] for m in marks])
        texts = [list(range(100, 100 + a))] + ([] if b is None else [list(range(200, 200 + b))])
        try:
            row = task.around(*texts, *([None] if b is None else []), "here")
        except (DataError, ValueError) as e:
            assert "has no tokens" in str(e) or "no token to put between" in str(e)
            continue
        kept = [row.ids[s : s + n] for s, n in zip(row.starts, row.kept)]
        assert [t[:n] for t, n in zip(texts, row.kept)] == kept and len(row.ids) == len(row.types) <= length
        full = sum(map(len, task.marks(b is not None))) + a + (b or 0)
        assert len(row.ids) == min(length, full) and row.cut(*texts) == (full > length)
        others = [i for i in row.ids if i < 100]
        assert others == sum(task.marks(b is not None), [])
        if b is not None:
            left, right = list(texts[0]), list(texts[1])
            while len(left) + len(right) > sum(row.kept):  # from the longer one, as BERT's code does
                (left if len(left) > len(right) else right).pop()
            assert kept == [left, right]
            assert row.types == [0] * row.starts[1] + [1] * (len(row.ids) - row.starts[1])


def contexts(tmp_path, names=("Anna", "Bernd", "Clara", "David")):
    out = []
    for n in names:
        for c in ("red", "green", "blue"):
            text = f"the house of {n} is {c} and the garden is large . " + "there is nothing else to say . " * 3
            out.append({"paragraphs": [{"context": text, "qas": [{"id": f"{n}{c}", "question": f"whose house is {c} ?",
                        "answers": [{"answer_start": text.index(n), "text": n}]}]}]})  # fmt: skip
    return write(tmp_path / "qa.json", json.dumps({"data": out}))


def test_answers_are_found_in_long_texts(tmp_path):
    path = contexts(tmp_path)
    held, where = train(
        tmp_path, "bert-nano", {"task": "answers(stride=8)", "epochs": 30.0}, path, data={"valid": path}, model={"length": 40}
    )
    assert held["exact"] > 0.9
    model, tokenizer = qkv.load(runs.newest(where / "checkpoints")[0]), tokenizers.load(runs.newest(where / "checkpoints")[0])
    o = objectives.make_task("answers(stride=8)", model.config, tokenizer, 40)
    items = o.encode(examples.squad(path))
    assert len({i["question"] for i in items}) == 12 < len(items)  # several windows a text
    for i in items:  # each label points at the answer, or at the first token
        a, z = i["label"]
        if a:
            x, y = i["offsets"][a - i["first"]][0], i["offsets"][z - i["first"]][1]
            assert i["context"][x:y] == i["wanted"][0]
    covered = {i["question"] for i in items if i["label"] != (0, 0)}
    assert len(covered) == 12


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from(["the", "romans", "came", "in", "1066", "morning", "?"]), min_size=1, max_size=40),
    spans=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12), st.sampled_from(["", " "])), max_size=3),
    question=st.lists(st.sampled_from(["the", "romans", "who"]), max_size=3),
    preset=st.sampled_from(["bert-nano", "bart-nano"]),
    stride=st.integers(1, 6),
)
def test_the_first_answer_that_fits_a_window_is_its_label(tmp_path, capsys, text, spans, question, preset, stride):
    """Every word is one token here, so that windows and labels can be counted in words."""
    context, answers = " ".join(text), []
    for start, count, blank in spans:
        words = text[start : start + count]
        if words:
            at = len(" ".join(text[:start])) + (start > 0)
            padded = at > 0 and start + count < len(text) and blank
            answers.append({"answer_start": at - bool(padded), "text": (padded or "") + " ".join(words) + (padded or "")})
    qa = {"id": "q", "question": " ".join(question), "answers": answers}
    path = write(tmp_path / "a.json", json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [qa]}]}]}))
    tokenizer = tokenizers.train("wordpiece", ["who the romans came in 1066 morning ?"] * 5, 200)
    cfg = models.preset(preset, vocab=len(tokenizer), output="span", pad=tokenizer.pad, length=64)
    task = objectives.make_task(f"answers(stride={stride}, longest=4)", cfg, tokenizer, 16)
    marks = {"bert-nano": 3, "bart-nano": 2}[preset]
    room = 16 - len(question) - marks
    found = examples.squad(path)
    capsys.readouterr()
    items = task.encode(found)
    starts = [0]
    while starts[-1] + room < len(text):
        starts.append(starts[-1] + room - stride)
    places = [(s, min(len(text), s + n) - 1) for s, n, _ in spans if s < len(text)]
    first = len(question) + (2 if preset == "bert-nano" else 1)
    want = [next(((first + a - s, first + z - s) for a, z in places if s <= a and z < s + room), (0, 0)) for s in starts]
    assert [i["label"] for i in items] == want and all(i["first"] == first for i in items)
    for i, s in zip(items, starts):
        part = tokenizer.encode(" ".join(text[s : s + room]))
        assert i["ids"][first : first + len(part)] == part
    lost, said = bool(places) and not any(a for a, _ in want), capsys.readouterr().err
    assert ("1 of 1 questions have no answer that fits a window" in said) is lost
    longest = bool(places) and not lost and min(z - a for a, z in places) >= 4
    assert ("1 of 1 questions have answers of more than longest=4 tokens" in said) is longest
    if lost:
        with pytest.raises(DataError, match="question q: no answer of any question fits a window"):
            task.encode(found, training=True)
    elif places:
        assert [i["label"] for i in task.encode(found, training=True)] == [w for w in want if w[0]]


def test_blanks_around_an_answer_are_no_part_of_it(tmp_path):
    text = "The Romans  came."
    asked = lambda *answers: {"id": "q", "question": "?", "answers": [{"answer_start": a, "text": t} for a, t in answers]}
    read = lambda *answers: (
        examples.squad(write(tmp_path / "a.json", json.dumps({"data": [{"paragraphs": [{"context": text, "qas": [asked(*answers)]}]}]})))[
            0
        ].label
    )
    assert read((3, " Romans  "), (0, "The")) == [(4, "Romans"), (0, "The")] and read((0, "")) == []
    for answer, say in (((10, "  "), "the answer '  ' is nothing but blanks"), ((-1, "."), "is not at -1 of the text")):
        with pytest.raises(DataError, match=f"question q: .*{say}"):
            read(answer)


def test_no_answer_is_an_answer(tmp_path):
    tokenizer = tokenizers.train("wordpiece", ["who came the romans came in the morning ?"] * 5, 60)
    cfg = models.preset("bert-nano", vocab=len(tokenizer), output="span", pad=tokenizer.pad, length=64)
    o = objectives.make_task("answers", cfg, tokenizer, 64)
    o.stride = 8
    items = o.encode(examples.squad(squad_file(tmp_path / "n.json", impossible=True)))
    assert items[0]["label"] == (0, 0) and o.unanswerable
    assert o.joined(items, [(1.0, "Romans", 2.0)]) == [""] and o.joined(items, [(3.0, "Romans", 2.0)]) == ["Romans"]


@pytest.mark.parametrize("preset,task", (("bert-nano", "choice"), ("gpt1-nano", "choice(auxiliary=0.5)")))
def test_a_choice_is_learnt(tmp_path, preset, task):
    lines = [{"question": f"{a} and then", "choices": [b, c][:: 1 if i % 2 else -1], "label": i % 2 ^ 1} for i in range(8)
             for a, b, c in (("one", "two", "nine"), ("three", "four", "seven"))]  # fmt: skip
    path = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines)))
    held, _ = train(tmp_path, preset, {"task": task, "epochs": 40.0}, path, data={"valid": path})
    assert held["accuracy"] == 1.0


CHOICES = (
    ('"label": -1', "the label -1 must be the number of a choice, 0 to 1"),
    ('"label": 2', "the label 2 must be the number of a choice, 0 to 1; number them from 0 on"),
    ('"label": true', "the label true must be"),
    ('"label": null', "row 1: has no label"),
    ('"label": "²"', "the label ² must be"),
)


@pytest.mark.parametrize("label,say", CHOICES)
def test_choices_that_cannot_be(tmp_path, label, say):
    path = write(tmp_path / "c.jsonl", '{"question": "q", "choices": ["a", "b"], ' + label + "}\n")
    with pytest.raises(DataError, match=say):
        objectives.TASKS["choice"].read(data.Data(), path, "train")


def test_choices_of_every_form(tmp_path, capsys):
    read = lambda path, **keys: objectives.TASKS["choice"].read(data.Data(**keys), path, "train")
    path = write(
        tmp_path / "c.jsonl",
        '{"question": "q", "choices": ["a", 2, true], "label": 1.0}\n{"question": "q", "choices": ["c", "d"], "label": "1"}\n',
    )
    found = read(path)
    assert [e.more["choices"] for e in found] == [["a", "2", "true"], ["c", "d"]]
    with pytest.raises(DataError, match="c.jsonl, row 2: has 2 choices, others 3"):
        objectives.TASKS["choice"].names(found)
    tokenizer = tokenizers.train("wordpiece", ["q a c d 2 true"] * 9, 60)
    cfg = models.preset("bert-nano", vocab=len(tokenizer), output="choice", pad=tokenizer.pad)
    task = objectives.make_task("choice", cfg, tokenizer, 16)
    with pytest.raises(DataError, match="c.jsonl, row 2: has 2 choices, others 3"):
        task.encode(found)
    assert task.encode(found[:1])[0]["wanted"] == 1
    two = write(tmp_path / "c.csv", "goal,sol1,sol2,label\nice,a,b,1\n")
    assert read(two, choices="sol1, sol2")[0].more["choices"] == ["a", "b"]
    null = write(tmp_path / "n.jsonl", '{"question": "q", "choices": ["a", null], "label": 1}')
    with pytest.raises(DataError, match="n.jsonl, row 1: needs a list of at least two choices, none of them null"):
        read(null)
    write(tmp_path / "o.csv", "goal,a,b,c,label\n" + "ice,x,y,z,1\n" * 30)
    capsys.readouterr()
    read(str(tmp_path / "o.csv"), choices="a,b,c")
    assert "no label of 30 is 0; labels number choices from 0 on" in capsys.readouterr().err


def test_one_class_has_one_number(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", "\n".join(f'{{"text": "a b", "label": {v}}}' for v in ("1", "1.0", '"1"', "0")))
    kind = objectives.TASKS["classification"]
    found = kind.read(data.Data(), path, "train")
    tokenizer = tokenizers.train("wordpiece", ["a b c"] * 9, 60)
    cfg = models.preset("bert-nano", vocab=len(tokenizer), output="sequence", label_names=kind.names(found), pad=tokenizer.pad)
    assert cfg.label_names == ("0", "1")
    task = objectives.make_task("classification(cut=true)", cfg, tokenizer, 4)
    items = task.encode([*found, examples.Example("a b c c", None, None, "here")])
    assert [i["label"] for i in items] == [1, 1, 1, 0, None] and [i["wanted"] for i in items] == ["1", "1", "1", "0", None]
    assert [i["cut"] for i in items] == [False] * 4 + [True]
    assert "1 of 5 texts are cut to what the model reads of them" in capsys.readouterr().err


def test_both_sides_of_a_cut_pair_keep_what_there_is_room_for():
    tokenizer = tokenizers.train("char", ["ab"])
    cfg = models.preset("gpt-nano", vocab=len(tokenizer), pad=tokenizer.pad)
    task = objectives.make_task("text(cut=true)", cfg, tokenizer, 16)
    (item,) = task.encode([examples.Example("ab", "b" * 30, None, "here")])
    assert (len(item["ids"]), len(item["target"]), item["cut"]) == (2, 11, True)
    apart = models.preset("t5-nano", vocab=len(tokenizer), pad=tokenizer.pad, start=tokenizer.bos, eos=tokenizer.eos)
    (item,) = objectives.make_task("text(cut=true)", apart, tokenizer, 16).encode([examples.Example("a" * 15, "b" * 16, None, "here")])
    assert (len(item["ids"]), len(item["target"])) == (15, 15)


def test_text_to_text_with_several_tasks(tmp_path):
    pytest.importorskip("sacrebleu")
    lines = [
        {"source": w, "target": w if k == "copy" else w[::-1], "kind": k} for w in ("ab", "cd", "ef", "gh") for k in ("copy", "reverse")
    ]
    path = write(tmp_path / "t.jsonl", "\n".join(json.dumps(x) for x in lines * 4))
    held, _ = train(tmp_path, "t5-nano", {"task": "text", "epochs": 40.0, "lr": 5e-3}, path,
                    data={"valid": path, "tokenizer": "char", "task": "kind", "text": "source", "pair": "target"})  # fmt: skip
    assert held["exact"] > 0.9


def test_small_tasks_are_evened_out():
    tokenizer = tokenizers.train("char", ["abc: "])
    cfg = models.preset("t5-nano", vocab=len(tokenizer), pad=tokenizer.pad, start=tokenizer.bos, eos=tokenizer.eos)
    rows = [examples.Example("a", "b", None, "here", {"task": k}) for k, n in (("big", 64), ("small", 4)) for _ in range(n)]
    counts = lambda t: [
        sum(i["task"] == k for i in objectives.make_task(t, cfg, tokenizer, 16).encode(rows, True)) for k in ("big", "small")
    ]
    assert counts("text") == [64, 4] and counts("text(temperature=2)") == [64, 16]


def test_what_a_task_refuses(tmp_path):
    tokenizer = tokenizers.train("wordpiece", ["a b c d e f"] * 9, 60)
    cfg = models.preset("bert-nano", vocab=len(tokenizer), output="sequence", label_names=("n", "y"), pad=tokenizer.pad)
    o = objectives.make_task("classification", cfg, tokenizer, 8)
    with pytest.raises(DataError, match="file, row 3: the label 'maybe' was not seen in training; there were n, y"):
        o.encode([examples.Example("a", None, "maybe", "file, row 3")])
    with pytest.raises(DataError, match=r"file, row 4: has 9 tokens and the model reads 6.*classification\(cut=true\)"):
        o.encode([examples.Example("a b c " * 3, None, "y", "file, row 4")])
    cut = objectives.make_task("classification(cut=true)", cfg, tokenizer, 8).encode([examples.Example("a b c " * 3, "d e f", "y", "x")])
    assert len(cut[0]["ids"]) == 8
    with pytest.raises(ValueError, match="train.task='clasification' is not one of .*Did you mean 'classification'"):
        objectives.task_of("clasification")
    with pytest.raises(ValueError, match="needs the topology Encoder or Decoder or Recurrent; the model is of EncoderDecoder"):
        train(tmp_path, "t5-nano", {"task": "tagging"}, path := tagged(tmp_path), data={"valid": path})
    with pytest.raises(ValueError, match="a decoder's language model loss"):
        objectives.make_task("classification(auxiliary=0.5)", cfg, tokenizer, 8)
    with pytest.raises(DataError, match=r"c.jsonl, row 1: the label 7 must be the number of a choice, 0 to 1"):
        path = write(tmp_path / "c.jsonl", json.dumps({"question": "q", "choices": ["a", "b"], "label": 7}))
        objectives.TASKS["choice"].read(data.Data(), path, "train")


def test_a_fine_tuned_model_begins_with_the_pretrained_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    text = write(tmp_path / "text.txt", (" . ".join(GOOD + BAD) + "\n") * 60)
    raw = {"model": {"preset": "bert-nano", "dim": 32, "length": 48, "hidden": 64}, "data": {"source": text, "vocab": 300, "tokenizer": "wordpiece"},
           "train": {"steps": 3, "threads": 1}}  # fmt: skip
    first = tmp_path / "first"
    first.mkdir()
    loop.train(recipe.resolve(raw), first)
    (first / "recipe.toml").write_text(recipe.dumps(recipe.resolve(raw)))
    path = sentiment(tmp_path)
    section = {"task": "classification", "init": str(first), "steps": 1, "epochs": None, "freeze": 2, "lr": 1.0, "weight_decay": 0.5}
    _, where = train(tmp_path, "bert-nano", section, path, data={"valid": path})
    before, after = (qkv.load(folder.weights(str(w))).state_dict() for w in (first, where))
    same = [n for n in before if n in after and "head" not in n]
    assert len(same) > 20 and all(torch.equal(before[n], after[n]) for n in same)  # frozen: embedding and both blocks
    with pytest.raises(ValueError, match="train.freeze=9: the model has 2 blocks"):
        train(tmp_path, "bert-nano", section | {"freeze": 9}, path, data={"valid": path})
    with pytest.raises(ValueError, match="is of the topology Encoder; the preset gpt-nano is of Decoder"):
        train(tmp_path, "gpt-nano", section, path, data={"valid": path})


def test_learning_rates_fall_towards_the_input():
    model = models.build(models.preset("bert-nano", vocab=50, dim=32, hidden=64, output="sequence"))
    for name in ("adamw", "muon"):
        o = optim.make(model, name, 1.0, layer_decay=0.5, muon_lr=1.0)
        rate = {
            n: g["lr"]
            for member in o.members
            for g in member.param_groups
            for p in g["params"]
            for n, q in model.named_parameters()
            if q is p
        }
        assert set(rate) == set(dict(model.named_parameters()))
        assert rate["embed.token.weight"] == 0.125 and rate["blocks.0.attn.f.q.weight"] == 0.25 and rate["blocks.1.ffn.f.up.bias"] == 0.5
        assert rate["head.out.weight"] == 1.0 == rate["pool.weight"]


def test_a_run_ends_when_it_gets_no_better_and_keeps_its_best(tmp_path):
    path = sentiment(tmp_path)
    section = {"task": "classification", "epochs": 60.0, "patience": 3}
    held, where = train(tmp_path, "bert-nano", section, path, data={"valid": path})
    rows = [r for r in folder.read_metrics(where / "metrics.jsonl") if "valid_accuracy" in r]
    assert held["accuracy"] == max(r["valid_accuracy"] for r in rows) == 1.0
    first = next(r["step"] for r in rows if r["valid_accuracy"] == 1.0)
    assert rows[-1]["step"] <= first + 4 * 3 and rows[-1]["step"] < 60 * 3
    model = qkv.load(runs.newest(where / "checkpoints")[0])
    tokenizer = tokenizers.load(runs.newest(where / "checkpoints")[0])
    o = objectives.make_task("classification", model.config, tokenizer, 48)
    again, said = judge(model, o, o.encode(rows_of(path)), tokenizer)
    assert again["accuracy"] == 1.0 and said[0] == "pos"


def rows_of(path):
    return examples.table(path, {"text": None, "pair": None, "label": None})


def test_experts_take_what_the_router_gives_them():
    from qkv.core import Context, Experts, tokens

    torch.manual_seed(0)
    layer = Experts(8, 16, 4, "relu", False, capacity=2).double()
    x = torch.randn(3, 12, 8, dtype=torch.float64)
    ctx = Context(tokens(12))
    got = layer(x, ctx)
    probs = (x @ layer.router.weight.T).softmax(-1)
    for b in range(3):
        taken = [0] * 4
        for t in range(12):
            e = int(probs[b, t].argmax())
            taken[e] += 1
            want = probs[b, t, e] * layer.experts[e](x[b, t]) if taken[e] <= 2 else torch.zeros(8, dtype=torch.float64)
            torch.testing.assert_close(got[b, t], want)
    share = torch.bincount(probs.argmax(-1).flatten(), minlength=4) / 36
    balance = 4 * (share * probs.mean((0, 1))).sum()
    z = (x @ layer.router.weight.T).logsumexp(-1).square().mean()
    torch.testing.assert_close(ctx.losses[0], 0.01 * balance + 0.001 * z)
    got.sum().backward()
    assert layer.router.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="experts and capacity must be at least 1"):
        Experts(8, 16, 0)
