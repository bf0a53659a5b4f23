"""The least value of a convex quadratic function on the simplex, by an interior-point method."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEPS = 60  # at most; of 2800 random problems none took more than 29
SHORT_OF_ZERO = 0.995  # the part of the way to the nearest boundary that a step may go


def least_on_simplex(Q: NDArray, r: NDArray, tolerance: float) -> NDArray[np.float64]:
    r"""Return the weights w >= 0, of sum 1, at which :math:`w^T Q w + 2 r^T w` is least.

    Mehrotra's predictor and corrector, from equal weights (Nocedal & Wright, Numerical
    Optimization, 2006, section 16.6). The multipliers are z >= 0 of w >= 0 and `level` of the sum:
    at the end Q w + r = level + z, and no product w_i z_i counts.

    Parameters
    ----------
    Q : (s, s) float64 array
        Symmetric and positive semidefinite. It may be near singular: a step adds z / w to its
        diagonal.
    r : (s,) float64 array
    tolerance : float
        The steps end when the value is at most 2 `tolerance` above the least one.

    Raises
    ------
    numpy.linalg.LinAlgError
        Q has negative eigenvalues beyond rounding.

    Notes
    -----
    Some 3 to 29 Cholesky factorisations: O(s^3) time, O(s^2) memory.
    """
    from scipy.linalg import cho_factor, cho_solve

    s = r.size
    ones, unit = np.ones(s), np.trace(Q) / s
    w = np.full(s, 1 / s)
    gradient = Q @ w + r
    level = gradient.min() - np.ptp(gradient)
    z = gradient - level
    for _ in range(STEPS):
        gradient = Q @ w + r
        found = _with_zeros(w, z, unit)
        of_found = Q @ found + r
        # the function is convex, so on the simplex it falls by at most twice this number
        if found @ of_found - of_found.min() <= tolerance:
            break
        residual = gradient - level - z
        factor = cho_factor(Q + np.diag(z / w), lower=True, check_finite=False)
        system = _System(factor, cho_solve(factor, ones, check_finite=False), w, z, residual)
        of_w, of_z, _ = system.step(0.0)
        length = min(_to_boundary(w, of_w), _to_boundary(z, of_z))
        mean = w @ z / s
        after = (w + length * of_w) @ (z + length * of_z) / s
        of_w, of_z, up = system.step(mean * (after / mean) ** 3 - of_w * of_z)
        length = SHORT_OF_ZERO * min(_to_boundary(w, of_w), _to_boundary(z, of_z))
        w, z, level = w + length * of_w, z + length * of_z, level + length * up
    return found


class _System(NamedTuple):
    """Newton's equations at w and z.

    factor : the Cholesky factor of Q + diag(z / w), as SciPy returns it
    of_ones : its solution for a right side of ones
    residual : Q w + r - level - z
    """

    factor: tuple[NDArray, bool]
    of_ones: NDArray
    w: NDArray
    z: NDArray
    residual: NDArray

    def step(self, products: NDArray | float) -> tuple[NDArray, NDArray, float]:
        """The changes of w, z and the level that bring each w_i z_i to its product."""
        from scipy.linalg import cho_solve

        w, z = self.w, self.z
        wanted = products / w - z
        free = cho_solve(self.factor, wanted - self.residual, check_finite=False)
        up = (1 - w.sum() - free.sum()) / self.of_ones.sum()
        of_w = free + up * self.of_ones
        return of_w, wanted - z / w * of_w, up


def _with_zeros(w: NDArray, z: NDArray, unit: float) -> NDArray:
    """The weights, of sum 1, with 0 for those below their multipliers: one of both is 0 in the end.

    unit : the mean of Q's diagonal, the ratio of multipliers to weights
    """
    counts = w * unit >= z
    kept = np.where(counts, w, 0.0) if counts.any() else w
    return kept / kept.sum()


def _to_boundary(x: NDArray, change: NDArray) -> float:
    """The part of a change after which the first of the positive numbers x is 0; at most 1."""
    falls = change < 0
    return min(1.0, float(np.min(-x[falls] / change[falls], initial=np.inf)))
