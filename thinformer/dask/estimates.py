"""Unbiased estimates of a squared MMD from rows that were drawn at random, with standard errors.

The squared MMD of weighted points x_1, ..., x_n and y_1, ..., y_s is

    sum_ij w_i w_j k(x_i, x_j) + sum_ij v_i v_j k(y_i, y_j) - 2 sum_ij w_i v_j k(x_i, y_j).

Of the points, m rows are drawn at random without replacement. The pairs of two different rows and
the pairs of a row with itself are estimated apart, each by its mean in the sample: so no sum is
biased.

The variance has two parts. One is of the rows: the variance over the rows of each row's part in the
estimate, (1 - m/n) / m times. The other is of the pairs: what is left of k(x_i, x_j) when the means
over i and over j are taken away. For a good coreset the second part is the larger one. It is
measured on the sums of k over bins of the sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.points import diagonal, embed, embed_bins, square
from thinformer.halving.problem import Points

BINS = 32  # of a sample, at most
LEAST = 16  # rows that are drawn, at least


class SampledMMD(float):
    """An MMD that was estimated from a sample of the rows: a number with its standard error.

    Attributes
    ----------
    squared : float
        The estimate of the squared MMD. It is unbiased, and may be negative. The number itself is
        its root, or 0 where it is negative.
    standard_error : float
        The standard error of `squared`; 0 where all rows were taken.
    """

    squared: float
    standard_error: float

    def __new__(cls, squared: float, standard_error: float) -> SampledMMD:
        """Take the root."""
        made = super().__new__(cls, float(np.sqrt(max(squared, 0.0))))
        made.squared, made.standard_error = float(squared), float(standard_error)
        return made

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        return self.squared, self.standard_error

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({float(self):.6g}, squared={self.squared:.4g}, "
            f"standard_error={self.standard_error:.2g})"
        )


class Drawn(NamedTuple):
    """Rows of a problem that were drawn at random from n.

    rows : (m,) the rows in the problem
    weights : (m,) n times their weights; all weights have the sum 1
    n : how many there are
    order : (m,) a random order of the rows, in which bins are cut
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    n: int
    order: NDArray[np.int64]

    @property
    def left(self) -> float:
        """The share of the rows that was not drawn."""
        return 1 - len(self.rows) / self.n

    def bins(self) -> tuple[NDArray, NDArray]:
        """Where bins start in the order, and the bin of each row."""
        m = len(self.rows)
        starts = np.linspace(0, m, min(BINS, m // 4) + 1).astype(np.int64)
        of_row = np.empty(m, np.int64)
        of_row[self.order] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return starts, of_row


class Own(NamedTuple):
    """The estimate of sum_ij w_i w_j k(x_i, x_j).

    value : the estimate
    parts : (m,) the part of each row in it, or None where all rows were drawn
    spread : the variance of a pair without the means of its rows
    """

    value: float
    parts: NDArray | None
    spread: float


def own(problem: Points, drawn: Drawn) -> Own:
    """Estimate the mean over all pairs of rows, equal rows included."""
    rows, weights, n, m = drawn.rows, drawn.weights, drawn.n, len(drawn.rows)
    if not drawn.left:
        return Own(float(square(problem, rows[None], weights / n)[0]), None, 0.0)
    sums, starts, of_row = _sums(problem, rows, drawn)
    itself = weights**2 * diagonal(problem, rows)
    others = weights * sums.sum(axis=0) - itself  # the sums over all other rows
    share = (n - 1) / n
    value = share * others.sum() / (m * (m - 1)) + itself.mean() / n
    parts = 2 * share * others / (m - 1) + itself / n
    means = weights * sums / np.diff(starts)[:, None]
    means[of_row, np.arange(m)] = np.nan  # a bin has the row itself
    return Own(float(value), parts, _spread(means, m / (len(starts) - 1)))


def squared_mmd(
    problem: Points, points: Drawn, coreset: Drawn, of_points: Own, of_coreset: Own
) -> SampledMMD:
    """Estimate the MMD between points and a coreset, of which all rows may be drawn."""
    pairs = [points, coreset]
    spread = 0.0
    if points.left and coreset.left:
        sums, starts, _ = _sums(problem, points.rows, coreset)
        means = points.weights * sums / np.diff(starts)[:, None]
        spread = _spread(means, len(coreset.rows) / (len(starts) - 1))
        between = points.weights * sums.sum(axis=0) / len(coreset.rows)
    else:
        shares = coreset.weights / len(coreset.rows)
        between = points.weights * embed(problem, points.rows, coreset.rows, shares)
    squared = of_points.value + of_coreset.value - 2 * between.mean()
    variance = 0.0
    ends = [of_points, of_coreset]
    for (here, there), mine in zip((pairs, pairs[::-1]), ends, strict=True):
        if not here.left:
            continue
        assert mine.parts is not None
        if here is coreset:
            shares = there.weights / len(there.rows)
            between = here.weights * embed(problem, here.rows, there.rows, shares)
        m = len(here.rows)
        # each part has noise of the rows that it was measured with
        noise = 4 * (mine.spread * here.left / m + spread * there.left / len(there.rows))
        of_rows = np.var(mine.parts - 2 * between, ddof=1) - noise
        variance += here.left / m * max(float(of_rows), 0.0)
        variance += 2 * mine.spread * (here.left / m) ** 2
    variance += 4 * spread * math.prod(each.left / len(each.rows) for each in pairs)
    if not np.isfinite(squared):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    return SampledMMD(squared, float(np.sqrt(variance)))


def _sums(problem: Points, at: NDArray, drawn: Drawn) -> tuple[NDArray, NDArray, NDArray]:
    """The sums (bins, n) of w_j k(x, y_j) over bins of drawn rows; their starts, each row's bin."""
    starts, of_row = drawn.bins()
    index, weights = drawn.rows[drawn.order], drawn.weights[drawn.order]
    return embed_bins(problem, at, index, weights, starts), starts, of_row


def _spread(means: NDArray, size: float) -> float:
    """The variance of a pair without the means of its rows, from means (bins, m) over bins.

    A row's own bin is NaN. `size` is the number of rows of a bin.
    """
    of_bins = np.nanmean(means, axis=1)
    rest = means - np.nanmean(means, axis=0) - of_bins[:, None] + of_bins.mean()
    held = np.isfinite(rest).sum() - rest.shape[1]  # a mean of each row was taken away
    return float(size * np.nansum(rest**2) / max(held, 1))
