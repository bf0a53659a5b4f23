"""`mmd` of Dask arrays, data frames and posteriors, from rows that are drawn at random."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.dask.blocks import Blocks, blocks_of, lengths_of
from thinformer.dask.estimates import LEAST, Drawn, SampledMMD, own, squared_mmd
from thinformer.dask.sampling import drawn_rows, numbers_of, take
from thinformer.kernels import Kernel
from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH
from thinformer.support import checks
from thinformer.thinning.arguments import as_problem, as_weights, check_compares_any, resolve
from thinformer.thinning.columns import Table, counted
from thinformer.thinning.scales import Standardize, belongs_to_columns, for_columns, standardized
from thinformer.thinning.tables import has_columns, is_of_dask, read

SAMPLE = 20_000  # rows that are drawn by default


def mmd(
    x: Any,
    coreset: Any,
    *,
    sample: int = SAMPLE,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    weights: Any = None,
    coreset_weights: ArrayLike | None = None,
    seed: int = 0,
) -> SampledMMD:
    r"""Estimate the MMD between all rows of a Dask collection and a coreset.

    `sample` rows are drawn at random from all rows, without replacement. The estimate of the
    squared MMD has no bias: its mean over the draws is what `thinformer.mmd` computes from all
    rows, squared.

    Parameters
    ----------
    x : dask.array.Array (n, d), dask.dataframe.DataFrame, or xarray or ArviZ posterior
        See `thin`.
    coreset : rows of `x` as `thin` returns them, or points
        Row numbers (s,), or for frames and blocks of unknown lengths pairs (s, 2). Or points (s, d)
        in memory: an array, a frame or a posterior. Or a Dask collection, from which `sample` rows
        are drawn too.
    sample : int
        Rows to draw, at least 16. If `x` has no more, all its rows are taken: the result is that of
        `thinformer.mmd`.
    kernel
        A kernel of points alone: without scores or labels, and not "precomputed".
    bandwidth, standardize
        See `thinformer.mmd`. The median distance and the scales are those of the rows of `x` that
        are drawn. Values are comparable for the same `sample` and `seed`, or with a bandwidth and
        ``standardize=False``.
    weights : (n,) array or dask.array.Array, or the name of a column of a frame, optional
        See `thin`. All weights are read for their sum.
    coreset_weights : (s,) array, optional
        See `thinformer.mmd`. Not for a Dask collection.
    seed : int
        The source of the draws. They depend on it, on n and on `sample`, and neither on the blocks
        nor on the scheduler.

    Returns
    -------
    SampledMMD
        A float, the root of the estimate, or 0 where that is negative. `squared` is the estimate,
        and `standard_error` is its standard error.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.mmd`; or `x` is nothing of Dask.

    Notes
    -----
    Blocks from which rows are drawn are computed once. Where their lengths are not known, they are
    counted first. Time and memory on the machine of the caller are those of `sample` points:
    O((m + s)^2 d) and O((m + s) d) for m rows drawn.

    The standard error is that of simple random sampling: of the rows' parts in the estimate, and of
    what is left of k(x, y) without the means over x and over y. It falls as :math:`1 / \sqrt m`
    where the MMD is large, and as 1 / m where it is near 0. There it is somewhat too large.

    Rows are drawn whatever their weights are. If few rows have most of the weight, and `sample` is
    so small that none of these may be drawn, the standard error can be far too small.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from thinformer.dask import mmd, thin
    >>> x = da.from_array(np.random.default_rng(0).normal(size=(30_000, 2)), chunks=(5000, 2))
    >>> found = mmd(x, thin(x, 100), sample=2000)
    >>> found.standard_error < 0.001
    True
    """
    asked = asked_of(sample, kernel, bandwidth, standardize, seed)
    blocks = blocks_of(x, weights, asked.every)
    theirs = None
    if is_of_dask(coreset):
        theirs = blocks_of(coreset, None, asked.every, "coreset")
        if coreset_weights is not None:
            raise ValueError("coreset_weights must be None for a coreset of Dask, which is sampled")
    lengths = lengths_of(blocks)
    rows = None
    if theirs is None and not has_columns(coreset):
        rows = numbers_of(coreset, "coreset", lengths, pairs=blocks.lengths is None)
    if rows is None:
        held, named = _beside(asked, blocks, lengths, coreset, theirs)
    else:
        held, named = with_rows(asked, blocks, lengths, [rows]), blocks.has_columns
    if theirs is None:
        s = len(held.others[0].rows)
        share = as_weights(coreset_weights, s, "coreset_weights", signed=True)
        held.others[0] = held.others[0]._replace(weights=s * share)
    problem = as_problem(*in_one_unit(asked, held, named))
    ends = held.points, held.others[0]
    return squared_mmd(problem, *ends, *(own(problem, each) for each in ends))


class Asked(NamedTuple):
    """Arguments of `mmd` and `compare`, checked.

    every : whether columns count that are no data
    """

    sample: int
    kernel: Any
    bandwidth: Any
    standardize: Standardize
    seed: int
    every: bool


class Held(NamedTuple):
    """What is in memory.

    array : (m + ..., d) float64 rows that were drawn, and behind them those of coresets
    points : the rows that were drawn
    others : the rows of each coreset
    table : the columns that count
    """

    array: NDArray
    points: Drawn
    others: list[Drawn]
    table: Table


def asked_of(
    sample: int, kernel: Any, bandwidth: Any, standardize: Standardize, seed: int
) -> Asked:
    """Check arguments before a block is computed."""
    sample = checks.integer("sample", sample, LEAST)
    seed = checks.integer("seed", seed, 0)
    check_compares_any(kernel)
    for_columns(standardize, kernel, bandwidth, False)
    if isinstance(kernel, str) or not isinstance(bandwidth, str):
        resolve(kernel, 1.0 if _is_median(kernel, bandwidth) else bandwidth, np.empty((0, 1)), None)
    every = belongs_to_columns(kernel, bandwidth)
    return Asked(sample, kernel, bandwidth, standardize, seed, every)


def _is_median(kernel: Any, bandwidth: Any) -> bool:
    """Whether a kernel by name has a median bandwidth."""
    named = isinstance(kernel, str) and kernel not in WITHOUT_BANDWIDTH
    return named and isinstance(bandwidth, str) and bandwidth == "median"


def with_rows(
    asked: Asked, blocks: Blocks, lengths: list[int], sets: Sequence[NDArray[np.int64]]
) -> Held:
    """Draw rows, and compute them and the rows of coresets at once."""
    points = drawn_rows(sum(lengths), asked.sample, asked.seed, 0)
    m = len(points.rows)
    taken = take(blocks, lengths, np.concatenate([points.rows, *sets]), asked.every)
    table = taken.table
    (of_points,) = counted({"x": table._replace(values=table.values[:m])}, asked.every)
    values = table.values.astype(np.float64, copy=False)
    if table.places is not None and of_points.places is not None:
        values = values[:, np.flatnonzero(np.isin(table.places, of_points.places))]
    points = points._replace(rows=np.arange(m), weights=_some(taken.weights[:m]))
    ends = m + np.cumsum([0, *map(len, sets)])
    others = [_every(start, end) for start, end in itertools.pairwise(ends.tolist())]
    return Held(values, points, others, of_points)


def _beside(
    asked: Asked, blocks: Blocks, lengths: list[int], coreset: Any, theirs: Blocks | None
) -> tuple[Held, bool]:
    """Draw rows, and read a coreset that has points of its own; also whether columns have names."""
    points = drawn_rows(sum(lengths), asked.sample, asked.seed, 0)
    taken = take(blocks, lengths, points.rows, asked.every)
    m = len(points.rows)
    if theirs is None:
        own_table = read(coreset, "coreset", asked.every)
        checks.finite("coreset", bool(np.isfinite(own_table.values).all()))
        other = _every(m, m + len(own_table.values))
    else:
        counts = lengths_of(theirs)
        other = drawn_rows(sum(counts), asked.sample, asked.seed, 1)
        own_table = take(theirs, counts, other.rows, asked.every, "coreset").table
        other = other._replace(rows=m + np.arange(len(other.rows)))
    named = taken.table.names is not None or own_table.names is not None
    tables = counted({"x": taken.table, "coreset": own_table}, asked.every)
    array = np.concatenate([table.values for table in tables], dtype=np.float64)
    points = points._replace(rows=np.arange(m), weights=_some(taken.weights))
    return Held(array, points, [other], tables[0]), named


def _some(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the rows that were drawn, of which one at least must not be 0."""
    if not weights.any():
        raise ValueError(
            f"sample must be larger: all {weights.size} rows that were drawn have the weight 0"
        )
    return weights


def _every(start: int, end: int) -> Drawn:
    """Rows of a problem which all count, equally."""
    s = end - start
    return Drawn(np.arange(start, end), np.ones(s), s, np.arange(s))


def in_one_unit(asked: Asked, held: Held, named: bool) -> tuple[NDArray, Kernel]:
    """The points with columns of one unit, and the kernel with its bandwidth."""
    unit = for_columns(asked.standardize, asked.kernel, asked.bandwidth, named)
    m = len(held.points.rows)
    array, kernel = standardized(held.array, unit, asked.kernel, of=held.array[:m])
    return array, resolve(kernel, asked.bandwidth, array[:m], asked.seed)
