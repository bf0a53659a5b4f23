"""Weights of a coreset's points that make its MMD least: kernel quadrature with a constraint.

For weights w of sum 1, with K the Gram matrix of the coreset, m the mean embedding mu of the points
at the coreset, and |mu|^2 its squared norm, the squared MMD is

    w' K w - 2 w' m + |mu|^2 = w' M w,    M = K - m 1' - 1 m' + |mu|^2 1 1'.

M is the Gram matrix of the functions k(y_j, .) - mu.
"""

from itertools import combinations

import numpy as np
from scipy.optimize import nnls


def squared_mmd(w, K, m, square):
    """The squared MMD of weights w, of sum 1."""
    return w @ K @ w - 2 * w @ m + square


def on_simplex(K, m, square):
    """The weights w >= 0 of sum 1 with the least MMD, by nonnegative least squares.

    With M = A' A, minimise |A u|^2 + (1' u - 1)^2 over u >= 0 and divide u by its sum. This is the
    same problem: for u = t w with w on the simplex the sum is t^2 f + (t - 1)^2, where f = |A w|^2.
    Its least value over t is f / (1 + f), at t = 1 / (1 + f). It increases with f.
    """
    M = K - m[:, None] - m[None, :] + square
    values, vectors = np.linalg.eigh(M)
    A = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    scale = np.sqrt(values.max())
    u, _ = nnls(np.vstack([A / scale, np.ones(len(K))]), np.append(np.zeros(len(K)), 1.0))
    return u / u.sum()


def by_enumeration(K, m):
    """The same for a few points, by trial of all supports.

    The right one has a solution without a negative weight, and no smaller gradient outside.
    """
    s = len(K)
    for size in range(1, s + 1):
        for support in combinations(range(s), size):
            P = list(support)
            w = np.zeros(s)
            w[P] = of_sum_one(K[np.ix_(P, P)], m[P])
            gradient = K @ w - m
            if w.min() >= 0 and gradient.min() >= gradient[P].min() - 1e-12:
                return w


def of_sum_one(K, m):
    """The weights of sum 1, of any sign, with the least MMD: K w = m + level, 1' w = 1."""
    s = len(K)
    system = np.block([[K, -np.ones((s, 1))], [np.ones((1, s)), np.zeros((1, 1))]])
    return np.linalg.solve(system, np.append(m, 1.0))[:s]
