"""How well a coreset represents a point set: maximum mean discrepancy (MMD)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer import _pool
from thinformer.problem import Points


def embed(problem: Points, at: NDArray, index: NDArray, weights: NDArray) -> NDArray:
    """Return sum_j w_j k(x, y_j) for the points x at (n,), y_j those of index (m,): (n,) float64."""
    from thinformer import sums, tiles  # imports Numba

    out = np.empty(at.size, np.float64)
    panels = -(-at.size // tiles.PANEL)

    def task(first: int, last: int) -> None:
        work = sums.workspace(problem.dim, problem.window.dtype)
        sums.embed(first, last, problem, at, index, weights, out, work)

    _pool.run(task, panels, at.size * index.size * problem.dim)
    return out


def square(problem: Points, sets: NDArray, weights: NDArray) -> NDArray:
    """Return sum_ij w_i w_j k(x_i, x_j) for each row of sets (sets, n): (sets,) float64."""
    from thinformer import sums, tiles  # imports Numba

    parts = np.empty((len(sets), -(-sets.shape[1] // tiles.PANEL)), np.float64)

    def task(first: int, last: int) -> None:
        work = sums.workspace(problem.dim, problem.window.dtype)
        sums.square(first, last, problem, sets, weights, parts, work)

    _pool.run(task, parts.size, sets.size * sets.shape[1] * problem.dim)
    return parts.sum(axis=1)


def diagonal(problem: Points, at: NDArray) -> NDArray:
    """Return k(x, x) for the points x at (n,): (n,) float64."""
    from thinformer import sums, tiles  # imports Numba

    out = np.empty(at.size, np.float64)
    panels = -(-at.size // tiles.PANEL)
    sums.diagonal(
        0, panels, problem, at, out, sums.workspace(problem.dim, problem.window.dtype)
    )
    return out
