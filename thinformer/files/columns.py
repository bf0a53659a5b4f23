"""The columns that the distance is computed on by default, of a file and of its first chunk."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from thinformer.files.messages import listed
from thinformer.files.source import Chunk, Request, Source, title
from thinformer.thinning.columns import (
    CONSTANT,
    OF_A_SAMPLER,
    format_reasons,
    is_of_a_sampler,
    varies,
)


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
    varying = varies(read[0].points)
    if varying.all() or not varying.any():
        return source
    kept = np.flatnonzero(varying)
    labels = [source.labels[j] for j in kept]
    constant = {source.labels[j]: CONSTANT for j in np.flatnonzero(~varying)}
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


def format_left_out(left_out: Mapping[str, str]) -> str:
    """Return a line that says what is left out of the distance, and why."""
    return f"{format_reasons(left_out)}; --columns takes any"
