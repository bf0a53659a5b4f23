"""The table of `compare`: several errors of several coresets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.halving.problem import Points
from thinformer.kernels import energy
from thinformer.support.progress import Progress, begin, showing
from thinformer.thinning.arguments import (
    Target,
    as_problem,
    as_weights,
    check_definite,
    holds_scores,
    resolve,
    target_of,
)
from thinformer.thinning.discrepancy import (
    check_rows,
    root,
    row_numbers,
    square_of,
    terms_of_coreset,
)
from thinformer.thinning.moments import ColumnError, column_errors
from thinformer.thinning.scales import Standardize, samples, standardized


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
    coresets: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]],
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    weights: ArrayLike | None = None,
    target: Target = "auto",
    rng: int | np.random.Generator | None = 0,
    progress: Progress = None,
) -> Comparisons:
    """Compare coresets of the same points: MMD, energy distance, errors of mean and covariance.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`. For an array on a GPU, MMD and energy distance are computed there, and all other
        errors from a copy on the CPU.
    coresets : dict of (s,) int arrays, or of pairs (rows, weights)
        For each name, the rows of `points` that are the coreset. They are equally weighted, unless
        there is a pair, as `thin` returns with ``return_weights``: then all errors are of the
        weighted rows. With negative weights, `ColumnError.tails` is NaN.
    kernel, bandwidth, standardize, target, rng
        See `mmd`. With a `stein` kernel the column MMD is "KSD", the kernel Stein discrepancy of
        each coreset; all other errors are to the points. MMD and energy distance are in units of
        standardised columns, where columns are; all other errors have no unit.
    weights : (n,) array, optional
        The weights of the points in the sample that the errors are to; equal by default. They have
        no part in a KSD.
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
    unit, (held,) = samples({"points": points}, standardize, kernel, bandwidth, there=True)
    there = held.values.astype(np.float64, copy=False)
    array = bodies.to_cpu(points).astype(np.float64) if bodies.on_gpu(points) else there
    n = len(array)
    if isinstance(kernel, str) and kernel == "precomputed":
        raise ValueError("kernel='precomputed' says nothing of energy and moments; see `mmd`")
    chosen = _by_name(coresets, n)
    represents = target_of(target, kernel)
    share = as_weights(weights, n)
    listed = list(chosen.values())
    with shown as tell, bodies.reading(points):
        measured, kernel = standardized(there, unit, kernel)
        resolved = resolve(kernel, bandwidth, measured, rng)
        check_definite(represents, resolved)
        problem = as_problem(measured, resolved, tell=tell)
        if represents == "mean-zero":
            mmds = [square_of(problem, *each) for each in listed]
        else:
            mmds = _squares_to_points(problem, listed, share, begin(tell, "MMD"))
        problem, done = as_problem(measured, energy()), begin(tell, "energy distance")
        energies = _squares_to_points(problem, listed, share, done)
    unequal = share if np.ptp(share) else None
    covariance = _covariance(array, unequal)
    table = Comparisons()
    if represents == "mean-zero" and holds_scores(resolved):
        table.measure = "KSD"
    for (name, each), mmd2, energy2 in zip(chosen.items(), mmds, energies, strict=True):
        part = array[each.rows]
        columns = column_errors(array, part, held.labels, unequal, each.weights)
        off = _covariance(part, each.weights if np.ptp(each.weights) else None) - covariance
        table.append(
            Comparison(
                name,
                each.rows.size,
                root(mmd2),
                root(energy2),
                max(column.mean for column in columns),
                float(np.linalg.norm(off) / (np.linalg.norm(covariance) or 1.0)),
                columns,
            )
        )
    return table


class _Coreset(NamedTuple):
    """rows : (s,) int64; weights : (s,) float64, of sum 1."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]


def _by_name(
    coresets: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]], n: int
) -> dict[str, _Coreset]:
    """The rows and weights of each coreset, checked."""
    if not isinstance(coresets, Mapping):
        raise TypeError(f"coresets must be a dict of rows by name; got {type(coresets).__name__}")
    chosen = {}
    for name, coreset in coresets.items():
        given: Any = coreset
        # a pair of arrays; two numbers are two rows
        weighted = isinstance(given, tuple) and len(given) == 2 and _has_an_axis(given[0])
        given, weights = given if weighted else (given, None)
        rows = row_numbers(given)
        if rows is None:
            raise ValueError(f"coresets[{name!r}] must hold rows of points; got points of its own")
        check_rows(f"coresets[{name!r}]", rows, n)
        own = as_weights(weights, rows.size, f"the weights of coresets[{name!r}]", signed=True)
        chosen[name] = _Coreset(rows, own)
    return chosen


def _has_an_axis(given: Any) -> bool:
    """Whether an array, which may be on a GPU, has one axis."""
    return bodies.on_gpu(given) or np.ndim(given) == 1


def _covariance(points: NDArray, weights: NDArray | None) -> NDArray:
    """The covariance (d, d) of points (n, d); weights may be negative."""
    if weights is None:
        return np.atleast_2d(np.cov(points, rowvar=False, ddof=0))
    centred = points - np.average(points, axis=0, weights=weights)
    return (centred * weights[:, None]).T @ centred / weights.sum()


def _squares_to_points(
    problem: Points | Any, coresets: list[_Coreset], share: NDArray, done: Callable[[float], None]
) -> list[float]:
    """The squared MMD of each coreset to the points of a problem, weighted (n,)."""
    of_points = bodies.square(problem, np.arange(share.size)[None], share, done)[0]
    return [of_points + terms_of_coreset(problem, *each, share) for each in coresets]
