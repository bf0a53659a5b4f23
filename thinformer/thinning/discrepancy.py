"""The error of a coreset in one number: `mmd` and `mmd2_unbiased`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.halving.problem import Points
from thinformer.kernels import Kernel
from thinformer.kernels.phi import STEIN, TABLE
from thinformer.support import checks
from thinformer.support.progress import Progress, begin, showing, within
from thinformer.thinning.arguments import (
    Target,
    as_problem,
    as_weights,
    check_definite,
    resolve,
    target_of,
)
from thinformer.thinning.scales import Standardize, samples, standardized
from thinformer.thinning.tables import check_in_memory


def mmd(
    points: Any,
    coreset: Any,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    weights: ArrayLike | None = None,
    coreset_weights: ArrayLike | None = None,
    target: Target = "auto",
    rng: int | np.random.Generator | None = 0,
    progress: Progress = None,
) -> float:
    r"""Return the maximum mean discrepancy (MMD) between points x (n, d) and a coreset y (s, d).

    The MMD is the largest difference between the two means of a function,
    :math:`\max_f |\sum_i w_i f(x_i) - \sum_j v_j f(y_j)|`, over the functions f in the unit ball of
    the kernel's Hilbert space (Gretton et al., 2012). By default :math:`v_j = 1/s`.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`. For an array on a GPU the value is computed there.
    coreset : (s,) int array of rows of `points`, or points (s, d) as an array, frame or posterior
        Columns that have names are those of `points`, in any order. Points (s, d) are in the memory
        of `points`.
    kernel, bandwidth
        See `thin`. A median bandwidth is computed from `points`. For more than 1000 points it
        depends on `rng`: compare values with the same seed, or give a number.
    standardize
        See `thin`; the scales of `points` are those of the coreset too. It is the unit in which the
        value is meant.
    weights : (n,) array, optional
        The weights of the points; equal by default.
    coreset_weights : (s,) array, optional
        The weights of the coreset's points, as `fit_weights` returns them; equal by default. They
        may be negative. They are divided by their sum, which is positive.
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
    given = compared(points, coreset, kernel, bandwidth, standardize, weights, target, rng)
    rows, share = given.rows, given.share
    own = as_weights(coreset_weights, rows.size, "coreset_weights", signed=True)
    with shown as tell, bodies.reading(points, coreset):
        problem = as_problem(given.array, given.kernel, tell=tell, device=given.device)
        if given.target == "mean-zero":
            return root(square_of(problem, rows, own))
        of_points = bodies.square(problem, np.arange(share.size)[None], share, begin(tell, "MMD"))[
            0
        ]
        return root(of_points + terms_of_coreset(problem, rows, own, share))


class Compared(NamedTuple):
    """Points and a coreset, as the arguments of `mmd` say.

    array : (n, d) float64 the points; (n + s, d) with a coreset that has points of its own
    rows : (s,) the coreset's rows in `array`
    share : (n,) the weights of the points, of sum 1
    kernel : with its bandwidth
    target : "sample" or "mean-zero"
    device : "cpu" or "cuda"
    """

    array: NDArray
    rows: NDArray[np.int64]
    share: NDArray
    kernel: Kernel
    target: str
    device: str


def compared(
    points: Any,
    coreset: Any,
    kernel: Any,
    bandwidth: Any,
    standardize: Standardize,
    weights: ArrayLike | None,
    target: Target,
    rng: int | np.random.Generator | None,
) -> Compared:
    """Return the arguments of `mmd`, read and checked."""
    rows = row_numbers(coreset)
    given = {"points": points} if rows is not None else {"points": points, "coreset": coreset}
    device = bodies.choose("auto", **given)
    if rows is None:  # few points, or two samples: they are put together on the CPU
        given = {name: bodies.to_cpu(each) for name, each in given.items()}
    unit, tables = samples(given, standardize, kernel, bandwidth, there=True)
    array = tables[0].values.astype(np.float64, copy=False)
    n = array.shape[0]
    if rows is None:
        own = tables[1].values.astype(np.float64, copy=False)
        checks.finite("coreset", bool(np.isfinite(own).all()))
        rows, array = n + np.arange(len(own)), np.concatenate([array, own])
    else:
        check_rows("coreset", rows, n)
    represents = target_of(target, kernel)
    with bodies.reading(points):
        array, kernel = standardized(array, unit, kernel, of=_first(array, n))
        resolved = resolve(kernel, bandwidth, _first(array, n), rng)
    check_definite(represents, resolved)
    if array.shape[0] > n and (resolved.tag in (STEIN, TABLE) or resolved.labels):
        labelled = " with labels" if resolved.labels else ""
        raise ValueError(
            f"coreset must hold rows of points for kernel {resolved.name}{labelled}; "
            f"got points of its own, shape {(array.shape[0] - n, array.shape[1])}"
        )
    if represents == "mean-zero" and weights is not None:
        raise ValueError(
            "weights are of the points, with which target='mean-zero' has no part; leave them "
            "out, or compare with the points: target='sample'"
        )
    return Compared(array, rows, as_weights(weights, n), resolved, represents, device)


def _first(array: NDArray, n: int) -> NDArray:
    """The first n points, which may be all."""
    return array if array.shape[0] == n else array[:n]


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
        Columns that have names in both are the same, in any order.
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
    unit, tables = samples({"x": x, "y": y}, standardize, kernel, bandwidth)
    first, second = (table.values.astype(np.float64, copy=False) for table in tables)
    n, m = len(first), len(second)
    for name, sample in (("x", first), ("y", second)):
        if len(sample) < 2:
            raise ValueError(f"{name} must have at least two points; got {len(sample)}")
        checks.finite(name, bool(np.isfinite(sample).all()))
    both, kernel = standardized(np.concatenate([first, second]), unit, kernel)
    resolved = resolve(kernel, bandwidth, both, rng)
    of_x, of_y = np.arange(n), n + np.arange(m)
    shares = [part / (n + m) ** 2 for part in (2 * n * m, (2 * m + n) * n, (n + m) ** 2)]
    with shown as tell:
        problem = as_problem(both, resolved, tell=tell)
        done = begin(tell, "MMD")
        part = within(done, 0.0, shares[0])
        total = -2 * bodies.embed(problem, of_x, of_y, np.full(m, 1 / m), part).mean()
        for i, rows in enumerate((of_x, of_y)):
            size, part = rows.size, within(done, *shares[i : i + 2])
            pairs = bodies.square(problem, rows[None], np.ones(size), part)[0]
            total += (pairs - bodies.diagonal(problem, rows).sum()) / (size * (size - 1))
    return float(total)


def square_of(problem: Points | Any, rows: NDArray, weights: NDArray) -> float:
    """The squared norm of the mean embedding of rows (s,) with weights (s,)."""
    return bodies.square(problem, rows[None], weights)[0]


def terms_of_coreset(
    problem: Points | Any, rows: NDArray, weights: NDArray, share: NDArray
) -> float:
    """The two terms of a squared MMD that depend on the coreset.

    rows, weights : (s,) the coreset's rows in `problem`, and their weights
    share : (n,) the weights of the points, which are the first n rows of `problem`
    """
    between = bodies.embed(problem, rows, np.arange(share.size), share) @ weights
    return square_of(problem, rows, weights) - 2 * between


def root(squared: float) -> float:
    """The root of a squared MMD; 0 where rounding made the square negative."""
    if not np.isfinite(squared):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    return float(np.sqrt(max(squared, 0)))


def row_numbers(coreset: Any) -> NDArray[np.int64] | None:
    """The rows (s,) of a coreset; None where it has points of its own."""
    check_in_memory(coreset, "coreset")
    if bodies.on_gpu(coreset) and len(coreset.__cuda_array_interface__["shape"]) == 1:
        coreset = bodies.to_cpu(coreset)
    elif bodies.on_gpu(coreset):
        return None
    rows = np.asarray(coreset)
    of_rows = rows.ndim == 1 and rows.dtype.kind in "iu" and rows.size
    return rows.astype(np.int64) if of_rows else None


def check_rows(name: str, rows: NDArray[np.int64], n: int) -> None:
    """Check that rows (s,) of a coreset are among n; `name` is that of the argument."""
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(
            f"{name} must hold rows from 0 to {n - 1}; got {rows.min()} to {rows.max()}"
        )
