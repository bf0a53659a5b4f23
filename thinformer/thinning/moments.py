"""Errors of a coreset by column, in standard deviations of the column, whatever its unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TAILS = (0.05, 0.95)  # quantiles


class ColumnError(NamedTuple):
    """How far a coreset's column is from that of the points.

    Attributes
    ----------
    column : str
        The name of a frame's or posterior's column, or its number.
    mean : float
        The error of the mean, in standard deviations of the column.
    deviation : float
        The relative error of the standard deviation. NaN where weights of a coreset give a negative
        variance.
    tails : float
        The larger error of the 5 % and the 95 % quantile, in standard deviations. NaN where a
        weight of the coreset is negative.
    """

    column: str
    mean: float
    deviation: float
    tails: float


def column_errors(
    points: NDArray,
    coreset: NDArray,
    names: Sequence[str],
    weights: NDArray | None = None,
    coreset_weights: NDArray | None = None,
) -> tuple[ColumnError, ...]:
    """Return the errors of each column of a coreset (s, d) of points (n, d).

    `weights` (n,) are those of the points, `coreset_weights` (s,) those of the coreset, which may
    be negative. A constant column has errors of 0.
    """
    weights, coreset_weights = _unequal(weights), _unequal(coreset_weights)
    found = []
    for name, column, part in zip(names, points.T, coreset.T, strict=True):
        # scaling by a power of two is exact; without it the squares may overflow or underflow
        _, exponent = np.frexp(max(np.abs(column).max(), np.abs(part).max()))
        column, part = (np.ldexp(x.astype(np.float64), -exponent) for x in (column, part))
        mean, deviation, tails = _moments(column, weights)
        mean_of_part, deviation_of_part, tails_of_part = _moments(part, coreset_weights)
        unit = deviation if deviation > 0 else 1.0
        off = abs(mean_of_part - mean), abs(deviation_of_part - deviation)
        found.append(ColumnError(
            name, off[0] / unit, off[1] / unit, float(np.abs(tails_of_part - tails).max()) / unit
        ))  # fmt: skip
    return tuple(found)


def _unequal(weights: NDArray | None) -> NDArray | None:
    """Weights with a sum of 1; None where they are equal."""
    return None if weights is None or np.ptp(weights) == 0 else weights / weights.sum()


def _moments(column: NDArray, weights: NDArray | None) -> tuple[float, float, NDArray]:
    """The mean, the standard deviation and the quantiles `TAILS` of a column (n,).

    With a negative weight there are no quantiles: they are NaN. So is the deviation, if the
    variance is negative.
    """
    mean = float(np.average(column, weights=weights))
    variance = float(np.average((column - mean) ** 2, weights=weights))
    deviation = variance**0.5 if variance >= 0 else np.nan
    if weights is None:
        return mean, deviation, np.quantile(column, TAILS)
    if weights.min() < 0:
        return mean, deviation, np.full(len(TAILS), np.nan)
    order = np.argsort(column, kind="stable")
    below = np.cumsum(weights[order])
    return mean, deviation, column[order[np.searchsorted(below, np.array(TAILS) * below[-1])]]
