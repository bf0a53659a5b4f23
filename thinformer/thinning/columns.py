"""Which columns count in a distance by default, why others do not, and columns of two samples."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.support import checks
from thinformer.support.names import few

# reasons to leave a column out, as users read them
OF_A_SAMPLER, INDEX, CONSTANT = "of a sampler", "an index", "constant"
WITHOUT_DRAWS = "without draws"
COUNTERS = ("chain", "iteration", "draw")  # columns that samplers write beside the parameters
INDEXES = ("id", "index", "row", "unnamed: 0")  # names of columns that may number the rows
COMPARED = 65536  # rows compared at once


def is_of_a_sampler(name: str) -> bool:
    """Whether a column tells of the sampler: `.chain`, `lp__`, `accept_stat__`, ..."""
    name = name.strip()
    return name.endswith("__") or name.lstrip("._").lower() in COUNTERS


def may_be_index(name: str) -> bool:
    """Whether the name of a column says that it numbers the rows."""
    return name.strip().lstrip("._").lower() in INDEXES


def is_index(name: str, values: NDArray) -> bool:
    """Whether a column numbers the rows: it has no name, or such a one and numbers that do."""
    if name and not may_be_index(name):
        return False
    with np.errstate(invalid="ignore"):
        return not name or bool((values % 1 == 0).all() and (values[1:] > values[:-1]).all())


def varies(points: NDArray) -> NDArray[np.bool_]:
    """Whether each column of (n, d) has two values."""
    varying = np.zeros(points.shape[1], np.bool_)
    for first in range(0, len(points), COMPARED):
        varying |= (points[first : first + COMPARED] != points[0]).any(axis=0)
        if varying.all():
            break
    return varying


def format_reasons(left_out: Mapping[str, str]) -> str:
    """Return names of columns that are left out of the distance, and why."""
    parts = []
    for reason in dict.fromkeys(left_out.values()):
        names = [name or "''" for name, why in left_out.items() if why == reason]
        parts.append(f"{few(names)} ({reason})")
    return f"left out of the distance: {'; '.join(parts)}"


class Table(NamedTuple):
    """Points as they are read.

    values : (n, d) float array
    names : the names of all columns that were given, or None where they have none
    places : (d,) the place of each column of `values` among these
    left_out : names of columns and variables that `values` lacks, and why
    """

    values: NDArray
    names: list[str] | None = None
    places: NDArray | None = None
    left_out: Mapping[str, str] = {}

    @property
    def labels(self) -> list[str]:
        """The name of each column of `values`; its number where it has none."""
        if self.names is None or self.places is None:
            return [str(j) for j in range(self.values.shape[1])]
        return [self.names[j] for j in self.places]

    def indexes(self) -> list[str]:
        """The names of the columns that number the rows."""
        columns = zip(self.labels, self.values.T, strict=True)
        return [name for name, column in columns if is_index(name, column)]

    def taken(self, columns: NDArray, left_out: Mapping[str, str]) -> Table:
        """The table of these columns (k,) of `values`, with more that is left out."""
        return self._replace(
            values=np.take(self.values, columns, axis=1),
            places=None if self.places is None else self.places[columns],
            left_out={**self.left_out, **left_out},
        )

    def without(self, names: Collection[str], reason: str) -> Table:
        """The table without columns of these names."""
        kept = [j for j, name in enumerate(self.labels) if name not in names]
        if len(kept) == len(self.labels):
            return self
        gone = {name: reason for name in self.labels if name in names}
        return self.taken(np.array(kept, int), gone)


def counted(tables: Mapping[str, Table], every: bool = False) -> list[Table]:
    """Return tables of the same columns in the same order, those that are data.

    An array beside a table with names has its columns, in its order. A warning tells what is left
    out. Nothing is left out of arrays.

    Parameters
    ----------
    tables : dict of Table
        One or two, by the name of the argument.
    every : bool
        Keep columns whatever they are.

    Raises
    ------
    ValueError
        The tables have other columns, or no column is data.
    """
    titles = list(tables)
    found = _with_names(titles, list(tables.values()))
    named = found[0].names is not None
    if named and not every:
        index = {name for table in found if len(table.values) > 1 for name in table.indexes()}
        found = [table.without(index, INDEX) for table in found]
        for title, table in zip(titles, found, strict=True):
            check_some(title, table.labels, table.left_out)
    if len(found) == 2:
        found[1] = _ordered(titles, *found)
    if named and not every:
        found = _without_constants(found)
    left_out = {name: why for table in found for name, why in table.left_out.items()}
    if left_out:
        warnings.warn(
            f"{titles[0]}: {format_reasons(left_out)}. An array has no names and counts all its "
            "columns: for a frame, frame[columns].to_numpy()",
            stacklevel=checks.depth(),
        )
    return found


def check_some(title: str, kept: Collection, left_out: Mapping[str, str]) -> None:
    """Raise where no column is left to compute with."""
    if not kept:
        raise ValueError(
            f"{title} must have a column to compute with; {format_reasons(left_out)}. "
            "An array has no names and counts all its columns"
        )


def _with_names(titles: list[str], tables: list[Table]) -> list[Table]:
    """The tables; an array beside a table with names gets these."""
    named = [j for j, table in enumerate(tables) if table.names is not None]
    if len(named) == len(tables) or not named:
        return tables
    table, array = tables[named[0]], tables[1 - named[0]]
    assert table.names is not None
    _check_width(titles, [t.values.shape[1] if t.names is None else len(t.names) for t in tables])
    assert table.places is not None
    tables[1 - named[0]] = Table(
        np.take(array.values, table.places, axis=1), table.names, table.places
    )
    return tables


def _check_width(titles: list[str], widths: list[int]) -> None:
    if widths[0] != widths[1]:
        raise ValueError(
            f"{titles[1]} must have the {widths[0]} dimensions of {titles[0]}; got {widths[1]}"
        )


def _ordered(titles: list[str], first: Table, second: Table) -> Table:
    """The second table with its columns in the order of the first."""
    if first.names is None:
        _check_width(titles, [table.values.shape[1] for table in (first, second)])
        return second
    ours, theirs = first.labels, second.labels
    if ours == theirs:
        return second
    only = [[x for x in a if x not in b] for a, b in ((ours, theirs), (theirs, ours))]
    if any(only) or len(set(ours)) < len(ours) or len(ours) != len(theirs):
        lacks = [
            f"{title} has {few(names)}" for title, names in zip(titles, only, strict=True) if names
        ]
        told = f"only {' and only '.join(lacks)}" if lacks else "a name stands there twice"
        raise ValueError(
            f"{titles[1]} must have the columns of {titles[0]}; {told}. "
            "Arrays have no names, and are compared column by column: .to_numpy()"
        )
    return second.taken(np.array([theirs.index(name) for name in ours]), {})


def _without_constants(tables: list[Table]) -> list[Table]:
    """The tables without columns that have one value in all of them; all stay if all are so."""
    first = tables[0].values[0]
    varying = np.any([varies(t.values) | (t.values[0] != first) for t in tables], axis=0)
    if varying.all() or not varying.any():
        return tables
    constant = {tables[0].labels[j]: CONSTANT for j in np.flatnonzero(~varying)}
    return [table.taken(np.flatnonzero(varying), constant) for table in tables]
