"""Two samples in files: rows of the same columns, which are read completely."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.files.csv import DELIMITERS
from thinformer.files.formats import ending, open_source
from thinformer.files.messages import listed, shown
from thinformer.files.sampler import format_skipped
from thinformer.files.source import Request
from thinformer.support.names import printable
from thinformer.support.progress import Tell, labelled
from thinformer.thinning.arguments import as_weights
from thinformer.thinning.columns import (
    CONSTANT,
    INDEX,
    OF_A_SAMPLER,
    format_reasons,
    is_of_a_sampler,
    varies,
)

ROWS = 2**18  # read at once


class Sample(NamedTuple):
    """A sample that was read.

    path : the file
    points : (n, d) float array
    weights : (n,) array, or None where all are equal
    labels : names of the dimensions
    unused : names of other columns
    left_out : those of the unused that are numbers but no data, and why
    draws : whether the rows are draws in a sampler's order
    notes : notes on how the file was read
    """

    path: Path
    points: NDArray
    weights: NDArray | None
    labels: list[str]
    unused: list[str]
    left_out: dict[str, str]
    draws: bool
    notes: list[str]

    def taken(self, labels: list[str]) -> Sample:
        """The sample with these dimensions only, in this order."""
        if labels == self.labels:
            return self
        places = [self.labels.index(label) for label in labels]
        return self._replace(points=np.take(self.points, places, axis=1), labels=labels)


def kind_of(path: Path, option: str) -> str:
    """Return the format of a file or of a folder of Parquet, an ending."""
    return ".parquet" if path.is_dir() else ending(path, option)


def read_samples(
    paths: tuple[Path, Path],
    columns: list[str] | None,
    weights: str | None,
    delimiter: str | None,
    comment: str | None,
    tell: Tell,
) -> tuple[Sample, Sample]:
    """Read two samples, with the same dimensions in the same order.

    Parameters
    ----------
    paths : of the files
    columns, weights, delimiter, comment : see `Job`; a file without the column of weights has equal
        ones, but one of both has it
    tell : callable
        tell(stage, fraction) receives what is read.
    """
    requests = []
    for option, path in zip("AB", paths, strict=True):
        kind = kind_of(path, option)
        mark = delimiter or DELIMITERS.get(kind, ",")
        requests.append((Request(path, columns, None, ROWS, False, mark, comment), kind))
    weighted = [weights is not None and _has(request, kind, weights) for request, kind in requests]
    if weights is not None and not any(weighted):
        raise ValueError(f"{paths[0]}: --weights {shown(weights)} is not there, nor in {paths[1]}")
    first, second = (
        _read(request._replace(weights=weights if has else None), kind, tell)
        for (request, kind), has in zip(requests, weighted, strict=True)
    )
    return _alike(first, second, chosen=columns is not None)


def _has(request: Request, kind: str, column: str) -> bool:
    """Whether a file has a column."""
    with open_source(request, kind) as source:
        return column.strip() in [name.strip() for name in (*source.columns, *source.unused)]


def _read(request: Request, kind: str, tell: Tell) -> Sample:
    """Read one file."""
    path, say = request.path, labelled(tell, f"reading {printable(request.path)}")
    points: list[NDArray] = []
    shares: list[NDArray] = []
    with open_source(request, kind) as source:
        for chunk in source.chunks:
            points.append(chunk.points)
            if chunk.weights is not None:
                shares.append(chunk.weights)
            say("rows", source.fraction())
    # those of other formats are about files that are written
    notes = [*source.notes] if kind in DELIMITERS else []
    notes = [f"{path}: {note}" for note in [*notes, *format_skipped(source.skipped)]]
    every = np.concatenate(points)
    if len(every) < 2:
        raise ValueError(f"{path}: must have at least two rows; it has {len(every)}")
    weights = np.concatenate(shares) if shares else None
    if weights is not None:
        as_weights(weights, len(every), f"{path}: --weights {shown(request.weights)}")
    of_a_sampler = [name for name in source.unused if is_of_a_sampler(name)]
    left_out = dict.fromkeys(of_a_sampler, OF_A_SAMPLER)
    left_out |= {c: reason for c, reason in source.left_out.items() if c in source.unused}
    draws = source.draws or bool(of_a_sampler)
    return Sample(path, every, weights, source.labels, source.unused, left_out, draws, notes)


def _alike(first: Sample, second: Sample, chosen: bool) -> tuple[Sample, Sample]:
    """The samples with the same dimensions; those that --columns has not chosen must be data."""
    if not chosen:
        first, second = _without_indexes(first, second)
    ours, theirs = first.labels, second.labels
    only = [[name for name in a if name not in b] for a, b in ((ours, theirs), (theirs, ours))]
    if any(only):
        lacks = [
            f"only {sample.path} has {listed(names)}"
            for sample, names in zip((first, second), only, strict=True)
            if names
        ]
        raise ValueError(
            f"{second.path}: must have the columns of numbers of {first.path}; "
            f"{'; '.join(lacks)}; --columns says which to compare"
        )
    second = second.taken(ours)
    if chosen:
        return first._replace(left_out={}), second._replace(left_out={})
    start = first.points[0]
    varying = varies(first.points) | varies(second.points) | (second.points[0] != start)
    if varying.all() or not varying.any():
        return first, second
    kept = [ours[j] for j in np.flatnonzero(varying)]
    constant = {ours[j]: CONSTANT for j in np.flatnonzero(~varying)}
    return _left_out(first, kept, constant), _left_out(second, kept, constant)


def _without_indexes(first: Sample, second: Sample) -> tuple[Sample, Sample]:
    """The samples without columns that number the rows of either."""
    index = [
        name for each in (first, second) for name, why in each.left_out.items() if why == INDEX
    ]
    found = []
    for sample in (first, second):
        kept = [name for name in sample.labels if name not in index]
        gone = {name: INDEX for name in sample.labels if name in index}
        if not kept:
            raise ValueError(
                f"{sample.path}: has no column to compute with; "
                f"{format_reasons(sample.left_out | gone)}; --columns takes any"
            )
        found.append(_left_out(sample, kept, gone))
    return found[0], found[1]


def _left_out(sample: Sample, kept: list[str], gone: dict[str, str]) -> Sample:
    """A sample with fewer dimensions."""
    unused = [*sample.unused, *gone]
    return sample.taken(kept)._replace(unused=unused, left_out=sample.left_out | gone)
