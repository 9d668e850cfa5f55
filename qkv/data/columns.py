"""Tables in: rows of numbers and categories, and one column that is asked for.

Dims: B rows, C columns of the file, N columns that a model reads.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .examples import Example, paths_of, rows_of
from .text import DataError

MISSING = ("", "?", "na", "nan", "null", "none")
GATES = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "nand": lambda a, b: 1 - (a & b), "nor": lambda a, b: 1 - (a | b), "xor": lambda a, b: a ^ b,
         "xnor": lambda a, b: 1 - (a ^ b)}  # fmt: skip


def gone(cell):
    return cell is None or (isinstance(cell, float) and np.isnan(cell)) or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def number(cell):
    """A cell as a number, NaN where it is missing, None where it is a word."""
    if gone(cell):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Column:
    """A column as a model reads it. Numbers: standardised by mean and deviation, the mean where one is missing; edges: where they are cut into bins; then the
    bin is read as a category, and beside it the rank among the edges (from -sqrt(3) to sqrt(3), which has deviation 1) in place of the number. levels: of a category, from 1 on; 0 is one that training did not see."""

    name: str
    mean: float = 0.0
    deviation: float = 1.0
    edges: tuple = ()
    levels: tuple | None = None

    @classmethod
    def of(cls, name, cells, category=False, bins=0):
        """The column of training cells. A column with a cell that is no number is one of categories. Raises DataError for one that holds nothing."""
        values = [number(c) for c in cells]
        if category or any(v is None for v in values):
            return cls(name, levels=tuple(sorted({_level(c) for c in cells})))
        x = np.array(values, dtype=np.float64)
        x = x[~np.isnan(x)]
        if not len(x):
            raise DataError(f"column '{name}' holds nothing in the training rows; leave it out")
        if np.isinf(x).any():
            raise DataError(f"column '{name}' holds a number that is not finite")
        deviation = float(x.std())
        return cls(name, float(x.mean()), deviation if deviation > 1e-12 else 1.0, _edges(x, bins) if bins else ())

    def read(self, cells, where=""):
        """[(B,) numbers or numbers of categories] of cells. Raises DataError for a word in a column of numbers."""
        if self.levels is not None:
            at = {level: i for i, level in enumerate(self.levels, 1)}
            return [np.array([at.get(_level(c), 0) for c in cells], dtype=np.float64)]
        values = [number(c) for c in cells]
        if None in values:
            raise DataError(f"{where}column '{self.name}': {cells[values.index(None)]!r} is no number")
        x = np.array(values, dtype=np.float64)
        if np.isinf(x).any():
            raise DataError(f"{where}column '{self.name}' holds a number that is not finite")
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
    def of(cls, names, table, categories=(), bins=0):
        """table: a list of cells a column. categories: numbers of columns whose numbers are names."""
        return cls(tuple(Column.of(n, cells, i in set(categories), bins) for i, (n, cells) in enumerate(zip(names, table))))

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

    def read(self, table, where=""):
        """(B, N) float32 of a list of cells a column."""
        return np.stack([x for c, cells in zip(self.columns, table) for x in c.read(cells, where)], 1).astype(np.float32)

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


def read(cfg, source, part):
    """[Example(text: the cells of a row, label: the cell that is asked for, more: names and bins)] of a CSV, TSV or JSON lines file whose column data.target (or data.label) is asked
    for, or of gate:NAME, a logic gate. Raises DataError."""
    if str(source).startswith("gate:"):
        name = str(source).removeprefix("gate:")
        if name not in GATES:
            raise DataError(f"data.source={source}: there is no such gate; there are {', '.join(GATES)}")
        rows = [((a, b), str(GATES[name](a, b))) for a in (0, 1) for b in (0, 1)]
        return [
            Example(list(x), label=y, where=f"{source} of {x}", more={"names": ("a", "b"), "bins": 0})
            for x, y in rows * (16 if part == "train" else 1)
        ]
    asked = cfg.target if cfg.target is not None else cfg.label
    if asked is None:
        raise DataError("which column is asked for? Give target=NAME, or its number from 1 on")
    out = []
    for path in paths_of(source, part):
        rows, names = rows_of(Path(path), cfg.errors)
        if names is None and rows:
            first = [c.strip() for c in rows[0][1]]
            if not str(asked).isdigit():
                names, rows = first, rows[1:]
            else:
                names = [f"column {i}" for i in range(1, len(first) + 1)]
        if not rows:
            raise DataError(f"{path} is empty: there are no rows in it")
        target = names[int(asked) - 1] if str(asked).isdigit() and 0 < int(asked) <= len(names) else asked
        if target not in names:
            raise DataError(f"{path} has no column '{asked}' (data.target); it has {', '.join(names)}")
        rest = tuple(n for n in names if n != target)
        for n, row in rows:
            if len(row) != len(names):
                raise DataError(f"{path}, row {n}: has {len(row)} columns, and there are {len(names)}")
            cell = row if isinstance(row, dict) else dict(zip(names, (c.strip() for c in row)))
            if any(k not in cell for k in names):
                raise DataError(f"{path}, row {n}: has no column '{next(k for k in names if k not in cell)}'")
            out.append(
                Example(
                    [cell[k] for k in rest],
                    label=None if gone(cell[target]) else cell[target],
                    where=f"{path}, row {n}",
                    more={"names": rest, "bins": cfg.bins},
                )
            )
    return out
