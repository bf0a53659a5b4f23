"""Compress and Compress++ with your own halving algorithm, for points of any kind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.halving.draws import seed_from
from thinformer.halving.schedule import compress_schedule, coreset_size
from thinformer.support import checks


def compress(
    points: ArrayLike,
    halve: Callable[[NDArray], ArrayLike],
    thin: Callable[[NDArray], ArrayLike] | None = None,
    g: int = 0,
) -> NDArray[np.int64]:
    r"""Thin with your own halving algorithm over a tree of buckets: Compress or Compress++.

    The algorithms are those of *Distribution Compression in Near-linear Time* (Shetty, Dwivedi &
    Mackey, arXiv 2111.07941). For n = :math:`4^p` points, Compress compresses each quarter, joins
    the four results and halves them; a set of :math:`4^g` points is returned as it is. Compress
    keeps :math:`2^g \sqrt n` points, with about the error of repeated halving of all n points. If
    `halve` takes quadratic time, Compress takes near-linear time; for :math:`n^3` it takes
    :math:`n^{3/2}`.

    Parameters
    ----------
    points : (n, ...) array-like of any dtype
        The points, one a row. They may be anything, because `compress` only selects rows.
    halve : function
        It gets an even number m of rows, (m, ...), in the order of `points`, and returns the half
        that is kept: m / 2 distinct row numbers.
    thin : function, optional
        It gets the rows that Compress keeps and returns the row numbers that remain, at least one.
        This is Compress++.
    g : int
        Oversampling. Compress keeps :math:`2^g` times as many points, with a smaller error, and
        each halving gets at least :math:`4^{g+1}` points.

    Returns
    -------
    (size,) int64 array
        Row numbers. They are increasing if the functions return increasing numbers. Without
        `thin`, size is `coreset_size(n, g)`.

    Raises
    ------
    TypeError, ValueError
        There are no points; g is not a non-negative integer; or a function returns anything else
        than described.

    Notes
    -----
    There are r = log2(sqrt(n) / 2^g) rounds. In these rounds `halve` is called 4^(r-1), ..., 4, 1
    times, with 4^(g+1), 2 * 4^(g+1), ... rows, in each round from the first bucket to the last.

    If n is not a power of four, evenly spaced rows are compressed, the last row included: the
    largest number that halves evenly to `coreset_size(n, g)`, which is more than half of n. The
    lengths of the buckets are then even and differ by two at most.

    Guarantees for unbiased halvings need `symmetrize`.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import compress
    >>> compress(np.arange(16.0), lambda x: np.argsort(x)[1::2])
    array([ 3,  7, 11, 15])
    """
    checks.in_memory("points", points)
    array = np.asarray(points)
    checks.shape("points", array, 1, "(n, ...)")
    checks.not_empty("points", array, 0, "point")
    n = len(array)
    schedule = compress_schedule(n, coreset_size(n, g))
    # standard thinning: the last row of each of `length` strata
    rows = np.arange(1, schedule.length + 1) * n // schedule.length - 1
    for round_ in schedule.rounds:
        bounds = 2 * (np.arange(round_.buckets + 1) * round_.pairs // round_.buckets)
        buckets = [rows[first:last] for first, last in pairwise(bounds)]
        halves = [_choose("halve", halve, array, bucket, bucket.size // 2) for bucket in buckets]
        rows = np.concatenate(halves)
    return rows if thin is None else _choose("thin", thin, array, rows, None)


def symmetrize(
    halve: Callable[[NDArray], ArrayLike], rng: int | np.random.Generator | None = None
) -> Callable[[NDArray], NDArray[np.int64]]:
    """Return a halving that keeps the half of `halve` or the other half, with equal probability.

    If the number of rows is even, each row is then kept with probability 1/2, and the mean over the
    kept half is an unbiased estimate of the mean over all rows. The guarantees of Compress require
    this (arXiv 2111.07941).

    Parameters
    ----------
    halve : function
        It gets rows (m, ...) and returns floor(m / 2) distinct row numbers.
    rng : None, int or numpy.random.Generator
        The source of the coins (SPEC 7), one coin for each call of the halving. A seed gives a
        sequence of coins. A generator is advanced by one number, when `symmetrize` is called.

    Returns
    -------
    function
        A halving like `halve`. The other half is increasing. If m is odd, the other half has one
        row more than `halve` keeps, and one row at random is left out of it. Both halves then have
        floor(m / 2) rows, but rows that `halve` prefers are still kept more often than others.

    Raises
    ------
    TypeError, ValueError
        `rng` is none of these; or, in a call, `halve` returns anything else than described.

    Notes
    -----
    O(m log m) time in addition to that of `halve`.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import symmetrize
    >>> fair = symmetrize(lambda x: np.arange(0, len(x), 2), rng=0)
    >>> [fair(np.zeros(6)).tolist() for _ in range(4)]
    [[1, 3, 5], [1, 3, 5], [0, 2, 4], [0, 2, 4]]
    """
    generator = np.random.default_rng(seed_from(rng))

    def symmetric(points: NDArray) -> NDArray[np.int64]:
        points = np.asarray(points)
        every = np.arange(len(points))
        half = _choose("halve", halve, points, every, every.size // 2)
        if generator.integers(2):
            return half
        other = np.setdiff1d(every, half)
        if other.size > half.size:
            other = np.delete(other, generator.integers(other.size))
        return other

    return symmetric


def _choose(
    name: str, function: Callable, points: NDArray, rows: NDArray, size: int | None
) -> NDArray[np.int64]:
    """The rows that a user's function chooses, checked: `size` rows, or any number if None."""
    n = rows.size
    chosen: Any = np.asarray(function(points[rows]))
    wanted = f"{name} must return {'' if size is None else f'{size} '}distinct row numbers of {n}"
    if chosen.size and (chosen.ndim != 1 or chosen.dtype.kind not in "iu"):
        raise TypeError(
            f"{wanted}, a sequence of integers; got dtype {chosen.dtype}, shape {chosen.shape}"
        )
    if chosen.size == 0 if size is None else chosen.size != size:
        raise ValueError(f"{wanted}; got {chosen.size}")
    if size == 0:
        return rows[:0]
    if chosen.min() < 0 or chosen.max() >= n:
        raise ValueError(f"{wanted}, from 0 to {n - 1}; got {chosen.min()} to {chosen.max()}")
    if np.unique(chosen).size < chosen.size:
        raise ValueError(f"{wanted}; got repeats")
    return rows[chosen]
