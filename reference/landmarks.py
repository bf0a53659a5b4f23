"""Landmarks: few keys with values and masses of their own, fitted to stand for all keys.

Thinning keeps keys of equal weight. A landmark k_s has a value z_s and a mass m_s, and the output
of a query is sum_s e^{<q,k_s>} z_s / sum_s e^{<q,k_s>} m_s. Both follow from a kernel N on keys by
Nystrom's formula, and landmarks are pivots of a randomised Cholesky factorisation of it.

All functions take one head: query (T, E), key (S, E), value (S, D).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import lambertw, logsumexp

from reference.compress import stratified_thin

QUERIES = 160  # sampled at most
SUMMED = 3  # keys that the exponential kernel is summed over where landmarks are drawn, times n_out
CANDIDATES = 4  # keys that may be pivots, times n_out
BALANCE = 0.3  # lambda: the exponential kernel's trace beside that of the sampled attention
NUGGET = 0.03  # added to the diagonal of N where landmarks are drawn, and may be alike
BLOCK = 16  # proposals at a time
PROPOSALS = 8  # at most, times as many as landmarks
BOUND = 1e8  # of values and masses, in the largest value; beyond are landmarks without weight
SHARE = 0.3125  # of the sum of magnitudes, below which a sum of masses may not fall
LEAST = 1e-6  # of a key's mass, below which no weighted mean of masses may fall
FLOOR = 1e-12  # of the largest importance
TWO_RHO = 6.383202050647408  # 2 rho_0, arXiv 2602.10056: 2 sqrt(1 + exp(2 W(2 / e^2) + 2))


class Landmarks(NamedTuple):
    """Positions (n_out,) increasing, values (n_out, D) and masses (n_out,)."""

    positions: np.ndarray
    values: np.ndarray
    masses: np.ndarray


class LandmarkDraws(NamedTuple):
    """Draws of one head: strata of queries and of candidates, or keys summed over, and uniforms.

    The uniforms are one number for "queries", (proposals, 2) for "nystrom".
    """

    queries: np.ndarray
    candidates: np.ndarray
    uniforms: np.ndarray


def temperature(query, key, scale):
    """WildCat's temperature (arXiv 2602.10056) for centred keys; 1 where queries or keys are 0.

    Softmax does not see keys divided and queries multiplied by the same number. The exponential
    kernel on keys does, and the best number weighs the largest query against the largest key.
    """
    q, k = np.linalg.norm(query, axis=1).max(), np.linalg.norm(key, axis=1).max()
    if q == 0 or k == 0:
        return 1.0
    b = np.log(len(key)) / (scale * q * k) + 2
    return np.sqrt(k / q * b / (2 * lambertw(b / TWO_RHO).real))


def kernel(x, attention):
    """The normalised kernel N on keys, as features and exponents.

    On scaled keys x the exponential kernel exp(<x, x'>) measures how far two sums of e^{<q,k>} are
    apart for the worst of all queries; the Gram matrix P^T P of the attention weights P (m, S) of
    sampled queries measures it for those. Their sum c exp(<x, x'>) + <p, p'>, with traces in the
    proportion BALANCE to 1, divided by the roots of its diagonal, is

        N(j, j') = <f_j, f_j'> + exp(<x_j, x_j'> - h_j - h_j'),

    with no entry above 1, so nothing overflows. Without sampled queries f is empty, h = |x|^2 / 2.

    Returns f (S, m), h (S,), and the constant t with f_j = p_j e^{t - h_j}.
    """
    squares = np.sum(x**2, axis=1)
    if len(attention) == 0:
        return np.zeros((len(x), 0), x.dtype), squares / 2, x.dtype.type(0)
    # of a key that no sampled query sees, not 0: f may not be 0 times infinity
    importance = np.maximum(np.sum(attention**2, axis=0), np.finfo(x.dtype).tiny ** 0.5)
    t = (logsumexp(squares) - np.log(BALANCE) - np.log(np.sum(importance))) / 2
    h = np.logaddexp(np.log(importance) + 2 * t, squares) / 2
    return attention.T * np.exp(t - h)[:, None], h, t


def gram(x, f, h, rows, nugget):
    """Rows of N, and on its diagonal a nugget, so that their rounding errors do not matter.

    No exponent is above 0, but by rounding.
    """
    N = f[rows] @ f.T + np.exp(np.minimum(x[rows] @ x.T - h[rows, None] - h, 0))
    N[np.arange(len(rows)), rows] += nugget
    return N


def draw_landmarks(h, n_out, u):
    """Landmarks by systematic sampling: key j with probability min(1, c e^{h_j}), in key order.

    e^{2h} is the kernel's diagonal before it was normalised, and its root is what a sum over keys
    owes to one of them. One number u places a comb of distance 1 over the summed probabilities, so
    neighbours, which are alike, are seldom taken together.
    """
    weight = np.maximum(np.exp(h - h.max()).astype(float), FLOOR)
    sure = np.zeros(len(h), bool)
    while True:
        p = np.where(sure, 1, weight * ((n_out - sure.sum()) / max(weight[~sure].sum(), FLOOR)))
        if not (p[~sure] > 1).any():
            break
        sure |= p > 1
    chosen, total = [], 0.0
    for j in range(len(h)):
        total += p[j]
        left = len(h) - j == n_out - len(chosen)  # rounding may have lost the last one
        if len(chosen) < n_out and (total > len(chosen) + u or left):
            chosen.append(j)
    return np.array(chosen)


def pivots(x, h, n_out, uniforms):
    """Landmarks by randomly pivoted Cholesky of exp(<x, x'>), BLOCK proposals at a time.

    A pivot is drawn in proportion to d_j e^{2 h_j}, the diagonal of what the pivots so far leave of
    the kernel before it was normalised. Proposals are drawn from the diagonal as it is when the
    block begins, and accepted with probability now over then, which gives the law of one at a time
    (Epperly, Tropp & Webber, arXiv 2410.03969). When proposals or the diagonal are used up, the
    first keys that are left are taken.
    """
    S, nugget = len(x), np.sqrt(np.finfo(x.dtype).eps)
    f = np.zeros((S, 0), x.dtype)
    weight = np.exp(2 * (h - h.max())).astype(float)
    d = np.ones(S)
    F = np.zeros((0, S))
    chosen = []
    for start in range(0, len(uniforms), BLOCK):
        cumulative = np.cumsum(d * weight)
        if len(chosen) == n_out or not cumulative[-1] > 0:
            break
        where, accept = uniforms[start : start + BLOCK].T
        proposed = np.searchsorted(cumulative, where * cumulative[-1], side="right")
        proposed = np.minimum(proposed, S - 1)
        then = d[proposed]
        rows = gram(x, f, h, proposed, nugget)
        for j, row, u, d_then in zip(proposed, rows, accept, then, strict=True):
            residual = row - F[:, j] @ F
            if len(chosen) < n_out and d[j] > 0 and u * d_then < residual[j]:
                factor = residual / np.sqrt(residual[j])
                d = np.maximum(d - factor**2, 0)
                d[j] = 0
                F = np.concatenate([F, factor[None]])
                chosen.append(j)
    rest = [j for j in range(S) if j not in chosen]
    return np.sort(chosen + rest[: n_out - len(chosen)])


def nystrom(x, f, h, keys, values, sampled, top, nugget):
    """Values and masses (n_out, D + 1) of landmarks, the masses last.

    x, f, h : the landmarks'
    keys, values : scaled keys (n, E) and what they stand for, value and mass (n, D + 1)
    sampled : outputs and masses (m, D + 1) of sampled queries, times e^{t - top}
    top : the largest h there may be; nugget : what is added to the diagonal of N

    In the kernel's Hilbert space the combination of landmarks nearest to key j has the weights
    N_ss^-1 N_sj, but for the normalisation; landmark s gets that share of v_j, and of 1. With
    sampled queries it is a ridge regression of their exact outputs on what they pay to
    landmarks, shrunk towards what the exponential kernel says, where others shrink towards 0.
    """
    N = gram(x, f, h, np.arange(len(x)), nugget)
    right = np.exp(np.minimum(x @ keys.T - h[:, None] - top, 0)) @ values + f @ sampled
    largest = 0.9 * np.log(np.finfo(x.dtype).max)
    return np.exp(np.minimum(top - h, largest))[:, None] * np.linalg.solve(N, right)


def weighted_attention(query, key, landmarks, scale, low, high):
    """Output (T, D) and weights (T, n_out), e^{<q,k_s>} m_s over their sum, of one head.

    Masses may be negative. Where a sum of them nearly cancels, so does what it divides: it is kept
    above SHARE of the sum of magnitudes. Outputs stay in the range [low, high] (D,) of the values.
    """
    logits = scale * query @ key[landmarks.positions].T
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = e @ landmarks.masses
    total = np.maximum(total, SHARE * (e @ np.abs(landmarks.masses)))
    total = np.maximum(total, LEAST * e.sum(axis=1))[:, None]
    return np.clip(e @ landmarks.values / total, low, high), e * landmarks.masses / total


def landmark_attention(query, key, value, scale, n_out, correction, draws, tau=None):
    """One head's output (T, D), weights (T, n_out) and landmarks, for n_out < S.

    correction : "queries" or "nystrom", with sampled queries in the kernel or without
    tau : the temperature; WildCat's if None
    """
    S, T = len(key), len(query)
    centred = key - key.mean(axis=0)
    x = centred * (np.sqrt(scale) / (tau or temperature(query, centred, scale))).astype(key.dtype)
    sampled = np.zeros(0, int)
    if correction == "queries":
        sampled = stratified_thin(T, min(T, QUERIES), draws.queries)
    logits = scale * query[sampled] @ key.T
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    f, h, t = kernel(x, attention)
    top, V1 = h.max(), np.concatenate([value, np.ones((S, 1), value.dtype)], axis=1)
    times = SUMMED if correction == "queries" else CANDIDATES
    candidates = stratified_thin(S, min(S, times * n_out), draws.candidates)
    if correction == "queries":
        # shrunk towards what some keys say, whose values are moved so that they agree on the mean
        chosen, nugget = draw_landmarks(h, n_out, draws.uniforms), NUGGET
        keys, values = x[candidates], V1[candidates]
        values = (values + V1.mean(axis=0) - values.mean(axis=0)) * (S / len(candidates))
    else:
        chosen = candidates[pivots(x[candidates], h[candidates], n_out, draws.uniforms)]
        keys, values, nugget = x, V1, np.sqrt(np.finfo(x.dtype).eps)
    outputs = attention @ V1
    fitted = nystrom(
        x[chosen], f[chosen], h[chosen], keys, values, np.exp(t - top) * outputs, top, nugget
    )
    bound = BOUND * np.abs(V1).max()
    fitted = np.clip(fitted, -bound, bound)
    landmarks = Landmarks(chosen, fitted[:, :-1], fitted[:, -1])
    low, high = value.min(axis=0), value.max(axis=0)
    output, weights = weighted_attention(query, key, landmarks, scale, low, high)
    output[sampled] = np.clip(outputs[:, :-1], low, high)  # theirs are known
    return output, weights, landmarks
