"""Landmarks: a small subset of the keys, with fitted values and masses that represent all keys.

All functions take one head: query (T, E), key (S, E), value (S, D).

Thinning keeps keys of equal weight with their own values. A landmark has a key k_s, a fitted value
z_s and a fitted mass m_s, and the output of a query is
sum_s e^{<q,k_s>} z_s / sum_s e^{<q,k_s>} m_s. There are two ways to fit them.

"nystrom": landmarks are the pivots of a randomised Cholesky factorisation of the exponential kernel
on keys. Nystrom's formula gives their values and masses.

"queries": landmarks are drawn. Every key joins the group of a landmark that is near to it. The
landmark gets the mean of its group's keys, the sum of their values, and their number as mass. Then
a ridge regression corrects values and masses, so that the outputs of sampled queries, which are
computed exactly, come out.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import lambertw, logsumexp

from reference.compress import stratified_thin

LEAST_QUERIES, QUERIES = 96, 256  # sampled queries: half of n_out, but not fewer or more
HELD_OUT = 5  # one of so many sampled queries chooses the nugget, which the others are fitted with
NUGGETS = 10, 0.1, 0.003  # "queries": times the mean of the diagonal that they are added to
FLAT = 0.01  # that mean is at least this share of what flat attention would give
NEAR = 32  # landmarks, before and after a block of keys, that may be the nearest to one of its keys
KEYS = 32  # keys in a block
TIE = 1e-6  # a landmark's squared norm grows by this share for each landmark before it
BALANCE = 0.3  # trace of the exponential kernel over trace of the sampled attention's Gram matrix
CANDIDATES = 4  # "nystrom": keys that may be pivots, times n_out
BLOCK = 16  # proposals in a block
PROPOSALS = 8  # the largest number of proposals, times n_out
# values and masses are clipped to BOUND times the largest value; only landmarks that have no
# weight exceed it
BOUND = 1e8
SHARE = 0.3125  # least sum of weighted masses, as a share of the sum of their magnitudes
LEAST = 1e-6  # least weighted mean of masses; a key has mass 1
FLOOR = 1e-12  # least importance of a key, as a share of the largest
LEAST_MASS = 0.05  # least predicted mass of a held-out query; its exact mass is 1
TWO_RHO = 6.383202050647408  # 2 rho_0, arXiv 2602.10056: 2 sqrt(1 + exp(2 W(2 / e^2) + 2))


class Landmarks(NamedTuple):
    """Positions (n_out,) increasing, keys (n_out, E), values (n_out, D) and masses (n_out,)."""

    positions: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    masses: np.ndarray


class LandmarkDraws(NamedTuple):
    """The draws of one head.

    queries : of the strata of the sampled queries
    candidates : of the strata of the keys that may be pivots; empty for "queries"
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


def exponents(x, attention):
    """Return h (S,) of scaled keys x (S, E): e^{2 h_j} is the importance of key j.

    attention : (m, S), the attention weights P of m sampled queries

    Two kernels on keys say how much a key matters. The exponential kernel exp(<x, x'>) measures the
    distance between two sums of e^{<q,k>} for the worst of all queries. The Gram matrix P^T P
    measures it for the sampled queries. The importance is the diagonal of their sum, with traces in
    the proportion BALANCE to 1.
    """
    squares = np.sum(x**2, axis=1)
    # a key without weight for any sampled query gets a positive importance: log 0 is infinite
    sampled = np.maximum(np.sum(attention**2, axis=0), np.finfo(x.dtype).tiny ** 0.5)
    factor = logsumexp(squares) - np.log(BALANCE) - np.log(np.sum(sampled))
    return np.logaddexp(np.log(sampled) + factor, squares) / 2


def gram(x, rows, nugget):
    """Rows (r, S) of N(j, j') = exp(<x_j, x_j'> - h_j - h_j'), h = |x|^2 / 2, plus a nugget.

    This is the exponential kernel with its diagonal scaled to 1, so nothing overflows. The nugget
    is added to the diagonal, against rounding errors. The exponents are at most 0 up to rounding,
    and are clipped there.
    """
    h = np.sum(x**2, axis=1) / 2
    N = np.exp(np.minimum(x[rows] @ x.T - h[rows, None] - h, 0))
    N[np.arange(len(rows)), rows] += nugget
    return N


def draw_landmarks(h, n_out, u):
    """Draw landmarks by systematic sampling: key j has probability min(1, c e^{h_j}).

    e^{2 h_j} is the importance of key j, a diagonal of a kernel. Its root e^{h_j} is the norm of
    the term of key j in a sum over keys.

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


def pivots(x, n_out, uniforms):
    """Landmarks by randomly pivoted Cholesky of exp(<x, x'>), with BLOCK proposals at a time.

    A pivot is drawn with probability proportional to d_j e^{|x_j|^2}. This is the diagonal of the
    kernel before its normalisation, less the part that the earlier pivots explain. The proposals of
    a block are drawn from the diagonal at the start of the block. A proposal is accepted with
    probability (diagonal now) / (diagonal at the start), so pivots have the same distribution as if
    they were drawn one at a time (Epperly, Tropp & Webber, arXiv 2410.03969).

    If there are no proposals left, or the diagonal is 0, the first keys that are left are taken.
    """
    S, nugget = len(x), np.sqrt(np.finfo(x.dtype).eps)
    squares = np.sum(x**2, axis=1)
    weight = np.exp(squares - squares.max()).astype(float)
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
        rows = gram(x, proposed, nugget)
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


def nystrom(x, chosen, V1):
    """Values and masses (n_out, D + 1) of the chosen pivots, the masses last.

    x : scaled keys (S, E); V1 : value and mass of each key (S, D + 1)

    In the kernel's Hilbert space, the combination of landmarks that is nearest to key j has the
    weights N_ss^-1 N_sj, up to the normalisation. Landmark s gets this share of v_j, and of mass 1.
    """
    h = np.sum(x**2, axis=1) / 2
    N = gram(x[chosen], np.arange(len(chosen)), np.sqrt(np.finfo(x.dtype).eps))
    right = np.exp(np.minimum(x[chosen] @ x.T - h[chosen, None] - h.max(), 0)) @ V1
    largest = 0.9 * np.log(np.finfo(x.dtype).max)
    return np.exp(np.minimum(h.max() - h[chosen], largest))[:, None] * np.linalg.solve(N, right)


def nearest_landmarks(x, chosen):
    """The landmark that is nearest to each scaled key x (S, E), as numbers (S,) below n_out.

    Keys are taken KEYS at a time. A block is compared with the landmarks among its own keys, NEAR
    landmarks before them and NEAR after them, in key order. So the cost does not grow with n_out.
    A landmark is its own nearest one. Norms grow a little with the number, so that it is not
    rounding that decides between two landmarks at the same distance.
    """
    n_out = len(chosen)
    squares = np.sum(x[chosen] ** 2, axis=1) * (1 + TIE * np.arange(n_out)).astype(x.dtype)
    nearest = np.empty(len(x), int)
    for start in range(0, len(x), KEYS):
        first, last = np.searchsorted(chosen, (start, start + KEYS))
        first, last = max(first - NEAR, 0), min(last + NEAR, n_out)
        block = x[start : start + KEYS]
        distances = squares[first:last] - 2 * block @ x[chosen[first:last]].T
        nearest[start : start + KEYS] = first + np.argmin(distances, axis=1)
    nearest[chosen] = np.arange(n_out)
    return nearest


def merge(x, h, V1, chosen):
    """Each group's mean key (n_out, E), its sums of V1 (n_out, D + 1), and its number of keys.

    Keys count in the mean by their importance.
    """
    group = nearest_landmarks(x, chosen)
    weight = np.maximum(np.exp(2 * (h - h.max())), FLOOR)
    number, total = (np.bincount(group, w, len(chosen)) for w in (None, weight))
    keys, sums = np.zeros((len(chosen), x.shape[1])), np.zeros((len(chosen), V1.shape[1]))
    np.add.at(keys, group, weight[:, None] * x)
    np.add.at(sums, group, V1)
    return (keys / total[:, None]).astype(x.dtype), sums.astype(x.dtype), number


def correct(sums, number, attention, exact):
    """Values and masses (n_out, D + 1): the groups' sums, corrected by sampled queries.

    attention : P (m, n_out), e^{<q,k_s>} of the groups' mean keys, over the query's exact sum
    exact : (m, D + 1), the exact outputs of the sampled queries and their masses, 1

    With Z_0 the sums and C_s the number of keys of group s less 1, the corrected Z minimises

        |P Z - exact|^2 + nu sum_s |Z_s - Z_0,s|^2 / C_s.

    A group of one key has no error, and stays as it is. The more keys a group has, the farther its
    sum may be moved. With r = exact - P Z_0 and D = diag(C), the minimum is at
    Z_0 + D P^T (P D P^T + nu)^-1 r, which is a system of m equations.

    The number nu is in proportion to the mean of the diagonal of P D P^T. Where the sampled queries
    hardly attend to groups of several keys, this mean would be tiny, and the sums would move freely
    to suit those few queries: it counts as FLAT times that of flat attention at least. The
    proportion is that of NUGGETS whose fit to the other sampled queries predicts the outputs of
    the held-out queries best; then all are fitted.
    """
    apart = attention * (number - 1)
    G, r = apart @ attention.T, exact - attention @ sums
    flat = np.sum(number - 1) / np.sum(number) ** 2
    unit = max(np.trace(G) / len(G), FLAT * flat)
    if not unit > 0:  # every group is one key
        return sums
    held = np.arange(len(G)) % HELD_OUT == HELD_OUT - 1

    def solution(rows, nugget):
        return np.linalg.solve(G[np.ix_(rows, rows)] / unit + nugget * np.eye(rows.sum()), r[rows])

    def error(nugget):
        fitted = G[np.ix_(held, ~held)] / unit @ solution(~held, nugget)
        predicted = exact[held] - r[held] + fitted
        mass = np.maximum(predicted[:, -1:], LEAST_MASS)
        return np.sum((predicted[:, :-1] / mass - exact[held, :-1]) ** 2)

    nugget = min(NUGGETS, key=error)
    return sums + apart.T @ solution(np.ones(len(G), bool), nugget) / unit


def weighted_attention(query, landmarks, scale, low, high):
    """Output (T, D) and weights (T, n_out) of one head; a weight is e^{<q,k_s>} m_s over their sum.

    Masses may be negative. Where their sum nearly cancels, the numerator nearly cancels too. So the
    sum is kept above SHARE times the sum of magnitudes, and above LEAST times the sum of
    e^{<q,k_s>}. Outputs are clipped to the range [low, high] (D,) of the values.
    """
    logits = scale * query @ landmarks.keys.T
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = e @ landmarks.masses
    total = np.maximum(total, SHARE * (e @ np.abs(landmarks.masses)))
    total = np.maximum(total, LEAST * e.sum(axis=1))[:, None]
    return np.clip(e @ landmarks.values / total, low, high), e * landmarks.masses / total


def number_of_queries(n_queries, n_out):
    """How many queries are sampled: more where more landmarks are fitted to them."""
    return min(n_queries, QUERIES, max(LEAST_QUERIES, n_out // 2))


def landmark_attention(query, key, value, scale, n_out, correction, draws, tau=None):
    """Output (T, D), weights (T, n_out) and landmarks of one head, for n_out < S.

    correction : "queries" or "nystrom"
    tau : the temperature; that of WildCat if None

    The landmarks' keys are those of centred keys, which the softmax cannot tell from keys.
    """
    S, T = len(key), len(query)
    centred = key - key.mean(axis=0)
    to_x = (np.sqrt(scale) / (tau or temperature(query, centred, scale))).astype(key.dtype)
    x, V1 = centred * to_x, np.concatenate([value, np.ones((S, 1), value.dtype)], axis=1)
    low, high = value.min(axis=0), value.max(axis=0)
    bound = BOUND * np.abs(V1).max()
    if correction == "nystrom":
        candidates = stratified_thin(S, min(S, CANDIDATES * n_out), draws.candidates)
        chosen = candidates[pivots(x[candidates], n_out, draws.uniforms)]
        fitted, keys = np.clip(nystrom(x, chosen, V1), -bound, bound), centred[chosen]
        landmarks = Landmarks(chosen, keys, fitted[:, :-1], fitted[:, -1])
        return *weighted_attention(query, landmarks, scale, low, high), landmarks
    sampled = stratified_thin(T, number_of_queries(T, n_out), draws.queries)
    logits = scale * query[sampled] @ centred.T
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, keepdims=True)
    attention = np.exp(logits - top) / total
    h = exponents(x, attention)
    chosen = draw_landmarks(h, n_out, draws.uniforms)
    keys, sums, number = merge(x, h, V1, chosen)
    keys /= to_x
    of_landmarks = np.exp(np.minimum(scale * query[sampled] @ keys.T - top, 0)) / total
    exact = attention @ V1
    fitted = np.clip(correct(sums, number, of_landmarks, exact), -bound, bound)
    landmarks = Landmarks(chosen, keys, fitted[:, :-1], fitted[:, -1])
    output, weights = weighted_attention(query, landmarks, scale, low, high)
    output[sampled] = np.clip(exact[:, :-1], low, high)  # these outputs are known exactly
    return output, weights, landmarks
