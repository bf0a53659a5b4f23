"""How many independent draws a sample is worth, by which `size` "auto" is chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def of_draws(array: NDArray) -> float:
    """Return the effective sample size (ESS) of draws (n, d) in a sampler's order, at most n.

    It is the smallest over the columns of n / tau, where tau is the integrated autocorrelation time
    by Geyer's initial monotone sequence (Geyer, 1992, "Practical Markov chain Monte Carlo"). Chains
    that follow each other are taken as one. O(n d log n).
    """
    return min(_of_column(column) for column in array.T)


def of_rows(array: NDArray, weights: NDArray | None, in_order: bool) -> float:
    """Return the ESS of points (n, d): of draws `in_order` of a sampler, or of independent ones.

    weights : (n,) with a sum of 1, or None; they lower it by the factor 1 / (n sum_i w_i^2) (Kish,
        1965)
    """
    ess = of_draws(array) if in_order else float(array.shape[0])
    return ess if weights is None else ess * float(1 / (array.shape[0] * (weights @ weights)))


def _of_column(column: NDArray) -> float:
    from scipy import fft

    n = len(column)
    # scaling by a power of two is exact; without it the squares may overflow or underflow
    _, exponent = np.frexp(np.abs(column).max())
    scaled = np.ldexp(column.astype(np.float64), -exponent)
    spectrum = fft.rfft(scaled - scaled.mean(), fft.next_fast_len(2 * n, real=True))
    covariance = fft.irfft(np.abs(spectrum) ** 2)[: n - n % 2] / n
    if covariance.size == 0 or covariance[0] <= 0:  # a single row, or a constant column
        return float(n)
    pairs = (covariance / covariance[0]).reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    pairs = pairs[: negative[0]] if negative.size else pairs
    tau = 2 * np.minimum.accumulate(pairs).sum() - 1
    return float(min(n, n / tau)) if tau > 0 else float(n)
