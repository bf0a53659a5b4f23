"""Kernel thinning and Compress++.

Kernel thinning (Dwivedi & Mackey, arXiv 2105.05842): KT-SPLIT, KT-SWAP. Distribution Compression
(Shetty, Dwivedi & Mackey, arXiv 2111.07941): Compress, Compress++.

Two extensions beyond the papers, which thinformer uses, are here too. KT-SWAP may pass over the
coreset more than once. Its target and its candidates need not be the points that KT-SPLIT halved.
"""

import numpy as np

from reference.compress import kh_compress
from reference.halving import Trace


def kt_halving(K, delta, uniform, coin=False):
    """Keep one point of every consecutive pair, with adaptive thresholds: a round of KT-SPLIT.

    Parameters and results are those of `reference.halving.kernel_halving`. Two things differ: the
    thresholds, and pair 0, which is decided by its draw like all others.
    """
    S = len(K)
    G = K[0::2, 0::2] - K[0::2, 1::2] - K[1::2, 0::2] + K[1::2, 1::2]
    b = np.sqrt(np.maximum(np.diagonal(G), 0))
    factor = np.sqrt(2 * np.log(2 * S / delta))
    a, alpha = np.zeros(S // 2), np.zeros(S // 2)
    swap = np.zeros(S // 2, dtype=bool)
    variance, walk = 0.0, np.zeros(S // 2)
    for i in range(S // 2):
        # a_i = max(b_i sigma sqrt(2 log(2 S / delta)), b_i^2)
        a[i] = max(b[i] * np.sqrt(variance) * factor, b[i] ** 2)
        # sigma^2 += b_i^2 (1 + (b_i^2 / a_i - 2) sigma^2 / a_i)_+
        if a[i] > 0:
            growth = 1 + (b[i] ** 2 / a[i] - 2) * variance / a[i]
            variance += b[i] ** 2 * max(growth, 0)
        alpha[i] = walk[i]
        swap[i] = uniform[i] * a[i] <= alpha[i]
        walk = walk + (-1 if swap[i] else 1) * G[i]

    M = np.abs(K)
    M = M[0::2, 0::2] + M[0::2, 1::2] + M[1::2, 0::2] + M[1::2, 1::2]
    magnitude = np.triu(M).sum(axis=0)
    margin = np.full(S // 2, np.inf)
    decided = magnitude > 0
    margin[decided] = np.abs(alpha - uniform * a)[decided] / magnitude[decided]
    kept = 2 * np.arange(S // 2) + (swap ^ bool(coin))
    return kept, Trace(b, a, alpha, margin)


def kt_split(K, delta, uniforms):
    """KT-SPLIT: split n points into two halves, split each half into two halves, and so on.

    Parameters
    ----------
    K : (n, n) array
    delta : float
        Failure probability; each of the m rounds uses delta / m.
    uniforms : sequence of m arrays (n/2,)
        Draws from [-1, 1); in a round, the draws of its sets one after the other.

    Returns
    -------
    coresets : (2^m, n / 2^m) int array, each row increasing
    traces : list of Trace
    """
    sets, traces = [np.arange(len(K))], []
    for uniform in uniforms:
        halves = []
        for points, u in zip(sets, np.split(np.asarray(uniform), len(sets)), strict=True):
            kept, trace = kt_halving(K[np.ix_(points, points)], delta / len(uniforms), u)
            other = 2 * np.arange(len(kept)) + (kept % 2 == 0)
            halves += [points[kept], points[other]]
            traces.append(trace)
        sets = halves
    return np.array(sets), traces


def kt_swap(K, mean, coresets, unique=True, passes=1):
    """KT-SWAP: take the best coreset; replace each of its points in turn by the best candidate.

    Parameters
    ----------
    K : (n, n) array
        Gram matrix of the candidates.
    mean : (n,) array
        The target's mean embedding sum_j w_j k(x_j, .) at the candidates; 0 for the zero measure.
    coresets : (any, s) int array
        Each row is a coreset of s candidates.
    unique : bool
        Whether a candidate may be chosen only once.
    passes : int
        The largest number of passes over the coreset; a pass that changes nothing is the last.

    Returns
    -------
    coreset : (s,) int array
    margin : float
        The difference between the best and the second best choice, the smallest over all choices.
    """
    size = coresets.shape[1]

    def squared_mmd(coreset):  # without the term of the target alone
        return K[np.ix_(coreset, coreset)].mean() - 2 * mean[coreset].mean()

    coresets = np.unique(np.sort(coresets, axis=1), axis=0)
    errors = np.array([squared_mmd(coreset) for coreset in coresets])
    margin = np.min(np.diff(np.sort(errors)), initial=np.inf)
    coreset = coresets[np.argmin(errors)].copy()
    for _ in range(passes):
        before = coreset.copy()
        for i in range(size):
            others = np.delete(coreset, i)
            # s times the squared MMD with candidate y at place i, without terms free of y
            change = (np.diagonal(K) + 2 * K[:, others].sum(axis=1)) / size - 2 * mean
            if unique:
                change[others] = np.inf
            best = np.argmin(change)
            if change[best] < change[coreset[i]]:
                margin = min(margin, change[coreset[i]] - change[best])
                coreset[i] = best
            margin = min(margin, np.diff(np.sort(change)[:2])[0] if len(change) > 1 else np.inf)
        if np.array_equal(before, coreset):
            break
    return coreset, margin


def compress(halve, rows, g=0):
    """Compress: keep 2^g sqrt(n) of n = 4^p rows, by halving four compressed quarters together.

    halve : callable, rows -> half of these rows
    """
    if len(rows) <= 4**g:
        return rows
    quarters = np.split(rows, 4)
    return halve(np.concatenate([compress(halve, quarter, g) for quarter in quarters]))


def compress_plus_plus(halve, thin, rows, g):
    """Compress++: Compress leaves 2^g sqrt(n) rows, and `thin` thins them to sqrt(n)."""
    return thin(compress(halve, rows, g))


def kt_compress_levels(gram, points, rounds, uniforms, coins):
    """Compress with the halving of KT-SPLIT, from the leaves to the root.

    Parameters are those of `reference.compress.kh_compress`.

    Returns
    -------
    levels : list of int arrays
        All rows, then the rows that are left after each round.
    traces : list of Trace
    """
    levels, traces = [np.arange(len(points))], []
    for round_, uniform, coin in zip(rounds, uniforms, coins, strict=True):
        kept, of_round = kh_compress(
            gram, points[levels[-1]], [round_], [uniform], [coin], halving=kt_halving
        )
        levels.append(levels[-1][kept])
        traces += of_round
    return levels, traces
