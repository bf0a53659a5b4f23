"""Compress and Compress++ around a halving algorithm of your own, for points of any kind."""

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
    r"""Thin with your own halving algorithm in a tree of buckets: Compress, or Compress++.

    *Distribution Compression in Near-linear Time* (Shetty, Dwivedi & Mackey, arXiv 2111.07941). Of
    n = :math:`4^p` points, each quarter is compressed, and the four results together are halved;
    :math:`4^g` points are left as they are. That keeps :math:`2^g \sqrt n` of them with about the
    error of halving all at once: a quadratic `halve` takes near-linear time, a :math:`n^3` one
    :math:`n^{3/2}`.

    Parameters
    ----------
    points : (n, ...) array-like of any dtype
        Rows are points; nothing but rows is ever taken of it, so they may be anything.
    halve : function
        Of an even number m of rows (m, ...) in the order of `points`, it returns which half is
        kept: m / 2 distinct row numbers.
    thin : function, optional
        Of the rows that Compress keeps it returns which remain, at least one (Compress++).
    g : int
        Oversampling: :math:`2^g` times the points, a smaller error, and halvings of at least
        :math:`4^{g+1}` points.

    Returns
    -------
    (size,) int64 array
        Row numbers, in the order in which the functions return them: increasing where theirs are.
        Without `thin`, size is `coreset_size(n, g)`.

    Raises
    ------
    TypeError, ValueError
        No points, g is not a non-negative integer, or a function returns something else.

    Notes
    -----
    With r = log2(sqrt(n) / 2^g) rounds, `halve` is called 4^(r-1), ..., 4, 1 times, with
    4^(g+1), 2 * 4^(g+1), ... rows, round by round and from the first bucket to the last. Of n that
    is not a power of four, evenly spaced rows that end with the last are compressed, as many as
    halve evenly to `coreset_size(n, g)`: more than half of all, in buckets of even lengths that
    differ by two at most. Guarantees for unbiased halvings need `symmetrize`.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import compress
    >>> compress(np.arange(16.0), lambda x: np.argsort(x)[1::2])
    array([ 3,  7, 11, 15])
    """
    array = np.asarray(points)
    checks.shape("points", array, 1, "(n, ...)")
    checks.not_empty("points", array, 0, "point")
    n = len(array)
    schedule = compress_schedule(n, coreset_size(n, g))
    # the last of each of `length` strata, as standard thinning takes them
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
    """Return a halving that keeps `halve`'s half or the other one, with equal chances.

    Then every row of an even number is kept with probability 1/2, and a mean over the half is an
    unbiased estimate of the mean over all, which the guarantees of Compress ask for
    (arXiv 2111.07941).

    Parameters
    ----------
    halve : function
        Of rows (m, ...) it returns floor(m / 2) distinct row numbers.
    rng : None, int or numpy.random.Generator
        Where the coins come from (SPEC 7), one a call: a seed gives one sequence of coins, not one
        coin. A generator is advanced by one number, here and not in the calls.

    Returns
    -------
    function
        A halving like `halve`. The other half is increasing. Where m is odd, the other half has one
        row more, and one at random is left out of it: both have floor(m / 2), and rows that `halve`
        prefers keep some of that preference.

    Raises
    ------
    TypeError, ValueError
        `rng` is none of these; in a call: `halve` returns something else.

    Notes
    -----
    O(m log m) time besides that of `halve`.

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
    """Those of the rows that a user's function chooses: `size` of them, or any number."""
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
