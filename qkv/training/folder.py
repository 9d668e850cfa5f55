"""Run folders: runs/NAME-TIME with the resolved recipe, metrics.jsonl, checkpoints and samples. Imports no torch."""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from ..checkpoints import runs as runs_of
from .recipe import RecipeError


def root():
    """Where runs live: $QKV_RUNS, or ./runs."""
    return Path(os.environ.get("QKV_RUNS") or "runs")


def new(name):
    """A fresh run folder, never one that exists."""
    stamp = time.strftime("%m%d-%H%M%S")
    for extra in ("", *(f"-{i}" for i in range(2, 1000))):
        folder = root() / f"{name}-{stamp}{extra}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise RecipeError(f"cannot make a run folder below {root()}")


def runs():
    """All run folders, the newest first."""
    found = [p.parent for p in root().glob("*/recipe.toml")]
    return sorted(found, key=lambda p: (p / "recipe.toml").stat().st_mtime_ns, reverse=True)


def find(name):
    """A run folder by path or name; `last` is the newest. None where it is none."""
    if name == "last":
        found = runs()
        if not found:
            raise RecipeError(f"there is no run yet below {root()}/. Make one with: qkv train")
        return found[0]
    for path in (Path(name), root() / name):
        if (path / "recipe.toml").exists():
            return path
    return None


def weights(what):
    """The checkpoint folder that a name stands for: a run's newest, or the folder itself; a hub id as it is."""
    run = find(what)
    if run is None:
        return what
    where, _ = runs_of.newest(run / "checkpoints")
    if where is None:
        raise RecipeError(f"{run} has no checkpoint yet")
    return where


@contextlib.contextmanager
def locked(folder):
    """Only one process trains in a folder at a time."""
    with open(Path(folder) / ".lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(f"another process is training in {folder}") from None
        yield


class Metrics:
    """metrics.jsonl: one line a step or evaluation. On resuming at step N, later lines are dropped first; at step 0 all are, since a run that
    has no checkpoint yet begins anew."""

    def __init__(self, path, resume_at=0):
        self.path, self.held = Path(path), set()  # held: steps whose evaluation stands there
        if self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["step"] <= resume_at] if resume_at else []
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
            temporary.replace(self.path)
            self.held = {row["step"] for row in kept if "valid_loss" in row}
        self.file = open(self.path, "a", buffering=1)

    def write(self, **row):
        self.file.write(json.dumps(row) + "\n")

    def evaluated(self, step: int, held: dict, **more: object) -> None:
        """The row of an evaluation; of the same weights it is written once. more: says that the weights are others (restored ones)."""
        if more or step not in self.held:
            self.held.add(step)
            self.write(step=step, **{f"valid_{k}": v for k, v in held.items() if v is not None}, **more)

    def close(self):
        self.file.close()


def read_metrics(path):
    """Rows of a metrics.jsonl; a last line cut off by a kill is passed over."""
    out = []
    for line in Path(path).read_text().splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                out.append(row)
    return out
