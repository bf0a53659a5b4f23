"""Permutation tests from the inner products of bins: statistics, and how extreme the first is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TIED = 1e-10  # statistics that are nearer than this, relative to the largest, are equal


def permuted_weights(
    lengths: NDArray, of_x: int, permutations: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the weights of bins in mean(x) - mean(y), (permutations + 1, bins).

    The first row has the bins as they are; the others have a random choice of `of_x` bins as x. The
    weight of a bin is its share of the points of its sample.
    """
    order = np.tile(np.arange(lengths.size), (permutations + 1, 1))
    generator.permuted(order[1:], axis=1, out=order[1:])
    is_x = order < of_x
    x, y = is_x * lengths, ~is_x * lengths
    return x / x.sum(axis=1, keepdims=True) - y / y.sum(axis=1, keepdims=True)


def swapped_weights(
    pairs: int, permutations: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return such weights for bins in pairs, where the two bins of each pair may be swapped.

    This is the wild bootstrap of the differences between paired bins. It asks only that the
    difference of two bins is as likely as its negative, not that bins of x and of y are alike.
    """
    signs = generator.choice([-1.0, 1.0], (permutations + 1, pairs))
    signs[0] = 1
    return np.hstack([signs, -signs]) / pairs


def squared_distances(products: Sequence[NDArray], weights: NDArray) -> NDArray[np.float64]:
    """Return the squared MMD, without bias, for each matrix of inner products and row of weights.

    It is a U-statistic: pairs of different bins count. The product of a bin with itself depends on
    its number of points, so that bins of x and of y would not be alike.

    Returns (matrices, rows).
    """
    x, y = np.maximum(weights, 0), np.maximum(-weights, 0)
    x_pairs, y_pairs = (1 - np.einsum("ij,ij->i", w, w) for w in (x, y))
    squared = []
    for each in products:
        apart = each - np.diag(each.diagonal())
        of_x, of_y = np.split(np.vstack([x, y]) @ apart, 2)  # one product: threads start once
        within = np.einsum("ij,ij->i", of_x, x) / x_pairs + np.einsum("ij,ij->i", of_y, y) / y_pairs
        squared.append(within - 2 * np.einsum("ij,ij->i", of_x, y))
    return np.array(squared)


def in_deviations(squared: NDArray) -> NDArray[np.float64]:
    """Return each kernel's squared MMDs minus their mean, in their standard deviations.

    squared : (kernels, permutations + 1). The deviations are those of all columns, the first too,
    so that no column is special: the test is exact.
    """
    scale = np.abs(squared).max(axis=1, keepdims=True)
    squared = squared / np.where(scale > 0, scale, 1)  # squares neither overflow nor vanish
    centred = squared - squared.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.where(spread > TIED, centred / np.where(spread > TIED, spread, 1), 0.0)


def pvalue(statistics: NDArray) -> float:
    """Return the share of statistics (..., permutations + 1) that are not below the first."""
    near = TIED * np.abs(statistics).max(initial=0)
    return float(np.mean(statistics >= statistics[0] - near))
