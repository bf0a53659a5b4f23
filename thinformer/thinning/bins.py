"""Two samples in bins of points, and the inner products of the bins' mean embeddings.

Whoever permutes bins in place of points needs one number for every two bins. It may come from all
points, from a coreset of each bin, or from few landmarks of all points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.points import embed_bins
from thinformer.halving.problem import Points
from thinformer.kernels.kernel import Kernel
from thinformer.thinning.thin import thin

LARGEST = 1024  # bins; more would only take memory
ROUNDING = 1e-12  # relative: embeddings that are nearer than this are equal
NUGGET = 1e-7  # on the diagonal of the landmarks' Gram matrix, relative to its mean


class Bins(NamedTuple):
    """Points in consecutive bins: first those of x, then those of y.

    rows : (N,) int64, bin after bin; y's rows follow x's
    weights : (N,) float64; those of a bin have the sum 1, those of weighted points about 1
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

    @property
    def totals(self) -> NDArray[np.float64]:
        """The sum of the weights of each bin; its mean over all bins is 1."""
        return np.add.reduceat(self.weights, self.starts[:-1])


def bins_of(n: int, m: int, bins: int, generator: np.random.Generator) -> Bins:
    """Put n points x and m points y, in random order, into bins of nearly one size.

    There are about `bins` of them, but at least two of each sample. Where the smaller sample has
    too few points for bins of the size that `bins` means, bins are smaller and more. If there were
    more than LARGEST of the larger sample, a part of it is drawn.
    """
    small, large = min(n, m), max(n, m)
    wanted = max(1, round((n + m) / bins))
    size = min(wanted, small // 2)
    few = small // size
    many, most = round(large * few / small), large
    if size < wanted and many > LARGEST:
        many, most = LARGEST, round(LARGEST * small / few)
    counts = (few, many) if n <= m else (many, few)
    rows = [generator.permutation(n)[:most], n + generator.permutation(m)[:most]]
    lengths = [np.diff(np.arange(c + 1) * r.size // c) for r, c in zip(rows, counts, strict=True)]
    return _consecutive(rows, lengths)


def paired_bins_of(
    shares: tuple[NDArray, NDArray], bins: int, generator: np.random.Generator
) -> Bins:
    """Put weighted points into bins, equally many of each sample.

    shares : the weights (n,) of x and (m,) of y, which have the sum 1; points without are left out
    """
    held = [np.flatnonzero(share) for share in shares]
    count = max(1, min(bins // 2, *(rows.size for rows in held)))
    orders = [generator.permutation(rows) for rows in held]
    lengths = [np.diff(np.arange(count + 1) * each.size // count) for each in orders]
    made = _consecutive([orders[0], shares[0].size + orders[1]], lengths)
    return made._replace(weights=count * np.concatenate(shares)[made.rows])


def _consecutive(rows: list[NDArray], lengths: list[NDArray]) -> Bins:
    """Return bins of these lengths, of equally weighted rows of x and of y."""
    both = np.concatenate(lengths)
    starts = np.concatenate([[0], np.cumsum(both)])
    return Bins(np.concatenate(rows), np.repeat(1 / both, both), starts, lengths[0].size)


def compressed(
    points: NDArray, kernel: Kernel, bins: Bins, g: int, generator: np.random.Generator
) -> Bins:
    """Choose 2^g times the root of the smallest bin's size from each bin, by Compress++."""
    least = int(bins.lengths.min())
    size = math.ceil(2.0 ** min(g, 60) * math.sqrt(least))
    if size >= least:
        return bins
    rows = []
    for b in range(bins.lengths.size):
        own = slice(bins.starts[b], bins.starts[b + 1])
        kept = thin(
            points[bins.rows[own]], size, kernel=kernel, standardize=False,
            weights=bins.weights[own], unique=not np.ptp(bins.weights[own]), rng=generator,
        )  # fmt: skip
        rows.append(bins.rows[own][kept])
    starts = size * np.arange(len(rows) + 1)
    return Bins(np.concatenate(rows), np.repeat(bins.totals / size, size), starts, bins.of_x)


def products_of_bins(problem: Points, bins: Bins) -> NDArray[np.float64]:
    """Return the inner products of the bins' mean embeddings, (bins, bins), from their mean."""
    rows, weights, starts, _ = bins
    at_points = _embedded(problem, rows, bins)
    products = np.add.reduceat(at_points * weights, starts[:-1], axis=1)
    return _centred(_centred((products + products.T) / 2, bins).T, bins)


def products_on_landmarks(problem: Points, bins: Bins, landmarks: NDArray) -> NDArray[np.float64]:
    """Return these inner products within the span of the landmarks' differences: Nystrom's.

    landmarks : (l,) int64, rows of the problem
    """
    size = landmarks.size
    G = embed_bins(problem, landmarks, landmarks, np.ones(size), np.arange(size + 1))
    M = _centred(_embedded(problem, landmarks, bins), bins)  # (bins, l)
    # What is centred has weights whose sum is 0, so landmarks may be taken from their mean. An
    # energy kernel is positive definite on such differences alone.
    M -= M.mean(axis=1, keepdims=True)
    rounding = 10 * size * np.finfo(np.float64).eps * np.abs(G).max()
    G = G - G.mean(axis=0) - G.mean(axis=1, keepdims=True) + G.mean()
    G = (G + G.T) / 2
    G[np.diag_indices(size)] += NUGGET * np.trace(G) / size + rounding + np.finfo(np.float64).tiny
    half = _half(G, M)
    return half.T @ half


def _embedded(problem: Points, at: NDArray, bins: Bins) -> NDArray[np.float64]:
    """Return the mean embeddings of the bins at some points, (bins, points)."""
    embedded = embed_bins(problem, at, bins.rows, bins.weights, bins.starts)
    if not np.isfinite(embedded).all():
        raise ValueError("kernel must have finite values; between some of the points it has not")
    return embedded


def _centred(embedded: NDArray, bins: Bins) -> NDArray[np.float64]:
    """Return (bins, places) minus their mean; zeros where bins differ by rounding alone.

    A statistic of bins of unlike size or weight depends on where the embeddings are taken from.
    """
    centred = embedded - bins.totals[:, None] * embedded.mean(axis=0)
    rounding = ROUNDING * np.abs(embedded).max(initial=0)
    return centred if np.abs(centred).max(initial=0) > rounding else np.zeros_like(centred)


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
