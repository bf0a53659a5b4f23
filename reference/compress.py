"""KH-Compress: kernel halving over a tree of buckets, from n points to n_out in near-linear time.

Low-Rank Thinning (arXiv 2502.12063), KH-Compress(g); Distribution Compression (Shetty, Dwivedi &
Mackey, arXiv 2111.07941), Algorithm Compress, unrolled from the leaves to the root.

A round is a triple (pairs, buckets, delta). The points that are left, in order, form `pairs` pairs.
The pairs are cut into `buckets` consecutive buckets. Each bucket is halved with failure probability
delta. Four halved buckets make one bucket of the next round, of twice the length.
"""

from itertools import pairwise

import numpy as np

from reference.halving import kernel_halving


def published_rounds(n, g, delta):
    """The rounds of KH-Compress(g) as published, for n a power of four.

    Round i halves buckets of l_i = 4^(g+1) 2^i points with delta_i = delta l_i^2 / (4^(g+1) r n),
    where r = log_4(n) - g is the number of rounds. It keeps n_out = 2^g sqrt(n) points.
    """
    log4_n = int(np.log2(n)) // 2
    r = log4_n - g
    rounds = []
    for i in range(max(r, 0)):
        l_i = 4 ** (g + 1) * 2**i
        left = n // 2**i
        rounds.append((left // 2, left // l_i, delta * l_i**2 / (4 ** (g + 1) * r * n)))
    return rounds


def bucket_bounds(pairs, buckets):
    """The first pair of every bucket, and the end of the last; lengths differ by at most 1."""
    return [b * pairs // buckets for b in range(buckets + 1)]


def kh_compress(gram, points, rounds, uniforms, coins, halving=kernel_halving):
    """Thin a sequence of points by repeated halving.

    Parameters
    ----------
    gram : callable
        gram(points) -> (S, S), the Gram matrix of the given points.
    points : (n, ...) array
        The points, or their row numbers: gram gets slices of this array.
    rounds : sequence of (pairs, buckets, delta)
    uniforms : sequence of (pairs,) arrays, one for each round
        Draws from [-1, 1).
    coins : sequence of (buckets,) arrays of bool, one for each round
    halving : callable
        The halving algorithm: `kernel_halving` for KH-Compress.

    Returns
    -------
    kept : (n_out,) int array, increasing
        Positions in `points`.
    traces : list of Trace
        One for each halving, in the order of the halvings.
    """
    kept = np.arange(len(points))
    traces = []
    for (pairs, buckets, delta), uniform, coin in zip(rounds, uniforms, coins, strict=True):
        bounds = bucket_bounds(pairs, buckets)
        halves = []
        for b, (first, last) in enumerate(pairwise(bounds)):
            bucket = kept[2 * first : 2 * last]
            half, trace = halving(gram(points[bucket]), delta, uniform[first:last], coin[b])
            halves.append(bucket[half])
            traces.append(trace)
        kept = np.concatenate(halves)
    return kept, traces


def standard_thin(S, n):
    """The published pre-thinning: positions 0, stride, ..., (n-1) stride with stride = S // n."""
    return np.arange(n) * (S // n)


def stratified_thin(S, n, uniform):
    """One position at random from each of n strata; every position has probability n / S.

    The sequence of S positions is treated as a ring. The strata are consecutive runs of floor(S/n)
    or ceil(S/n) positions on it, from a random start. So a position falls into a short or a long
    stratum with probability proportional to the number of positions in such strata.

    Parameters
    ----------
    uniform : (n + 1,) array of draws from [0, 1)
        The first gives the start, the others one position in each stratum.
    """
    if n == S:
        return np.arange(S)
    start = int(uniform[0] * S)
    bounds = np.arange(n + 1) * S // n
    inside = (uniform[1:] * np.diff(bounds)).astype(int)
    return np.sort((start + bounds[:-1] + inside) % S)
