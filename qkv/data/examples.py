"""Labelled examples in: tables (CSV, TSV, JSON lines), CoNLL, SQuAD JSON. Every example knows its file and row, so that errors can name
them."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from . import registry
from .text import DataError, _kind, files_of, lines, read_text

TEXT = ("text", "sentence", "sentence1", "premise", "question", "source", "goal", "document", "input", "review", "tweet")
PAIR = ("pair", "sentence2", "hypothesis", "target", "answer", "output", "summary")
LABEL = ("label", "class", "target", "gold", "y", "category")


@dataclass
class Example:
    """text, pair: what is read. label: the answer, whatever it is for the task. where: its file and row. more: what else a task
    needs."""

    text: object
    pair: object = None
    label: object = None
    where: str = ""
    more: dict = field(default_factory=dict)


def paths_of(source, part):
    """Files of a source: a published set's part, or what it names."""
    known = registry.PUBLISHED.get(source)
    if known is not None:
        if known.kind != "examples":
            raise DataError(f"data.source={source} holds {known.kind}, not labelled examples")
        if part not in known.files:
            raise DataError(f"data set {source} has no part '{part}'; it has {', '.join(known.files)}")
        return [registry.fetch(source, part)]
    return files_of(source)


def rows_of(path, errors="strict"):
    """(list of rows, names of the columns or None). A row is a dict (of JSON lines) or a list of cells."""
    kind = _kind(path)
    if kind in (".jsonl", ".json"):
        rows = []
        text = read_text(path, errors)
        if kind == ".json" and text.lstrip().startswith("["):
            try:
                rows = [(i, r) for i, r in enumerate(json.loads(text), 1)]
            except ValueError as e:
                raise DataError(f"{path} is not valid JSON: {e}") from None
        else:
            for number, line in enumerate(lines(path, errors), 1):
                if line.strip():
                    try:
                        rows.append((number, json.loads(line)))
                    except ValueError as e:
                        raise DataError(f"{path}, row {number}: not valid JSON: {e}") from None
        for number, row in rows:
            if not isinstance(row, dict):
                raise DataError(f"{path}, row {number}: must be an object of fields, not {type(row).__name__}")
        return rows, list(rows[0][1]) if rows else None
    text = read_text(path, errors)
    if kind == ".csv":
        try:
            rows = [(i, r) for i, r in enumerate(csv.reader(io.StringIO(text), strict=True), 1) if any(c.strip() for c in r)]
        except csv.Error as e:
            raise DataError(f"{path} is not valid CSV: {e}") from None
    else:
        rows = [(i, line.split("\t")) for i, line in enumerate(lines(path, errors), 1) if line.strip()]
    return rows, None


def table(source, columns, part="train", errors="strict"):
    """[Example] of tables. columns: {"text" | "pair" | "label" | ...: a column's name, or its number from 1 on}, None where it is to be
    found by its usual name. Raises DataError for a column that is not there, an empty file, a row that is too short."""
    out = []
    for path in paths_of(source, part):
        rows, names = rows_of(path, errors)
        if not rows:
            raise DataError(f"{path} is empty: there are no examples in it")
        if names is None:
            first = [c.strip() for c in rows[0][1]]
            wanted = [c for c in columns.values() if isinstance(c, str)]
            known = {*TEXT, *PAIR, *LABEL}
            if (wanted and all(w in first for w in wanted)) or (not wanted and any(c.lower() in known for c in first)):
                names, rows = first, rows[1:]
            elif wanted:
                missing = next(w for w in wanted if w not in first)
                raise DataError(f"{path} has no column '{missing}'; its first row is {first}. Without a header, give numbers: data.text=1")
        chosen = _choose(path, columns, names, rows)
        for number, row in rows:
            cell = lambda key: _cell(path, number, row, chosen.get(key), names)
            rest = {k: cell(k) for k in chosen if k not in ("text", "pair", "label")}
            out.append(Example(cell("text"), cell("pair"), cell("label"), f"{path}, row {number}", rest))
    return out


def _choose(path, columns, names, rows):
    """{role: name or index} of the columns there are."""
    out = {}
    for role, given in columns.items():
        if isinstance(given, int):
            out[role] = given - 1 if names is None else names[given - 1] if 0 < given <= len(names) else None
            if out[role] is None:
                raise DataError(f"{path} has {len(names)} columns; data.{role}={given} is not one of them")
        elif isinstance(given, str):
            if given not in (names or ()):
                raise DataError(f"{path} has no column '{given}'; it has {', '.join(names or ())}")
            out[role] = given
    if names is not None:
        usual = {"text": TEXT, "pair": PAIR, "label": LABEL}
        for role in (r for r in usual if r in columns and columns[r] is None):
            out[role] = next((n for u in usual[role] for n in names if n.lower() == u and n not in out.values()), None)
        if out.get("text") is None:
            raise DataError(f"{path}: which column is the text? Give data.text=NAME; it has {', '.join(names)}")
        return {k: v for k, v in out.items() if v is not None}
    width = max(len(r) for _, r in rows)
    if "text" not in out:
        if width != 2:
            raise DataError(f"{path} has {width} columns and no header: give data.text=1 data.label=2 (numbers from 1 on)")
        kinds = [len({r[i] for _, r in rows if len(r) > i}) for i in (0, 1)]
        label = 0 if kinds[0] < kinds[1] else 1
        if "label" in columns:
            out |= {"text": 1 - label, "label": label}
        else:
            out |= {"text": 0, "pair": 1}
    return out


def _cell(path, number, row, column, names):
    if column is None:
        return None
    if isinstance(row, dict):
        if column not in row:
            raise DataError(f"{path}, row {number}: no column '{column}' (it has {', '.join(row)})")
        return row[column]
    at = names.index(column) if isinstance(column, str) else column
    if at >= len(row):
        raise DataError(
            f"{path}, row {number}: has {len(row)} columns, and column {column if isinstance(column, str) else at + 1} is wanted"
        )
    return row[at].strip()


def conll(source, part="train", errors="strict"):
    """[Example] of sentences, a token and its tag a line, an empty line between: text is the list of tokens, label that of tags.

    Raises DataError for a line without a tag, and for a tag that breaks BIO (an I- that goes on from nothing, or from another type).
    """
    out = []
    for path in paths_of(source, part):
        tokens, tags, first = [], [], 1

        def flush(path=path):
            nonlocal tokens, tags
            if tokens:
                out.append(Example(tokens, None, tags, f"{path}, row {first}"))
            tokens, tags = [], []

        for number, line in enumerate(lines(path, errors), 1):
            parts = line.split("\t") if "\t" in line else line.split()
            if not line.strip() or parts[0] == "-DOCSTART-":
                flush()
                continue
            if len(parts) < 2 or not parts[-1].strip():
                raise DataError(f"{path}, row {number}: '{line}' has no tag; a row is a token and its tag")
            token, tag = parts[0], parts[-1].strip()
            if tag != "O" and tag[:2] not in ("B-", "I-"):
                raise DataError(f"{path}, row {number}: the tag '{tag}' is none of O, B-TYPE, I-TYPE")
            if tag[:2] == "I-" and (not tags or tags[-1] == "O" or tags[-1][2:] != tag[2:]):
                raise DataError(
                    f"{path}, row {number}: {tag} goes on from {tags[-1] if tags else 'nothing'}; an entity begins with B-{tag[2:]}"
                )
            if not tokens:
                first = number
            tokens.append(token)
            tags.append(tag)
        flush()
    if not out:
        raise DataError(f"{source} holds no sentences")
    return out


def squad(source, part="train", errors="strict"):
    """[Example] of questions: text is the question, pair the context, label the list of (start, text) of its answers, empty where it
    has none. Raises DataError for an answer that does not stand where it says."""
    out = []
    for path in paths_of(source, part):
        try:
            articles = json.loads(read_text(path, errors))["data"]
            for article in articles:
                for paragraph in article["paragraphs"]:
                    context = paragraph["context"]
                    for qa in paragraph["qas"]:
                        where = f"{path}, question {qa['id']}"
                        answers = [(a["answer_start"], a["text"]) for a in qa.get("answers", ()) if a["text"]]
                        for start, text in answers:
                            if context[start : start + len(text)] != text:
                                found = context[start : start + len(text)]
                                raise DataError(f"{where}: the answer {text!r} is not at {start} of the text; {found!r} stands there")
                        impossible = qa.get("is_impossible", False)
                        out.append(Example(qa["question"], context, [] if impossible else answers, where, {"id": qa["id"]}))
        except (ValueError, KeyError, TypeError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f"{path} is not SQuAD JSON (data, paragraphs, qas, answers): {type(e).__name__} {e}") from None
    if not out:
        raise DataError(f"{source} holds no questions")
    return out


def split(examples, holdout):
    """(train, valid): a share by a hash of the texts, so that a growing file keeps its split."""
    key = lambda e: int(hashlib.sha256(_bytes(e.text, e.pair)).hexdigest()[:8], 16) < holdout * 2**32
    held = [e for e in examples if key(e)]
    kept = [e for e in examples if not key(e)]
    if not held or not kept:
        raise DataError(
            f"{len(examples)} examples leave none to train on or none to hold out (data.holdout={holdout}); give data.valid=FILE"
        )
    return kept, held


def digest(*parts):
    """A hash of examples: says what a run was trained on."""
    h = hashlib.sha256()
    for part in parts:
        for e in part:
            h.update(_bytes(e.text, e.pair, e.label))
    return h.hexdigest()


def _bytes(text, *more):
    """What a hash is taken of; text may be pixels, or a file, which is known by its name and its folder's."""
    text = "/".join(text.parts[-2:]) if isinstance(text, Path) else text
    return text.tobytes() + repr(more).encode() if hasattr(text, "tobytes") else repr((text, *more)).encode()
