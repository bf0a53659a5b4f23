"""What `points`, `kernel`, `bandwidth` and `weights` mean: checked, and brought to one form."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.run import diagonal, function_of_points, is_finite
from thinformer.halving.problem import Points, check_function, make_factor, make_points
from thinformer.kernels import Kernel, linear, pairwise
from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel, makes_kernels
from thinformer.kernels.phi import PAIRWISE, TABLE
from thinformer.support import checks
from thinformer.thinning.tables import as_points

TARGETS = ("sample", "mean-zero")
MEDIAN_ROWS = 1000  # of which the median distance is taken


def resolve(
    kernel: Any, bandwidth: Any, points: NDArray, rng: int | np.random.Generator | None
) -> Kernel:
    """Return the kernel that arguments `kernel` and `bandwidth` mean for some points."""
    if isinstance(kernel, str) and kernel == "precomputed":
        return Kernel("precomputed", TABLE, companion=points)
    if callable(kernel) and not isinstance(kernel, Kernel) and not makes_kernels(kernel):
        kernel = pairwise(kernel)
    if isinstance(kernel, Kernel) or (isinstance(kernel, str) and kernel in WITHOUT_BANDWIDTH):
        if not (isinstance(bandwidth, str) and bandwidth == "median"):
            raise ValueError(
                f"bandwidth is part of the kernel {getattr(kernel, 'name', kernel)!r}, "
                f"or it has none; got {bandwidth!r} besides"
            )
        return as_kernel(kernel)
    as_kernel(kernel)
    if bandwidth is None or isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(
                "bandwidth must be a positive number, one for each dimension or 'median'; "
                f"got {bandwidth!r}"
            )
        if len(points) == 1:  # any will do
            return as_kernel(kernel, 1.0)
        bandwidth = median_distance(points, rng)
    return as_kernel(kernel, bandwidth)


def median_distance(points: Any, rng: int | np.random.Generator | None = None) -> float:
    """Return the median distance between distinct points, of at most 1000 drawn from `rng`.

    What ``bandwidth="median"`` stands for.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`.
    rng : None, int or numpy.random.Generator
        Where the points are drawn from, if there are more than 1000 (SPEC 7).

    Returns
    -------
    float
        In the units of the points.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; all points drawn are equal.
    """
    from scipy.spatial.distance import pdist

    array = as_points(points)
    if len(array) > MEDIAN_ROWS:
        drawn = np.random.default_rng(rng).choice(len(array), MEDIAN_ROWS, replace=False)
        array = array[np.sort(drawn)]
    checks.finite("points", bool(np.isfinite(array).all()))
    # scaled by a power of two, which is exact, or their squares may leave the range
    _, exponent = np.frexp(np.abs(array).max())
    distances = pdist(np.ldexp(array.astype(np.float64), -exponent))
    distances = distances[distances > 0]
    if not distances.size:
        raise ValueError(
            "bandwidth='median' needs points that differ; "
            f"all {len(array)} that were looked at are equal"
        )
    return float(np.ldexp(np.median(distances), exponent))


def as_problem(points: NDArray, kernel: Kernel, shift: bool = False) -> Points:
    """Return points under a kernel as a problem; checks that both are finite and fit."""
    n = len(points)
    checks.finite("points", is_finite(make_factor(points, linear()), n))
    if kernel.tag == TABLE:
        if points.shape != (n, n):
            raise ValueError(
                f"points must be a Gram matrix (n, n) for kernel='precomputed'; got {points.shape}"
            )
        checks.symmetric("points", points)
    elif kernel.tag == PAIRWISE and not hasattr(kernel.companion, "py_func"):
        check_function(kernel.companion, points)
        table = _tabulated(kernel.companion, points)
        kernel = Kernel("precomputed", TABLE, weight=kernel.weight, companion=table)
    problem = make_points(points, function_of_points(kernel), shift)
    if not np.isfinite(diagonal(problem, np.arange(n))).all():
        raise ValueError(
            f"kernel {kernel.name} must have finite values; k(x, x) of some points is not. "
            "Centre or scale the points, or take a larger bandwidth"
        )
    return problem


def _tabulated(function: Callable, points: NDArray) -> NDArray:
    """The Gram matrix of a plain Python function."""
    n = len(points)
    warnings.warn(
        f"kernel is plain Python: it is called {n * (n + 1) // 2} times, and the matrix of its "
        "values is stored; compile it with numba.njit to have neither",
        stacklevel=_depth(),
    )
    K = np.empty((n, n), points.dtype)
    for i in range(n):
        for j in range(i + 1):
            K[i, j] = K[j, i] = function(points[i], points[j])
    if not np.isfinite(K).all():
        raise ValueError("kernel must return finite numbers; for some of the points it does not")
    return K


def _depth() -> int:
    """Stack levels up to the first caller outside this package, for a warning's place."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("thinformer"):
        level, frame = level + 1, frame.f_back
    return level
