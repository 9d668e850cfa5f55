"""Files of pictures and sounds: folders, archives, and tables that name them with a text each."""

import fnmatch
import tarfile
import zipfile
from pathlib import Path

from . import examples
from .examples import Example
from .text import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".json")
FILE = ("file", "path", "image", "audio", "sound", "filename")


def members(path, suffixes):
    """{name: bytes} of the files of a zip or tar whose names end so, sorted by name; None where `path` is no archive."""
    wanted = lambda name: Path(name).suffix.lower() in suffixes and not Path(name).name.startswith(".")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                return {n: z.read(n) for n in sorted(z.namelist()) if wanted(n)}
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as t:
                return {m.name: t.extractfile(m).read() for m in sorted(t, key=lambda m: m.name) if m.isfile() and wanted(m.name)}
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as e:
        raise DataError(f"{path} is damaged: {e}") from None
    return None


def labelled(path, suffixes, label):
    """[Example] of a folder or archive; label: name of a file (a Path) -> its label or None. None where `path` is neither."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
        return [Example(p, label=label(p.relative_to(path)), where=str(p)) for p in files]
    found = members(path, suffixes)
    return None if found is None else [Example(b, label=label(Path(n)), where=f"{path}: {n}") for n, b in found.items()]


def is_table(source):
    return any(s in TABLES for s in Path(str(source)).suffixes)


def table(cfg, source, part, suffixes):
    """[Example(text: a file or its bytes, pair: its text)] of a table that names files, below its own folder or in cfg.files (a folder or
    an archive). Rows whose text holds cfg.without are left out. Raises DataError for a file that is not there."""
    if not is_table(source) or not Path(str(source)).expanduser().is_file():
        raise DataError(f"data.source={source} is no table here ({', '.join(TABLES)}) that names files and their texts")
    names = {"text": cfg.text, "pair": cfg.pair}
    if cfg.text is None:  # the usual name of the column of files
        columns = _header(source, cfg)
        names["text"] = next((c for u in FILE for c in columns if c.lower() == u), None)
        if names["text"] is None:
            raise DataError(f"{source}: which column names the files? Give data.text=NAME; it has {', '.join(columns)}")
        if cfg.pair is None:
            names["pair"] = next((c for u in ("text", "name", "caption", *examples.PAIR) for c in columns if c.lower() == u), None)
    rows = examples.table(source, names, part, cfg.errors)
    near = Path(str(source)).expanduser().parent
    root = Path(cfg.files).expanduser() if cfg.files else near
    if not root.exists():
        raise DataError(f"data.files={cfg.files} is no folder or archive here")
    packed = None if root.is_dir() else members(root, suffixes)
    by_name = None if packed is None else {Path(n).name: b for n, b in packed.items()} | packed
    out = []
    for e in rows:
        if e.pair in (None, ""):
            raise DataError(f"{e.where}: has no text beside its file; name its column with data.pair=NAME")
        if cfg.without and cfg.without in e.pair:
            continue
        if by_name is None:
            there = root / str(e.text) if (root / str(e.text)).exists() else None
        else:
            there = by_name.get(str(e.text), by_name.get(Path(str(e.text)).name))
        if there is None:
            raise DataError(f"{e.where}: there is no file {e.text} in {root}")
        out.append(Example(there, str(e.pair), e.pair, f"{e.where} ({e.text})", {"name": str(e.text)}))
    return out


def _header(source, cfg):
    rows, names = examples.rows_of(Path(str(source)).expanduser(), cfg.errors)
    return names or ([c.strip() for c in rows[0][1]] if rows else [])


def held(found, pattern):
    """(train, held out): examples whose file's name fits a pattern, as in valid="*_[0-4].wav", are held out."""
    name = lambda e: Path(e.more.get("name") or e.where.split(": ")[-1]).name
    fits = [fnmatch.fnmatch(name(e), str(pattern)) for e in found]
    if not any(fits) or all(fits):
        raise DataError(
            f"data.valid={pattern} is no file here, and as a pattern it fits {sum(fits)} of {len(fits)} files; some must be held out"
        )
    return [e for e, f in zip(found, fits) if not f], [e for e, f in zip(found, fits) if f]
