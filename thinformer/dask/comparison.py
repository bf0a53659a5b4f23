"""`compare` of Dask arrays, data frames and posteriors: errors of coresets, from drawn rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.dask.blocks import Blocks, blocks_of, columns_of, lengths_of
from thinformer.dask.discrepancy import SAMPLE, Held, asked_of, in_one_unit, with_rows
from thinformer.dask.estimates import SampledMMD, own, squared_mmd
from thinformer.dask.sampling import numbers_of
from thinformer.halving.problem import Points
from thinformer.kernels import energy
from thinformer.support import checks
from thinformer.thinning.arguments import as_problem, as_weights
from thinformer.thinning.comparison import Comparison, Comparisons
from thinformer.thinning.moments import ColumnError, column_errors
from thinformer.thinning.scales import Standardize


def compare(
    x: Any,
    coresets: Mapping[str, Any],
    *,
    sample: int = SAMPLE,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    weights: Any = None,
    seed: int = 0,
) -> Comparisons:
    """Compare coresets of a Dask collection: MMD, energy distance, errors of mean and covariance.

    Parameters
    ----------
    x : dask.array.Array (n, d), dask.dataframe.DataFrame, or xarray or ArviZ posterior
        See `thin`.
    coresets : dict of rows of `x` as `thin` returns them, or of tuples (rows, weights)
        For each name, row numbers (s,), or for frames and blocks of unknown lengths pairs (s, 2).
        The rows are equally weighted, unless their weights come with them.
    sample, kernel, bandwidth, standardize, weights, seed
        See `mmd`.

    Returns
    -------
    Comparisons
        A list with one `thinformer.Comparison` for each coreset; it prints as a table. `mmd` and
        `energy` are `SampledMMD`: they have a standard error.

    Raises
    ------
    TypeError, ValueError
        As in `mmd`; or a coreset is not given by its rows.

    Notes
    -----
    Each block is computed twice: once for the rows that are drawn and those of the coresets, once
    for means and covariances.

    - MMD and energy distance are estimated from the rows that are drawn, as in `mmd`. These are the
      same for all coresets, so differences between coresets have less noise than the values.
    - Means, deviations and covariances are those of all rows.
    - Errors of quantiles, `ColumnError.tails`, are to the rows that are drawn. A quantile p of m
      rows with density f has the standard error sqrt(p (1 - p) / m) / f.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from thinformer.dask import compare, thin
    >>> x = da.from_array(np.random.default_rng(0).normal(size=(30_000, 2)), chunks=(5000, 2))
    >>> table = compare(x, {"ours": thin(x, 100), "first": np.arange(100)}, sample=2000)
    >>> table[0].mmd < table[1].mmd
    True
    """
    asked = asked_of(sample, kernel, bandwidth, standardize, seed)
    blocks = blocks_of(x, weights, asked.every)
    _check_dict(coresets)
    lengths = lengths_of(blocks)
    given = [
        _rows_and_weights(f"coresets[{name!r}]", each, lengths, blocks.lengths is None)
        for name, each in coresets.items()
    ]
    held = with_rows(asked, blocks, lengths, [rows for rows, _ in given])
    for i, (_, share) in enumerate(given):
        held.others[i] = held.others[i]._replace(weights=share * share.size)
    array, resolved = in_one_unit(asked, held, blocks.has_columns)
    mmds = _estimates(as_problem(array, resolved), held)
    energies = _estimates(as_problem(array, energy()), held)
    every = _moments_of_all(blocks, held)
    table = Comparisons()
    for name, other, mmd2, energy2 in zip(coresets, held.others, mmds, energies, strict=True):
        part = _moments(held.array[other.rows], other.weights)
        columns = _column_errors(held, other, every, part)
        off = part.covariance - every.covariance
        table.append(
            Comparison(
                name,
                len(other.rows),
                mmd2,
                energy2,
                max(column.mean for column in columns),
                float(np.linalg.norm(off) / (np.linalg.norm(every.covariance) or 1.0)),
                columns,
            )
        )
    return table


def _check_dict(coresets: Any) -> None:
    if not isinstance(coresets, Mapping):
        raise TypeError(f"coresets must be a dict of rows by name; got {type(coresets).__name__}")


def _rows_and_weights(
    name: str, given: Any, lengths: Sequence[int], pairs: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The numbers of a coreset's rows, and their weights."""
    # a tuple of arrays; two numbers are two rows, and two pairs are two pairs
    weighted = isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) == 1 + pairs
    given, weights = given if weighted else (given, None)
    rows = numbers_of(given, name, lengths, pairs)
    if rows is None:
        raise ValueError(f"{name} must hold rows of x; got points of its own")
    return rows, as_weights(weights, len(rows), f"the weights of {name}", signed=True)


def _estimates(problem: Points, held: Held) -> list[SampledMMD]:
    """The estimate for each coreset."""
    of_points = own(problem, held.points)
    return [
        squared_mmd(problem, held.points, other, of_points, own(problem, other))
        for other in held.others
    ]


class _Moments(NamedTuple):
    """total : sum of the weights; mean : (d,); squares : (d, d) products about the mean."""

    total: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @property
    def covariance(self) -> NDArray[np.float64]:
        return self.squares / self.total

    @property
    def deviations(self) -> NDArray[np.float64]:
        """NaN where negative weights give a negative variance."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(np.diag(self.covariance))


def _moments(points: NDArray, weights: NDArray | None) -> _Moments:
    """The moments of points (n, d), of which there may be none."""
    shares = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
    total = float(shares.sum())
    array = points.astype(np.float64, copy=False)
    mean = shares @ array / (total or 1.0)
    centred = array - mean
    return _Moments(total, mean, (centred * shares[:, None]).T @ centred)


def _of_block(block: Any, weights: Any, places: NDArray | None) -> _Moments:
    points = columns_of(block, places)
    checks.finite("x", bool(np.isfinite(points).all()))  # also rows that are not drawn
    return _moments(points, weights)


def _together(found: Sequence[_Moments]) -> _Moments:
    """The moments of several parts; in place of sums of squares, which would leave no digits."""
    total = sum(each.total for each in found)
    shares = np.array([each.total for each in found]) / (total or 1.0)
    mean = shares @ np.array([each.mean for each in found])
    squares = np.zeros((mean.size, mean.size))
    for each in found:
        squares += each.squares + each.total * np.outer(each.mean - mean, each.mean - mean)
    return _Moments(total, mean, squares)


def _moments_of_all(blocks: Blocks, held: Held) -> _Moments:
    """The moments of all rows, in the columns that count."""
    if not held.points.left:
        return _moments(held.array[held.points.rows], held.points.weights)
    from dask import delayed

    joined = delayed(_together)
    found = [
        delayed(_of_block)(block, share, held.table.places)
        for block, share in zip(blocks.values, blocks.weights, strict=True)
    ]
    while len(found) > 1:
        found = [joined(found[i : i + 16]) for i in range(0, len(found), 16)]
    return found[0].compute()


def _column_errors(
    held: Held, other: Any, every: _Moments, part: _Moments
) -> tuple[ColumnError, ...]:
    """The errors of each column: of mean and deviation to all rows, of tails to the drawn ones."""
    points, labels = held.array[held.points.rows], held.table.labels
    own_points = held.array[other.rows]
    shares = held.points.weights
    sampled = column_errors(points, own_points, labels, shares, other.weights)
    unit = np.where(every.deviations > 0, every.deviations, 1.0)
    means = np.abs(part.mean - every.mean) / unit
    deviations = np.abs(part.deviations - every.deviations) / unit
    return tuple(
        ColumnError(each.column, float(mean), float(deviation), each.tails)
        for each, mean, deviation in zip(sampled, means, deviations, strict=True)
    )
