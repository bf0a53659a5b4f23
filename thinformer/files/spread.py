"""Rows of Parquet files that are thinned on a scheduler of Dask: no process holds all of them.

The chunks are those of a run without a scheduler, and so are the rows that are chosen. A row group
is read by one task, and cut into chunks by others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.dask import tasks, thin
from thinformer.dask.blocks import blocks_of, lengths_of
from thinformer.dask.sampling import drawn_rows, take
from thinformer.files.comparison import SAMPLE, SPACED, Seen, see
from thinformer.files.job import Job, chunk_rows
from thinformer.files.parquet import Part, numbers_of_part, parts_of, records_of_part
from thinformer.files.reading import (
    Reading,
    bandwidth_of_rows,
    check_size,
    check_weights,
    deviations_of,
)
from thinformer.files.several import has_chain
from thinformer.files.source import Request, Source, matched
from thinformer.support.progress import Tell
from thinformer.thinning.streaming import merge_and_reduce


def choose(
    job: Job,
    source: Source,
    requests: Sequence[Request],
    settings: dict[str, Any],
    reading: Reading,
    tell: Tell,
) -> tuple[NDArray[np.int64], NDArray]:
    """Choose rows on the scheduler of the job.

    Parameters
    ----------
    job : Job
        With a scheduler and a size.
    source : Source
        The files, of which no chunk needs to be read.
    requests : list of Request
        One for each file.
    settings : dict
        The arguments of `thin`, of which `rng` is a seed.
    reading : Reading
        Receives what is known of the rows, and the records that were chosen.
    tell : callable
        tell(stage, fraction) receives what is done now.

    Returns
    -------
    rows : (size,) increasing row numbers
    points : (size, d) their points
    """
    assert job.scheduler is not None
    assert job.size is not None
    clock = time.perf_counter()
    added = len(requests) > 1 and not has_chain(source.fields)
    parts = [
        part
        for number, request in enumerate(requests, 1)
        for part in parts_of(request.path, number if added else None)
    ]
    check_size(job, job.size, sum(part.rows for part in parts))
    with tasks.scheduler(job.scheduler):
        tell(f"reading on {job.scheduler}", None)
        array = _array(job, source, requests[0], parts)
        first = array.blocks[0].compute()
        units = np.ones(array.shape[1])
        d = len(source.labels)
        if job.standardize:
            reading.deviation = units[:d] = deviations_of(job, source, first[:, :d])
        array, first = array / units, first / units
        reading.bandwidth = bandwidth_of_rows(job, first[:, :d], settings["rng"])
        reading.seconds += time.perf_counter() - clock
        tell(f"thinning on {job.scheduler}", None)
        if len(array.chunks[0]) == 1:
            rows, points, reading.seen = _of_one_chunk(job, array, d, settings)
        else:
            found = _of_chunks(job, array, d, settings, reading.bandwidth)
            rows, points, reading.seen = found
        tell(f"reading the rows chosen on {job.scheduler}", None)
        reading.held = _records(parts, rows)
    return rows, points


def _array(job: Job, source: Source, request: Request, parts: Sequence[Part]) -> Any:
    """The columns of the distance, and behind them the weights, in chunks."""
    weights = matched(request, [name for name, _ in source.fields]).weights
    columns = [*source.labels, *([] if weights is None else [weights])]
    calls = [(job, part, columns, weights is not None) for part in parts]
    lengths = [part.rows for part in parts]
    array = tasks.array_of(_read, calls, lengths, len(columns))
    return array.rechunk({0: chunk_rows(job)})


def _read(job: Job, part: Part, columns: Sequence[str], weighted: bool) -> NDArray[np.float64]:
    """The columns of a part, of which the last may be of weights."""
    values = numbers_of_part(part, columns)
    if weighted:
        check_weights(job, values[:, -1].min())
    return values


def _of_one_chunk(
    job: Job, array: Any, d: int, settings: dict[str, Any]
) -> tuple[NDArray[np.int64], NDArray, Seen]:
    """Choose rows of the only chunk here, as `thin` does."""
    values = array.compute()
    points, weights = values[:, :d], values[:, d] if values.shape[1] > d else np.ones(len(values))
    chosen = merge_and_reduce([(points, weights)], job.size or 1, **settings)
    seen = see(None, points, weights, job.size or 1, np.random.default_rng([settings["rng"], 1]))
    return chosen.rows, chosen.points, seen


def _of_chunks(
    job: Job, array: Any, d: int, settings: dict[str, Any], bandwidth: Any
) -> tuple[NDArray[np.int64], NDArray, Seen]:
    """Choose rows by tasks, and draw rows to compare them with."""
    n, size, seed = array.shape[0], job.size or 1, settings["rng"]
    weighted = array.shape[1] > d
    rows = thin(
        array[:, :d], size, weights=array[:, d] if weighted else None, kernel=job.kernel,
        bandwidth="median" if bandwidth is None else bandwidth, standardize=False,
        method=job.method, g=job.g, delta=job.delta, seed=seed,
    )  # fmt: skip
    stride = 1
    while n // stride > SPACED * size:
        stride *= 2
    evenly = np.arange(stride - 1, n, stride)
    if weighted:  # rows without weight are none to compare with
        weighing = array[array[:, d] > 0].compute_chunk_sizes()
        count = weighing.shape[0]
        chosen, spaced = _taken(array, rows, evenly)
        (sample,) = _taken(weighing, drawn_rows(count, SAMPLE, seed, 0).rows)
    else:
        count = n
        chosen, spaced, sample = _taken(array, rows, evenly, drawn_rows(n, SAMPLE, seed, 0).rows)
    return rows, chosen[:, :d], Seen(
        rows=n, chunks=len(array.chunks[0]), weighing=count, only=None, keys=np.empty(0),
        points=sample[:, :d], weights=sample[:, d] if weighted else np.ones(len(sample)),
        stride=stride, spaced=spaced[:, :d],
    )  # fmt: skip


def _taken(array: Any, *sets: NDArray[np.int64]) -> list[NDArray]:
    """The rows of an array by their numbers, one array for each set of them."""
    blocks = blocks_of(array, None, every=True)
    values = take(blocks, lengths_of(blocks), np.concatenate(sets), every=True).table.values
    return np.split(values, np.cumsum([len(each) for each in sets[:-1]]))


def _records(parts: Sequence[Part], rows: NDArray[np.int64]) -> list[tuple[NDArray, Any]]:
    """The numbers and records of rows, part by part."""
    starts = np.cumsum([0, *(part.rows for part in parts)])
    among = np.split(rows, np.searchsorted(rows, starts[1:-1]))
    chosen = [i for i, each in enumerate(among) if each.size]
    calls = [(parts[i], among[i] - starts[i]) for i in chosen]
    tables = tasks.computed(records_of_part, calls)
    return [(among[i], table) for i, table in zip(chosen, tables, strict=True)]
