"""Landmarks: a small subset of the keys, with fitted values and masses that represent all keys.

All functions take one head: query (T, E), key (S, E), value (S, D).

Thinning keeps keys of equal weight with their own values. A landmark k_s has a fitted value z_s and
a fitted mass m_s, and the output of a query is sum_s e^{<q,k_s>} z_s / sum_s e^{<q,k_s>} m_s.
Nystrom's formula gives values and masses from a kernel N on keys. The landmarks are drawn by
systematic sampling, or are the pivots of a randomised Cholesky factorisation of the kernel.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import lambertw, logsumexp

from reference.compress import stratified_thin

QUERIES = 160  # the largest number of sampled queries
SUMMED = 3  # "queries": keys that the exponential kernel is summed over, times n_out
CANDIDATES = 4  # "nystrom": keys that may be pivots, times n_out
BALANCE = 0.3  # lambda: trace of the exponential kernel over trace of the sampled attention's
NUGGET = 0.03  # "queries": added to the diagonal of N, as drawn landmarks may be nearly equal
BLOCK = 16  # proposals in a block
PROPOSALS = 8  # the largest number of proposals, times n_out
# values and masses are clipped to BOUND times the largest value; only landmarks that have no
# weight exceed it
BOUND = 1e8
SHARE = 0.3125  # least sum of weighted masses, as a share of the sum of their magnitudes
LEAST = 1e-6  # least weighted mean of masses; a key has mass 1
FLOOR = 1e-12  # least importance of a key, as a share of the largest
TWO_RHO = 6.383202050647408  # 2 rho_0, arXiv 2602.10056: 2 sqrt(1 + exp(2 W(2 / e^2) + 2))


class Landmarks(NamedTuple):
    """Positions (n_out,) increasing, values (n_out, D) and masses (n_out,)."""

    positions: np.ndarray
    values: np.ndarray
    masses: np.ndarray


class LandmarkDraws(NamedTuple):
    """The draws of one head.

    queries : of the strata of the sampled queries
    candidates : of the strata of the keys that are summed over ("queries") or may be pivots
        ("nystrom")
    uniforms : one number for "queries", (proposals, 2) for "nystrom"
    """

    queries: np.ndarray
    candidates: np.ndarray
    uniforms: np.ndarray


def temperature(query, key, scale):
    """WildCat's temperature (arXiv 2602.10056) for centred keys; 1 where queries or keys are 0.

    Attention does not change if keys are divided and queries multiplied by the same number. The
    exponential kernel on keys does change. The best number balances the largest norm of a query
    against the largest norm of a key.
    """
    q, k = np.linalg.norm(query, axis=1).max(), np.linalg.norm(key, axis=1).max()
    if q == 0 or k == 0:
        return 1.0
    b = np.log(len(key)) / (scale * q * k) + 2
    return np.sqrt(k / q * b / (2 * lambertw(b / TWO_RHO).real))


def kernel(x, attention):
    """The normalised kernel N on scaled keys x (S, E), as features f and exponents h.

    attention : (m, S), the attention weights P of m sampled queries

    The exponential kernel exp(<x, x'>) measures the distance between two sums of e^{<q,k>} for the
    worst of all queries. The Gram matrix P^T P measures it for the sampled queries. N is their sum
    c exp(<x, x'>) + <p, p'>, with traces in the proportion BALANCE to 1, divided by the roots of
    the sum's diagonal:

        N(j, j') = <f_j, f_j'> + exp(<x_j, x_j'> - h_j - h_j').

    No entry is above 1, so nothing overflows. Without sampled queries f is empty and h = |x|^2 / 2.

    Returns f (S, m), h (S,), and the constant t with f_j = p_j e^{t - h_j}.
    """
    squares = np.sum(x**2, axis=1)
    if len(attention) == 0:
        return np.zeros((len(x), 0), x.dtype), squares / 2, x.dtype.type(0)
    # a key without weight for any sampled query gets a positive importance: f = 0 * inf is NaN
    importance = np.maximum(np.sum(attention**2, axis=0), np.finfo(x.dtype).tiny ** 0.5)
    t = (logsumexp(squares) - np.log(BALANCE) - np.log(np.sum(importance))) / 2
    h = np.logaddexp(np.log(importance) + 2 * t, squares) / 2
    return attention.T * np.exp(t - h)[:, None], h, t


def gram(x, f, h, rows, nugget):
    """The given rows (r, S) of N plus `nugget` times the identity, against rounding errors.

    The exponents are at most 0 up to rounding, and are clipped there.
    """
    N = f[rows] @ f.T + np.exp(np.minimum(x[rows] @ x.T - h[rows, None] - h, 0))
    N[np.arange(len(rows)), rows] += nugget
    return N


def draw_landmarks(h, n_out, u):
    """Draw landmarks by systematic sampling: key j has probability min(1, c e^{h_j}).

    e^{2 h_j} is the diagonal of the kernel before its normalisation. Its root e^{h_j} is the norm
    of the term of key j in a sum over keys.

    One number u places points at distance 1 on the running sum of the probabilities, in the order
    of the keys. So neighbours, which are often similar, are seldom drawn together.
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
        left = len(h) - j == n_out - len(chosen)  # all others are needed, if rounding lost one
        if len(chosen) < n_out and (total > len(chosen) + u or left):
            chosen.append(j)
    return np.array(chosen)


def pivots(x, h, n_out, uniforms):
    """Landmarks by randomly pivoted Cholesky of exp(<x, x'>), with BLOCK proposals at a time.

    A pivot is drawn with probability proportional to d_j e^{2 h_j}. This is the diagonal of the
    kernel before its normalisation, less the part that the earlier pivots explain. The proposals of
    a block are drawn from the diagonal at the start of the block. A proposal is accepted with
    probability (diagonal now) / (diagonal at the start), so pivots have the same distribution as if
    they were drawn one at a time (Epperly, Tropp & Webber, arXiv 2410.03969).

    If there are no proposals left, or the diagonal is 0, the first keys that are left are taken.
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

    x, f, h : scaled keys (n_out, E), features and exponents of the landmarks
    keys, values : n scaled keys (n, E), and the value and the mass of each (n, D + 1)
    sampled : exact outputs and masses (m, D + 1) of m sampled queries, times e^{t - top}
    top : an upper bound of h
    nugget : added to the diagonal of N

    In the kernel's Hilbert space, the combination of landmarks that is nearest to key j has the
    weights N_ss^-1 N_sj, up to the normalisation. Landmark s gets this share of v_j, and of mass 1.
    With sampled queries this is a ridge regression of their exact outputs on their attention
    weights of the landmarks. It shrinks towards the solution of the exponential kernel, where usual
    ridge regression shrinks towards 0.
    """
    N = gram(x, f, h, np.arange(len(x)), nugget)
    right = np.exp(np.minimum(x @ keys.T - h[:, None] - top, 0)) @ values + f @ sampled
    largest = 0.9 * np.log(np.finfo(x.dtype).max)
    return np.exp(np.minimum(top - h, largest))[:, None] * np.linalg.solve(N, right)


def weighted_attention(query, key, landmarks, scale, low, high):
    """Output (T, D) and weights (T, n_out) of one head; a weight is e^{<q,k_s>} m_s over their sum.

    Masses may be negative. Where their sum nearly cancels, the numerator nearly cancels too. So the
    sum is kept above SHARE times the sum of magnitudes, and above LEAST times the sum of
    e^{<q,k_s>}. Outputs are clipped to the range [low, high] (D,) of the values.
    """
    logits = scale * query @ key[landmarks.positions].T
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = e @ landmarks.masses
    total = np.maximum(total, SHARE * (e @ np.abs(landmarks.masses)))
    total = np.maximum(total, LEAST * e.sum(axis=1))[:, None]
    return np.clip(e @ landmarks.values / total, low, high), e * landmarks.masses / total


def landmark_attention(query, key, value, scale, n_out, correction, draws, tau=None):
    """Output (T, D), weights (T, n_out) and landmarks of one head, for n_out < S.

    correction : "queries" or "nystrom": the kernel contains sampled queries, or does not
    tau : the temperature; that of WildCat if None
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
        # the fit shrinks towards a sum over some keys; their values are shifted to the mean of all
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
    output[sampled] = np.clip(outputs[:, :-1], low, high)  # these outputs are known exactly
    return output, weights, landmarks
