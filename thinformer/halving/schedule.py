"""KH-Compress as data: what will be halved, in which buckets, with which failure probability.

A schedule is a pure function of three numbers. It has no arrays and no randomness, so the
specification, the CPU body and the CUDA body run the same one.
"""

from __future__ import annotations

from typing import NamedTuple

from thinformer.support import checks


class Round(NamedTuple):
    """One round of halvings.

    The points before the round, in order, form `pairs` consecutive pairs. The pairs are cut into
    `buckets` consecutive buckets; bucket b has the pairs from ``b * pairs // buckets`` to
    ``(b + 1) * pairs // buckets - 1``. Each bucket is halved with failure probability `delta`.
    """

    pairs: int
    buckets: int
    delta: float

    @property
    def largest_bucket(self) -> int:
        """Points in the largest bucket."""
        return 2 * -(-self.pairs // self.buckets)


class Schedule(NamedTuple):
    """The rounds that lead from `length` points to `size` of them.

    Attributes
    ----------
    length : int
        Points before the first round.
    size : int
        Points after the last.
    rounds : tuple of Round
    """

    length: int
    size: int
    rounds: tuple[Round, ...]


def coreset_size(n_points: int, g: int) -> int:
    """Return the number of points that KH-Compress(g) keeps of `n_points`.

    It is 2^g sqrt(n), where n is the largest power of four that is not above `n_points`; and at
    most `n_points`.

    Parameters
    ----------
    n_points : int
        At least 1.
    g : int
        Oversampling, at least 0.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        An argument is out of its range.
    """
    n_points, g = checks.integer("n_points", n_points, 1), checks.integer("g", g, 0)
    log2 = g + _log4(n_points)
    return n_points if log2 >= n_points.bit_length() else min(n_points, 2**log2)


def published_length(n_points: int) -> int:
    """Return the largest power of four not above `n_points`: the paper's length."""
    return 4 ** _log4(n_points)


def compress_schedule(n_points: int, size: int, delta: float = 0.5) -> Schedule:
    """Return KH-Compress from at most `n_points` points to `size` of them.

    There are r = floor(log2(n_points / size)) halvings, from a length of size * 2^r. Round
    i = 0 .. r-1 cuts its points into 4^(r-1-i) buckets: bucket lengths double from round to round,
    and the last round is one bucket of 2 * size points. There are fewer buckets if a bucket would
    have less than two pairs.

    For n_points = 4^p and size = 2^g 2^p this is KH-Compress(g) of *Low-Rank Thinning*
    (arXiv 2502.12063), whose delta l_i^2 / (4^(g+1) r n) is delta / (r * buckets):
    every round fails with probability at most delta / (2r), all of them with delta / 2.

    Parameters
    ----------
    n_points, size : int
        1 <= size <= n_points.
    delta : float
        Failure probability of the whole, in (0, 1].

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        An argument is out of its range.
    """
    n_points, size = checks.integer("n_points", n_points, 1), checks.integer("size", size, 1)
    delta = checks.failure_probability(delta)
    if size > n_points:
        raise ValueError(f"size must be at most n_points = {n_points}; got {size}")
    halvings = (n_points // size).bit_length() - 1
    rounds = []
    for i in range(halvings):
        pairs = size << (halvings - 1 - i)
        buckets = min(4 ** (halvings - 1 - i), max(1, pairs // 2))
        rounds.append(Round(pairs, buckets, delta / (halvings * buckets)))
    return Schedule(size << halvings, size, tuple(rounds))


def _log4(n: int) -> int:
    return (n.bit_length() - 1) // 2
