"""Weighted points: as shares, as copies of equal weight, and which rows may be chosen."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.thinning.task import Task

COPIES = 2  # weighted points become so many equally weighted ones, times n


def as_weights(weights: ArrayLike | None, n: int, name: str = "weights") -> NDArray:
    """Return weights of n points that sum to one, equal ones unless given."""
    if weights is None:
        return np.full(n, 1 / n)
    array = np.asarray(weights)
    if array.dtype.kind not in "biuf" or array.shape != (n,):
        raise ValueError(
            f"{name} must be numbers of shape ({n},); got dtype {array.dtype}, shape {array.shape}"
        )
    array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        total = array.sum()
    if not np.isfinite(total) or array.min() < 0 or total == 0:
        raise ValueError(
            f"{name} must be finite and have a finite sum, none of them negative and not all zero"
        )
    return array / total


def equal_copies(task: Task) -> NDArray:
    """Rows that weigh the same and stand for the weighted sample: each once, if weights are equal.

    Otherwise 2 n rows by systematic resampling: a row comes as often as its weight says, rounded up
    or down. Its error is below that of thinning to sqrt(n) rows.
    """
    if task.weights is None:
        return np.arange(task.n)
    copies = COPIES * task.n
    return at_shares((np.arange(copies) + task.generator.random()) / copies, task.weights)


def spare_rows(task: Task, rows: NDArray) -> NDArray:
    """The rows that weigh too little to have a copy, of which many may be chosen once."""
    return np.setdiff1d(eligible(task), rows) if task.weights is not None else rows[:0]


def eligible(task: Task) -> NDArray:
    """The rows that may come in by swaps: those that weigh, if they are enough."""
    weighing = np.arange(task.n) if task.weights is None else np.flatnonzero(task.weights)
    return np.arange(task.n) if task.unique and weighing.size < task.size else weighing


def at_shares(shares: NDArray, weights: NDArray) -> NDArray:
    """The rows at which the running sum of the weights passes the given shares of it."""
    reached = np.cumsum(weights)
    last = np.flatnonzero(weights)[-1]
    return np.minimum(np.searchsorted(reached, shares * reached[-1], side="right"), last)


def distinct(places: NDArray, n: int) -> NDArray:
    """The same places with repeats replaced by others, the smallest that are free."""
    distinct = np.unique(places)
    free = np.setdiff1d(np.arange(n), distinct)
    return np.concatenate([distinct, free[: places.size - distinct.size]])


def without_repeats(rows: NDArray, n: int, weights: NDArray | None) -> NDArray:
    """Increasing rows with each repeat replaced by the nearest free row of those that weigh."""
    distinct = np.unique(rows)
    if distinct.size == rows.size:
        return rows
    repeats = rows[1:][np.diff(rows) == 0]
    weighing = np.arange(n) if weights is None else np.flatnonzero(weights)
    free = np.setdiff1d(weighing, distinct).tolist()
    if len(free) < repeats.size:
        free = np.setdiff1d(np.arange(n), distinct).tolist()
    chosen = []
    for row in repeats.tolist():
        at = bisect.bisect(free, row)
        nearest = [i for i in (at - 1, at) if 0 <= i < len(free)]
        chosen.append(free.pop(min(nearest, key=lambda i: abs(free[i] - row))))
    return np.sort(np.concatenate([distinct, chosen]))
