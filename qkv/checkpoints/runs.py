"""Checkpoints of a run: written so that a kill or a full disk at any moment leaves a whole one, and read only when every byte verifies.

A checkpoint is a folder `step-N` that holds a published model folder, the optimiser's tensors, a JSON state and, written last, a
manifest with the size and SHA-256 of every file. "The newest" is found by looking for a manifest that verifies, never by a pointer.
"""

import contextlib
import os
import secrets
import shutil
import signal
from pathlib import Path

from . import files
from .files import CheckpointError

VISITS: dict = {}  # of the test hook below


def _fault(place):
    """Test hook: QKV_FAULT=place:n:kill|full acts at the n-th visit of that place."""
    wanted = os.environ.get("QKV_FAULT", "")
    if not wanted.startswith(place + ":"):
        return
    _, count, what = wanted.split(":")
    VISITS[place] = VISITS.get(place, 0) + 1
    if VISITS[place] == int(count):
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device (QKV_FAULT)")


def save(folder, step, write_model, tensors, state, keep=2, again=False):
    """Writes folder/step-N and deletes what is older than the newest `keep`, after the new one is safe.

    again: even where that step is saved already. write_model(where) writes the model's files. Raises OSError on a full disk; what was there before is kept then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    if final.exists() and not again:
        if not problem(final):
            return final  # this step is already saved
        shutil.rmtree(final)
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder / f"{final.name}.tmp-{secrets.token_hex(4)}"
    try:
        temporary.mkdir()
        _fault("save")
        write_model(temporary)
        _fault("save")
        files.write_tensors(temporary / "optimizer.safetensors", tensors)
        _fault("save")
        files.write_json(temporary / "state.json", state)
        listed = {p.name: {"size": p.stat().st_size, "sha256": files.sha256(p)} for p in sorted(temporary.iterdir())}
        _fault("save")
        files.write_json(temporary / "manifest.json", {"step": step, "files": listed})
        files.fsync(temporary)
        _fault("save")
        if final.exists():  # only now, when the new one is whole
            shutil.rmtree(final)
        temporary.rename(final)
        files.fsync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = sorted(folder.glob("step-????????"))[:-keep]
    for path in old:
        gone = path.with_name(f"{path.name}.tmp-old")
        with contextlib.suppress(OSError):
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    return final


def problem(folder):
    """What is wrong with a checkpoint folder, in a sentence, or None."""
    try:
        manifest = files.read_json(folder / "manifest.json")
        for name, known in manifest["files"].items():
            path = folder / name
            if not path.exists():
                return f"{path} is missing"
            if path.stat().st_size != known["size"]:
                return f"{path} has {path.stat().st_size} bytes, {known['size']} were written"
            if files.sha256(path) != known["sha256"]:
                return f"{path} was changed or damaged: its SHA-256 is not the one in manifest.json"
    except (CheckpointError, KeyError, TypeError, AttributeError) as e:
        return f"{folder} has no readable manifest: {e}"
    return None


def newest(folder, strict=True):
    """The newest checkpoint that verifies, or None where there is none.

    Raises CheckpointError where checkpoints exist and none is whole. A damaged newer one is passed over with a note in the
    second value returned.
    """
    notes = []
    for path in sorted(Path(folder).glob("step-????????"), reverse=True):
        wrong = problem(path)
        if wrong is None:
            return path, notes
        notes.append(wrong)
    if notes and strict:
        raise CheckpointError("no checkpoint of this run is whole: " + "; ".join(notes))
    return None, notes
