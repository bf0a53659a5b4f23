"""Compress Then Test: whether two samples come from one distribution, by permuting bins of points.

Domingo-Enrich, Dwivedi & Mackey, arXiv 2301.05974. Both samples are cut into bins, each bin is
thinned, and bins are permuted in place of points. Four things go beyond the paper: bins are thinned
by Compress++ (`reference.thinning`), not by KT-Compress; or their inner products come from few
landmarks (Nystrom); only pairs of different bins count; several kernels are aggregated by their
largest statistic in permutation deviations.
"""

import numpy as np


def bin_products(K, bins, weights):
    """Return the inner products of the mean embeddings of bins, taken from the mean of all bins.

    Parameters
    ----------
    K : (N, N) array
        Gram matrix.
    bins : sequence of int arrays
        The points of each bin.
    weights : sequence of arrays
        Their weights; the sums of these have the mean 1.
    """
    A = np.array([
        [w @ K[np.ix_(p, q)] @ v for q, v in zip(bins, weights, strict=True)]
        for p, w in zip(bins, weights, strict=True)
    ])  # fmt: skip
    C = from_mean(weights)
    return C @ A @ C.T


def from_mean(weights):
    """Return the matrix that takes embeddings of bins from their mean, by their total weights."""
    totals = np.array([w.sum() for w in weights])
    return np.eye(len(totals)) - np.outer(totals, np.full(len(totals), 1 / len(totals)))


def landmark_products(K, bins, weights, landmarks, nugget):
    """Return these inner products of the projections on the span of the landmarks' differences."""
    size = len(landmarks)
    centre = np.eye(size) - np.full((size, size), 1 / size)
    G = centre @ K[np.ix_(landmarks, landmarks)] @ centre
    M = from_mean(weights) @ np.array([
        centre @ K[np.ix_(landmarks, p)] @ w for p, w in zip(bins, weights, strict=True)
    ])  # fmt: skip
    rounding = 10 * size * np.finfo(np.float64).eps * np.abs(K[np.ix_(landmarks, landmarks)]).max()
    G = G + (nugget * np.trace(G) / size + rounding) * np.eye(size)
    return M @ np.linalg.solve(G, M.T)


def squared_mmd(A, x, y):
    """Return the squared MMD from pairs of different bins: without bias, whatever their sizes.

    Parameters
    ----------
    A : (b, b) array
        Inner products of the bins.
    x, y : (b,) arrays
        Weights of the bins in either sample; each has the sum 1.
    """

    def mean(v, w):
        pairs = [(i, j) for i in range(len(A)) for j in range(len(A)) if i != j]
        total = sum(v[i] * w[j] * A[i, j] for i, j in pairs)
        return total / sum(v[i] * w[j] for i, j in pairs)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def aggregated_test(products, weights):
    """Return the statistic and the p-value of an aggregated permutation test.

    Parameters
    ----------
    products : sequence of (b, b) arrays
        Inner products of the bins, under each kernel.
    weights : (P, b) array
        Weights of the bins in the difference of the two means: as observed in the first row, after
        an exchange of bins in each other.
    """
    largest = np.full(len(weights), -np.inf)
    for A in products:
        squared = np.array([squared_mmd(A, np.maximum(c, 0), np.maximum(-c, 0)) for c in weights])
        largest = np.maximum(largest, (squared - squared.mean()) / squared.std())
    return largest[0], np.mean(largest >= largest[0] - 1e-10 * np.abs(largest).max())
