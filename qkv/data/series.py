"""Series in: tables with a column of times, as values, calendar marks and scales.

Dims: T steps, C columns.
"""

import csv
import datetime
import gzip
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .text import DataError

TIMES = ("date", "time", "datetime", "timestamp", "ds")


@dataclass
class Series:
    """values (T, C), times (T,), names of the columns. filled: how many missing values were filled with the one before."""

    values: np.ndarray
    times: list
    names: tuple
    filled: int = 0

    @property
    def step(self):
        return self.times[1] - self.times[0]

    def marks(self, times=None):
        """(T, 5) month, day, weekday, hour, minute of times, by default its own."""
        return np.array([(t.month, t.day, t.weekday(), t.hour, t.minute) for t in (self.times if times is None else times)], dtype=np.int64)

    def after(self, count):
        """The next `count` times."""
        return [self.times[-1] + self.step * (i + 1) for i in range(count)]


def read(path, columns=None):
    """The Series of a CSV or TSV file (.gz too); columns: names of those that are wanted, by default all numbers. Rows are put in order of time. Raises DataError for
    a missing column of times, a time twice, a gap, words among numbers, a column without a number."""
    path = Path(str(path)).expanduser()
    if not path.is_file():
        raise DataError(f"data.source={path} is no file here; a series is a CSV file with a column of times ({', '.join(TIMES)})")
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    rows = [r for r in csv.reader(io.StringIO(text), delimiter="\t" if ".tsv" in path.name else ",") if any(c.strip() for c in r)]
    if len(rows) < 3:
        raise DataError(f"{path} has {max(0, len(rows) - 1)} rows under its header; a series needs at least 2")
    header = [c.strip() for c in rows[0]]
    when = next((i for t in TIMES for i, c in enumerate(header) if c.lower() == t), None)
    if when is None:
        raise DataError(f"{path} has no column of times ({', '.join(TIMES)}); it has {', '.join(header)}")
    wanted = [c for i, c in enumerate(header) if i != when] if columns is None else list(columns)
    for c in wanted:
        if c not in header:
            raise DataError(f"{path} has no column '{c}'; it has {', '.join(header)}")
    at = [header.index(c) for c in wanted]
    found = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: has {len(row)} columns, the header {len(header)}")
        try:
            found.append((datetime.datetime.fromisoformat(row[when].strip()), [_number(row[i]) for i in at], number))
        except ValueError as e:
            raise DataError(f"{path}, row {number}: {e}") from None
    found.sort(key=lambda f: f[0])
    times = [f[0] for f in found]
    gaps = np.array([(b - a).total_seconds() for a, b in itertools.pairwise(times)])
    usual = float(np.median(gaps))
    for i in np.nonzero(np.abs(gaps - usual) > 0.2 * usual)[0][:1]:
        kind = (
            "is there twice"
            if gaps[i] == 0
            else f"comes {gaps[i] / 3600:g} hours after {times[i]}, others {usual / 3600:g}; fill or cut the gap"
        )
        raise DataError(f"{path}, row {found[i + 1][2]}: {times[i + 1]} {kind}")
    values = np.array([f[1] for f in found], dtype=np.float64)
    missing = np.isnan(values)
    for c in range(values.shape[1]):
        there = np.nonzero(~missing[:, c])[0]
        if not len(there):
            raise DataError(f"{path}: the column '{wanted[c]}' holds no number")
        last = np.maximum.accumulate(np.where(missing[:, c], -1, np.arange(len(values))))
        values[:, c] = values[np.where(last < 0, there[0], last), c]
    return Series(values, times, tuple(wanted), int(missing.sum()))


def _number(cell):
    cell = cell.strip()
    if cell.lower() in ("", "nan", "na", "null", "none", "?"):
        return float("nan")
    value = float(cell)
    if np.isinf(value):
        raise ValueError(f"{cell} is not a finite number")
    return value
