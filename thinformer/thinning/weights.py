"""Weighted points as copies of equal weight, and the replacement of rows that are chosen twice."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from thinformer.thinning.task import Task

COPIES = 2  # n weighted points become COPIES * n equally weighted ones


def equal_copies(task: Task) -> NDArray:
    """Rows, each of the same weight, that represent the weighted sample.

    Points of equal weight give each row once. Otherwise systematic resampling gives 2 n rows: a row
    comes as often as its weight says, rounded up or down. The error of this rounding is below the
    error of thinning to sqrt(n) rows.
    """
    if task.weights is None:
        return np.arange(task.n)
    return copies_by_weight(task.weights, task.generator)


def copies_by_weight(weights: NDArray, generator: np.random.Generator) -> NDArray:
    """COPIES * n rows by systematic resampling of n rows with these weights."""
    copies = COPIES * len(weights)
    return at_shares((np.arange(copies) + generator.random()) / copies, weights)


def spare_rows(task: Task, rows: NDArray) -> NDArray:
    """The eligible rows that are not among the copies `rows`: their weight is too small."""
    return np.setdiff1d(eligible(task), rows) if task.weights is not None else rows[:0]


def eligible(task: Task) -> NDArray:
    """The rows that KT-SWAP may choose: all rows of positive weight.

    If a row may be chosen only once and these are fewer than `size`, all rows are eligible.
    """
    weighing = np.arange(task.n) if task.weights is None else np.flatnonzero(task.weights)
    return np.arange(task.n) if task.unique and weighing.size < task.size else weighing


def at_shares(shares: NDArray, weights: NDArray) -> NDArray:
    """The rows at which the running sum of the weights first exceeds each share of the total."""
    reached = np.cumsum(weights)
    last = np.flatnonzero(weights)[-1]
    return np.minimum(np.searchsorted(reached, shares * reached[-1], side="right"), last)


def repeats_to_first_free(places: NDArray, n: int) -> NDArray:
    """Places below n in which each repeat is replaced by the smallest place that is free."""
    distinct = np.unique(places)
    free = np.setdiff1d(np.arange(n), distinct)
    return np.concatenate([distinct, free[: places.size - distinct.size]])


def repeats_to_nearest_free(rows: NDArray, n: int, weights: NDArray | None) -> NDArray:
    """Increasing rows in which each repeat is replaced by the nearest row that is free.

    Rows of weight 0 are taken only if the others are too few.
    """
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
