"""Tables in: rows of numbers and categories, and one column that is asked for.

Dims: B rows, C columns of the file, N columns that a model reads.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .examples import Example, gone, headed, number, paths_of, rows_of, written
from .text import DataError

GATES: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "nand": lambda a, b: 1 - (a & b),
    "nor": lambda a, b: 1 - (a | b),
    "xor": lambda a, b: a ^ b,
    "xnor": lambda a, b: 1 - (a ^ b),
}


@dataclass(frozen=True)
class Column:
    """A column as a model reads it. Numbers: standardised by mean and deviation, the mean where one is
    missing; edges: where they are cut into bins; then the bin is read as a category, and beside it the rank
    among the edges (from -sqrt(3) to sqrt(3), which has deviation 1) in place of the number. levels: of a
    category, from 1 on; 0 is one that training did not see."""

    name: str
    mean: float = 0.0
    deviation: float = 1.0
    edges: tuple = ()
    levels: tuple | None = None

    @classmethod
    def of(
        cls,
        name: str,
        cells: Sequence[Any],
        category: bool = False,
        bins: int = 0,
        where: Sequence[str] = (),
    ) -> "Column":
        """The column of training cells. A column with a cell that is no number is one of categories. where:
        the row of each cell. Raises DataError for one that holds nothing, or a number that is not finite."""
        values = [number(c) for c in cells]
        if category or None in values:
            return cls(name, levels=tuple(sorted({_level(c) for c in cells})))
        x = _finite(name, values, where)
        x = x[~np.isnan(x)]
        if not len(x):
            file = f"{where[0].rsplit(', row', 1)[0]}: " if where else ""
            raise DataError(f"{file}column '{name}' holds nothing in the training rows; leave it out")
        deviation = float(x.std())
        return cls(name, float(x.mean()), deviation if deviation > 1e-12 else 1.0, _edges(x, bins) if bins else ())

    def read(self, cells: Sequence[Any], where: Sequence[str] = ()) -> list[np.ndarray]:
        """[(B,) numbers or numbers of categories] of cells. where: the row of each. Raises DataError for a
        word in a column of numbers."""
        if self.levels is not None:
            at = {level: i for i, level in enumerate(self.levels, 1)}
            return [np.array([at.get(_level(c), 0) for c in cells], dtype=np.float64)]
        values = [number(c) for c in cells]
        if None in values:
            word = values.index(None)
            what = f"column '{self.name}': {cells[word]!r} is no number, and in training all were"
            raise DataError(f"{where[word]}: {what}" if where else what)
        x = _finite(self.name, values, where)
        if not self.edges:
            return [np.nan_to_num((x - self.mean) / self.deviation)]
        rank = (
            np.interp(x, self.edges, np.linspace(-(3**0.5), 3**0.5, len(self.edges))) if len(self.edges) > 1 else np.sign(x - self.edges[0])
        )
        return [np.nan_to_num(rank), np.where(np.isnan(x), 0.0, 1.0 + np.searchsorted(self.edges, x, side="right"))]

    @property
    def sizes(self):
        """Of what `read` gives: None of a number, how many there are of a category."""
        if self.levels is not None:
            return [1 + len(self.levels)]
        return [None, 2 + len(self.edges)] if self.edges else [None]


def _finite(name: str, values: Sequence[float | None], where: Sequence[str]) -> np.ndarray:
    """(B,) float64. Raises DataError for a number that is not finite."""
    x = np.array(values, dtype=np.float64)
    if np.isinf(x).any():
        what = f"column '{name}' holds a number that is not finite"
        raise DataError(f"{where[int(np.isinf(x).argmax())]}: {what}" if where else what)
    return x


def _level(cell):
    """A category by its name; whole numbers are the same as 1 and as 1.0."""
    if gone(cell):
        return ""
    value = number(cell)
    return str(cell).strip() if value is None or value != value // 1 else str(int(value))


def _edges(x, bins):
    """Quantiles; a number that is there often (as 0 is) has a bin of its own, and the others share the rest."""
    values, counts = np.unique(x, return_counts=True)
    often = values[counts > len(x) / bins]
    rest = x[~np.isin(x, often)]
    cuts = [np.quantile(rest, np.linspace(0, 1, max(2, bins - len(often)))[1:-1])] if len(rest) else []
    sides = [np.nextafter(often, np.inf), often]
    edges = np.unique(np.concatenate([*cuts, *sides]))
    return tuple(float(e) for e in edges if values[0] < e <= values[-1])


@dataclass(frozen=True)
class Columns:
    """The columns of a table; what a model is told of them."""

    columns: tuple

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        table: Sequence[Sequence[Any]],
        categories: Sequence[int] = (),
        bins: int = 0,
        where: Sequence[str] = (),
    ) -> "Columns":
        """table: a list of cells a column. categories: numbers of columns whose numbers are names. where: the
        file and row of each row."""
        columns = enumerate(zip(names, table))
        return cls(tuple(Column.of(n, cells, i in categories, bins, where) for i, (n, cells) in columns))

    @classmethod
    def from_plain(cls, plain):
        """Of what `plain` gave, after a way through JSON."""
        return cls(
            tuple(Column(**dict(c, edges=tuple(c["edges"]), levels=None if c["levels"] is None else tuple(c["levels"]))) for c in plain)
        )

    def plain(self):
        return tuple(dataclasses.asdict(c) for c in self.columns)

    @property
    def names(self):
        return tuple(c.name for c in self.columns)

    def read(self, table: Sequence[Sequence[Any]], where: Sequence[str] = ()) -> np.ndarray:
        """(B, N) float32 of a list of cells a column. where: the file and row of each row."""
        read = [x for c, cells in zip(self.columns, table) for x in c.read(cells, where)]
        return np.stack(read, 1).astype(np.float32)

    @property
    def owner(self):
        """(N,) the column of the file that each number comes from."""
        return np.array([i for i, c in enumerate(self.columns) for _ in c.sizes])

    def together(self, x_BN):
        """(B, C): what belongs to one column of the file is added up."""
        out = np.zeros((*x_BN.shape[:-1], len(self.columns)), x_BN.dtype)
        for n, c in enumerate(self.owner):
            out[..., c] += x_BN[..., n]
        return out

    def fields(self, width=1):
        """Fields of a model: features, and which of them are categories, how many, and how wide their vectors are."""
        sizes = [s for c in self.columns for s in c.sizes]
        at = tuple(i for i, s in enumerate(sizes) if s is not None)
        return {"features": len(sizes), "categories": at, "sizes": tuple(sizes[i] for i in at), "widths": (width,) * len(at)}


def read(cfg: Any, source: str, part: str) -> list[Example]:
    """[Example(text: the cells of a row, label: the cell that is asked for, or None; more: names and bins)]
    of a CSV, TSV or JSON lines file whose column data.target (or data.label, a name or a number from 1 on)
    is asked for, or of gate:NAME, a logic gate.

    Raises DataError for a column that is not there, or twice; rows of unequal length; a list in a cell; and
    a file to train on in which the asked column is empty.
    """
    if str(source).startswith("gate:"):
        return _gate(str(source), part)
    asked = cfg.target if cfg.target is not None else cfg.label
    if asked is None:
        raise DataError("which column is asked for? Give target=NAME, or its number from 1 on")
    out = []
    for path in paths_of(source, part):
        rows, names = rows_of(path, cfg.errors)
        if not rows:
            raise DataError(f"{path} is empty: there are no rows in it")
        first = names if names is not None else [c.strip() for c in rows[0][1]]
        place = int(asked) if str(asked).isdecimal() and 0 < int(asked) <= len(first) else None
        if place is None and str(asked) not in first:
            raise DataError(f"{path} has no column '{asked}' (data.target); it has {', '.join(first)}")
        if names is None:
            names, rows = headed(path, rows, [] if place else [str(asked)])
            names = names or [f"column {i}" for i in range(1, len(first) + 1)]
        target = names[place - 1] if place else str(asked)
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise DataError(f"{path} has the column '{twice}' twice; each needs a name of its own")
        rest = tuple(n for n in names if n != target)
        found = [_row(f"{path}, row {n}", row, names) for n, row in rows]
        labels = [None if gone(cells[target]) else written(cells[target], "", "target") for cells in found]
        if part in ("train", "valid") and not any(labels):
            raise DataError(f"{path}: the column '{target}', which is asked for, holds nothing")
        for (n, _), cells, label in zip(rows, found, labels):
            row = [cells[name] for name in rest]
            more = {"names": rest, "bins": cfg.bins}
            out.append(Example(row, label=label and label.strip(), where=f"{path}, row {n}", more=more))
    return out


def _row(where: str, row: Any, names: list[str]) -> dict[str, Any]:
    """{name: cell} of a row. Raises DataError for one that is not there, or holds a list."""
    if not isinstance(row, dict):
        return dict(zip(names, (c.strip() for c in row)))
    for name in names:
        if name not in row:
            raise DataError(f"{where}: has no column '{name}' (it has {', '.join(row)})")
        if isinstance(row[name], (list, dict)):
            kind = type(row[name]).__name__
            raise DataError(f"{where}: column '{name}' holds a {kind}; a number or a word is wanted")
    return row


def _gate(source: str, part: str) -> list[Example]:
    """The truth table of gate:NAME, sixteen times to train on."""
    name = source.removeprefix("gate:")
    if name not in GATES:
        raise DataError(f"data.source={source}: there is no such gate; there are {', '.join(GATES)}")
    rows = [((a, b), str(GATES[name](a, b))) for a in (0, 1) for b in (0, 1)] * (16 if part == "train" else 1)
    more = {"names": ("a", "b"), "bins": 0}
    return [Example(list(x), label=y, where=f"{source} of {x}", more=more) for x, y in rows]
