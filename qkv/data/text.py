"""Text in: files, folders, globs, JSON lines, gzip -> documents. Errors name the file and the place in it."""

import glob
import gzip
import json
import os
import zlib
from pathlib import Path

TEXT = (".txt", ".md", ".rst", ".text", ".raw", ".py", ".tsv", ".csv", "")


class DataError(ValueError):
    """Input that cannot be used; the message names the file, the place and what to do."""


def files_of(source):
    """Sorted paths of a file, a folder (all text files below it), a glob, or several of these joined by commas."""
    found = []
    for part in str(source).split(","):
        part = os.path.expanduser(part.strip())
        if not part:
            raise DataError("data.source is empty: name a file, a folder, a glob or a data set")
        path = Path(part)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in (*TEXT, ".jsonl") and not p.name.startswith("."))
            if not inside:
                raise DataError(f"the folder {part} holds no text files ({', '.join(t for t in TEXT if t)}, .jsonl, or these with .gz)")
            found += inside
        elif path.is_file():
            found.append(path)
        elif any(c in part for c in "*?["):
            matches = sorted(Path(p) for p in glob.glob(part, recursive=True) if os.path.isfile(p))
            if not matches:
                raise DataError(f"no file matches {part}")
            found += matches
        else:
            raise DataError(f"there is no file, folder or data set called '{part}'. `qkv ls data` lists the data sets")
    return found


def _kind(path):
    """The last suffix in lower case, a .gz aside; "" where there is none."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_text(path, errors="strict"):
    """The text of a file, gunzipped where it ends in .gz. Raises DataError with the offset of the first byte that is not UTF-8."""
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, OSError, zlib.error) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    try:
        return raw.decode("utf-8-sig", errors)
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{raw[e.start]:02x} at offset {e.start}. Convert the file, or pass data.errors=replace to put "
            "a replacement character there"
        ) from None


def lines(path, errors="strict"):
    """The lines of a file, without their ends. Only line feeds end a line."""
    text = read_text(path, errors).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def documents(source, *, field="text", split="file", errors="strict"):
    """Yields the documents of a source as text: one a file, or (split="line") one a line; one a row of JSON lines.

    Raises DataError for empty input, bad UTF-8, bad JSON and a missing field.
    """
    if split not in ("file", "line"):
        raise DataError(f"data.split={split!r}: must be file (a document a file) or line (a document a line)")
    some = False
    for path in files_of(source):
        if _kind(path) == ".jsonl":
            for number, line in enumerate(lines(path, errors), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as e:
                    raise DataError(f"{path}, line {number}: not valid JSON: {e}") from None
                if not isinstance(row, dict) or field not in row:
                    has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                    raise DataError(f"{path}, line {number}: no field '{field}' (it has {has}). Choose one with data.field=NAME")
                some = some or bool(row[field])
                yield str(row[field])
        else:
            parts = lines(path, errors) if split == "line" else [read_text(path, errors)]
            for text in parts:
                if text.strip():
                    some = True
                    yield text
    if not some:
        raise DataError(f"{source} is empty: there is no text to learn from")


def pairs(source: str | Path, target: str | Path, errors: str = "strict") -> list[tuple[str, str]]:
    """[(source line, target line)] of two files aligned by line: all lines as they are, the empty ones, too.

    Raises DataError where their lengths differ, or where no pair has text on both sides.
    """
    a, b = ([line for path in files_of(s) for line in lines(path, errors)] for s in (source, target))
    if len(a) != len(b):
        raise DataError(f"{source} has {len(a)} lines and {target} has {len(b)}: pairs need one line for each")
    rows = list(zip(a, b))
    if not both(rows):
        raise DataError(f"{source} and {target} hold no pairs")
    return rows


def both(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs with text on both sides, from which something can be learnt."""
    return [(x, y) for x, y in rows if x.strip() and y.strip()]
