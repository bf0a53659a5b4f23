"""The arguments `kernel`, `bandwidth`, `target` and `weights`, checked and brought to one form.

`points` is read in `tables`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.cpu.run import function_of_points, is_finite
from thinformer.halving.problem import Points, check_function, make_factor, make_points
from thinformer.kernels import Kernel, linear, pairwise, stein
from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel, makes_kernels
from thinformer.kernels.kernel import MEDIAN, SCALED_MEDIAN
from thinformer.kernels.phi import ENERGY, PAIRWISE, STEIN, TABLE
from thinformer.support import checks
from thinformer.support.progress import Tell, quiet
from thinformer.thinning.columns import counted
from thinformer.thinning.tables import read

Target = Literal["auto", "sample", "mean-zero"]
TARGETS = get_args(Target)
MEDIAN_ROWS = 1000  # the median distance is that of at most so many rows


def resolve(
    kernel: Any, bandwidth: Any, points: NDArray, rng: int | np.random.Generator | None
) -> Kernel:
    """Return the `Kernel` that the arguments `kernel` and `bandwidth` mean for points (n, d).

    `rng` draws the rows for a median bandwidth.
    """
    if isinstance(kernel, str) and kernel == "precomputed":
        return Kernel("precomputed", TABLE, companion=points)
    if callable(kernel) and not isinstance(kernel, Kernel) and not makes_kernels(kernel):
        kernel = pairwise(kernel)
    if isinstance(kernel, Kernel) and kernel.scale in (MEDIAN, SCALED_MEDIAN):
        length = _median(points, rng)
        n = points.shape[0]
        if kernel.scale == SCALED_MEDIAN and n > 1:
            length /= math.sqrt(math.log(min(n, MEDIAN_ROWS)))
        of_scores = kernel.tag == STEIN
        made = stein(kernel.companion, length) if of_scores else as_kernel(kernel.name, length)
        kernel = replace(made, weight=kernel.weight, labels=kernel.labels)
    if isinstance(kernel, Kernel) or (isinstance(kernel, str) and kernel in WITHOUT_BANDWIDTH):
        if not (isinstance(bandwidth, str) and bandwidth == "median"):
            raise ValueError(
                f"bandwidth is part of the kernel {getattr(kernel, 'name', kernel)!r}, "
                f"or it has none; got {bandwidth!r} besides"
            )
        return as_kernel(kernel)
    as_kernel(kernel)  # an unknown name is an error before the bandwidth is looked at
    if bandwidth is None or isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(
                "bandwidth must be a positive number, one for each dimension or 'median'; "
                f"got {bandwidth!r}"
            )
        bandwidth = _median(points, rng)
    return as_kernel(kernel, bandwidth)


def _median(points: NDArray, rng: int | np.random.Generator | None) -> float:
    """The median distance of points (n, d), or 1 for one point, for which no bandwidth matters."""
    return _median_of(points, rng) if points.shape[0] > 1 else 1.0


def median_distance(points: Any, rng: int | np.random.Generator | None = None) -> float:
    """Return the median distance between distinct points.

    This is the bandwidth that ``bandwidth="median"`` means. Where there are more than 1000 points,
    the median is that of 1000 of them, drawn without replacement.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`. Of an array on a GPU, the points that are compared are copied to the CPU.
    rng : None, int or numpy.random.Generator
        Draws the 1000 points, if there are more (SPEC 7).

    Returns
    -------
    float
        In the units of the points.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; or all the points that are compared are equal.

    Notes
    -----
    O(m^2 d) time and O(m^2) memory, m = min(n, 1000).
    """
    (table,) = counted({"points": read(points, there=True)})
    return _median_of(table.values, rng)


def _median_of(points: NDArray, rng: int | np.random.Generator | None) -> float:
    """The median distance of points (n, d), which may be on a GPU."""
    from scipy.spatial.distance import pdist

    n = points.shape[0]
    drawn = np.arange(n)
    if n > MEDIAN_ROWS:
        drawn = np.sort(np.random.default_rng(rng).choice(n, MEDIAN_ROWS, replace=False))
    array = bodies.rows_of(points, drawn)
    checks.finite("points", bool(np.isfinite(array).all()))
    # scaling by a power of two is exact; without it the squares may overflow or underflow
    _, exponent = np.frexp(np.abs(array).max())
    distances = pdist(np.ldexp(array.astype(np.float64), -exponent))
    distances = distances[distances > 0]
    if not distances.size:
        raise ValueError(
            "bandwidth='median' needs points that differ; "
            f"all {len(array)} that were looked at are equal"
        )
    return float(np.ldexp(np.median(distances), exponent))


def target_of(target: Target, kernel: Any) -> Literal["sample", "mean-zero"]:
    """Return what "auto" means: the density of the scores if the kernel has some, or the points."""
    if checks.choice("target", target, TARGETS) == "auto":
        return "mean-zero" if has_mean_zero(kernel) else "sample"
    return "sample" if target == "sample" else "mean-zero"


def check_definite(target: str, kernel: Kernel) -> None:
    """Check that a measure of mean zero is asked of a kernel whose squares are not negative."""
    if target == "mean-zero" and any(term.tag == ENERGY for term in kernel.summands):
        raise ValueError("target='mean-zero' takes a positive definite kernel; energy is not")


def holds_scores(kernel: Any) -> bool:
    """Whether it is a Stein kernel, which no sum contains."""
    return isinstance(kernel, Kernel) and kernel.tag == STEIN


def check_compares_any(kernel: Any) -> None:
    """Check that a kernel is one of points alone, so that it compares points of two samples."""
    of_rows = isinstance(kernel, Kernel) and (kernel.tag == STEIN or kernel.labels)
    if of_rows or (isinstance(kernel, str) and kernel == "precomputed"):
        raise ValueError(f"kernel must compare any two points here; got {kernel!r}")


def has_mean_zero(kernel: Any) -> bool:
    """Whether the mean of k(x, .) is zero under a density that the kernel belongs to.

    Labels leave it so if they are factors of the points: k(x, y) becomes r(x) r(y) k(x, y).
    """
    if not holds_scores(kernel):
        return False
    return kernel.labels is None or kernel.labels.constant == kernel.labels.squared == 0


def warn_if_reversed(points: NDArray, scores: NDArray, weights: NDArray | None) -> None:
    """Warn of scores (n, d) of the wrong sign, if points (n, d) can tell.

    Under a density p that decays, <x - m, grad log p(x)> has the mean -d for any m (Stein's
    identity). Among points that are too wide or off the centre it is negative too.
    """
    points = points.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        centred = points - np.average(points, axis=0, weights=weights)
        mean = np.average(np.einsum("ij,ij->i", centred, scores), weights=weights)
    if mean > 0:
        warnings.warn(
            "scores point away from the mass of the points: they should be the gradient of the log "
            f"density, not of its negative. The mean of <x - mean(x), score(x)> is {mean:.3g}; it "
            "is negative where the density decays",
            stacklevel=checks.depth(),
        )


def as_problem(
    points: NDArray,
    kernel: Kernel,
    shift: bool = False,
    tell: Tell = quiet,
    device: str = "cpu",
) -> Points | Any:
    """Return points (n, d) and a kernel as a problem, on "cpu" or "cuda"; see `bodies.place`.

    It checks that the points and k(x, x) are finite, and that a Gram matrix is (n, n) and
    symmetric. `shift` is that of `make_points`; `tell` receives the progress of a plain function.
    """
    n = points.shape[0]
    if not isinstance(points, np.ndarray):
        problem = bodies.under(points, _compiled(kernel), shift)
        return _with_finite_diagonal(problem, kernel, n)
    check_finite(points)
    if kernel.tag == TABLE:
        if points.shape != (n, n):
            raise ValueError(
                f"points must be a Gram matrix (n, n) for kernel='precomputed'; got {points.shape}"
            )
        checks.symmetric("points", points)
    elif kernel.tag == PAIRWISE and not hasattr(kernel.companion, "py_func"):
        check_function(kernel.companion, points)
        table = _tabulated(kernel.companion, points, tell)
        kernel = Kernel("precomputed", TABLE, weight=kernel.weight, companion=table)
    problem = bodies.place(device, make_points(points, function_of_points(kernel), shift))
    return _with_finite_diagonal(problem, kernel, n)


def _compiled(kernel: Kernel) -> Kernel:
    """The kernel for points on a GPU, where no function runs in plain Python."""
    if kernel.tag == PAIRWISE and not hasattr(kernel.companion, "py_func"):
        raise NotImplementedError(
            f"kernel must be compiled by numba.njit for points on a GPU; got {kernel.companion!r}"
        )
    return function_of_points(kernel)


def _with_finite_diagonal(problem: Points | Any, kernel: Kernel, n: int) -> Points | Any:
    """The problem of n points; k(x, x) is checked."""
    if not np.isfinite(bodies.diagonal(problem, np.arange(n))).all():
        raise ValueError(
            f"kernel {kernel.name} must have finite values; k(x, x) of some points is not. "
            "Centre or scale the points, or take a larger bandwidth"
        )
    return problem


def check_finite(points: NDArray) -> None:
    """Check that points (..., n, d) hold no NaN and no infinity; they may be on a GPU."""
    if not isinstance(points, np.ndarray):
        checks.finite("points", bodies.is_finite(points))
        return
    checks.finite("points", is_finite(make_factor(points, linear()), points.shape[-2]))


def as_weights(
    weights: ArrayLike | None, n: int, name: str = "weights", signed: bool = False
) -> NDArray:
    """Return the weights (n,) of n points, scaled to a sum of 1; equal ones for None.

    `signed` weights may be negative, and have a positive sum.
    """
    if weights is None:
        return np.full(n, 1 / n)
    checks.in_memory(name, weights)
    array = np.asarray(bodies.to_cpu(weights))
    if array.dtype.kind not in "biuf" or array.shape != (n,):
        raise ValueError(
            f"{name} must be numbers of shape ({n},); got dtype {array.dtype}, shape {array.shape}"
        )
    array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        total = array.sum()
    if signed and not 0 < total < np.inf:
        raise ValueError(f"{name} must be finite and have a positive, finite sum; got {total}")
    if not np.isfinite(total) or (array.min() < 0 and not signed) or total == 0:
        raise ValueError(
            f"{name} must be finite and have a finite sum, none of them negative and not all zero"
        )
    return array / total


def unequal_weights(weights: ArrayLike | None, n: int) -> NDArray | None:
    """Return the weights (n,) of n points, scaled to a sum of 1; None where they are equal."""
    array = as_weights(weights, n)
    return array if np.ptp(array) > 0 else None


def _tabulated(function: Callable, points: NDArray, tell: Tell) -> NDArray:
    """The Gram matrix (n, n) of points under a plain Python function, with a warning."""
    n = len(points)
    warnings.warn(
        f"kernel is plain Python: it is called {n * (n + 1) // 2} times, and the matrix of its "
        "values is stored; compile it with numba.njit to have neither",
        stacklevel=checks.depth(),
    )
    tell("kernel matrix", 0.0)
    K = np.empty((n, n), points.dtype)
    for i in range(n):
        for j in range(i + 1):
            K[i, j] = K[j, i] = function(points[i], points[j])
        tell("kernel matrix", (i + 1) * (i + 2) / (n * (n + 1)))
    if not np.isfinite(K).all():
        raise ValueError("kernel must return finite numbers; for some of the points it does not")
    return K
