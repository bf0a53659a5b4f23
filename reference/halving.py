"""Kernel halving, KH(delta), with simplified swapping thresholds.

Low-Rank Thinning (arXiv 2502.12063), Algorithm KH; its thresholds come from kernel thinning
(Dwivedi & Mackey, arXiv 2105.05842).

Kernel halving keeps one point of each consecutive pair: x_0 or x_1, x_2 or x_3, ... The kept half
represents all S points in the kernel's Hilbert space. The algorithm goes over the pairs in order.
At each pair it prefers the choice that reduces the difference between the halves so far.
"""

from typing import NamedTuple

import numpy as np


class Trace(NamedTuple):
    """The numbers behind the S/2 decisions of a halving; each array is (S/2,).

    b : |f_i|, the distance between the two points of a pair in the Hilbert space.
    a : the swapping threshold.
    alpha : <psi, f_i>, the inner product of the walk so far with f_i.
    margin : |alpha - u a| over the sum of the magnitudes of the kernel values in alpha and b.
        If the margin of a decision is within rounding error, an implementation that sums in
        another order may decide differently, and then all later decisions may differ too. The
        margin is infinite where nothing is decided or nothing can be rounded: for pair 0, and where
        all these kernel values are 0.
    """

    b: np.ndarray
    a: np.ndarray
    alpha: np.ndarray
    margin: np.ndarray


def kernel_halving(K, delta, uniform, coin=False):
    """Keep one point of every consecutive pair.

    Parameters
    ----------
    K : (S, S) array
        Gram matrix of the points, S even. The computation is in the dtype of K.
    delta : float
        Failure probability: with probability at least 1 - delta/2 no |alpha_i| exceeds a_i.
    uniform : (S/2,) array
        One draw from [-1, 1) for every pair; the draw of pair 0 is not used.
    coin : bool
        Whether to return the other half. A fair coin makes the result unbiased ("symmetrized").

    Returns
    -------
    kept : (S/2,) int array, increasing
    trace : Trace
    """
    S = len(K)
    uniform = np.asarray(uniform, dtype=K.dtype)
    # f_i = k(x_2i, .) - k(x_2i+1, .);  G[i, j] = <f_i, f_j>
    G = K[0::2, 0::2] - K[0::2, 1::2] - K[1::2, 0::2] + K[1::2, 1::2]
    # rounding can push a squared norm below zero, and its root would be NaN
    b = np.sqrt(np.maximum(np.diagonal(G), 0))
    # a_i = b_i max_{j <= i} b_j (1/2 + log(2 S / delta))
    a = b * np.maximum.accumulate(b) * K.dtype.type(0.5 + np.log(2 * S / delta))

    swap = np.zeros(S // 2, dtype=bool)
    alpha = np.zeros(S // 2, dtype=K.dtype)
    # alpha_i = <psi_{i-1}, f_i> with psi_{i-1} = sum_{j < i} eta_j f_j and eta_0 = +1
    walk = G[0].copy()
    for i in range(1, S // 2):
        alpha[i] = walk[i]
        # P(swap) = (1 + alpha_i / a_i) / 2, clipped to [0, 1]
        swap[i] = uniform[i] * a[i] <= alpha[i]
        eta = -1 if swap[i] else 1
        walk = walk + eta * G[i]

    M = np.abs(K)
    M = M[0::2, 0::2] + M[0::2, 1::2] + M[1::2, 0::2] + M[1::2, 1::2]
    magnitude = np.triu(M).sum(axis=0)
    margin = np.full(S // 2, np.inf)
    decided = magnitude > 0
    decided[0] = False
    margin[decided] = np.abs(alpha - uniform * a)[decided] / magnitude[decided]
    kept = 2 * np.arange(S // 2) + (swap ^ bool(coin))
    return kept, Trace(b, a, alpha, margin)
