"""Series in: tables with a column of times, as values, dates and calendar marks.

Dims: T steps, C columns.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .columns import number
from .dates import Column, dated, following, spoken
from .text import DataError

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("date", "time", "datetime", "timestamp", "ds", "month", "quarter", "year")


@dataclass
class Series:
    """values (T, C), times (T,) in order, names of the columns.

    frequency: of the calendar, which leads from one time to the next. ends: the last time, once for each time
    zone whose clock fits the file. filled: how many missing values were filled with the one before. notes:
    what was decided in reading, a sentence each.
    """

    values: np.ndarray
    times: pd.DatetimeIndex
    names: tuple[str, ...]
    frequency: Any
    ends: list[pd.Timestamp]
    filled: int = 0
    notes: tuple[str, ...] = ()

    def marks(self, times: pd.DatetimeIndex | None = None) -> np.ndarray:
        """(T, 5) month, day, weekday (Monday is 0), hour and minute of times, by default its own."""
        t = self.times if times is None else times
        return np.stack([t.month, t.day, t.day_of_week, t.hour, t.minute], 1).astype(np.int64)

    def after(self, count: int) -> pd.DatetimeIndex:
        """The next `count` times. Raises DataError where time zones that fit the file differ about them."""
        found = [following(end, self.frequency, count) for end in self.ends]
        wall = [f.tz_localize(None) for f in found]
        local = self.times.tz is None
        for end, f, w in zip(self.ends, found, wall):
            if (w != wall[0]).any() or (not local and (f != found[0]).any()):
                raise DataError(
                    f"the clock of this series changes as in {self.ends[0].tz} and as in {end.tz}, which "
                    f"differ within the next {count} steps; write its times in UTC (2004-03-10T18:00:00Z)"
                )
        return wall[0] if local else found[0]

    def written(self, times: pd.DatetimeIndex) -> list[str]:
        """Times as ISO 8601, as dates alone where the series has no others; `read` reads them again."""
        dates = self.times.tz is None and all((t == t.normalize()).all() for t in (self.times, times))
        return [str(t)[:-9] if dates else str(t) for t in times]


def read(path: str | Path, columns: Sequence[str | int] | None = None, errors: str = "strict") -> Series:
    """The Series of a CSV or TSV file (.gz too).

    columns: by name, or by number from 1 on; by default all but the times. errors: strict or replace, for
    bytes that are not UTF-8. Rows are put in order of time, and a missing value becomes the one before.
    Raises DataError for a missing column of times, times that cannot be read or may mean two things, one that
    is there twice, a gap in the calendar, words among numbers, a column without a number.
    """
    import pandas as pd

    path = Path(str(path)).expanduser()
    header, rows = table(path, errors)
    when = next((i for t in TIMES for i, c in enumerate(header) if c.lower() == t), None)
    if when is None:
        raise DataError(f"{path} has no column of times ({', '.join(TIMES)}); it has {', '.join(header)}")
    at = chosen(path, header, when, columns)
    if len(rows) < 2:
        raise DataError(f"{path} has {len(rows)} rows under its header; a series needs at least 2")
    for n, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{path}, row {n}: has {len(cells)} columns, the header {len(header)}")
    values = numbers(path, header, rows, at)
    numbered, cells = [n for n, _ in rows], [cells[when].strip() for _, cells in rows]
    found = dated(Column(path, header[when], numbered, cells))
    frame = pd.DataFrame(values[found.order])
    filled = int(frame.isna().sum().sum())
    notes = (f"{path}: {filled} missing values are filled with the ones before them",) if filled else ()
    return Series(
        frame.ffill().bfill().to_numpy(),
        found.times,
        tuple(header[i] for i in at),
        found.frequency,
        found.ends,
        filled,
        found.notes + notes,
    )


def table(path: Path, errors: str = "strict") -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(names of the columns, [(number of the row, its cells)]) of a CSV or TSV file, gzipped or not, without
    its empty rows. Raises DataError.
    """
    if not path.is_file():
        usual = ", ".join(TIMES)
        raise DataError(f"data.source={path} is no file here; a series is a CSV file with times ({usual})")
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig", errors)
        lines = csv.reader(io.StringIO(text), delimiter="\t" if ".tsv" in path.name else ",")
        rows = [(n, cells) for n, cells in enumerate(lines, 1) if any(c.strip() for c in cells)]
    except UnicodeDecodeError as e:
        raise DataError(f"{path} cannot be read: {e}; write it as UTF-8, or give errors=replace") from None
    except (OSError, EOFError, zlib.error, csv.Error) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    return ([c.strip() for c in rows[0][1]], rows[1:]) if rows else ([], [])


def chosen(path: Path, header: list[str], when: int, columns: Sequence[str | int] | None) -> list[int]:
    """Where the wanted columns are.

    Raises DataError for one that there is not, or that cannot be told from another.
    """
    wanted = [c for i, c in enumerate(header) if i != when] if columns is None else list(columns)
    if not wanted:
        raise DataError(f"{path} has a column of times ('{header[when]}') and none of values")
    out = []
    for c in wanted:
        if str(c) not in header and not (isinstance(c, int) and 0 < c <= len(header)):
            raise DataError(f"{path} has no column '{c}'; it has {', '.join(header)}")
        if header.count(str(c)) > 1:
            raise DataError(f"{path} has several columns called '{c}'; give each a name of its own")
        out.append(header.index(str(c)) if str(c) in header else int(c) - 1)
        if out[-1] == when:
            raise DataError(f"{path}: the column '{c}' holds the times; choose another with label=NAME")
    return out


def numbers(path: Path, header: list[str], rows: list[tuple[int, list[str]]], at: list[int]) -> np.ndarray:
    """(T, C) of cells, NaN where one is missing.

    Raises DataError for a word, and for a column that holds nothing.
    """
    for n, cells in rows:
        for i in at:
            value = number(cells[i])
            if value is None or value in (float("inf"), -float("inf")):
                raise DataError(
                    f"{path}, row {n}: could not convert '{cells[i].strip()}' in the column '{header[i]}' to "
                    "a finite number; choose a column of numbers with label=NAME"
                )
    values = np.array([[number(cells[i]) for i in at] for _, cells in rows], dtype=np.float64)
    for i, found in zip(at, values.T):
        if np.isnan(found).all():
            raise DataError(f"{path}: the column '{header[i]}' holds no number")
    return values


def same(own: Series, other: Series, path: str | Path) -> None:
    """Raises DataError where the steps of another file are not as long as those of the run's own series."""
    if spoken(own.frequency) != spoken(other.frequency):
        raise DataError(
            f"{path} has a step of {spoken(other.frequency)}, and the run's own series one of "
            f"{spoken(own.frequency)}; a model reads steps as long as those it was trained on"
        )
