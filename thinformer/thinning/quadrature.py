"""`fit_weights`: the weights of a coreset's rows that make its MMD least, as in kernel quadrature.

For weights w of sum 1 the squared MMD is w' K w - 2 w' m + |mu|^2, where K is the Gram matrix of
the rows and m the mean embedding mu of the points at the rows. With v = w - 1/s, the change from
equal weights, it is the value of equal weights plus

    v' C v + 2 v' a,    C = K centred in rows and columns,    a = K 1/s - m, less its mean.

So neither |mu|^2, which takes O(n^2) time, nor any constant in its place is needed. C is positive
semidefinite for a conditionally positive definite kernel too. The change from equal weights has
its own digits, not those of a difference of two MMDs: it tells whether the weights are better.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.halving.problem import Points
from thinformer.support import checks
from thinformer.support.progress import Progress, Tell, begin, showing
from thinformer.thinning.arguments import Target, as_problem
from thinformer.thinning.discrepancy import compared
from thinformer.thinning.scales import Standardize
from thinformer.thinning.simplex import least_on_simplex

Constraint = Literal["simplex", "affine"]
CONSTRAINTS = get_args(Constraint)
# of "affine", in units of the mean of C's diagonal; with 1e-8 and Gaussian kernels the sum of |w|
# was up to 50, with 1e-6 up to 10, with 1e-4 the MMD was above that of the simplex
NUGGET = 1e-6
TOLERANCE = 1e-14  # of the squared MMD, in units of the largest |k(x, y)| between rows


def fit_weights(
    points: Any,
    coreset: Any,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    weights: ArrayLike | None = None,
    target: Target = "auto",
    constraint: Constraint = "simplex",
    rng: int | np.random.Generator | None = 0,
    progress: Progress = None,
) -> NDArray[np.float64]:
    r"""Return the weights of a coreset's rows at which its MMD to the points is least.

    They minimise :math:`\|\sum_i p_i k(x_i, \cdot) - \sum_j w_j k(y_j, \cdot)\|` over the weights w
    of the rows y, where p are the weights of the points x. These are the weights of kernel
    quadrature, or of Bayesian quadrature, under a constraint.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`.
    coreset : (s,) int array of rows of `points`, or points (s, d) as an array, frame or posterior
        See `mmd`. A row that is there twice has two weights.
    kernel, bandwidth, standardize, target, rng
        See `mmd`. For the median bandwidth of more than 1000 points, `mmd` and `compare` with the
        same `rng` measure with the kernel that the weights are fitted to; `thin` draws its own.
    weights : (n,) array, optional
        The weights of the points; equal by default.
    constraint : {"simplex", "affine"}
        - "simplex": no weight is negative, and their sum is 1. Rows may have a weight of 0.
        - "affine": the sum is 1, and weights may be negative. The MMD is smaller, but such weights
          are no distribution: variances may be negative, and samplers and most estimators refuse
          them. A nugget of 1e-6 times the mean of the centred kernel's diagonal keeps them small.
    progress
        See `thin`. The stages are "mean embedding" and "weights".

    Returns
    -------
    (s,) float64 array
        Of sum 1. Its MMD is never above that of equal weights, up to rounding.

    Raises
    ------
    TypeError, ValueError
        As in `mmd`; or the kernel is not (conditionally) positive definite on the rows.

    Notes
    -----
    O(n s d + s^2 d + s^3) time, whatever the constraint, and O(n d + s^2) memory. On the simplex
    the third term is that of some 3 to 29 Cholesky factorisations, of an interior-point method.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import fit_weights
    >>> fit_weights([[0.0], [1.0], [2.0]], [0, 1, 2], weights=[1, 2, 1], bandwidth=0.5).round(6)
    array([0.25, 0.5 , 0.25])
    """
    shown = showing(progress)
    checks.choice("constraint", constraint, CONSTRAINTS)
    given = compared(points, coreset, kernel, bandwidth, standardize, weights, target, rng)
    with shown as tell, bodies.reading(points, coreset):
        problem = as_problem(given.array, given.kernel, tell=tell, device=given.device)
        return best_weights(problem, given.rows, given.share, given.target, constraint, tell)


def best_weights(
    problem: Points | Any,
    rows: NDArray,
    share: NDArray,
    target: str,
    constraint: Constraint,
    tell: Tell,
) -> NDArray[np.float64]:
    """Return the weights (s,) of rows that make their MMD least.

    Parameters
    ----------
    problem : Points
        Its first n points are those that the rows represent.
    rows : (s,)
        Of the problem.
    share : (n,)
        The weights of the points, of sum 1.
    target : "sample" or "mean-zero"
    """
    s = rows.size
    equal = np.full(s, 1 / s)
    problem = bodies.in_float64(problem)
    gram = bodies.gram(problem, rows)
    mean = gram.mean(axis=1)
    slope = mean
    if target == "sample":
        done = begin(tell, "mean embedding")
        slope = mean - bodies.embed(problem, rows, np.arange(share.size), share, done)
    if not (np.isfinite(gram).all() and np.isfinite(slope).all()):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    done = begin(tell, "weights")
    largest = np.abs(gram).max() or 1.0
    slope = (slope - slope.mean()) / largest
    centred = (gram - mean[:, None] - mean + mean.mean()) / largest
    unit = np.trace(centred) / s
    rounding = 4 * s * np.finfo(np.float64).eps  # of the eigenvalues
    if np.abs(centred).max() <= rounding:  # all rows are equal
        done(1.0)
        return equal
    # 1 1' adds a constant where the sum is 1, and makes the matrix positive definite
    convex = centred + unit / s + rounding * np.eye(s)
    try:
        if unit <= 0:
            raise np.linalg.LinAlgError
        if constraint == "simplex":
            found = least_on_simplex(convex, slope, TOLERANCE)
        else:
            found = equal - _solve(convex + NUGGET * unit * np.eye(s), slope)
            found /= found.sum()
    except np.linalg.LinAlgError:
        raise ValueError(
            "kernel must be positive definite, or conditionally so, to fit weights; "
            "on these rows it is not"
        ) from None
    done(1.0)
    return found if found @ centred @ found + 2 * (slope @ found) < 0 else equal


def _solve(matrix: NDArray, right: NDArray) -> NDArray:
    """The solution of a positive definite system."""
    from scipy.linalg import cho_factor, cho_solve

    return cho_solve(cho_factor(matrix, check_finite=False), right, check_finite=False)
