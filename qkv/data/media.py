"""Files of pictures and sounds: folders, archives, and tables that name them with a text each."""

import collections
import fnmatch
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from . import examples
from .examples import Example
from .text import DataError, _kind

TABLES = (".csv", ".tsv", ".jsonl", ".json")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".tbz", ".bz2", ".txz", ".xz")
FILE = ("file", "path", "image", "audio", "sound", "filename")
LARGEST = 2**31  # bytes of one file in an archive, at most: a few megabytes of zip can unpack to any number
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
DAMAGES = (*UNREADABLE, OSError, EOFError, KeyError, UnicodeError)

Suffixes = tuple[str, ...]
Examples = list[Example]
Files = dict[PurePosixPath, Path | bytes]


def read(
    cfg,
    source,
    part: str,
    suffixes: Suffixes,
    kind: str,
    sets: str,
    others: Callable[[Path], Examples | None],
) -> Examples:
    """[Example] of a table of files, or of what `others` makes of a path (None where it is nothing for it).

    kind: images or sounds; sets: the names of data sets of that kind. Raises DataError for what is not there,
    is neither, or is empty.
    """
    path, ends = Path(str(source)).expanduser(), ", ".join(suffixes)
    if not path.exists():
        raise DataError(f"data.source={source} is no file or folder here, and no data set of {kind} ({sets})")
    tabular = cfg is not None and path.is_file() and _is_table(path)
    found = table(cfg, path, part, suffixes) if tabular else others(path)
    if found is None:
        what = f"table, folder, zip or tar of {kind}"
        raise DataError(f"{path} is no {what}, and none itself by its name; {kind} end in {ends}")
    if not found:
        raise DataError(f"{path} holds no {kind} ({ends})")
    return found


def labelled(path: Path, suffixes: Suffixes, label: Callable[[PurePosixPath], str | None]) -> Examples | None:
    """[Example] of a file, folder or archive, None where it is neither; label: by a file's name below it."""
    found = files(path, suffixes)
    if found is None:
        return None
    return [Example(f, label=label(n), where=where(path, n, f)) for n, f in found.items()]


def where(path: Path, name: PurePosixPath, file: Path | bytes) -> str:
    """What an error calls a file of a folder or archive."""
    return str(file) if isinstance(file, Path) else f"{path}: {name}"


def files(path: Path, suffixes: Suffixes) -> Files | None:
    """{name: the file, or its bytes} of a file, or of all that is in a folder, zip or tar, sorted by name.

    Only files that end in one of `suffixes`, in capitals or not; how many end otherwise is said. Hidden files
    and folders are no data, nor is what macOS packs beside the real ones (`__MACOSX/._x.png`). Of two files
    of one name in an archive the later one counts, as on unpacking. None where `path` is none of these.
    Raises DataError for an archive that is damaged or locked, or that holds a file over LARGEST.
    """
    if path.is_dir():
        below = ((p.relative_to(path).as_posix(), 0, p) for p in path.rglob("*") if not p.is_dir())
        return _chosen(path, below, lambda p: p, suffixes)
    if path.suffix.lower() in suffixes:
        return {PurePosixPath(path.name): path}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                inside = ((i.filename, i.file_size, i) for i in z.infolist() if not i.is_dir())
                return _chosen(path, inside, z.read, suffixes)
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as t:
                return _chosen(path, _members(t), lambda m: _unpacked(t, m), suffixes)
    except RuntimeError as e:  # a password, or a way of packing that Python does not know
        raise DataError(f"{path} cannot be read: {e}") from None
    except DAMAGES as e:
        raise DataError(f"{path} is damaged: {e}") from None
    if path.suffix.lower() in ARCHIVES:
        raise DataError(f"{path} is damaged: it is called an archive and is no zip or tar")
    return None


def _chosen(
    path: Path,
    entries: Iterable[tuple[str, int, Any]],
    load: Callable[[Any], Path | bytes],
    suffixes: Suffixes,
) -> Files:
    """Those of the entries (name, bytes, what is loaded) that are wanted."""
    found: Files = {}
    left: collections.Counter[str] = collections.Counter()
    for written, size, entry in entries:
        name = PurePosixPath(written.replace("\\", "/"))  # so some packers on Windows write paths
        if any(p.startswith(".") and p != ".." for p in name.parts):
            continue
        if name.suffix.lower() not in suffixes:
            left[name.suffix.lower() or "without a suffix"] += 1
            continue
        if size > LARGEST:
            raise DataError(f"{path}: {name}: has {size:,} bytes unpacked, over {LARGEST:,}; leave it out")
        found[name] = load(entry)
    if found and left:
        most = sorted(left.items(), key=lambda kind: (-kind[1], kind[0]))[:5]
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in most)
        examples.note(f"{path}: {left.total()} files beside the {len(found)} read are left out ({kinds})")
    return dict(sorted(found.items()))


def _members(t: tarfile.TarFile) -> Iterator[tuple[str, int, tarfile.TarInfo]]:
    """In their own order: to seek back in a packed archive is to unpack it from its start again."""
    for m in t:
        if m.isfile() or m.islnk() or m.issym():
            yield m.name, m.size, m
    t.fileobj.seek(t.offset)
    while block := t.fileobj.read(2**20):  # gzip checks its sum at the end, and
        if block.strip(b"\0"):  # tarfile takes a header that it cannot read for the end
            raise tarfile.ReadError("behind the last file that can be read there is more")


def _unpacked(t: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = t.extractfile(member)
    return file.read() if file else b""


def _is_table(path: Path) -> bool:
    return _kind(path) in TABLES


def table(cfg, source, part: str, suffixes: Suffixes) -> Examples:
    """[Example(text: a file or its bytes, pair: its text)] of a table that names files.

    They are below its own folder or in cfg.files (a folder or an archive). A file in an archive may be named
    with more or fewer folders than it lies in, if only one fits. Rows whose text holds cfg.without are left
    out. Raises DataError for a row without a file or a text, and for a file that is not there, or not the
    only one so named.
    """
    path = Path(str(source)).expanduser()
    if not _is_table(path) or not path.is_file():
        kinds = ", ".join(TABLES)
        raise DataError(f"data.source={source} is no table here ({kinds}) that names files and their texts")
    names = {"text": cfg.text, "pair": cfg.pair}
    if cfg.text is None:  # the usual name of the column of files
        columns = _header(path, cfg)
        names["text"] = next((c for u in FILE for c in columns if c.lower() == u), None)
        if names["text"] is None:
            has = ", ".join(columns)
            raise DataError(f"{source}: which column names the files? Give data.text=NAME; it has {has}")
        if cfg.pair is None:
            usual = ("text", "name", "caption", *examples.PAIR)
            names["pair"] = next((c for u in usual for c in columns if c.lower() == u), None)
    rows = examples.table(str(source), names, part, cfg.errors)
    root = Path(cfg.files).expanduser() if cfg.files else path.parent
    packed = files(root, suffixes) if root.is_file() else None
    if packed is None and not root.is_dir():
        raise DataError(f"data.files={cfg.files} is no folder or archive here")
    alike: dict[str, list[PurePosixPath]] = collections.defaultdict(list)
    for n in packed or ():
        alike[n.name].append(n)
    out = []
    for e in rows:
        if e.pair in (None, ""):
            raise DataError(f"{e.where}: has no text beside its file; name its column with data.pair=NAME")
        if e.text in (None, ""):
            raise DataError(f"{e.where}: names no file; leave it out, or name another column: data.text=NAME")
        said = str(e.pair)
        if cfg.without and cfg.without in said:
            continue
        name = PurePosixPath(str(e.text).replace("\\", "/"))
        there: list[Path | bytes]
        if packed is None:
            there = [root / name] if (root / name).is_file() else []
        else:
            there = [packed[n] for n in _meant(name, alike[name.name], f"{e.where}: {e.text}", root)]
        if not there:
            ends = "" if packed is None else f" (of those that end in {', '.join(suffixes)})"
            raise DataError(f"{e.where}: there is no file {e.text} in {root}{ends}")
        out.append(Example(there[0], said, said, f"{e.where} ({e.text})", {"name": str(e.text)}))
    return out


def _meant(name: PurePosixPath, alike: list[PurePosixPath], where: str, root: Path) -> list[PurePosixPath]:
    """The file of an archive that a table means: that of this path, or the only one whose path ends so."""
    if name in alike:
        return [name]
    shared = lambda n: min(len(n.parts), len(name.parts))
    found = [n for n in alike if n.parts[-shared(n) :] == name.parts[-shared(n) :]]
    if len(found) > 1:
        some = ", ".join(map(str, found[:3]))
        raise DataError(f"{where} fits {len(found)} files in {root} ({some}); name it with its folder")
    return found


def _header(path: Path, cfg) -> list[str]:
    rows, names = examples.rows_of(path, cfg.errors)
    return names or ([c.strip() for c in rows[0][1]] if rows else [])


def held(found: Examples, pattern: str) -> tuple[Examples, Examples]:
    """(train, held out): those whose file's name fits a pattern, as in valid="*_[0-4].wav", are held out."""
    name = lambda e: Path(e.more.get("name") or e.where.split(": ")[-1]).name
    fits = [fnmatch.fnmatch(name(e), str(pattern)) for e in found]
    if not any(fits) or all(fits):
        some = f"{sum(fits)} of {len(fits)} files"
        how = f"as a pattern it fits {some}; some must be held out"
        raise DataError(f"data.valid={pattern} is no file here, and {how}")
    return [e for e, f in zip(found, fits) if not f], [e for e, f in zip(found, fits) if f]
