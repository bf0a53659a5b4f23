"""The argument `standardize`: columns are brought to one unit before a kernel compares rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thinformer import bodies
from thinformer.kernels.catalogue import makes_kernels, stein
from thinformer.kernels.kernel import COVARIANCE, Kernel
from thinformer.kernels.phi import PAIRWISE, STEIN, TABLE
from thinformer.support import checks
from thinformer.thinning.arguments import check_finite, holds_scores
from thinformer.thinning.columns import Table, counted
from thinformer.thinning.tables import has_columns, read

Standardize = Literal["auto", "scale", "whiten", False]
NORMAL = 1.3489795003921634  # the distance between the quartiles of a standard normal distribution
APART = 10  # deviations that are further apart than this factor give a warning
OF_POINTS = ", which hardly counts. standardize='scale' gives all columns one unit"
# bandwidths do not help: the product of two scores is not divided by them
OF_SCORES = (
    ", whose scores outweigh the others. standardize='scale' gives all columns, and the scores, "
    "one unit"
)
LOOKED_AT = 4096  # rows whose deviations are compared for the warning


def samples(
    given: Mapping[str, Any],
    standardize: Standardize,
    kernel: Any,
    bandwidth: Any,
    every: bool = False,
    there: bool = False,
) -> tuple[Standardize, list[Table]]:
    """Read points, and a sample beside them, by one rule.

    Parameters
    ----------
    given : dict
        The points and perhaps a sample, by the names of their arguments.
    standardize, kernel, bandwidth
        Arguments of the call.
    every : bool
        Keep columns that are no data, for a method that computes no distance. They are kept too
        where the kernel is made for each column.
    there : bool
        Take arrays that are on a GPU.

    Returns
    -------
    unit : "auto", "scale", "whiten" or False
        For `standardized`: names of columns of either decide what "auto" is.
    tables : list of Table
        Those of `given`, with the same columns in the same order.
    """
    unit = for_columns(standardize, kernel, bandwidth, any(map(has_columns, given.values())))
    every = every or belongs_to_columns(kernel, bandwidth)
    tables = {name: read(each, name, every, there) for name, each in given.items()}
    return unit, counted(tables, every)


def for_columns(standardize: Standardize, kernel: Any, bandwidth: Any, named: bool) -> Standardize:
    """Return what "auto" means for points with named columns; all else is returned as it is.

    A bandwidth that is given, alone or in a kernel, has the units of the points: these stay. So do
    those of a Stein kernel, whose scores have units too; a warning names columns on unlike scales.
    """
    known = isinstance(standardize, str) and standardize in ("auto", "scale", "whiten")
    if not (standardize is False or known):
        raise ValueError(
            f"standardize must be 'auto', 'scale', 'whiten' or False; got {standardize!r}"
        )
    if standardize != "auto":
        return standardize
    if holds_scores(kernel):
        return "auto"
    if not unit_is_free(kernel, bandwidth):
        return False
    return "scale" if named else "auto"


def standardized(
    array: NDArray, standardize: Standardize, kernel: Any, of: NDArray | None = None
) -> tuple[NDArray, Any]:
    """Return points (n, d) with columns of one unit, in their dtype, and the kernel for these.

    Parameters
    ----------
    array : (n, d)
    standardize : "auto", "scale", "whiten" or False
        As `for_columns` returns it: "auto" leaves the points, and warns of unlike columns.
    kernel : str, Kernel or function
        Of a Stein kernel, the scores are brought to the units of the columns that are returned.
        Where its bandwidth is "covariance", these are the eigenvectors of the covariance.
    of : (m, d), optional
        The first of the points, whose scales are taken; all by default.
    """
    of = array if of is None else of
    if not isinstance(array, np.ndarray):
        _check_as_they_are(standardize, kernel)
    scaled, kernel = _in_one_unit(array, standardize, kernel, of)
    if holds_scores(kernel) and kernel.scale == COVARIANCE:
        return _rotated(scaled, kernel, len(of))
    return scaled, kernel


def _check_as_they_are(standardize: Standardize, kernel: Any) -> None:
    """Check that points that are on a GPU are taken as they are."""
    if standardize in ("scale", "whiten"):
        raise NotImplementedError(
            "standardize must be 'auto' or False for points on a GPU: divide their columns by a "
            f"unit before; got {standardize!r}"
        )
    if holds_scores(kernel) and kernel.scale == COVARIANCE:
        raise NotImplementedError(
            "bandwidth must not be 'covariance' for points on a GPU: rotate them and their scores "
            "before, or give points in the CPU's memory"
        )


def _in_one_unit(
    array: NDArray, standardize: Standardize, kernel: Any, of: NDArray
) -> tuple[NDArray, Any]:
    """Return what `standardized` does, but for a bandwidth "covariance"."""
    if standardize == "auto":
        _warn_if_unlike(of, OF_SCORES if holds_scores(kernel) else OF_POINTS)
    if standardize not in ("scale", "whiten"):
        return array, kernel
    if kernel == "precomputed":
        raise ValueError(
            "standardize must be False with the kernel 'precomputed', which belongs to the points "
            f"as they are; got {standardize!r}"
        )
    check_finite(array)
    # the gradient by x / u is u times that by x
    scores = kernel.companion if holds_scores(kernel) else np.zeros_like(array[:1])
    _check_scores(scores, of)
    with np.errstate(over="ignore", invalid="ignore"):
        divisors = deviations(of)
        scaled, scores = array / divisors.astype(array.dtype), scores * divisors
        if standardize == "whiten":
            of_points, of_scores = _whitening(of / divisors)
            scaled, scores = scaled @ of_points.astype(array.dtype), scores @ of_scores
    if not all(np.isfinite(each).all() for each in (divisors, scaled, scores)):
        raise ValueError("standardize: a column has too wide a range; scale it first")
    return scaled, replace(kernel, companion=scores) if holds_scores(kernel) else kernel


def deviations(array: NDArray) -> NDArray[np.float64]:
    """Return a robust standard deviation of each column of (n, d); 1 for a constant column.

    It is the distance between the quartiles over 1.349, which is the standard deviation of normal
    columns and which few wild rows do not change. Where half of a column is one value, it is the
    standard deviation.
    """
    array = array.astype(np.float64, copy=False)
    low, high = np.quantile(array, [0.25, 0.75], axis=0)
    found = (high - low) / NORMAL
    alike = found == 0
    if alike.any():
        found[alike] = array[:, alike].std(axis=0)
    return np.where(found > 0, found, 1.0)


def _whitening(array: NDArray) -> tuple[NDArray, NDArray]:
    """Matrices (d, r) for points of rank r and for their scores.

    The covariance of ``points @ first`` is the identity; ``scores @ second`` are its scores.
    """
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(array, rowvar=False, ddof=0)))
    # a column that is a sum of others gives an eigenvalue of 0, up to rounding
    held = values > values[-1] * len(values) * np.finfo(array.dtype).eps
    if not held.any():
        return np.eye(len(values)), np.eye(len(values))
    roots = np.sqrt(values[held])
    return vectors[:, held] / roots, vectors[:, held] * roots


def _rotated(array: NDArray, kernel: Kernel, n: int) -> tuple[NDArray, Kernel]:
    """Return points and a Stein kernel in the eigenvectors of the covariance of the first n points.

    A rotation keeps products of scores, so this kernel, with the root of each eigenvalue as a
    bandwidth, is the one whose differences are multiplied by the inverse covariance.
    """
    check_finite(array)
    _check_scores(kernel.companion, array)
    centred = array.astype(np.float64) - array[:n].mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred[:n].T @ centred[:n] / max(n - 1, 1))
    if not values[0] > values[-1] * len(values) * np.finfo(array.dtype).eps:
        raise ValueError(
            "bandwidth='covariance' needs points with a covariance of full rank; its eigenvalues "
            f"are {values[0]:.3g} to {values[-1]:.3g}. Leave out columns that others determine"
        )
    bandwidths = tuple(np.sqrt(values).tolist())
    rotated = stein(kernel.companion @ vectors, bandwidths)
    rotated = replace(rotated, weight=kernel.weight, labels=kernel.labels)
    return (centred @ vectors).astype(array.dtype), rotated


def _check_scores(scores: NDArray, points: NDArray) -> None:
    """Check that scores have the columns of points."""
    if scores.shape[1] != points.shape[1]:
        raise ValueError(
            f"kernel stein must have scores {points.shape} of the points; {scores.shape}"
        )


def unit_is_free(kernel: Any, bandwidth: Any) -> bool:
    """Whether neither the kernel nor the bandwidth is in the units of the points.

    A Gram matrix has no columns, and the Sobolev kernel is one of the unit cube.
    """
    if isinstance(kernel, Kernel):  # "median": by name, with labels
        return isinstance(kernel.scale, str)
    by_name = isinstance(kernel, str) and kernel not in ("precomputed", "sobolev")
    return by_name and isinstance(bandwidth, str)


def belongs_to_columns(kernel: Any, bandwidth: Any) -> bool:
    """Whether a kernel or a bandwidth is made for each column, so that none can be left out.

    A function of yours may read a column by its place.
    """
    if isinstance(kernel, str):
        return kernel == "precomputed" or np.ndim(bandwidth) > 0
    if not isinstance(kernel, Kernel):
        return callable(kernel) and not makes_kernels(kernel)
    own = (STEIN, PAIRWISE, TABLE)
    return any(isinstance(term.scale, tuple) or term.tag in own for term in kernel.summands)


def _warn_if_unlike(array: NDArray, remedy: str) -> None:
    """Warn of columns (n, d) whose deviations are far apart; looks at evenly spaced rows."""
    n = array.shape[0]
    rows = bodies.rows_of(array, np.arange(0, n, -(-n // LOOKED_AT)))
    rows = rows.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        spread = rows.std(axis=0)
    varying = np.flatnonzero(spread > 0)
    if varying.size < 2:
        return
    least, most = varying[spread[varying].argmin()], varying[spread[varying].argmax()]
    if not APART * spread[least] < spread[most] < np.inf:
        return
    warnings.warn(
        f"points have columns on unlike scales: the standard deviation of column {most} is "
        f"{spread[most]:.3g}, of column {least} {spread[least]:.3g}{remedy}; "
        "standardize=False takes them as they are, as now, without this warning",
        stacklevel=checks.depth(),
    )
