"""Two samples in bins of points, and the inner products of the bins' mean embeddings.

Whoever permutes bins in place of points needs one number for every two bins. It may come from all
points, from a coreset of each bin, or from few landmarks of all points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.run import embed_bins
from thinformer.halving.problem import Points
from thinformer.kernels.kernel import Kernel
from thinformer.thinning.thin import thin

LARGEST = 1024  # bins of both samples together; more would only take memory
ROUNDING = 1e-12  # of a mean of kernel values, relative
NUGGET = 1e-7  # on the diagonal of the landmarks' Gram matrix, relative to its mean


class Bins(NamedTuple):
    """Points in consecutive bins: first those of x, then those of y.

    rows : (N,) int64, bin after bin; y's rows follow x's
    weights : (N,) float64; those of a bin have the sum 1
    starts : (bins + 1,) int64, where each bin begins in `rows`
    of_x : the number of bins of x
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    starts: NDArray[np.int64]
    of_x: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of points of each bin."""
        return np.diff(self.starts)


def bins_of(n: int, m: int, bins: int, generator: np.random.Generator) -> Bins:
    """Put n points x and m points y, in random order, into bins of one size, or of one point more.

    There are about `bins` of them, and at least two of each sample that has two points. If one
    sample is so small that this takes more than 1024 bins, a part of the other is drawn.
    """
    small, large = min(n, m), max(n, m)
    few = small // max(1, min((n + m) // bins, small // 2))
    many = min(max(1, round(large * few / small)), LARGEST - few)
    counts = (few, many) if n <= m else (many, few)
    most = round(many * small / few)  # so that bins of both samples are of one size
    most = most if few + many == LARGEST else large
    rows = [generator.permutation(n)[:most], n + generator.permutation(m)[:most]]
    lengths = [np.diff(np.arange(c + 1) * r.size // c) for r, c in zip(rows, counts, strict=True)]
    return _binned(rows, lengths)


def paired_bins_of(
    shares: tuple[NDArray, NDArray], bins: int, generator: np.random.Generator
) -> Bins:
    """Put weighted points into bins, equally many of each sample; a bin's weights have the sum 1.

    shares : the weights (n,) of x and (m,) of y; points without weight are left out
    """
    held = [np.flatnonzero(share) for share in shares]
    count = max(1, min(bins // 2, *(rows.size for rows in held)))
    orders = [generator.permutation(rows) for rows in held]
    lengths = [np.diff(np.arange(count + 1) * each.size // count) for each in orders]
    made = _binned([orders[0], shares[0].size + orders[1]], lengths)
    weights = np.concatenate(shares)[made.rows]
    totals = np.add.reduceat(weights, made.starts[:-1])
    return made._replace(weights=weights / np.repeat(totals, made.lengths))


def _binned(rows: list[NDArray], lengths: list[NDArray]) -> Bins:
    """Return bins of these lengths, of equally weighted rows of x and of y."""
    both = np.concatenate(lengths)
    starts = np.concatenate([[0], np.cumsum(both)])
    return Bins(np.concatenate(rows), np.repeat(1 / both, both), starts, lengths[0].size)


def compressed(
    points: NDArray, kernel: Kernel, bins: Bins, g: int, generator: np.random.Generator
) -> Bins:
    """Choose 2^g times the root of the smallest bin's size from each bin, by Compress++."""
    least = int(bins.lengths.min())
    size = math.ceil(2**g * math.sqrt(least))
    if size >= least:
        return bins
    rows = []
    for b in range(bins.lengths.size):
        own = slice(bins.starts[b], bins.starts[b + 1])
        kept = thin(
            points[bins.rows[own]], size, kernel=kernel, standardize=False,
            weights=bins.weights[own], rng=generator,
        )  # fmt: skip
        rows.append(bins.rows[own][kept])
    starts = size * np.arange(len(rows) + 1)
    return Bins(np.concatenate(rows), np.full(size * len(rows), 1 / size), starts, bins.of_x)


def products_of_bins(problem: Points, bins: Bins) -> NDArray[np.float64]:
    """Return the inner products of the bins' mean embeddings, (bins, bins)."""
    rows, weights, starts, _ = bins
    at_points = embed_bins(problem, rows, rows, weights, starts)
    products = np.add.reduceat(at_points * weights, starts[:-1], axis=1)
    return _unless_equal((products + products.T) / 2)


def products_on_landmarks(problem: Points, bins: Bins, landmarks: NDArray) -> NDArray[np.float64]:
    """Return these inner products within the span of the landmarks' differences: Nystrom's.

    landmarks : (l,) int64, rows of the problem
    """
    rows, weights, starts, _ = bins
    size = landmarks.size
    G = embed_bins(problem, landmarks, landmarks, np.ones(size), np.arange(size + 1))
    M = _unless_equal(embed_bins(problem, landmarks, rows, weights, starts).T).T  # (bins, l)
    # A difference of two samples has weights whose sum is 0, so both may be taken from the mean of
    # the landmarks. An energy kernel is positive definite on such differences alone.
    M -= G.mean(axis=0)
    M -= M.mean(axis=1, keepdims=True)
    rounding = size * np.finfo(np.float64).eps * np.abs(G).max()
    G = G - G.mean(axis=0) - G.mean(axis=1, keepdims=True) + G.mean()
    G = (G + G.T) / 2
    G[np.diag_indices(size)] += NUGGET * np.trace(G) / size + rounding + np.finfo(np.float64).tiny
    half = _half(G, M)
    return half.T @ half


def _unless_equal(embedded: NDArray) -> NDArray:
    """Return bins' embeddings, (places, bins); zeros where they differ by no more than rounding."""
    apart = np.ptp(embedded, axis=1).max(initial=0)
    return embedded if apart > ROUNDING * np.abs(embedded).max(initial=0) else embedded * 0


def _half(G: NDArray, M: NDArray) -> NDArray:
    """Return L^-1 M' for the Cholesky factor L of G; it raises where G is not positive definite."""
    from scipy.linalg import LinAlgError, cholesky, solve_triangular

    try:
        factor: Any = cholesky(G, lower=True)
    except LinAlgError:
        raise ValueError(
            "kernel is not positive definite on these points: no Cholesky factor"
        ) from None
    return solve_triangular(factor, M.T, lower=True)
