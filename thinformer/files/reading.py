"""What is known and held while the chunks of a file are read and thinned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.files.comparison import Seen, see
from thinformer.files.job import Job, name_of
from thinformer.files.messages import shown
from thinformer.files.source import Source
from thinformer.halving.draws import seed_from
from thinformer.kernels.catalogue import SHORT, WITHOUT_BANDWIDTH
from thinformer.support.progress import Tell
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.merging import LEAST
from thinformer.thinning.methods import BLIND
from thinformer.thinning.scales import deviations

Rows = tuple[NDArray, NDArray]  # points and weights


@dataclass
class Reading:
    """What is known and held while thinning takes one chunk after the other.

    seen : rows to compare the coreset with
    held : row numbers and records of the rows that may still be chosen, chunk by chunk
    bandwidth : bandwidth of the kernel, once the first chunk is read
    deviation : deviations of the first chunk's columns, if these are standardised
    seconds : time spent in reading
    """

    seen: Seen | None = None
    held: list[tuple[NDArray, Any]] = field(default_factory=list)
    bandwidth: float | list[float] | None = None
    deviation: NDArray | None = None
    seconds: float = 0.0


def chunks_of(
    job: Job,
    source: Source,
    seed: int,
    reading: Reading,
    tell: Tell,
) -> Iterator[Rows]:
    """Yield points and weights of a source, chunk by chunk, standardised if the job says so."""
    generator = np.random.default_rng([seed, 1])  # not the numbers that thinning draws
    clock = time.perf_counter()
    for chunk in source.chunks:
        points = chunk.points
        if job.standardize:
            if reading.deviation is None:
                reading.deviation = deviations_of(job, source, points)
            points = points / reading.deviation.astype(points.dtype)
        if reading.seen is None:
            reading.bandwidth = bandwidth_of_rows(job, points, seed)
        weights = np.ones(len(points)) if chunk.weights is None else chunk.weights
        check_weights(job, weights.min())
        reading.seen = see(reading.seen, points, weights, job.size or LEAST, generator)
        rows = reading.seen.rows
        reading.held.append((np.arange(rows - len(points), rows), chunk.records))
        reading.seconds += time.perf_counter() - clock
        tell("reading and thinning", source.fraction())
        yield points, weights
        clock = time.perf_counter()
    reading.seconds += time.perf_counter() - clock
    if reading.seen is not None and job.size is not None:
        check_size(job, job.size, reading.seen.rows)
    tell("thinning", None)


def deviations_of(job: Job, source: Source, points: NDArray) -> NDArray[np.float64]:
    """Return the deviations of the columns of the first chunk."""
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = deviations(points)
    if not np.isfinite(deviation).all():
        column = source.labels[int(np.argmin(np.isfinite(deviation)))]
        raise ValueError(
            f"{name_of(job)}: column {shown(column)} is too large for "
            "--standardize; scale it first, or say --no-standardize"
        )
    return deviation


def check_weights(job: Job, least: float) -> None:
    """Raise where the least weight is negative."""
    if least < 0:
        raise ValueError(
            f"{name_of(job)}: --weights {shown(job.weights)} must not be negative; it holds {least}"
        )


def check_size(job: Job, size: int, rows: int) -> None:
    """Raise where there are fewer rows than are to be chosen."""
    if rows < size:
        raise ValueError(f"{name_of(job)}: --size {size} is more than its {rows} rows")


def bandwidth_of_rows(job: Job, points: NDArray, seed: int) -> float | list[float] | None:
    """The bandwidth of the kernel; "median" is what `thin` computes for these points and seed."""
    if SHORT.get(job.kernel, job.kernel) in WITHOUT_BANDWIDTH:
        return None
    if not isinstance(job.bandwidth, str):
        return job.bandwidth
    try:
        return median_distance(points, np.random.default_rng(seed_from(seed)))
    except ValueError as error:
        if job.method in BLIND:
            return None
        raise ValueError(
            f"{name_of(job)}: {error} (of the first {len(points)} rows); "
            "say --bandwidth NUMBER, or a larger --chunk-rows if others differ"
        ) from None


def keep_only(held: list[tuple[NDArray, Any]], rows: NDArray[np.int64]) -> None:
    """Drop the records of all rows but these, given by increasing numbers."""
    left = []
    for numbers, records in held:
        among = rows[
            np.searchsorted(rows, numbers[0]) : np.searchsorted(rows, numbers[-1], "right")
        ]
        if among.size == numbers.size:
            left.append((numbers, records))
        elif among.size:
            left.append((among, records.take(np.searchsorted(numbers, among))))
    held[:] = left
