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
    share = None if weights is None else weights / weights.sum()
    points, coreset = (array.astype(np.float64, copy=False) for array in (points, coreset))
    mean = np.average(points, axis=0, weights=share)
    deviation = np.sqrt(np.average((points - mean) ** 2, axis=0, weights=share))
    unit = np.where(deviation > 0, deviation, 1.0)
    off = np.abs(coreset.mean(axis=0) - mean) / unit
    spread = np.abs(coreset.std(axis=0) - deviation) / unit
    between = _quantiles(coreset, None) - _quantiles(points, share)
    tails = np.abs(between).max(axis=0) / unit
    columns = zip(names, off.tolist(), spread.tolist(), tails.tolist(), strict=True)
    return tuple(ColumnError(*each) for each in columns)


def _quantiles(array: NDArray, share: NDArray | None) -> NDArray:
    """The quantiles `TAILS` of columns (n, d), (2, d); `share` (n,) are weights of the rows."""
    if share is None:
        return np.quantile(array, TAILS, axis=0)
    found = np.empty((len(TAILS), array.shape[1]))
    for j, column in enumerate(array.T):
        order = np.argsort(column, kind="stable")
        below = np.cumsum(share[order])
        found[:, j] = column[order[np.searchsorted(below, np.array(TAILS) * below[-1])]]
    return found
