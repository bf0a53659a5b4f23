"""Which columns the distance is computed on by default, and why others are left out."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thinformer.files.messages import listed
from thinformer.files.source import CHECKED, Chunk, Request, Source, title
from thinformer.support.names import few

# reasons to leave a column out, as users read them
OF_A_SAMPLER, INDEX, CONSTANT = "of a sampler", "an index", "constant"
COUNTERS = ("chain", "iteration", "draw")  # columns that samplers write beside the parameters
INDEXES = ("id", "index", "row", "unnamed: 0")  # names of columns that may number the rows


def is_of_a_sampler(name: str) -> bool:
    """Whether a column tells of the sampler: `.chain`, `lp__`, `accept_stat__`, ..."""
    name = name.strip()
    return name.endswith("__") or name.lstrip("._").lower() in COUNTERS


def may_be_index(name: str) -> bool:
    """Whether the name of a column says that it numbers the rows."""
    return name.strip().lstrip("._").lower() in INDEXES


def is_index(name: str, values: NDArray) -> bool:
    """Whether a column numbers the rows: its name says so, and its whole numbers increase."""
    increasing = bool((values % 1 == 0).all() and (values[1:] > values[:-1]).all())
    return may_be_index(name) and increasing


def default_columns(
    request: Request, numeric: list[str], path: Path, index: Collection[str] = ()
) -> list[str]:
    """Return the columns of the request, or those of numbers that are data.

    Weights, columns of a sampler and an index are no data.
    """
    if request.columns is not None:
        return request.columns
    numeric = [c for c in numeric if c != request.weights]
    columns = [c for c in numeric if c not in index and not is_of_a_sampler(c)]
    if columns:
        return columns
    name = title(path)
    if numeric:
        raise ValueError(
            f"{name}: has no column to compute with; {listed(numeric)} are of a sampler or an "
            "index; --columns takes any"
        )
    raise ValueError(f"{name}: has no column of numbers")


def without_constants(source: Source, request: Request) -> Source:
    """Leave out constant dimensions, and list what is left out of the distance and why.

    Dimensions are known to be constant where all rows are in one chunk. Where all are constant, all
    stay: the rows are equal.
    """
    if request.columns is not None:
        return source._replace(left_out={})
    left_out = dict.fromkeys(filter(is_of_a_sampler, source.unused), OF_A_SAMPLER)
    left_out |= {c: reason for c, reason in source.left_out.items() if c in source.unused}
    read = list(itertools.islice(source.chunks, 2))
    source = source._replace(left_out=left_out, chunks=_released(read, source.chunks))
    if len(read) != 1:
        return source
    varies = _varies(read[0].points)
    if varies.all() or not varies.any():
        return source
    kept = np.flatnonzero(varies)
    labels = [source.labels[j] for j in kept]
    constant = {source.labels[j]: CONSTANT for j in np.flatnonzero(~varies)}
    columns = [c for c in source.columns if any(x == c or x.startswith(f"{c}[") for x in labels)]
    return source._replace(
        columns=columns,
        labels=labels,
        unused=[*source.unused, *(c for c in source.columns if c not in columns)],
        left_out=left_out | constant,
        chunks=iter([read[0]._replace(points=np.take(read[0].points, kept, axis=1))]),
    )


def _released(read: list[Chunk], rest: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks that were read, each of which is let go, and the rest."""
    while read:
        yield read.pop(0)
    yield from rest


def _varies(points: NDArray) -> NDArray[np.bool_]:
    """Whether each column has two values."""
    varies = np.zeros(points.shape[1], np.bool_)
    for first in range(0, len(points), CHECKED):
        varies |= (points[first : first + CHECKED] != points[0]).any(axis=0)
        if varies.all():
            break
    return varies


def format_left_out(left_out: Mapping[str, str]) -> str:
    """Return a line that says what is left out of the distance, and why."""
    parts = []
    for reason in dict.fromkeys(left_out.values()):
        names = [name or "''" for name, why in left_out.items() if why == reason]
        parts.append(f"{few(names)} ({reason})")
    return f"left out of the distance: {'; '.join(parts)}; --columns takes any"
