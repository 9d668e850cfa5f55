"""Folders of safetensors and JSON, read with bounds and written so that a crash loses nothing. Never unpickles."""

import hashlib
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

MAX_HEADER, MAX_TENSORS = 16 << 20, 100_000


class CheckpointError(ValueError):
    """A folder that cannot be read as a checkpoint; the message says what is wrong, where, and what to do."""


def read_json(path):
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not valid JSON: {str(e)[:200]}") from None


def _header(path):
    """The header of a safetensors file, checked before anything is allocated."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        start = f.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path} is not a safetensors file: it has only {size} bytes")
        (length,) = struct.unpack("<Q", start)
        plain = f.read(1) == b"{"  # a header of 640 bytes begins as a pickle does
        f.seek(8)
        if (start[:2] == b"\x80\x02" and not plain) or start[:4] == b"PK\x03\x04":
            raise CheckpointError(
                f"{path} is a pickle, which could run code when it is read. Ask for a safetensors file, or convert it where you trust it"
            )
        if length > MAX_HEADER or length + 8 > size:
            raise CheckpointError(f"{path} is truncated or not a safetensors file: its header claims {length} bytes, the file has {size}")
        text = f.read(length)

    def unique(pairs):
        seen = dict(pairs)
        if len(seen) != len(pairs):
            raise CheckpointError(f"{path} names a tensor twice")
        return seen

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"{path} has a damaged header: {str(e)[:100]}") from None
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(header)} tensors, more than the {MAX_TENSORS} allowed")
    ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    if max(ends, default=0) + 8 + length != size:
        raise CheckpointError(
            f"{path} is truncated or has extra bytes: {size} bytes, its header describes {max(ends, default=0) + 8 + length}"
        )
    return header


def read_tensors(path):
    """{name: tensor} of a safetensors file."""
    _header(path)
    try:
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from None


def read_folder(folder):
    """{name: tensor} of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    folder = Path(folder)
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.exists():
        return read_tensors(one)
    if index.exists():
        listed = read_json(index).get("weight_map", {})
        out = {}
        for name in sorted(set(listed.values())):
            if Path(name).name != name or not (folder / name).exists():
                raise CheckpointError(f"{index} lists {name!r}, which is not in {folder}; download it as well")
            out |= read_tensors(folder / name)
        if set(out) != set(listed):
            odd = sorted(set(out) ^ set(listed))
            raise CheckpointError(f"{index} and its files do not agree on {', '.join(odd[:5])}")
        return out
    pickles = [p.name for s in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for p in folder.glob(s)]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which could run code when it is read. qkv reads model.safetensors only: look for "
            "a safetensors version of the same model, or convert it where you trust it"
        )
    raise CheckpointError(f"{folder} has no model.safetensors")


def check_finite(tensors, where):
    """Raises where a weight is NaN or infinite."""
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            bad = (~torch.isfinite(t)).sum().item()
            raise CheckpointError(
                f"{where}: {name} has {bad} of {t.numel()} values that are not finite (NaN or infinity); the file is damaged or its training diverged"
            )


def fsync(path):
    """Waits until a file or folder is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    fsync(path)


def write_tensors(path, tensors):
    """Tensors are copied to be contiguous and unshared; metadata as the reference writes it."""
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as e:  # the library's own word for a full disk
        raise OSError(f"{path} cannot be written: {e}") from None
    fsync(path)


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_folder(folder, make):
    """Calls make(temporary folder), then puts it in place of `folder` in one step. Files of other names that were there stay."""
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; name a folder to write to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        make(temporary)
        for path in folder.iterdir() if folder.exists() else ():
            if not (temporary / path.name).exists():
                if path.is_dir() and not path.is_symlink():
                    shutil.copytree(path, temporary / path.name, symlinks=True)
                else:
                    shutil.copy2(path, temporary / path.name, follow_symlinks=False)
        fsync(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old-{temporary.name[-8:]}")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
        fsync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
