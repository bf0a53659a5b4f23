"""Herding: keys of equal weight whose mean in a kernel's Hilbert space is near that of all keys.

All functions take one head: query (T, E), key (S, E), value (S, D).

The kernel. The output of a query q is sum_j p_j v_j, with attention weights p. If n_out keys of
equal weight replace all n keys, the error of the output is to first order

    sum_j (w_j - 1) p_j (v_j - output),   w_j = n / n_out for a kept key, 0 for a dropped key.

The squared error, summed over the queries, is the quadratic form of w - 1 in the kernel
<p_j, p_j'> <v_j - output, v_j' - output>. Divided by n^2, it is the squared distance between the
mean of the kept keys and the mean of all keys. This kernel depends on the queries. Herding uses the
attention kernel of Low-Rank Thinning (arXiv 2502.12063) instead, which does not: exp(<x, x'>) takes
the place of <p_j, p_j'>.

The temperature. Attention does not change if all keys are shifted, or if keys are divided and
queries multiplied by the same number. So the keys are centred and divided by a temperature. It sets
the root mean square of their norms to NORM or to sqrt(|q| |k|), whichever is smaller. Here |q| and
|k| are the root mean squares of the norms; the latter is smaller where exp(<q, k>) is smooth.

The algorithm. A halving can keep only one key of each pair. Herding (Welling, 2009; Chen, Welling &
Smola, 2010) chooses key after key among all candidates: each time the one that brings the mean of
the kept keys nearest to the mean of the candidates. Then it goes over the kept keys once more and
exchanges each for the best candidate.
"""

import numpy as np

from reference.attention import attention_kernel, power_of_two
from reference.compress import kh_compress

CANDIDATES = 3  # candidates, times n_out
NORM = 1.6  # the largest root mean square of the norms of scaled keys


def temperature(query, key, scale):
    """The number that centred keys are divided by; 1 where all keys or all queries are 0."""
    x = np.sqrt(scale * np.mean(np.sum((key - key.mean(axis=0)) ** 2, axis=1)))
    q = np.sqrt(scale * np.mean(np.sum(query**2, axis=1)))
    return x / min(NORM, np.sqrt(q * x)) if q * x > 0 else 1.0


def herding_kernel(key, value, scale, tau):
    """The attention kernel (S, S) on centred keys divided by the temperature tau."""
    power = power_of_two(np.max(np.abs(value)))
    x = np.sqrt(scale) / tau * (key - key.mean(axis=0))
    return attention_kernel(x, power * value, power * np.max(np.abs(value)))


def herd(K, n_out):
    """Positions (n_out,) of points whose mean is near that of all, from their Gram matrix K."""
    mean, half = K.mean(axis=1), np.diagonal(K) / 2
    kept = []
    sums = np.zeros(len(K))  # of the rows of K at the kept points
    for turn in range(2 * n_out):
        if turn >= n_out:  # the second pass removes the points in the order they were chosen
            sums -= K[kept.pop(0)]
        # with n kept points, x included: |mean of kept - mean of all|^2 = 2 / n^2 score + constant
        score = sums + half - min(turn + 1, n_out) * mean
        score[kept] = np.inf
        kept.append(int(np.argmin(score)))
        sums += K[kept[-1]]
    return np.sort(kept)


def select_herded(query, key, value, scale, n_out, rounds, coins, start, tau=None):
    """Positions (n_out,) that one head keeps.

    Greedy halvings leave about CANDIDATES * n_out keys, and herding chooses among these. For each
    pair, a greedy halving makes the choice that gives the shorter walk: its uniforms are 0.

    Parameters
    ----------
    rounds, coins : as `kh_compress` takes them
    start : (length,) int array
        The positions before the first round.
    tau : float, optional
        The temperature; by default that of `temperature`.
    """
    K = herding_kernel(key, value, scale, temperature(query, key, scale) if tau is None else tau)
    uniforms = [np.zeros(pairs) for pairs, _, _ in rounds]
    few, _ = kh_compress(lambda rows: K[np.ix_(rows, rows)], start, rounds, uniforms, coins)
    left = start[few]
    return left[herd(K[np.ix_(left, left)], n_out)]
