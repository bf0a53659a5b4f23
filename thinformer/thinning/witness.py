"""The witness function of the MMD between two samples: where they differ."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.cpu.points import embed
from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel
from thinformer.kernels.kernel import Kernel
from thinformer.support import checks
from thinformer.thinning.arguments import (
    as_problem,
    as_weights,
    check_compares_any,
    median_distance,
    resolve,
)
from thinformer.thinning.scales import Standardize, samples, standardized

POINTS = 1000  # of each sample, at most, where the witness is computed: linear time
ROUNDING = 1e-12  # differences that are smaller, relative to the two means, are no differences


class Witness(NamedTuple):
    """The witness function of two samples, at points of both.

    samples : the points (n, d) and (m, d), in the units in which they were given
    shares : their weights (n,) and (m,), each with the sum 1
    labels : names of the d dimensions
    rows : (r,) numbers of the points where it is computed; y's follow x's
    values : (r,) float64
    kernel : with its bandwidth
    bandwidth : that of a kernel given by name, in the units of the standardised points; or None
    """

    samples: tuple[NDArray, NDArray]
    shares: tuple[NDArray, NDArray]
    labels: list[str]
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    kernel: Kernel
    bandwidth: Any

    @property
    def points(self) -> NDArray:
        """The points (r, d) where it is computed, in the units in which they were given."""
        of_x = self.rows < len(self.samples[0])
        rows = self.rows[of_x], self.rows[~of_x] - len(self.samples[0])
        return np.concatenate([each[r] for each, r in zip(self.samples, rows, strict=True)])


def witness(
    x: Any,
    y: Any,
    kernel: Any,
    bandwidth: Any,
    standardize: Standardize,
    x_weights: ArrayLike | None,
    y_weights: ArrayLike | None,
    rng: int | np.random.Generator | None,
) -> Witness:
    """Compute f(z) = sum_i v_i k(x_i, z) - sum_j w_j k(y_j, z) at points z of both samples.

    The arguments are those of `thinformer.plot.witness`. With N = n + m points this takes at most
    2000 N kernel values, and O(N d) memory.
    """
    unit, tables = samples({"x": x, "y": y}, standardize, kernel, bandwidth)
    given = tables[0].values, tables[1].values
    for name, array in zip("xy", given, strict=True):
        checks.finite(name, bool(np.isfinite(array).all()))
    n, m = map(len, given)
    shares = as_weights(x_weights, n, "x_weights"), as_weights(y_weights, m, "y_weights")
    both = np.concatenate(given, dtype=np.float64)
    both, kernel = standardized(both, unit, kernel)
    generator = np.random.default_rng(rng)
    resolved, length = _kernel(kernel, bandwidth, both, generator)
    drawn = [_drawn(share, generator) for share in shares]
    rows = np.concatenate([drawn[0], n + drawn[1]])
    problem = as_problem(both, resolved)
    of_x = embed(problem, rows, np.arange(n), shares[0])
    of_y = embed(problem, rows, n + np.arange(m), shares[1])
    with np.errstate(invalid="ignore"):
        values = of_x - of_y
    if not np.isfinite(values).all():
        raise ValueError("kernel must have finite values; between some of the points it has not")
    values[np.abs(values) <= ROUNDING * (np.abs(of_x) + np.abs(of_y))] = 0
    return Witness(given, shares, tables[0].labels, rows, values, resolved, length)


def _kernel(
    kernel: Any, bandwidth: Any, points: NDArray, generator: np.random.Generator
) -> tuple[Kernel, Any]:
    """The kernel, and its bandwidth where it is given by name and has one."""
    check_compares_any(kernel)
    if not isinstance(kernel, str) or kernel in WITHOUT_BANDWIDTH:
        return resolve(kernel, bandwidth, points, generator), None
    as_kernel(kernel)  # an unknown name is an error before the bandwidth is looked at
    if isinstance(bandwidth, str) and bandwidth == "median":
        bandwidth = median_distance(points, generator)
    return resolve(kernel, bandwidth, points, generator), bandwidth


def _drawn(share: NDArray, generator: np.random.Generator) -> NDArray[np.int64]:
    """Numbers of points with a weight: all, or a thousand, drawn with the odds of the weights."""
    held = np.flatnonzero(share)
    if held.size <= POINTS:
        return held
    # the rows of the smallest exponential clocks are a draw without replacement
    clocks = generator.standard_exponential(held.size) / share[held]
    return held[np.sort(np.argpartition(clocks, POINTS)[:POINTS])]
