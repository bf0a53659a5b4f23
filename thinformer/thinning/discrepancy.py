"""The error of a coreset: `mmd`, `mmd2_unbiased`, and the table of `compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.cpu.run import diagonal, embed, square
from thinformer.halving.problem import Points
from thinformer.kernels import energy
from thinformer.kernels.phi import STEIN, TABLE
from thinformer.support import checks
from thinformer.support.progress import Progress, begin, showing, within
from thinformer.thinning.arguments import (
    Target,
    as_problem,
    as_weights,
    check_definite,
    holds_scores,
    resolve,
    target_of,
)
from thinformer.thinning.moments import ColumnError, column_errors
from thinformer.thinning.scales import Standardize, for_columns, standardized
from thinformer.thinning.tables import as_points, column_names


def mmd(
    points: Any,
    coreset: Any,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    weights: ArrayLike | None = None,
    target: Target = "auto",
    rng: int | np.random.Generator | None = 0,
    progress: Progress = None,
) -> float:
    r"""Return the maximum mean discrepancy (MMD) between points x (n, d) and a coreset y (s, d).

    The MMD is the largest difference between the two means of a function,
    :math:`\max_f |\sum_i w_i f(x_i) - \frac1s \sum_j f(y_j)|`, over the functions f in the unit
    ball of the kernel's Hilbert space (Gretton et al., 2012).

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`.
    coreset : (s,) int array of rows of `points`, or (s, d) float array of points
        The coreset; its points are equally weighted.
    kernel, bandwidth
        See `thin`. A median bandwidth is computed from `points`. For more than 1000 points it
        depends on `rng`: compare values with the same seed, or give a number.
    standardize
        See `thin`; the scales of `points` are those of the coreset too. It is the unit in which the
        value is meant.
    weights : (n,) array, optional
        The weights of the points; equal by default.
    target : {"auto", "sample", "mean-zero"}
        What the coreset is compared with: the points, or the measure whose mean embedding is zero.
        With a `stein` kernel the latter is the kernel Stein discrepancy (KSD) of the coreset.
        "auto" is "mean-zero" for a `stein` kernel and "sample" for all others.
    rng : int, numpy.random.Generator or None
        Draws the rows for a median bandwidth (SPEC 7).
    progress
        See `thin`. The stage is "MMD", after "kernel matrix" for a function in plain Python.

    Returns
    -------
    float
        Computed in float64, whatever the dtype of the points. It is the root of a difference of
        sums, so values below about 1e-8 times the root of the largest k(x, x) are rounding error.
        It is 0 where rounding makes the square negative.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; or rows of the coreset are out of range.

    Notes
    -----
    O(n^2 d) time, O(n d) memory.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import mmd
    >>> x = np.array([[0.0], [1.0]])
    >>> round(mmd(x, [0], bandwidth=1.0), 4)  # sqrt((1 - exp(-1/2)) / 2)
    0.4435
    """
    shown = showing(progress)
    unit = for_columns(standardize, points, kernel, bandwidth)
    array = as_points(points).astype(np.float64, copy=False)
    n = len(array)
    rows, array = _with_coreset(array, coreset)
    represents = target_of(target, kernel)
    array = standardized(array, unit, kernel, of=array[:n])
    resolved = resolve(kernel, bandwidth, array[:n], rng)
    check_definite(represents, resolved)
    if len(array) > n and resolved.tag in (STEIN, TABLE):
        raise ValueError(
            f"coreset must hold rows of points for kernel {resolved.name}; "
            f"got points of its own, shape {(len(array) - n, array.shape[1])}"
        )
    if represents == "mean-zero" and weights is not None:
        raise ValueError(
            "weights are of the points, with which target='mean-zero' has no part; leave them "
            "out, or compare with the points: target='sample'"
        )
    share = as_weights(weights, n)
    with shown as tell:
        problem = as_problem(array, resolved, tell=tell)
        if represents == "mean-zero":
            return _root(_square_of(problem, rows))
        of_points = square(problem, np.arange(n)[None], share, begin(tell, "MMD"))[0]
        return _root(of_points + _terms_of_coreset(problem, rows, share))


def mmd2_unbiased(
    x: Any,
    y: Any,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    rng: int | np.random.Generator | None = 0,
    progress: Progress = None,
) -> float:
    r"""Return the unbiased estimate of the squared MMD between two distributions, from samples.

    For samples x and y of n and m points it is :math:`\frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j)
    + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm} \sum_{ij} k(x_i, y_j)`
    (Gretton et al., 2012, eq. 3). It can be negative.

    Parameters
    ----------
    x : (n, d) array, data frame or posterior, n >= 2
    y : (m, d) likewise, m >= 2
    kernel, bandwidth, standardize, rng, progress
        See `mmd`; a median bandwidth, and scales, are computed from both samples together.

    Returns
    -------
    float
        Computed in float64, whatever the dtype of the samples.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; or a sample has only one point.

    Notes
    -----
    O((n + m)^2 d) time, O((n + m) d) memory.

    Examples
    --------
    >>> from thinformer import mmd2_unbiased
    >>> mmd2_unbiased([[0.0], [1.0]], [[0.0], [1.0]], kernel="linear")
    -0.5
    """
    shown = showing(progress)
    unit = for_columns(standardize, x, kernel, bandwidth)
    first, second = (
        as_points(a, s).astype(np.float64, copy=False) for a, s in ((x, "x"), (y, "y"))
    )
    n, m = len(first), len(second)
    for name, sample in (("x", first), ("y", second)):
        if len(sample) < 2:
            raise ValueError(f"{name} must have at least two points; got {len(sample)}")
        checks.finite(name, bool(np.isfinite(sample).all()))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"y must have the {first.shape[1]} dimensions of x; got {second.shape[1]}")
    both = standardized(np.concatenate([first, second]), unit, kernel)
    resolved = resolve(kernel, bandwidth, both, rng)
    of_x, of_y = np.arange(n), n + np.arange(m)
    shares = [part / (n + m) ** 2 for part in (2 * n * m, (2 * m + n) * n, (n + m) ** 2)]
    with shown as tell:
        problem = as_problem(both, resolved, tell=tell)
        done = begin(tell, "MMD")
        part = within(done, 0.0, shares[0])
        total = -2 * embed(problem, of_x, of_y, np.full(m, 1 / m), part).mean()
        for i, rows in enumerate((of_x, of_y)):
            size, part = rows.size, within(done, *shares[i : i + 2])
            pairs = square(problem, rows[None], np.ones(size), part)[0]
            total += (pairs - diagonal(problem, rows).sum()) / (size * (size - 1))
    return float(total)


class Comparison(NamedTuple):
    """The errors of one coreset; a row of `compare`.

    Attributes
    ----------
    name : str
        The name of the coreset.
    size : int
        The number of its rows.
    mmd : float
        Its MMD to the points, under the kernel; or its KSD, with a `stein` kernel.
    energy : float
        Its energy distance to the points.
    mean : float
        The largest error of its mean over the dimensions, in standard deviations of the dimension.
    covariance : float
        The relative error of its covariance matrix, in the Frobenius norm.
    columns : tuple of ColumnError
        The errors of mean, deviation and tails by column.
    """

    name: str
    size: int
    mmd: float
    energy: float
    mean: float
    covariance: float
    columns: tuple[ColumnError, ...]

    @property
    def worst(self) -> ColumnError:
        """The column whose mean has the largest error."""
        return max(self.columns, key=lambda each: each.mean)


class Comparisons(list[Comparison]):
    """A list of `Comparison` that prints as a table.

    Attributes
    ----------
    measure : str
        What `Comparison.mmd` is: "MMD", or "KSD" where it is a kernel Stein discrepancy.
    """

    measure = "MMD"

    def __str__(self) -> str:
        width = max([len("coreset"), *(len(row.name) for row in self)])
        heads = "energy      mean     tails  covariance  worst column"
        lines = [f"{'coreset':<{width}}    size {self.measure:>9}    {heads}"]
        lines += [
            f"{row.name:<{width}} {row.size:>7} {row.mmd:>9.5f} {row.energy:>9.5f} "
            f"{row.mean:>9.5f} {max(each.tails for each in row.columns):>9.5f} "
            f"{row.covariance:>11.5f}  {row.worst.column}"
            for row in self
        ]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def compare(
    points: Any,
    coresets: Mapping[str, ArrayLike],
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    target: Target = "auto",
    rng: int | np.random.Generator | None = 0,
    progress: Progress = None,
) -> Comparisons:
    """Compare coresets of the same points: MMD, energy distance, errors of mean and covariance.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`.
    coresets : dict of (s,) int arrays
        For each name, the rows of `points` that are the coreset.
    kernel, bandwidth, standardize, target, rng
        See `mmd`. With a `stein` kernel the column MMD is "KSD", the kernel Stein discrepancy of
        each coreset; all other errors are to the points. MMD and energy distance are in units of
        standardised columns, where columns are; all other errors have no unit.
    progress
        See `thin`. The stages are "MMD" and "energy distance".

    Returns
    -------
    Comparisons
        A list with one `Comparison` for each coreset; it prints as a table.

    Raises
    ------
    TypeError, ValueError
        As in `mmd`; or a coreset is not given by its rows, or the kernel is "precomputed".

    Notes
    -----
    O(n^2 d) time, O(n d) memory.
    """
    shown = showing(progress)
    unit = for_columns(standardize, points, kernel, bandwidth)
    array = as_points(points).astype(np.float64, copy=False)
    n = len(array)
    if isinstance(kernel, str) and kernel == "precomputed":
        raise ValueError("kernel='precomputed' says nothing of energy and moments; see `mmd`")
    if not isinstance(coresets, Mapping):
        raise TypeError(f"coresets must be a dict of rows by name; got {type(coresets).__name__}")
    chosen = {}
    for name, rows in coresets.items():
        chosen[name], with_own = _with_coreset(array, rows, f"coresets[{name!r}]")
        if len(with_own) > n:
            raise ValueError(f"coresets[{name!r}] must hold rows of points; got points of its own")
    represents = target_of(target, kernel)
    measured = standardized(array, unit, kernel)
    resolved = resolve(kernel, bandwidth, measured, rng)
    check_definite(represents, resolved)
    listed = list(chosen.values())
    with shown as tell:
        problem = as_problem(measured, resolved, tell=tell)
        if represents == "mean-zero":
            mmds = [_square_of(problem, rows) for rows in listed]
        else:
            mmds = _squares_to_points(problem, listed, n, begin(tell, "MMD"))
        problem, done = as_problem(measured, energy()), begin(tell, "energy distance")
        energies = _squares_to_points(problem, listed, n, done)
    names = column_names(points, array.shape[1])
    covariance = np.atleast_2d(np.cov(array, rowvar=False, ddof=0))
    size_of_covariance = np.linalg.norm(covariance) or 1.0
    table = Comparisons()
    if represents == "mean-zero" and holds_scores(resolved):
        table.measure = "KSD"
    for (name, rows), mmd2, energy2 in zip(chosen.items(), mmds, energies, strict=True):
        part = array[rows]
        columns = column_errors(array, part, names)
        of_part = np.atleast_2d(np.cov(part, rowvar=False, ddof=0))
        table.append(
            Comparison(
                name,
                rows.size,
                _root(mmd2),
                _root(energy2),
                max(each.mean for each in columns),
                float(np.linalg.norm(of_part - covariance) / size_of_covariance),
                columns,
            )
        )
    return table


def _square_of(problem: Points, rows: NDArray) -> float:
    """The squared norm of the mean embedding of equally weighted rows (s,)."""
    return square(problem, rows[None], np.full(rows.size, 1 / rows.size))[0]


def _squares_to_points(
    problem: Points, coresets: list[NDArray], n: int, done: Callable[[float], None]
) -> list[float]:
    """The squared MMD of each coreset, rows (s,), to the n points of a problem."""
    share = np.full(n, 1 / n)
    of_points = square(problem, np.arange(n)[None], share, done)[0]
    return [of_points + _terms_of_coreset(problem, rows, share) for rows in coresets]


def _terms_of_coreset(problem: Points, rows: NDArray, weights: NDArray) -> float:
    """The two terms of a squared MMD that depend on the coreset.

    rows : (s,) the coreset's rows in `problem`
    weights : (n,) of the points, which are the first n rows of `problem`
    """
    between = embed(problem, rows, np.arange(weights.size), weights).mean()
    return _square_of(problem, rows) - 2 * between


def _root(squared: float) -> float:
    """The root of a squared MMD; 0 where rounding made the square negative."""
    if not np.isfinite(squared):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    return float(np.sqrt(max(squared, 0)))


def _with_coreset(array: NDArray, coreset: Any, name: str = "coreset") -> tuple[NDArray, NDArray]:
    """Return the coreset's rows, and the points they are rows of.

    A coreset of rows leaves the points as they are; a coreset of points is appended to them.
    """
    n = len(array)
    rows = np.asarray(coreset)
    if rows.ndim == 1 and rows.dtype.kind in "iu" and rows.size:
        if rows.min() < 0 or rows.max() >= n:
            raise ValueError(
                f"{name} must hold rows from 0 to {n - 1}; got {rows.min()} to {rows.max()}"
            )
        return rows.astype(np.int64), array
    own = as_points(coreset, name).astype(np.float64)
    if own.shape[1] != array.shape[1]:
        raise ValueError(
            f"{name} must have the {array.shape[1]} dimensions of points; got {own.shape[1]}"
        )
    checks.finite(name, bool(np.isfinite(own).all()))
    return n + np.arange(len(own)), np.concatenate([array, own])
