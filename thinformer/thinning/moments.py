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
        The relative error of the standard deviation.
    tails : float
        The larger error of the 5 % and the 95 % quantile, in standard deviations.
    """

    column: str
    mean: float
    deviation: float
    tails: float


def column_errors(
    points: NDArray, coreset: NDArray, names: Sequence[str], weights: NDArray | None = None
) -> tuple[ColumnError, ...]:
    """Return the errors of each column of a coreset (s, d) of points (n, d).

    `weights` (n,) are those of the points. A constant column has errors of 0.
    """
    if weights is not None:
        weights = None if np.ptp(weights) == 0 else weights / weights.sum()
    found = []
    for name, column, part in zip(names, points.T, coreset.T, strict=True):
        # scaling by a power of two is exact; without it the squares may overflow or underflow
        _, exponent = np.frexp(max(np.abs(column).max(), np.abs(part).max()))
        column, part = (np.ldexp(x.astype(np.float64), -exponent) for x in (column, part))
        mean, deviation, tails = _moments(column, weights)
        mean_of_part, deviation_of_part, tails_of_part = _moments(part, None)
        unit = deviation if deviation > 0 else 1.0
        off = abs(mean_of_part - mean), abs(deviation_of_part - deviation)
        found.append(ColumnError(
            name, off[0] / unit, off[1] / unit, float(np.abs(tails_of_part - tails).max()) / unit
        ))  # fmt: skip
    return tuple(found)


def _moments(column: NDArray, weights: NDArray | None) -> tuple[float, float, NDArray]:
    """The mean, the standard deviation and the quantiles `TAILS` of a column (n,)."""
    mean = float(np.average(column, weights=weights))
    deviation = float(np.sqrt(np.average((column - mean) ** 2, weights=weights)))
    if weights is None:
        return mean, deviation, np.quantile(column, TAILS)
    order = np.argsort(column, kind="stable")
    below = np.cumsum(weights[order])
    return mean, deviation, column[order[np.searchsorted(below, np.array(TAILS) * below[-1])]]
