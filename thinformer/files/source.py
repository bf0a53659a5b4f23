"""`Source`, which every reader of files returns, and the checks of columns that readers share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.files.messages import listed, shown
from thinformer.thinning.tables import as_points

STANDARD = "-"  # standard input, standard output
CHECKED = 65536  # rows checked for NaN at once


class Chunk(NamedTuple):
    """Successive rows.

    points : (rows, dimensions) float array
    weights : (rows,) array, or None
    records : what is written of the rows; ``records.take(index)`` selects some
    """

    points: NDArray
    weights: NDArray | None
    records: Any


class Source(NamedTuple):
    """An open file.

    columns : names of the columns that the distance is computed on
    labels : names of the dimensions of the points
    unused : names of other columns, which are only written
    notes : notes for the user on how the file is read
    chunks : the rows, which can be read once
    fraction : returns the share of the file that was read, or None where that is not known
    write : write(path, kept, numbered) writes rows, given as row numbers and records, chunk by
        chunk; with their row numbers if `numbered`
    left_out : columns that the distance would be computed on but for a reason, and the reason
    skipped : what was read so far and is no row, and how often
    fields : name and type of each column, for formats of which several files can be read
    draws : whether the rows are draws in a sampler's order
    """

    columns: list[str]
    labels: list[str]
    unused: list[str]
    notes: list[str]
    chunks: Iterator[Chunk]
    fraction: Callable[[], float | None]
    write: Callable[[Path, list[tuple[NDArray, Any]], bool], None]
    left_out: Mapping[str, str] = {}
    skipped: Mapping[str, int] = {}
    fields: Sequence[tuple[str, str]] = ()
    draws: bool = False


class Request(NamedTuple):
    """What a reader is to read.

    path : the file; "-" is standard input
    columns : names of those that the distance is computed on; None for the default
    weights : name of the column of weights, or None
    rows : number of rows of a chunk
    numbered : whether row numbers will be written
    delimiter : delimiter of CSV
    comment : start of the lines of CSV that are no records, or None
    packing : how CSV that is written is compressed, an ending, or empty
    chain : what a column `chain` that is added holds, or None
    like : name and fields of another file that must have the same columns, or None
    """

    path: Path
    columns: list[str] | None
    weights: str | None
    rows: int
    numbered: bool
    delimiter: str
    comment: str | None
    packing: str = ""
    chain: int | None = None
    like: tuple[str, Sequence[tuple[str, str]]] | None = None


def title(path: Path) -> str:
    """Return the name of a file in errors."""
    return "standard input" if path == Path(STANDARD) else str(path)


def chunk_of(values: NDArray, dimensions: int, records: Any) -> Chunk:
    """Split values into points and, if there is one more column, weights."""
    weights = values[:, dimensions] if values.shape[1] > dimensions else None
    return Chunk(values[:, :dimensions], weights, records)


def in_memory_source(
    values: NDArray,
    columns: list[str],
    labels: list[str],
    unused: list[str],
    notes: list[str],
    write: Callable[[Path, list[tuple[NDArray, Any]], bool], None],
) -> Source:
    """Return a source of a single chunk, which is in memory; records are row numbers."""
    chunk = chunk_of(values, len(labels), np.arange(len(values)))
    return Source(columns, labels, unused, notes, iter([chunk]), lambda: None, write)


def side_by_side(arrays: dict[str, NDArray]) -> tuple[NDArray, list[str]]:
    """Join 2-D arrays; return also a label for each column: name, or name[0], name[1], ..."""
    labels = []
    for name, array in arrays.items():
        d = array.shape[1]
        labels += [name] if d == 1 else [f"{name}[{j}]" for j in range(d)]
    return as_points(np.concatenate(list(arrays.values()), axis=1)), labels


def row_numbers(kept: list[tuple[NDArray, Any]]) -> NDArray:
    """Return the numbers of the rows to write."""
    return np.concatenate([rows for rows, _ in kept])


def matched(request: Request, names: Sequence[str]) -> Request:
    """Return the request with names as in the file, which may differ in spaces around them."""

    def match(name: str) -> str:
        alike = [c for c in names if c.strip() == name.strip()]
        return name if name in names or len(alike) != 1 else alike[0]

    columns = None if request.columns is None else [match(c) for c in request.columns]
    weights = None if request.weights is None else match(request.weights)
    repeated = sorted({c for c in columns or [] if (columns or []).count(c) > 1})
    if repeated:
        raise ValueError(f"{title(request.path)}: --columns names {listed(repeated)} twice")
    if weights is not None and weights in (columns or []):
        raise ValueError(
            f"{title(request.path)}: --weights {shown(weights)} is one of --columns too"
        )
    return request._replace(columns=columns, weights=weights)


def check_numbered(request: Request, names: Sequence[str], where: str = "") -> None:
    """Raise where row numbers will be written and a column has their name."""
    if request.numbered and "row" in names:
        raise ValueError(
            f"{title(request.path)}: {where}has a column 'row' already; "
            "--row-numbers would add another"
        )


def check_alike(request: Request, fields: Sequence[tuple[str, str]]) -> None:
    """Raise where a file has other columns than the one that it is read with."""
    if request.like is None or list(request.like[1]) == list(fields):
        return
    path, (first, others) = title(request.path), request.like
    here, there = [name for name, _ in fields], [name for name, _ in others]
    for one, two, missing, has in ((here, there, path, first), (there, here, first, path)):
        if absent := [name for name in two if name not in one]:
            raise ValueError(
                f"{path}: takes the columns of {first}; {missing} has no column "
                f"{shown(absent[0])}, which {has} has"
            )
    for place, (ours, theirs) in enumerate(zip(fields, others, strict=False), 1):
        for what, a, b in zip(("", "of "), ours, theirs, strict=True):
            if a != b:
                raise ValueError(
                    f"{path}: takes the columns of {first}; column {place}"
                    f"{f' ({shown(ours[0])})' if what else ''} is {what}{shown(a)} here and "
                    f"{what}{shown(b)} there"
                )
    raise ValueError(f"{path}: has {len(here)} columns; {first} has {len(there)}")


def used_columns(request: Request, columns: list[str], names: Sequence[str]) -> list[str]:
    """Return the columns to read, the weights last; raise where one does not exist."""
    options = dict.fromkeys(columns, "--columns")
    if request.weights is not None:
        options[request.weights] = "--weights"
    for column, option in options.items():
        if column not in names:
            raise ValueError(
                f"{title(request.path)}: {option} {shown(column)} is not there; "
                f"there are {listed(names)}"
            )
    return list(options)


def places(request: Request, columns: list[str], names: list[str]) -> list[int]:
    """Return the places of the columns to read."""
    return [names.index(c) for c in used_columns(request, columns, names)]


def check_rows(n: int, path: Path) -> None:
    """Raise for a table without rows."""
    if not n:
        raise ValueError(f"{path}: has no rows")


def check_repeated(names: Sequence[str], used: Sequence[str], path: Path, where: str = "") -> None:
    """Raise where a column to read has the name of another."""
    repeated = sorted({c for c in used if names.count(c) > 1})
    if repeated:
        raise ValueError(f"{title(path)}: {where}has columns twice: {listed(repeated)}")


def without_weights(labels: list[str], request: Request) -> list[str]:
    """Return the labels without the weights, which come last and must be one number a row."""
    if request.weights is None:
        return labels
    if labels[-1] != request.weights:
        raise ValueError(
            f"{request.path}: --weights {shown(request.weights)} has more than one number a row"
        )
    return labels[:-1]


def check_finite(values: NDArray, labels: list[str], path: Path, start: int = 0) -> None:
    """Raise where a number is missing or infinite."""
    for first in range(0, len(values), CHECKED):
        finite = np.isfinite(values[first : first + CHECKED])
        if not finite.all():
            i, j = (int(x) for x in np.argwhere(~finite)[0])
            raise ValueError(
                f"{path}: row {start + first + i} (the first is 0), column {shown(labels[j])} "
                f"holds {values[first + i, j]}; "
                "columns that are computed with take finite numbers (--columns says which)"
            )


def optional(module: str, kind: str) -> Any:
    """Import a library that only some formats need."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.split(".")[0]
        command = f"pip install {'xarray h5netcdf' if kind == 'NetCDF' else library}"
        raise ImportError(f"{kind} files need {library}: {command}") from None
