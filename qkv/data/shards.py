"""Token shards: documents encoded once into a flat file of ids, memory-mapped afterwards, reused while nothing changed."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .text import DataError


def cache_folder():
    """Where shards and fetched files are kept: $QKV_CACHE, or ~/.cache/qkv."""
    return Path(os.environ.get("QKV_CACHE") or Path.home() / ".cache" / "qkv")


@dataclass
class Shards:
    """ids: flat array of token ids, every document followed by its end token. ends: where each document ends. nbytes: bytes of
    UTF-8 that they encode (what bits a byte are counted over)."""

    ids: np.ndarray
    ends: np.ndarray
    nbytes: int

    def __len__(self):
        return len(self.ids)


def build(texts, tokenizer, key, batch=256):
    """Shards of an iterable of texts; key: anything that says what the texts are. Built at the first call, then read."""
    name = hashlib.sha256(f"1|{key}|{tokenizer.digest()}".encode()).hexdigest()[:24]
    folder = cache_folder() / "shards" / name
    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=folder.parent))
        try:
            _write(texts, tokenizer, temporary, batch)
            try:
                temporary.rename(folder)
            except OSError:  # another process was faster
                shutil.rmtree(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return read(folder)


def _write(texts, tokenizer, folder, batch):
    kind = np.uint16 if len(tokenizer) <= 65536 else np.uint32
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    ends, total, nbytes, held = [], 0, 0, []
    digest = hashlib.sha256()
    with open(folder / "ids.bin", "wb") as f:

        def flush():
            nonlocal total
            for ids in tokenizer.encode_all(held):
                block = np.array(ids + end, dtype=kind).tobytes()
                f.write(block)
                digest.update(block)
                total += len(ids) + len(end)
                ends.append(total)
            held.clear()

        for text in texts:
            nbytes += len(text.encode())
            held.append(text)
            if len(held) >= batch:
                flush()
        flush()
        f.flush()
        os.fsync(f.fileno())
    np.save(folder / "ends.npy", np.array(ends, dtype=np.int64))
    meta = {"tokens": total, "dtype": kind.__name__, "nbytes": nbytes, "sha256": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))


def read(folder):
    """Shards of a folder. Raises DataError where the file is not as long as it was written."""
    meta = json.loads((folder / "meta.json").read_text())
    path, kind = folder / "ids.bin", np.dtype(meta["dtype"])
    if path.stat().st_size != meta["tokens"] * kind.itemsize:
        raise DataError(
            f"{path} is damaged: {path.stat().st_size} bytes instead of {meta['tokens'] * kind.itemsize}. Delete {folder} to build it again"
        )
    ids = np.memmap(path, dtype=kind, mode="r") if meta["tokens"] else np.zeros(0, kind)
    return Shards(ids, np.load(folder / "ends.npy"), meta["nbytes"])
