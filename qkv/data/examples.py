"""Labelled examples in: tables (CSV, TSV, JSON lines), CoNLL, SQuAD JSON. Every example knows its file and
row, so that errors can name them."""

import collections
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import registry
from .text import DataError, _kind, files_of, read_text

TEXT = ("text", "sentence", "sentence1", "premise", "question", "source", "goal", "document", "input", "review", "tweet")
PAIR = ("pair", "sentence2", "hypothesis", "target", "answer", "output", "summary")
LABEL = ("label", "class", "target", "gold", "y", "category")
MISSING = ("", "?", "na", "nan", "null", "none")  # cells of numbers and categories that say nothing

Place = str | int | None  # of a column: its name, its number from 1 on, or that it is to be found


@dataclass
class Example:
    """text, pair: what is read. label: the answer, whatever it is for the task. where: its file and row.
    more: what else a task needs."""

    text: Any
    pair: Any = None
    label: Any = None
    where: str = ""
    more: dict = field(default_factory=dict)


def note(text: str) -> None:
    """Says on standard error, once for all ranks, what was done with the data and is no error."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)


# --- cells ------------------------------------------------------------------------------------------------
def gone(cell: Any) -> bool:
    """Is a cell of a number or a category missing?"""
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def number(cell: Any) -> float | None:
    """A cell as a number, NaN where it is missing, None where it is a word."""
    if gone(cell):
        return math.nan
    try:
        return None if isinstance(cell, str) and "_" in cell else float(cell)  # 1_000 is one to Python alone
    except (TypeError, ValueError):
        return None


def written(value: Any, where: str, role: str) -> str | None:
    """A cell as its file spells it, so true and 1.0 of JSON too; None where there is nothing (null, NaN).
    Raises DataError for a list or an object."""
    if value is None or value != value:
        return None
    if isinstance(value, (list, dict)):
        kind, cell = type(value).__name__, json.dumps(value, ensure_ascii=False)
        raise DataError(
            f"{where}: data.{role} is a {kind}, {cell[:60]}, and a text, a number, true or false is wanted; "
            f"name another column with data.{role}=NAME"
        )
    return value if isinstance(value, str) else json.dumps(value)


def label_of(value: Any, where: str) -> str | None:
    """A label as it is written, None where there is none (an empty cell, null, NaN)."""
    label = (written(value, where, "label") or "").strip()
    return None if label.lower() in ("", "nan") else label


def spelled(label: Any) -> str:
    """What a class is known by: 1 and 1.0 are one class, so are 0.5 and 0.50, and true and True. A code like 01 is one of its own."""
    label = str(label)
    if whole := re.fullmatch(r"([+-]?(?:0|[1-9]\d{0,99}))(?:\.0*)?", label, re.ASCII):
        return str(int(whole[1]))
    if re.fullmatch(r"[+-]?(?:(?:0|[1-9]\d*)?\.\d+|[1-9]\d*(?:\.\d*)?e[+-]?\d{1,2})", label, re.ASCII | re.IGNORECASE):
        value = float(label)
        return str(int(value)) if value == int(value) else repr(value)
    return label.lower() if label.lower() in ("true", "false") else label


def classes(labels: Iterable[Any]) -> tuple[str, ...]:
    """The classes of labels, each by its shortest spelling: numbers by size, then words by the alphabet."""
    found: dict[str, set[str]] = {}
    for label in labels:
        found.setdefault(spelled(label), set()).add(str(label))
    names = [min(spellings, key=lambda s: (len(s), s)) for spellings in found.values()]
    size = lambda name: math.inf if (value := number(name)) is None or math.isnan(value) else value
    return tuple(sorted(names, key=lambda name: (size(name), name)))


# --- tables -----------------------------------------------------------------------------------------------
def paths_of(source: str, part: str) -> list[Path]:
    """Files of a source: a published set's part, or what it names."""
    known = registry.PUBLISHED.get(source)
    if known is not None:
        if known.kind != "examples":
            raise DataError(f"data.source={source} holds {known.kind}, not labelled examples")
        if part not in known.files:
            raise DataError(f"data set {source} has no part '{part}'; it has {', '.join(known.files)}")
        return [registry.fetch(source, part)]
    return files_of(source)


def rows_of(path: Path, errors: str = "strict") -> tuple[list[tuple[int, Any]], list[str] | None]:
    """([(number, row)], names of the columns) of a table. Rows are numbered from 1, a header among them, as a
    spreadsheet does; empty ones are left out. A row of JSON lines is a dict, and the names are all keys there
    are; any other is a list of cells, and the names are None: `headed` finds out whether there is a header.

    Raises DataError with the row for what is not valid JSON or CSV.
    """
    kind = _kind(path)
    if kind in (".jsonl", ".json"):
        objects = _objects(path, kind, errors)
        return objects, list(dict.fromkeys(key for _, row in objects for key in row))
    text = read_text(path, errors)
    rows = _separated(path, text, ",") if kind == ".csv" else _tabbed(path, text)
    return [(n, row) for n, row in rows if any(c.strip() for c in row)], None


def _objects(path: Path, kind: str, errors: str) -> list[tuple[int, dict]]:
    """The numbered objects of JSON lines, or of one list of them."""
    text = read_text(path, errors)
    rows, row = [], ""
    try:
        if kind == ".json" and text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text), 1))
        else:
            for n, line in enumerate(_lines(text), 1):
                row = f", row {n}"
                if line.strip():
                    rows.append((n, json.loads(line)))
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}{row}: not valid JSON: {e}") from None
    for n, found in rows:
        if not isinstance(found, dict):
            raise DataError(f"{path}, row {n}: must be an object of fields, not {type(found).__name__}")
    return rows


def _lines(text: str) -> list[str]:
    """The lines of a text. Line feeds end them, with or without a carriage return before; in a text without
    line feeds carriage returns do, as on old Macintoshes."""
    text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
    return text.removesuffix("\n").split("\n")


def _separated(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Numbered rows of cells, in quotes or not (RFC 4180). Raises DataError where quotes are wrong."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may be as long as its file
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend(enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1))
    except csv.Error as e:
        raise DataError(
            f"{path}, row {len(rows) + 1}: not valid CSV ({e}); a cell that begins with a quote ends with "
            "one, and a quote in it is written twice"
        ) from None
    return rows


WHOLE = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:[\t\r\n]|\Z))*+')  # quotes are around cells


def _tabbed(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Numbered rows of cells between tabs. Quotes are text, as in GLUE's files, unless the file is written
    with quotes throughout: all of them stand around whole cells (and are doubled within), and either a column
    has all its cells in quotes, or a cell needs them because it holds a tab, a quote or the end of a line."""
    plain = [(n, line.split("\t")) for n, line in enumerate(_lines(text), 1)]
    if '"' not in text or not WHOLE.fullmatch(text):
        return plain
    quoted = [(n, row) for n, row in _separated(path, text, "\t") if row]
    if any(c in cell for _, row in quoted for cell in row for c in '\t\r\n"'):
        widths, lines = ({len(row) for _, row in rows if any(row)} for rows in (quoted, plain))
        if len(widths) != 1 or widths == {1}:
            return plain
        number = next((n for n, row in quoted if any(c in cell for cell in row for c in "\r\n")), None)
        if number is not None and lines == widths:  # both ways all rows are alike
            note(f"{path}, row {number}: a cell in quotes goes over several lines; if its quotes are text, write the file as JSON lines")
        return quoted
    columns = itertools.zip_longest(*(row for _, row in plain[1:] or plain), fillvalue="")
    whole = lambda cells: any(cells) and all(c.startswith('"') for c in cells if c)
    return quoted if any(map(whole, columns)) else plain


def headed(
    path: Path,
    rows: list,
    asked: Sequence[str] = (),
    known: Iterable[str] = (),
) -> tuple[list[str] | None, list]:
    """(names of the columns or None, the rows below them) of rows of cells. The first is a header where it
    holds the names that are asked for, or, where none is, looks like one (`_like_header`).

    Raises DataError for a name that is not there, a row that is longer or shorter than the others, and a
    header with nothing below.
    """
    first, below = [c.strip() for c in rows[0][1]], rows[1:]
    for name in asked:
        if name not in first:
            hint = "Without a header, give numbers: data.text=1"
            raise DataError(f"{path} has no column '{name}'; its first row is {first}. {hint}")
    header = bool(asked) or _like_header(first, [row for _, row in below], set(known))
    widths = collections.Counter(len(row) for _, row in rows)
    width = len(first) if header else max(widths, key=lambda w: (widths[w], w))
    for n, row in rows:
        if len(row) != width:
            comma = len(row) > width and _kind(path) == ".csv"
            hint = "; a cell that holds a comma must stand in quotes" if comma else ""
            others = "the header" if header else "others"
            raise DataError(f"{path}, row {n}: has {len(row)} columns, and {others} {width}{hint}")
    if header and not below:
        raise DataError(f"{path} holds a header and nothing below")
    return (first, below) if header else (None, rows)


def _like_header(first: list[str], below: list[list[str]], known: set[str]) -> bool:
    """Does a row look like a header? A usual name stands in it, and none of its cells comes again below in
    its column, or at least not that of a label; or a word stands above a column of numbers."""
    columns = list(zip(*below)) or [() for _ in first]
    new = {name for name, cells in zip(first, columns) if name not in {c.strip() for c in cells}}
    usual = [name for name in first if name in new and name.lower() in known]
    if usual and (new.issuperset(first) or any(name.lower() in LABEL for name in usual)):
        return True
    numbers = lambda cells: None not in map(number, cells) and not all(map(gone, cells))
    return any(number(name) is None and numbers(cells) for name, cells in zip(first, columns))


def table(
    source: str,
    columns: Mapping[str, Place],
    part: str = "train",
    errors: str = "strict",
) -> list[Example]:
    """[Example] of tables. columns: {"text" | "pair" | "label" | ...: a column's name, or its number from 1
    on}, None where it is to be found by its usual name. Texts, pairs and labels are as the file spells them,
    labels None where a cell is empty, null or NaN; other columns are as they are.

    Raises DataError for a column that is not there, or twice; an empty file; a row that is longer or shorter
    than the others, lacks a key, or has no text; a list where a text or a label is wanted.
    """
    out = []
    for path in paths_of(source, part):
        rows, names = rows_of(path, errors)
        if not rows:
            raise DataError(f"{path} is empty: there are no examples in it")
        if names is None:
            asked = [c for c in columns.values() if isinstance(c, str)]
            names, rows = headed(path, rows, asked, {*TEXT, *PAIR, *LABEL})
        chosen = _choose(path, columns, names, rows)
        out += [_example(f"{path}, row {n}", row, chosen) for n, row in rows]
    return out


def _example(where: str, row: Any, chosen: dict[str, Any]) -> Example:
    """The Example of a row; chosen: {role: key of a dict, or index of a cell}."""
    cells = {}
    for role, at in chosen.items():
        if isinstance(row, dict) and at not in row:
            raise DataError(f"{where}: no column '{at}' (it has {', '.join(row)})")
        cells[role] = row[at] if isinstance(row, dict) else row[at].strip()
    text, pair = (written(cells.pop(role, None), where, role) for role in ("text", "pair"))
    if text is None:
        raise DataError(f"{where}: the text is null; leave the row out, or name another: data.text=NAME")
    return Example(text, pair, label_of(cells.pop("label", None), where), where, cells)


def _choose(path: Path, columns: Mapping[str, Place], names: list[str] | None, rows: list) -> dict[str, Any]:
    """{role: key of a dict, or index of a cell} of the columns there are."""
    number_of_row, first = rows[0]
    width = len(first) if names is None else len(names)
    out: dict[str, Any] = {}
    for role, given in columns.items():
        if isinstance(given, int):
            if not 0 < given <= width:
                what = f"has {width} columns, and column {given} is wanted (data.{role})"
                raise DataError(f"{path}, row {number_of_row}: {what}")
            out[role] = names[given - 1] if isinstance(first, dict) and names else given - 1
        elif given is not None:
            out[role] = _named(path, given, names or [], role, first)
    if names is None:
        return out if "text" in out else out | _guessed(path, columns, rows)
    for role, usual in (("text", TEXT), ("label", LABEL), ("pair", PAIR)):  # `target` is a label first
        free = [n for i, n in enumerate(names) if n not in out.values() and i not in out.values()]
        name = next((n for u in usual for n in free if n.lower() == u), None)
        if name is not None and role in columns and columns[role] is None:
            out[role] = _named(path, name, names, role, first)
    if "text" not in out:
        raise DataError(f"{path}: which column is the text? Say data.text=NAME; it has {', '.join(names)}")
    return out


def _named(path: Path, name: str, names: list[str], role: str, row: Any) -> str | int:
    """What a row has at the column of a name: the name itself as a key, or the index of a cell."""
    if name not in names:
        raise DataError(f"{path} has no column '{name}' (data.{role}); it has {', '.join(names)}")
    if names.count(name) > 1:
        places = " and ".join(str(i) for i, n in enumerate(names, 1) if n == name)
        raise DataError(f"{path}: columns {places} are both '{name}'; say which: data.{role}=NUMBER")
    return name if isinstance(row, dict) else names.index(name)


def _guessed(path: Path, columns: Mapping[str, Place], rows: list) -> dict[str, int]:
    """The columns of a table without a header and without keys: of two the label has fewer values. Raises
    DataError where there are not two, and where the first row may be a header: its label alone comes once."""
    width = len(rows[0][1])
    if width != 2:
        cut = "commas" if _kind(path) == ".csv" else "tabs"
        raise DataError(
            f"{path} has {width} columns and no header: give data.text=1 data.label=2 (numbers from 1 on; "
            f"a {_kind(path) or 'plain'} file is cut at {cut})"
        )
    if "label" not in columns:
        return {"text": 0, "pair": 1}
    counts = [collections.Counter(row[i].strip() for _, row in rows) for i in (0, 1)]
    label = 0 if len(counts[0]) < len(counts[1]) else 1
    first = counts[label].pop(rows[0][1][label].strip())
    if first == 1 and min(counts[label].values(), default=1) > 1:
        raise DataError(
            f"{path}, row {rows[0][0]}: is {rows[0][1]} a header? Its label comes nowhere else. If it is, "
            "name the columns (data.text=NAME data.label=NAME); else number them (data.text=1 data.label=2)"
        )
    return {"text": 1 - label, "label": label}


# --- tagged sentences -------------------------------------------------------------------------------------
TAG = re.compile(r"O|[BIMELSUW]-.+")
TAGS = (*LABEL, "labels", "tag", "tags", "ner", "ner_tag", "ner_tags")  # usual names of their column
CHUNKS = {"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}  # of CoNLL-2000


class Line(NamedTuple):
    """A line of a CoNLL file: its number, its cells, and how it is written."""

    number: int
    cells: list[str]
    text: str


def conll(
    source: str,
    part: str = "train",
    errors: str = "strict",
    text: Place = None,
    label: Place = None,
) -> list[Example]:
    """[Example] of sentences, a token and its tag a line, an empty line between: text is the list of tokens,
    label that of tags in IOB2 (B- begins every entity). Cells stand between tabs, or in a line without a tab
    between blanks.

    text, label: the columns of tokens and of tags. Those that are not named are found: tags are the column
    whose cells are O, B-TYPE ... (of CoNLL-2003 not that of phrases), tokens the first of the others that
    holds no numbers. A line "# ..." before a sentence is a comment unless it is a row with a tag. Lines of
    CoNLL-U that join or insert words (1-2, 1.1) are left out, and counted. IOB1, IOBES and BILOU tags become
    IOB2.

    Raises DataError for a line without a token or a tag, columns that cannot be told apart, and tags of no
    scheme.
    """
    out = []
    for path in paths_of(source, part):
        if (kind := _kind(path)) in (".csv", ".json", ".jsonl"):
            raise DataError(f"{path}: tags are read from CoNLL files, a token and its tag a line, not {kind}")
        if not (blocks := _blocks(path, errors)):
            continue
        blocks, word, tag = _word_and_tag(path, blocks, text, label)
        for number, cells, _ in itertools.chain(*blocks):
            if not cells[word]:
                raise DataError(f"{path}, row {number}: has a tag and no token")
        tags = _iob2(path, [[(line.number, line.cells[tag]) for line in block] for block in blocks])
        for block, said in zip(blocks, tags):
            words = [line.cells[word] for line in block]
            out.append(Example(words, None, said, f"{path}, row {block[0].number}"))
    if not out:
        raise DataError(f"{source} holds no sentences")
    return out


def _blocks(path: Path, errors: str) -> list[list[Line]]:
    """The lines of each sentence, all of one width, without comments."""
    blocks: list[list[Line]] = [[]]
    lines = _lines(read_text(path, errors))
    tabs = any("\t" in text for text in lines)
    for number, text in enumerate(lines, 1):
        whole = "\t" in text or (tabs and text.startswith("#"))  # among rows with tabs, a remark without one is of one cell
        cells = [c.strip() for c in text.split("\t")] if whole else [c for c in text.split(" ") if c]
        if not text.strip() or "-DOCSTART-" in cells:
            blocks.append([])
        else:
            blocks[-1].append(Line(number, cells, text))
    remark = lambda line: re.match(r"#(\s|$)", line.text) is not None
    rows = [line for block in blocks for line in itertools.dropwhile(remark, block)]
    widths = collections.Counter(len(line.cells) for line in rows or itertools.chain(*blocks))
    width = max(widths, key=lambda w: (widths[w], w), default=0)
    plain = [line.cells for line in rows if not remark(line) and len(line.cells) == width]
    tagged = [
        c for c in range(1, width) if plain and all(TAG.fullmatch(cells[c]) for cells in plain[1:] or plain)
    ]  # the first may be a header
    tags = {c: {cells[c] for cells in plain} for c in tagged}
    told = lambda line: "\t" in line.text if tabs else tags and all(line.cells[c] in seen for c, seen in tags.items())
    row = lambda line: len(line.cells) == width and told(line)
    comment = lambda line: remark(line) and not row(line)
    blocks = [kept for block in blocks if (kept := list(itertools.dropwhile(comment, block)))]
    for line in itertools.chain(*blocks):
        if len(line.cells) < 2:
            what = f"'{line.text}' has no tag; a row is a token and its tag"
            raise DataError(f"{path}, row {line.number}: {what}")
        if len(line.cells) != width:
            raise DataError(f"{path}, row {line.number}: has {len(line.cells)} columns, and others {width}")
    return blocks


def _word_and_tag(
    path: Path,
    blocks: list[list[Line]],
    text: Place,
    label: Place,
) -> tuple[list[list[Line]], int, int]:
    """(the lines of words, the index of the column of tokens, that of tags)."""
    first, *below = itertools.chain(*blocks)
    columns = list(zip(*(line.cells for line in below or [first])))
    word, tag = _place(path, first, "text", text), _place(path, first, "label", label)
    shown = f"from 1 on; row {first.number} is {first.cells}"
    share = [sum(TAG.fullmatch(cell) is not None for cell in cells) / len(cells) for cells in columns]
    tagged = [i for i, fits in enumerate(share) if fits > 0.5]
    entities = [i for i in tagged if not {c[2:] for c in columns[i] if c != "O"} <= CHUNKS]
    if tag is None:
        free = [i for i in entities or tagged or range(1, len(columns)) if i != word]
        if len(free) != 1:
            which = " and ".join(f"{i + 1}" for i in free)
            which = f"columns {which} hold tags" if tagged else "no column holds tags (O, B-TYPE, I-TYPE)"
            raise DataError(f"{path}: {which}; say data.label=NUMBER, {shown}")
        tag = free[0]
    counted = [i for i, cells in enumerate(columns) if all(re.fullmatch(r"\d+([-.]\d+)?", c) for c in cells)]
    if word is None:
        free = [i for i in range(len(columns)) if i not in (tag, *tagged, *counted)]
        values = [len(set(columns[i])) for i in free]
        if not free or values[0] < max(values):  # tokens come first, and vary most
            raise DataError(f"{path}: which column holds the tokens? Say data.text=NUMBER, {shown}")
        word = free[0]
    if word == tag:
        raise DataError(f"{path}: column {tag + 1} is both data.text and data.label; say NUMBER, {shown}")
    header = isinstance(text, str) or isinstance(label, str) or first.cells[tag].lower() in TAGS
    rows = below if header else [first, *below]
    extra = [line for line in rows if 0 in counted and word and not line.cells[0].isdigit()]
    if extra:
        what = f"{len(extra)} lines that join or insert words are left out"
        note(f"{path}, row {extra[0].number}: {what}, this one the first")
    drop = {line.number for line in extra} | ({first.number} if header else set())
    blocks = [[line for line in block if line.number not in drop] for block in blocks]
    return [block for block in blocks if block], word, tag


def _place(path: Path, first: Line, role: str, at: Place) -> int | None:
    """The index of a column by its number from 1 on, or by its name in the first line."""
    if isinstance(at, int) and 0 < at <= len(first.cells):
        return at - 1
    if at is None or at in first.cells:
        return None if at is None else first.cells.index(str(at))
    what = f"has no column {at!r} (data.{role}); give a number from 1 to {len(first.cells)}"
    raise DataError(f"{path} {what}; row {first.number} is {first.cells}")


def _iob2(path: Path, sentences: list[list[tuple[int, str]]]) -> list[list[str]]:
    """The tags of sentences of (row, tag) as IOB2. They may be IOB1 (an entity begins with I-, and with B-
    after another of its type), IOBES or BILOU (its last token has E- or L-, a single one S- or U-).

    Raises DataError for a tag of none of them, or that breaks the scheme of its file.
    """
    for number, tag in itertools.chain(*sentences):
        if not TAG.fullmatch(tag):
            what = f"the tag '{tag}' is none of O, B-TYPE, I-TYPE (or E-, L-, S-, U-TYPE)"
            raise DataError(f"{path}, row {number}: {what}")
    pairs = [(a[2:], b) for s in sentences for (_, a), (_, b) in itertools.pairwise([(0, "O"), *s])]
    ended = any(tag[0] in "MELSUW" for _, tag in pairs)
    loose = any(tag[0] == "I" and tag[2:] != before for before, tag in pairs)
    iob1 = loose and not ended and all(tag[2:] == before for before, tag in pairs if tag[0] == "B")
    if ended or iob1:
        note(f"{path}: its tags are {'IOB1' if iob1 else 'IOBES or BILOU'}; they are read as B- and I-")
    out = []
    for sentence in sentences:
        said: list[str] = []
        last, going = "nothing", ""  # the tag before; the type of an entity that may go on
        for number, tag in [*sentence, (sentence[-1][0], "O")]:
            kind, inside = tag[2:], tag[0] in "IMEL"
            if inside and kind != going and not iob1:
                why = f"{tag} goes on from {last}; an entity begins with B-{kind}"
                raise DataError(f"{path}, row {number}: {why}")
            if ended and going and not inside:
                why = f"{tag} follows {last}, but entities of this file end with E- or L-, or are S- or U-"
                raise DataError(f"{path}, row {number}: {why}")
            said.append("O" if tag == "O" else f"{'I' if inside and kind == going else 'B'}-{kind}")
            last, going = tag, "" if ended and tag[0] in "ELSUW" else kind
        out.append(said[:-1])
    return out


# --- questions --------------------------------------------------------------------------------------------
def squad(source: str, part: str = "train", errors: str = "strict") -> list[Example]:
    """[Example] of questions: text is the question, pair the context, label the list of (start, text) of its
    answers, without blanks at their ends; empty where it has none, or "" alone.

    Raises DataError for an answer that does not stand where it says, or is nothing but blanks.
    """
    out = []
    for path in paths_of(source, part):
        try:
            for article in json.loads(read_text(path, errors))["data"]:
                for paragraph in article["paragraphs"]:
                    context = paragraph["context"]
                    for qa in paragraph["qas"]:
                        where = f"{path}, question {qa['id']}"
                        given = () if qa.get("is_impossible", False) else qa.get("answers", ())
                        places = [(a["answer_start"], a["text"]) for a in given if a["text"]]
                        answers = [_answer(context, *place, where) for place in places]
                        out.append(Example(qa["question"], context, answers, where, {"id": qa["id"]}))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, DataError):
                raise
            what = "is not SQuAD JSON (data, paragraphs, qas, answers)"
            raise DataError(f"{path} {what}: {type(e).__name__} {e}") from None
    if not out:
        raise DataError(f"{source} holds no questions")
    return out


def _answer(context: str, start: int, text: str, where: str) -> tuple[int, str]:
    """(start, text) of an answer without blanks at its ends."""
    found = context[max(0, start) : max(0, start) + len(text)]
    if start < 0 or found != text:
        raise DataError(f"{where}: the answer {text!r} is not at {start} of the text; {found!r} stands there")
    if not text.strip():
        raise DataError(f"{where}: the answer {text!r} is nothing but blanks; leave it out")
    return start + len(text) - len(text.lstrip()), text.strip()


# --- parts ------------------------------------------------------------------------------------------------
def split(examples: list[Example], holdout: float) -> tuple[list[Example], list[Example]]:
    """(train, valid): a share by a hash of the texts, so that a growing file keeps its split, and what is
    there twice is on one side."""
    key = lambda e: int(hashlib.sha256(_bytes(e.text, e.pair)).hexdigest()[:8], 16) < holdout * 2**32
    held = [e for e in examples if key(e)]
    kept = [e for e in examples if not key(e)]
    if not held or not kept:
        none = f"none to {'train on' if held else 'hold out'} (data.holdout={holdout})"
        raise DataError(f"{len(examples)} examples leave {none}; give data.valid=FILE")
    return kept, held


def digest(*parts: Iterable[Example]) -> str:
    """A hash of examples: says what a run was trained on."""
    h = hashlib.sha256()
    for e in itertools.chain(*parts):
        h.update(_bytes(e.text, e.pair, e.label, *(e.more[k] for k in ("choices", "task") if k in e.more)))
    return h.hexdigest()


def _bytes(text: Any, *more: Any) -> bytes:
    """What a hash is taken of; text may be pixels, or a file, which is known by its name and its folder's."""
    text = "/".join(text.parts[-2:]) if isinstance(text, Path) else text
    return text.tobytes() + repr(more).encode() if hasattr(text, "tobytes") else repr((text, *more)).encode()
