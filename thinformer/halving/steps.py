"""The scalar steps of kernel halving, with either kind of swapping threshold.

KH(delta) of *Low-Rank Thinning* (arXiv 2502.12063) has simplified thresholds, kernel thinning's
KT-SPLIT (arXiv 2105.05842) adaptive ones, which are tighter and carry a variance from pair to pair.

These are plain functions of scalars. Each body compiles them for its own target, so a decision is
written once. They have no float literal, which would turn float32 into float64.
"""

from math import log, sqrt


def simple_factor(points, delta):
    """1/2 + log(2 S / delta), the factor of the simplified thresholds in a bucket of S points."""
    return 0.5 + log(2 * points / delta)


def adaptive_factor(points, delta):
    """sqrt(2 log(2 S / delta)), the factor of the adaptive thresholds."""
    return sqrt(2 * log(2 * points / delta))


def pair_distance(k00, k01, k10, k11):
    """b_i = |f_i| for f_i = k(x_2i, .) - k(x_2i+1, .), from the pair's four kernel values."""
    squared = k00 - k01 - k10 + k11
    if squared <= 0:  # rounding can push it below zero, and the root would be NaN
        return squared - squared
    return sqrt(squared)


def simple_threshold(b, b_max, factor):
    """a_i = b_i b_max (1/2 + log(2 S / delta))."""
    return b * b_max * factor


def adaptive_threshold(b, variance, factor):
    """a_i = max(b_i sigma sqrt(2 log(2 S / delta)), b_i^2)."""
    return max(b * sqrt(variance) * factor, b * b)


def next_variance(variance, b, a):
    """sigma^2 after a pair: sigma^2 + b_i^2 max(0, 1 + (b_i^2 / a_i - 2) sigma^2 / a_i)."""
    if a <= 0:
        return variance
    one = a / a
    growth = one + (b * b / a - one - one) * (variance / a)
    return variance + b * b * max(growth, one - one)


def swaps(uniform, a, alpha):
    """Whether to keep the pair's second point: U_i a_i <= alpha_i."""
    return uniform * a <= alpha
