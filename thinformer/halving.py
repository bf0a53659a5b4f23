"""The scalar step of kernel halving, KH(delta) of *Low-Rank Thinning* (arXiv 2502.12063).

Undecorated functions of scalars: each body compiles them for its own target, so the decision is
written once. They hold no float literal, which would turn float32 into float64.
"""

from math import log, sqrt


def threshold_factor(points, delta):
    """1/2 + log(2 S / delta), the constant of the swapping thresholds in a bucket of S points."""
    return 0.5 + log(2 * points / delta)


def pair_distance(k00, k01, k10, k11):
    """b_i = |f_i| for f_i = k(x_2i, .) - k(x_2i+1, .), from the pair's four kernel values."""
    squared = k00 - k01 - k10 + k11
    if squared <= 0:  # rounding can push it below zero, and the root would be NaN
        return squared - squared
    return sqrt(squared)


def swaps(uniform, b, b_max, factor, alpha):
    """Whether to keep the pair's second point: U_i a_i <= alpha_i with a_i = b_i b_max factor."""
    return uniform * (b * b_max * factor) <= alpha
