"""Files of labelled examples, against pandas, json and seqeval on generated files: what is accepted is read as
they read it, and what is refused names its file and row."""

import csv
import io
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from seqeval import scheme

from qkv import objectives
from qkv.data import Data, DataError, examples, trajectories
from qkv.evaluation import metrics
from qkv.objectives.tasks import Task

generated = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = {"text": None, "pair": None, "label": None}


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def table(path: str | Path, **keys) -> list[examples.Example]:
    return examples.table(str(path), KEYS | keys)


def cells(path: Path) -> list[list[str]]:
    """The rows as they are read, blanks at the ends of cells aside."""
    rows, _ = examples.rows_of(path)
    names, below = examples.headed(path, rows)
    return [[c.strip() for c in row] for row in ([names] if names else []) + [row for _, row in below]]


def pandas_cells(path: Path, **options) -> list[list[str]]:
    """The same by pandas; rows that hold nothing are left out."""
    frame = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, **options)
    return [row for row in ([c.strip() for c in r] for r in frame.to_numpy().tolist()) if any(row)]


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters='",\t'), max_size=6)
tables = st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(words, min_size=width, max_size=width), min_size=1, max_size=5))


# --- CSV and TSV -------------------------------------------------------------------------------------------
@generated
@given(rows=tables, quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_a_writer_of_csv_wrote_is_read(tmp_path, rows, quoting, end):
    assume(any(c.strip() for r in rows for c in r))
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        out = io.StringIO()
        csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
        path = tmp_path / f"t{suffix}"
        write(path, "\ufeff" + out.getvalue())
        want = [row for row in ([c.strip() for c in r] for r in rows) if any(row)]
        assert cells(path) == want == pandas_cells(path, sep=separator)


@generated
@given(raw=st.lists(st.sampled_from([*'ab1,"\t \n', "\r\n"]), min_size=3, max_size=24).map("".join))
@example(raw='a,b\n1,"2\n3,4\n')
@example(raw='a,b\n"1"2,3\n')
@example(raw="a,b\n1,2,3\n")
def test_whatever_is_accepted_is_what_pandas_reads(tmp_path, raw):
    path = tmp_path / "t.csv"
    write(path, raw)
    try:
        found = cells(path)
    except DataError as e:
        assert f"{path}, row " in str(e)
        return
    except IndexError:  # nothing in it: `table` refuses that
        assume(False)
    assume(len(found[0]) > 1 and not re.search(r'(^|[\r\n])[ ,\t"]+([\r\n]|$)', raw))  # rows of empty cells
    assert found == pandas_cells(path)


@generated
@given(rows=tables)
def test_quotes_of_an_unquoted_tsv_are_text(tmp_path, rows):
    rows = [[c.replace("\t", " ").strip() or "-" for c in row] for row in rows]
    rows.append(['a 5" disk', *["x"] * (len(rows[0]) - 1)])
    path = tmp_path / "t.tsv"
    write(path, "\n".join(map("\t".join, rows)) + "\n")
    assert cells(path) == [[c.strip() for c in r] for r in rows] == pandas_cells(path, sep="\t", quoting=csv.QUOTE_NONE)


def test_a_tsv_is_quoted_throughout_or_its_quotes_are_text(tmp_path):
    read = lambda text: [(e.text, e.label) for e in table(write(tmp_path / "t.tsv", text), text=1, label=2)]
    glue = 'a bad film\t0\n"a good film"\t1\n"hello, he said\t1\n'
    assert read(glue) == [("a bad film", "0"), ('"a good film"', "1"), ('"hello, he said', "1")]
    some = 'a bad film\t0\n"a good film"\t1\na fine film\t1\n'
    assert read(some)[1] == ('"a good film"', "1")  # a writer would not have quoted it alone
    assert read('"a bad\tfilm"\t"0"\n"she said ""good"""\t"1"\n') == [("a bad\tfilm", "0"), ('she said "good"', "1")]
    assert read('"a bad film"\t0\n"a good film"\t1\n') == [("a bad film", "0"), ("a good film", "1")]
    assert read('bad\t0\n"she said ""good"""\t1\n') == [("bad", "0"), ('she said "good"', "1")]
    pair = '"he came\twe saw"\n"she came\tthey saw"\n'  # two columns, not one: the rows would have one cell
    assert [(e.text, e.pair) for e in examples.table(write(tmp_path / "p.tsv", pair), {"text": 1, "pair": 2})] == [
        ('"he came', 'we saw"'),
        ('"she came', 'they saw"'),
    ]


def test_a_cell_may_be_long(tmp_path):
    long = "word " * 60_000
    path = write(tmp_path / "long.csv", f'text,label\n"{long}",1\n')
    assert table(path)[0].text == long.strip()


REFUSED = (
    ("x.csv", "text,label\ngood, really,1\n", {}, "x.csv, row 2: has 3 columns, and the header 2; a cell that holds a comma"),
    ("x.csv", "text,id,label\ngood,7\n", {}, "x.csv, row 2: has 2 columns, and the header 3"),
    ("x.tsv", "a good film\t1\na\tbad film\t0\nx\t1\n", {}, "x.tsv, row 2: has 3 columns, and others 2"),
    ("x.csv", 'text,label\nx,1\n"good" film,1\n', {}, "x.csv, row 3: not valid CSV"),
    ("x.csv", 'text,label\nx,1\n"good film,1\n', {}, "x.csv, row 3: not valid CSV"),
    ("x.csv", "text,label\n", {}, "x.csv holds a header and nothing below"),
    ("x.csv", "text;label\nx;1\n", {}, r"has 1 columns and no header.*a .csv file is cut at commas"),
    ("x.csv", "text,label,label\nx,1,2\n", {}, "columns 2 and 3 are both 'label'; say which: data.label=NUMBER"),
    ("x.csv", "a,b\nx,1\n", {"text": 0}, "row 2: has 2 columns, and column 0 is wanted"),
    ("x.csv", "review body,stars\nx,1\ny,2\n", {}, "which column is the text.*it has review body, stars"),
    ("x.csv", "body,mood\nx,good\ny,bad\nz,good\nw,bad\n", {}, r"row 1: is \['body', 'mood'\] a header"),
    ("x.jsonl", '{"label": 1}\n{"text": "x", "label": 1}\n', {}, "row 1: no column 'text'"),
    ("x.jsonl", '{"text": "x"}\n{"text": "y", "label": 1}\n', {}, r"row 1: no column 'label' \(it has text\)"),
    ("x.jsonl", '{"text": "x", "label": ["a"]}\n', {}, r'row 1: data.label is a list, \["a"\]'),
    ("x.jsonl", '{"text": {"en": "x"}, "label": 1}\n', {}, "row 1: data.text is a dict"),
    ("x.jsonl", '{"text": null, "label": 1}\n', {}, "row 1: the text is null"),
    ("x.json", '[{"text": "x"}, 3]', {}, "row 2: must be an object of fields, not int"),
)


@pytest.mark.parametrize("name,text,keys,say", REFUSED)
def test_a_refusal_names_file_and_row(tmp_path, name, text, keys, say):
    with pytest.raises(DataError, match=say):
        table(write(tmp_path / name, text), **keys)


@generated
@given(rows=st.lists(st.tuples(st.sampled_from(["text", "question", "good", "a film"]), st.sampled_from("yn")), min_size=4))
def test_a_header_is_told_from_rows_that_hold_its_words(tmp_path, rows):
    counts = [label for _, label in rows]
    assume(min(counts.count("y"), counts.count("n")) > 1)
    body = "".join(f"{text}\t{label}\n" for text, label in rows)
    bare, headed = write(tmp_path / "a.tsv", body), write(tmp_path / "b.tsv", "text\tlabel\n" + body)
    assert [(e.text, e.label) for e in table(headed)] == rows
    assert [(e.text, e.label) for e in table(bare, text=1, label=2)] == rows
    assert [(e.text, e.label) for e in table(headed, text=1, label=2)] == rows  # a number does not undo the header


def test_a_header_over_numbers_is_one(tmp_path):
    path = write(tmp_path / "a.csv", "review body,stars\ngood,5\nbad,1\n")
    assert [(e.text, e.label, e.where[-5:]) for e in table(path, text=1, label=2)] == [("good", "5", "row 2"), ("bad", "1", "row 3")]
    both = write(tmp_path / "b.csv", "id,text,target\n1,good,1\n2,bad,0\n")  # of usual names target is a label first
    assert [(e.text, e.pair, e.label) for e in table(both)] == [("good", None, "1"), ("bad", None, "0")]


# --- labels ------------------------------------------------------------------------------------------------
values = st.one_of(st.integers(-50, 50), st.integers(-50, 50).map(float), st.booleans(), st.floats(-9, 9, width=16))


@generated
@given(a=values, b=values, quoted=st.booleans())
def test_labels_are_one_class_where_json_says_they_are_equal(a, b, quoted):
    form = lambda v: examples.label_of(json.dumps(v) if quoted and v is a else json.loads(json.dumps(v)), "here")
    same = isinstance(a, bool) == isinstance(b, bool) and a == b
    assert (examples.spelled(form(a)) == examples.spelled(form(b))) == same
    assert form(a) == json.dumps(a)  # shown as it is written


def test_spellings_of_a_class(tmp_path):
    lines = ['{"text": "a", "label": 1}', '{"text": "b", "label": 1.0}', '{"text": "c", "label": "1"}', '{"text": "d", "label": -2}',
             '{"text": "e", "label": "10"}', '{"text": "f", "label": true}', '{"text": "g", "label": "True"}']  # fmt: skip
    found = table(write(tmp_path / "x.jsonl", "\n".join(lines)))
    assert examples.classes(e.label for e in found) == ("-2", "1", "10", "True")
    assert examples.classes(["2.0", "10.0", "1.0"]) == ("1.0", "2.0", "10.0")
    assert examples.classes(["01", "1", "--5", "²", "1_000", "1000"]) == ("01", "1", "1000", "--5", "1_000", "²")


@pytest.mark.parametrize("label", ["null", "NaN", '""', '" "', '"nan"'])
def test_no_label_is_refused_where_one_is_needed(tmp_path, label):
    path = write(tmp_path / "x.jsonl", f'{{"text": "a", "label": "x"}}\n{{"text": "b", "label": {label}}}\n')
    task = objectives.TASKS["classification"]
    for part in ("train", "valid"):
        with pytest.raises(DataError, match=r"x.jsonl, row 2: has no label .*data.label=NAME"):
            task.read(Data(), path, part)
    assert [e.label for e in task.read(Data(), path, "test")] == ["x", None]
    csv_path = write(tmp_path / "y.csv", "text,label\na,x\nb,\n")
    with pytest.raises(DataError, match="y.csv, row 3: has no label"):
        task.read(Data(), csv_path, "train")


def test_measures_are_no_classes(tmp_path):
    path = write(tmp_path / "x.csv", "text,label\n" + "".join(f"text {i},{i / 8}\n" for i in range(30)))
    task = objectives.TASKS["classification"]
    with pytest.raises(DataError, match=r"x.csv, row 3: the label 0.125 is one of 30 different numbers"):
        task.names(task.read(Data(), path, "train"))
    half = [examples.Example("x", None, str(i / 2), "here") for i in range(10)]
    assert task.names(half)[:3] == ("0.0", "0.5", "1.0")


@generated
@given(texts=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=30, max_size=60), holdout=st.floats(0.2, 0.8))
def test_what_is_there_twice_is_on_one_side(texts, holdout):
    rows = [examples.Example(t, label=str(i)) for i, t in enumerate(texts)]
    try:
        train, valid = examples.split(rows, holdout)
    except DataError:
        return
    assert not {e.text for e in train} & {e.text for e in valid} and len(train) + len(valid) == len(rows)


# --- tagged sentences --------------------------------------------------------------------------------------
def tagged(sentence: list[tuple[int, str | None]], kind: str) -> list[str]:
    """The tags of a sentence of (length, type or None) in a scheme."""
    out, before = [], None
    for n, entity in sentence:
        if entity is None:
            tags = ["O"] * n
        elif kind == "IOB1":
            tags = [("B-" if entity == before else "I-") + entity, *[f"I-{entity}"] * (n - 1)]
        elif kind == "IOB2":
            tags = [f"B-{entity}", *[f"I-{entity}"] * (n - 1)]
        else:
            last, single = {"IOBES": "ES", "BILOU": "LU"}[kind]
            tags = [f"B-{entity}", *[f"I-{entity}"] * (n - 2), f"{last}-{entity}"] if n > 1 else [f"{single}-{entity}"]
        out += tags
        before = entity
    return out


sentences = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([None, "per", "loc"])), min_size=1, max_size=6), min_size=1, max_size=4
)


@generated
@given(text=sentences, kind=st.sampled_from(["IOB1", "IOB2", "IOBES", "BILOU"]))
def test_every_scheme_holds_the_entities_that_seqeval_finds(tmp_path, text, kind):
    tags = [tagged(s, kind) for s in text]
    body = "\n".join("".join(f"w{i}\t{t}\n" for i, t in enumerate(s)) for s in tags)
    found = examples.conll(write(tmp_path / "x.conll", body))
    want = scheme.Entities(tags, getattr(scheme, kind)).entities
    assert [e.label for e in found] == [tagged(s, "IOB2") for s in text]
    for e, entities in zip(found, want, strict=True):
        assert metrics.entities(e.label) == {(x.tag, x.start, x.end - 1) for x in entities}


@pytest.mark.parametrize(
    "text,say",
    (
        ("a B-x\n\nb O\nc I-x\n", "row 4: I-x goes on from O; an entity begins with B-x"),
        ("a B-x\nb I-y\n", "row 2: I-y goes on from B-x"),
        ("a S-x\nb B-x\nc O\n", "row 3: O follows B-x, but entities of this file end with E- or L-"),
        ("a S-x\nb E-x\n", "row 2: E-x goes on from S-x"),
        ("a S-x\n\nb B-x\n", "row 3: O follows B-x"),
        ("a B\nb O\n", "row 1: the tag 'B' is none of O, B-TYPE"),
        ("a O\nb NOUN\n", "row 2: the tag 'NOUN' is none of"),
        ("a O\n\tO\n", "row 2: has a tag and no token"),
        ("a b O\nc O\nd e O\n", "row 2: has 2 columns, and others 3"),
    ),
)
def test_tags_of_no_scheme_are_refused(tmp_path, text, say):
    with pytest.raises(DataError, match=say):
        examples.conll(write(tmp_path / "x.conll", text))


GERMEVAL = """#\thttp://a.b/c [2009-10-17]
1\tAuf\tO\tO
2\tBerliner\tB-LOCderiv\tO
3\tBoden\tO\tO

#\tn-tv.de vom 26.02.2005
1\t#\tO\tO
2\tBayern\tB-ORG\tB-LOC
3\tMünchen\tI-ORG\tB-LOC
"""


def test_the_columns_of_germeval_are_named(tmp_path):
    path = write(tmp_path / "x.tsv", GERMEVAL)
    with pytest.raises(DataError, match=r"columns 3 and 4 hold tags; say data.label=NUMBER.*'Berliner'|columns 3 and 4"):
        examples.conll(path)
    a, b = examples.conll(path, label=3)
    assert a.text == ["Auf", "Berliner", "Boden"] and a.label == ["O", "B-LOCderiv", "O"] and a.where.endswith("row 2")
    assert b.text == ["#", "Bayern", "München"] and b.label == ["O", "B-ORG", "I-ORG"]  # this # is a token
    inner = examples.conll(path, text=2, label=4)
    assert inner[1].label == ["O", "B-LOC", "B-LOC"]
    named = write(tmp_path / "y.tsv", "id\tword\touter\tinner\n" + GERMEVAL.partition("\n")[2].replace("#\tn-tv", "# n-tv"))
    assert examples.conll(named, text="word", label="inner")[1].label == ["O", "B-LOC", "B-LOC"]
    with pytest.raises(DataError, match="has no column 'token' .data.text.; give a number from 1 to 4"):
        examples.conll(named, text="token", label=3)
    with pytest.raises(DataError, match="has no column 9"):
        examples.conll(named, text=9, label=3)
    with pytest.raises(DataError, match="column 3 is both data.text and data.label"):
        examples.conll(named, text=3, label=3)


def test_columns_are_found_by_what_they_hold(tmp_path):
    read = lambda text: [(e.text, e.label) for e in examples.conll(write(tmp_path / "x.conll", text))]
    conll2003 = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\n\nPeter NNP B-NP B-PER\n"
    assert read(conll2003) == [(["EU", "rejects", "German"], ["B-ORG", "O", "B-MISC"]), (["Peter"], ["B-PER"])]
    assert read("EU NNP B-NP\nrejects VBZ B-VP\nit PRP B-NP\n")[0][1] == ["B-NP", "B-VP", "B-NP"]  # phrases alone
    assert read("O\tThe\nB-x\tEU\nO\tis\n") == [(["The", "EU", "is"], ["O", "B-x", "O"])]
    assert read("word\ttag\nEU\tB-x\nis\tO\n") == [(["EU", "is"], ["B-x", "O"])]
    assert read("#\tO\n#\tO\nfun\tB-x\n") == [(["#", "#", "fun"], ["O", "O", "B-x"])]
    assert read("#fun\tO\n") == [(["#fun"], ["O"])]
    assert read("\ufeffEU\tB-x\r\nis\tO\r\n\r\nso\tO\r\n") == [(["EU", "is"], ["B-x", "O"]), (["so"], ["O"])]
    assert read("EU\tB-x\ris\tO\r\rso\tO\r") == [(["EU", "is"], ["B-x", "O"]), (["so"], ["O"])]
    assert read("non\u00a0breaking O\n") == [(["non\u00a0breaking"], ["O"])]


@pytest.mark.parametrize(
    "text,say",
    (
        ("1\tB-x\n2\tO\n", "which column holds the tokens. Say data.text=NUMBER"),
        ("s1\tEU\tB-x\ns1\tis\tO\ns1\tso\tO\n", "which column holds the tokens"),  # a number of the sentence
        ("EU NNP ORG\nis V no\n", "no column holds tags .O, B-TYPE, I-TYPE.; say data.label=NUMBER, from 1 on; row 1 is"),
        ("#fun\nEU\tB-x\nis\tO\n", "row 1: '#fun' has no tag"),
        ("EU\tB-x\n# note of somebody\nis\tO\n", "row 2: '# note of somebody' has no tag|row 2: has"),
    ),
)
def test_columns_that_cannot_be_told_apart_are_refused(tmp_path, text, say):
    with pytest.raises(DataError, match=say):
        examples.conll(write(tmp_path / "x.conll", text))


def test_words_of_conllu_stand_there_once(tmp_path, capsys):
    text = ("# sent_id = 1\n# text = Vámonos al mar\n1-2\tVámonos\t_\t_\n1\tVamos\tVERB\tO\n2\tnos\tPRON\tO\n3-4\tal\t_\t_\n3\ta\tADP\tO\n"
            "4\tel\tDET\tO\n5\tmar\tNOUN\tB-LOC\n5.1\tque\tX\tO\n")  # fmt: skip
    (e,) = examples.conll(write(tmp_path / "x.conllu", text))
    assert e.text == ["Vamos", "nos", "a", "el", "mar"] and e.label[-1] == "B-LOC"
    assert "x.conllu, row 3: 3 lines that join or insert words are left out" in capsys.readouterr().err


def test_a_table_is_no_tagging_file(tmp_path):
    with pytest.raises(DataError, match="tags are read from CoNLL files, a token and its tag a line, not .csv"):
        examples.conll(write(tmp_path / "x.csv", "word,tag\nEU,B-x\n"))


@pytest.mark.parametrize(
    "remark", ["B-cell", "O", "about B-cells", "doc I-5", "E-mail corpus", "S-1", "c2 with B-X", "written by O, in B-flat"]
)
@pytest.mark.parametrize("rows", ["John\tB-PER\nruns\tO\n", "1\tJohn\tB-PER\tO\n2\truns\tO\tO\n", "John NN B-PER\nruns VB O\n"])
def test_a_remark_is_no_word_whatever_it_says(remark, rows, tmp_path):
    tagged = 3 if rows.count("\t") == 6 else None
    path = write(tmp_path / "a.conll", f"# {remark}\n{rows}\n# {remark}\n{rows}\n")
    for e in examples.conll(path, label=tagged):
        assert e.text == ["John", "runs"] and e.label == ["B-PER", "O"]


def test_a_remark_of_two_words_is_none_where_its_second_is_a_tag_of_the_file(tmp_path):
    """Without tabs nothing else tells the sign # from the beginning of a remark."""
    path = write(tmp_path / "a.conll", "# O\n1 O\nBayern B-ORG\n\n# B-cell\nBayern B-ORG\n")
    assert [e.text for e in examples.conll(path)] == [["#", "1", "Bayern"], ["Bayern"]]


# --- what was read is shown --------------------------------------------------------------------------------
def test_every_task_shows_an_example_as_it_was_read(tmp_path):
    def shown(name, source, **keys):
        kind = objectives.TASKS[name]
        return kind.described(kind.read(Data(**keys), source, "train")[0])

    csv_path = write(tmp_path / "a.csv", "text,hypothesis,label\nit\trains,it is wet,1.0\nx,y,0\n")
    assert shown("classification", csv_path) == f"{csv_path}, row 2: it rains | it is wet  ->  1.0"
    tags = write(tmp_path / "a.conll", GERMEVAL)
    assert shown("tagging", tags, label=3) == f"{tags}, row 2: Auf/O Berliner/B-LOCderiv Boden/O"
    qa = {"id": "7", "question": "Who?", "answers": [{"answer_start": 4, "text": "Romans"}]}
    squad = write(tmp_path / "a.json", json.dumps({"data": [{"paragraphs": [{"context": "The Romans.", "qas": [qa]}]}]}))
    assert shown("answers", squad) == f"{squad}, question 7: Who? | The Romans.  ->  Romans"
    choice = write(tmp_path / "c.jsonl", '{"goal": "ice box", "choices": ["freeze", "melt"], "label": 1}')
    assert shown("choice", choice) == f"{choice}, row 1: ice box | freeze | *melt  ->  1"
    pairs = write(tmp_path / "t.jsonl", '{"source": "ab", "target": "ba", "kind": "turn"}')
    assert shown("text", pairs, task="kind") == f"{pairs}, row 1: turn: ab  ->  ba"
    adult = write(tmp_path / "t.csv", "age, work, rich\n39, State-gov, no\n50, ?, yes\n")
    assert shown("table", adult, target="rich") == f"{adult}, row 2: age=39, work=State-gov  ->  no"
    assert shown("images", "digits") == "digits, row 1: 8 x 8 x 1 values  ->  0"
    file = examples.Example(Path("left/0.png"), label="left", where="left/0.png")
    assert objectives.TASKS["images"].described(file) == "left/0.png  ->  left"
    long = examples.Example("word " * 999, None, None, "here")
    for task in objectives.TASKS.values():
        for e in (examples.Example(Path("a.png"), label="x", where="w"), examples.Example(b"abc", where="w"), long):
            if task.described.__func__ is Task.described.__func__:  # who says it otherwise has a test of its own
                assert len(task.described(e)) < 300 and task.described(e).startswith(e.where)
    assert objectives.TASKS["decide"].described(examples.Example(object(), where="episode 1")) == "episode 1: a object"


# --- trajectories ------------------------------------------------------------------------------------------
GOOD = {"states": np.zeros((4, 2)), "actions": np.array([0, 1, 1, 0]), "rewards": np.ones(4), "ends": np.array([2, 4])}


@pytest.mark.parametrize(
    "changed,say",
    (
        ({"ends": np.array([3, 2, 4], np.uint64)}, "do not belong together"),
        ({"ends": np.array([2.0, 4.0])}, "ends are whole numbers in a row, not float64"),
        ({"ends": np.array(4)}, "ends are whole numbers in a row"),
        ({"actions": np.array([0, -1, 1, 0])}, "actions, step 1 is -1; actions are numbered from 0 on"),
        ({"rewards": np.array(["a", "b", "c", "d"])}, "rewards are <U1, and numbers are wanted"),
        ({"states": np.full((4, 2), 1e300)}, "states, step 0 holds something that is no number, or too large"),
        ({"rewards": np.array([0, np.nan, 1, 1])}, "rewards, step 1 holds something"),
    ),
)
def test_trajectories_that_are_none_are_refused(tmp_path, changed, say):
    np.savez(tmp_path / "x.npz", **(GOOD | changed))
    with pytest.raises(DataError, match=f"x.npz.*{say}"):
        trajectories.load(tmp_path / "x.npz")


def test_a_damaged_file_of_trajectories_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **GOOD)
    whole = (tmp_path / "x.npz").read_bytes()
    good = trajectories.load(tmp_path / "x.npz")
    assert [len(t.rewards) for t in good] == [2, 2] and good[0].actions.dtype == np.int64
    for damaged in (whole[: len(whole) // 2], b"", b"no zip", whole[:80] + b"\xff" * 40 + whole[120:]):
        (tmp_path / "y.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="y.npz"):
            trajectories.load(tmp_path / "y.npz")
    np.save(tmp_path / "z.npy", np.ones(3))
    (tmp_path / "z.npy").rename(tmp_path / "z.npz")
    with pytest.raises(DataError, match="z.npz cannot be read as trajectories .it holds one array"):
        trajectories.load(tmp_path / "z.npz")


# --- real files --------------------------------------------------------------------------------------------
def test_published_files_are_read_as_pandas_reads_them(shared):
    for name, options in (
        ("cls_sst2/train.tsv.gz", {"sep": "\t", "quoting": csv.QUOTE_NONE}),
        ("cls_cola/in_domain_train.tsv.gz", {"sep": "\t", "quoting": csv.QUOTE_NONE}),
        ("cls_toxicity/labeled_data.csv.gz", {}),
        ("cls_agnews/test.csv.gz", {}),
        ("hier_agreement/gulordava_english_generated.tab.gz", {"sep": "\t"}),
        ("imagetext_emoji/names.tsv", {"sep": "\t"}),
    ):
        assert cells(shared / name) == pandas_cells(shared / name, **options), name
    for name, sentences, tokens in (
        ("ner_wnut17/train.conll.gz", 3394, 62730),
        ("ner_wnut17/test.conll.gz", 1287, 23394),
        ("ner_ncbi_disease/train.tsv.gz", 5424, 135701),
    ):
        found = examples.conll(str(shared / name))
        assert (len(found), sum(len(e.text) for e in found)) == (sentences, tokens)
    assert math.isnan(examples.number("?")) and list(itertools.chain.from_iterable(e.label for e in found)).count("O") > 0


def test_equal_decimals_are_one_class_and_codes_are_not():
    assert examples.classes(["0.5", "0.50", ".5", "1e0", "1", "1.0"]) == (".5", "1")
    assert sorted(examples.classes(["01", "1", "007", "7"])) == ["007", "01", "1", "7"]


def test_a_cell_over_several_lines_that_may_be_two_rows_is_said(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"a movie\t1\nthat never ends"\t0\nfine\t1\n')
    examples.rows_of(tmp_path / "a.tsv")
    assert "row 2: a cell in quotes goes over several lines" in capsys.readouterr().err
    (tmp_path / "b.tsv").write_text('sentence\tlabel\n"she said ""no"""\t1\nfine\t0\n')  # quotes within, and no line's end
    rows, _ = examples.rows_of(tmp_path / "b.tsv")
    assert rows[1][1][0] == 'she said "no"' and not capsys.readouterr().err
