"""Herding: few keys of equal weight whose mean in a kernel's Hilbert space is that of many.

The output of a query q is sum_j p_j v_j over attention weights p. Where keys s of equal weight
stand for all, its error is to first order

    sum_j (w_j - 1) p_j (v_j - output),   w_j = n / n_out for a key kept, 0 for another.

Summed over queries, its square is that of w - 1 in the kernel <p_j, p_j'> <v_j - output,
v_j' - output>, over n^2 the squared distance of the kept keys' mean from that of all. Queries are
not looked at: the attention kernel of Low-Rank Thinning (arXiv 2502.12063) stands for it, of which
exp(<x, x'>) is in place of <p_j, p_j'>.

Neither a shift of all keys, nor keys over c with queries times c, changes attention. So keys are
centred, and their length is free: they are divided by the temperature that makes the root mean
square of their norms NORM or, where exp(<q, k>) is smooth and that is less, sqrt(|q| |k|) of such.

A halving can keep only one key of each pair. Herding (Welling, 2009; Chen, Welling & Smola, 2010)
takes, key by key, the one of all candidates that brings the kept keys' mean nearest to that of the
candidates, and then goes over the keys kept once more and exchanges each for the best.

All functions take one head: query (T, E), key (S, E), value (S, D).
"""

import numpy as np

from reference.attention import attention_kernel, power_of_two
from reference.compress import kh_compress

CANDIDATES = 3  # times as many as keys kept
NORM = 1.6  # root mean square of the norms of keys that the kernel sees, at most


def temperature(query, key, scale):
    """What centred keys are divided by; 1 where all keys or all queries are 0."""
    x = np.sqrt(scale * np.mean(np.sum((key - key.mean(axis=0)) ** 2, axis=1)))
    q = np.sqrt(scale * np.mean(np.sum(query**2, axis=1)))
    return x / min(NORM, np.sqrt(q * x)) if q * x > 0 else 1.0


def herding_kernel(key, value, scale, tau):
    """The attention kernel on centred keys over a temperature."""
    power = power_of_two(np.max(np.abs(value)))
    x = np.sqrt(scale) / tau * (key - key.mean(axis=0))
    return attention_kernel(x, power * value, power * np.max(np.abs(value)))


def herd(K, n_out):
    """Positions (n_out,) of those whose mean is near that of all, from their Gram matrix."""
    mean, half = K.mean(axis=1), np.diagonal(K) / 2
    kept = []
    sums = np.zeros(len(K))  # of K over the keys kept
    for turn in range(2 * n_out):
        if turn >= n_out:  # give one back, in the order they came
            sums -= K[kept.pop(0)]
        # |mean of kept and x - mean of all|^2 is 2 / n^2 times this, and the same for all x
        score = sums + half - min(turn + 1, n_out) * mean
        score[kept] = np.inf
        kept.append(int(np.argmin(score)))
        sums += K[kept[-1]]
    return np.sort(kept)


def select_herded(query, key, value, scale, n_out, rounds, coins, start, tau=None):
    """Positions (n_out,) that one head keeps.

    Greedy halvings, those whose swap brings the walk nearer to zero, leave CANDIDATES * n_out keys,
    or about that; herding chooses among them.

    Parameters
    ----------
    rounds, coins : as `kh_compress` takes them
    start : (length,) int, the positions before the first round
    tau : float, optional
        The temperature; that of `temperature` without it.
    """
    K = herding_kernel(key, value, scale, temperature(query, key, scale) if tau is None else tau)
    uniforms = [np.zeros(pairs) for pairs, _, _ in rounds]
    few, _ = kh_compress(lambda rows: K[np.ix_(rows, rows)], start, rounds, uniforms, coins)
    left = start[few]
    return left[herd(K[np.ix_(left, left)], n_out)]
