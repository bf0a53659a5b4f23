"""How near a coreset is to all rows: its MMD, beside that of standard thinning.

Rows are read once, so a comparison needs rows that are held. A single chunk is held completely.
Of several chunks `Seen` holds rows drawn at random, and evenly spaced rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.points import diagonal, embed, square
from thinformer.files.job import Job
from thinformer.halving.problem import Points
from thinformer.kernels import Kernel
from thinformer.kernels.catalogue import SHORT, WITHOUT_BANDWIDTH, as_kernel
from thinformer.support.names import printable
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.moments import column_errors
from thinformer.thinning.thin import thin

EXACT = 50_000  # a comparison takes all rows up to this number...
COST = 5e10  # ...and up to this number of products; beyond, it takes a sample
HELD = 1e10  # products that a comparison of a sample with all rows may take, where these are held
SAMPLE = 20_000  # rows drawn at random for the comparison where there are more
NOISE = 2  # standard deviations that an estimate must be above 0, or a bound is printed
SPACED = 16  # evenly spaced rows that are held, times the size, for standard thinning


class Seen(NamedTuple):
    """What is held of the rows that were read, to compare the coreset with.

    rows, chunks : how many were read
    weighing : number of rows with a weight above 0
    only : points and weights of the first chunk, until there is a second chunk
    keys : random keys, one for each row with a weight above 0; the smallest `SAMPLE` are held
    points, weights : those of the rows with these keys
    stride : distance between evenly spaced rows
    spaced : points of the rows whose numbers, from 1, are multiples of the stride
    """

    rows: int
    chunks: int
    weighing: int
    only: tuple[NDArray, NDArray] | None
    keys: NDArray
    points: NDArray
    weights: NDArray
    stride: int
    spaced: NDArray


def see(
    seen: Seen | None,
    points: NDArray,
    weights: NDArray,
    size: int,
    generator: np.random.Generator,
) -> Seen:
    """Return what is held of the rows after one more chunk."""
    only = (points, weights) if seen is None else None
    if seen is None:
        none = np.empty(0)
        seen = Seen(0, 0, 0, None, none, points[:0], weights[:0], 1, points[:0])
    rows = seen.rows + len(points)
    stride, spaced = seen.stride, seen.spaced
    while rows // stride > SPACED * size:
        stride, spaced = 2 * stride, spaced[1::2]
    first = -(seen.rows + 1) % stride
    # a row can be held only if its key is among the SAMPLE smallest of its chunk
    weighing = np.flatnonzero(weights)
    keys = generator.random(len(weighing))
    small = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
    keys = np.concatenate([seen.keys, keys[small]])
    kept = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
    return Seen(
        rows=rows,
        chunks=seen.chunks + 1,
        weighing=seen.weighing + len(weighing),
        only=only,
        keys=keys[kept],
        points=np.concatenate([seen.points, points[weighing[small]]])[kept],
        weights=np.concatenate([seen.weights, weights[weighing[small]]])[kept],
        stride=stride,
        spaced=np.concatenate([spaced, points[first::stride]]),
    )


class Compared(NamedTuple):
    """MMDs to all rows; each is a value, or where that is within its noise a bound.

    mmd, mmd_below : of the coreset
    standard_mmd, standard_mmd_below : of standard thinning to the same size
    compared_with : the rows that the MMDs and the errors of columns are computed with
    errors : of the coreset's columns; see `ColumnError`
    notes : why an MMD is not known
    """

    mmd: float | None
    mmd_below: float | None
    standard_mmd: float | None
    standard_mmd_below: float | None
    compared_with: str
    errors: list[dict[str, Any]]
    notes: list[str]


def compared(
    job: Job,
    seen: Seen,
    coreset: NDArray,
    bandwidth: float | list[float] | None,
    columns: Sequence[str],
) -> Compared:
    """Compare the coreset, and standard thinning, with all rows; a failure becomes a note."""
    points, weights = seen.points, seen.weights
    if seen.only is not None and _affordable(seen.weighing, points.shape[1]):
        points, weights = (array[seen.only[1] > 0] for array in seen.only)
    share = len(points) / seen.weighing
    what = "all rows" if share == 1 else f"all rows, by {len(points)} drawn at random"
    notes = []
    distances: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
    name = SHORT.get(job.kernel, job.kernel)
    try:
        if bandwidth is None and name not in WITHOUT_BANDWIDTH:
            raise ValueError("the median distance is 0; say --bandwidth NUMBER")
        kernel = as_kernel(name, bandwidth)
        even, even_weights = (seen.spaced, None) if seen.only is None else seen.only
        if seen.only is None and job.weights is not None:
            even = even[:0]
            notes.append("standard thinning of weighted rows is compared in a single chunk only")
        else:
            even = even[thin(even, len(coreset), method="standard", weights=even_weights)]
        for i, chosen in enumerate((coreset, even)):
            held = None if share == 1 else seen.only
            work = seen.weighing * max(SAMPLE, len(chosen)) * points.shape[1]
            if held is not None and work <= HELD and _affordable(len(chosen), points.shape[1]):
                distances[i] = _mmd_held(kernel, held, (points, weights), chosen)
            elif len(chosen):
                both = np.concatenate([points, chosen], dtype=np.float64)
                distances[i] = _mmd(as_problem(both, kernel), both, weights, share)
    except (TypeError, ValueError) as error:
        notes.append(f"MMD not known: {printable(error)}")
    errors = [each._asdict() for each in column_errors(points, coreset, columns, weights)]
    return Compared(*distances[0], *distances[1], what, errors, notes)


def _affordable(rows: int, dimensions: int) -> bool:
    """Whether a comparison can take all of so many rows."""
    return rows <= SAMPLE or (rows <= EXACT and rows**2 * dimensions <= COST)


class _Sample(NamedTuple):
    """Rows of a problem that were drawn at random from more rows.

    rows : their numbers in the problem
    weights : (rows,), with the sum 1
    share : share of the rows that was drawn; 1 where these are all rows
    """

    rows: NDArray
    weights: NDArray
    share: float


def _mmd(
    problem: Points, points: NDArray, weights: NDArray, share: float
) -> tuple[float | None, float | None]:
    """The MMD of the last points of a problem to the first points, which have weights.

    share : share of all rows that was drawn at random, as the first points

    Returns
    -------
    value, below : float or None
        The estimate, or where that is within its noise a bound.
    """
    m = len(weights)
    s = len(points) - m
    scaled = weights / weights.max()  # so that their sum stays in the range of floats
    every = _Sample(np.arange(m), scaled / scaled.sum(), share)
    rows = m + np.arange(s)
    if not _affordable(s, points.shape[1]):
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    chosen = _Sample(rows, np.full(len(rows), 1 / len(rows)), len(rows) / s)
    (one, noise), (other, more) = _own(problem, every, chosen), _own(problem, chosen, every)
    between = every.weights @ embed(problem, every.rows, chosen.rows, chosen.weights)
    squared = one - 2 * between + other
    return _value_or_bound(squared, float(np.hypot(noise, more)))


def _mmd_held(
    kernel: Kernel,
    held: tuple[NDArray, NDArray],
    sample: tuple[NDArray, NDArray],
    chosen: NDArray,
) -> tuple[float | None, float | None]:
    """The MMD of chosen points to all points, which are held, as `_mmd` returns it.

    held, sample : points and weights of all rows, and of rows drawn from them at random

    The squared MMD is a difference of two means of the witness function. Only one of these means
    has the noise of the sample.
    """
    points, weights = (array[held[1] > 0] for array in held)
    n, m, s = len(points), len(sample[0]), len(chosen)
    problem = as_problem(np.concatenate([points, sample[0], chosen], dtype=np.float64), kernel)
    drawn, rows = n + np.arange(m), n + m + np.arange(s)
    equal = np.full(s, 1 / s)
    share, part = (array / array.max() for array in (weights, sample[1]))
    share, part = share / share.sum(), part / part.sum()
    every = np.arange(n)
    witness = embed(problem, drawn, every, share) - embed(problem, drawn, rows, equal)
    of_chosen = embed(problem, rows, every, share).mean() - square(problem, rows[None], equal)[0]
    squared = part @ witness - of_chosen
    witness -= part @ witness
    return _value_or_bound(float(squared), float(np.sqrt((1 - m / n) * (part**2 @ witness**2))))


def _value_or_bound(squared: float, noise: float) -> tuple[float | None, float | None]:
    """The MMD from its square, or where that is within its noise a bound."""
    margin = NOISE * noise
    if not np.isfinite(squared + margin):
        raise ValueError("the kernel has values that are not finite")
    if margin and squared < margin:
        return None, float(np.sqrt(max(squared, 0) + margin))
    return float(np.sqrt(max(squared, 0))), None


def _own(problem: Points, sample: _Sample, other: _Sample) -> tuple[float, float]:
    """Estimate the mean of k(x, x') over all pairs of rows, equal rows included, from a sample.

    Also return the standard deviation that this sample gives the squared MMD to the other one.
    """
    rows, weights, share = sample
    if share == 1:
        return float(square(problem, rows[None], weights)[0]), 0.0
    embedded = embed(problem, rows, rows, weights)
    mean = weights @ embedded
    # pairs of a row with itself are more frequent in a sample than among all rows
    itself, of_itself = weights**2 @ diagonal(problem, rows), weights @ weights
    distinct = (mean - itself) / (1 - of_itself)
    mean -= (1 - share) * (itself - of_itself * distinct)
    witness = embedded - embed(problem, rows, other.rows, other.weights)
    witness -= weights @ witness
    return float(mean), 2 * float(np.sqrt((1 - share) * (weights**2 @ witness**2)))
