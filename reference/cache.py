"""A cache of keys and values, compressed to few landmarks for the queries that come next.

All functions take one head of keys: key (S, E), value (S, D), log_mass (S,), and query (G, L, E),
the latest queries of the G heads that share these keys. A key of log mass b counts as e^b keys; a
token has 0, and minus infinity stands for no key at all. The output of a query is

    sum_s e^{<q,k_s> + b_s} v_s / sum_s e^{<q,k_s> + b_s}.

The latest tokens are kept as they are. Of the others, the first ones are kept, and those that the
very latest queries attend to, with some behind each: what is asked for at the end of a text. The
rest are those from which the sums over all keys can best be computed that the latest queries need:
orthogonal matching pursuit finds them. Every other key joins one of these that is nearest to it.
Then a ridge regression fits values and masses, so that the sums come out. Keys stay where they are:
positions are rotations of keys, and the mean of keys of several positions is no key of any
position.
"""

from typing import NamedTuple

import numpy as np

SINKS = 4  # first tokens, which are kept: attention that has nowhere to go ends there
RECENT = 32  # latest tokens, which are kept
QUERIES = 256  # latest queries of a head that keys are chosen for and fitted to
ASKING = 16  # very latest queries of a head
ASKED = 5  # one of so many kept keys is one that these queries attend to, or that stands behind it
BEHIND = 8  # places behind a key that count as much as the key
ROUNDS = 4  # rounds of the pursuit
FOLDED = 16  # columns that values are folded to in the pursuit, which takes a fourth of the time
JOINED = 0.3  # share of the keys that joined a kept one in the sums that the fit starts from
NUGGET = 0.2  # of the pursuit and of the fit
LEAST = 0.02  # least fitted mass, as a share of the mass that the fit starts from
STIFF = 1e-3  # variance of a kept key that no other joined; others have the mass of those


class Cached(NamedTuple):
    """Keys (n, E), values (n, D), log masses (n,), and the positions (n,) that they had."""

    key: np.ndarray
    value: np.ndarray
    log_mass: np.ndarray
    positions: np.ndarray


def weights_of(query, key, log_mass, scale):
    """The attention weights (.., S) of queries (.., E)."""
    logits = scale * query @ key.T + log_mass
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def folded(value, there):
    """Values (S, D) with columns added in groups, with changing signs, and a column of masses.

    A column of masses counts as much as a value. That few columns tell keys apart as well as all.
    """
    D = value.shape[1]
    columns = np.zeros((len(value), min(D, FOLDED)))
    for start in range(0, D, FOLDED):
        part = value[:, start : start + FOLDED]
        columns[:, : part.shape[1]] += (-1) ** (start // FOLDED) * part
    norm = np.linalg.norm(value[there], axis=1).sum() / max(there.sum(), 1)
    return np.concatenate([columns, np.full((len(value), 1), norm)], axis=1)


def ridge(A, target, variance):
    """X that minimises |A X - target|^2 + nu sum_s |X_s|^2 / variance_s.

    The number nu is NUGGET times the mean over queries of the diagonal of A diag(variance) A^T.
    """
    root = np.sqrt(variance)
    scaled = A * root
    nugget = NUGGET * np.sum(scaled**2) / len(A)
    if not nugget > 0:  # no query attends to these keys
        return np.zeros((A.shape[1], target.shape[1]))
    gram = scaled.T @ scaled + nugget * np.eye(len(root))
    return root[:, None] * np.linalg.solve(gram, scaled.T @ target)


def most_asked(weights, there):
    """How much the very latest queries attend to each key or to one up to BEHIND before it: (S,).

    An answer stands behind the place that a question attends to.
    """
    total = np.sum(weights[:, -ASKING:], axis=(0, 1))
    padded = np.pad(total, (BEHIND, 0))
    windows = np.lib.stride_tricks.sliding_window_view(padded, BEHIND + 1)
    return np.where(there, windows.max(axis=1), -1)


def best(score, number):
    """Positions (number,) of the largest scores; of equal scores the later key."""
    order = np.argsort(score, kind="stable")
    return order[len(order) - number :]


def choose(weights, value, there, number):
    """Positions (number,) of the keys that are kept, increasing, and which are asked for.

    weights : (G, L, S), of the queries; value : (S, D); there : (S,), False in padding

    The first keys are kept, and those that are asked for. With P the weights as a matrix (G L, S),
    the sums over all keys are T = P (V, 1). A round adds the keys whose columns of P are nearest in
    direction to what is left of T by the keys so far, which a ridge regression tells. The mean
    square is added to that of a column, so that keys which hardly any query attends to are not
    taken.
    """
    P = weights.reshape(-1, weights.shape[2])
    kept = np.argsort(~there, kind="stable")[:SINKS]
    score = most_asked(weights, there)
    score[kept] = -2
    asked = best(score, (number - SINKS) // ASKED)
    kept = np.concatenate([kept, asked])
    target = P @ folded(value, there)
    squares = np.sum(P**2, axis=0)
    damped = squares + squares.sum() / max(there.sum(), 1)
    for i in range(ROUNDS):
        A = P[:, kept]
        left = target - A @ ridge(A, target, np.ones(len(kept)))
        score = np.sum((P.T @ left) ** 2, axis=1) / np.where(damped > 0, damped, 1)
        score[~there] = -1
        score[kept] = -2
        kept = np.concatenate([kept, best(score, (number - len(kept)) // (ROUNDS - i))])
    return np.sort(kept), np.isin(np.sort(kept), asked)


def nearest(key, kept, asked):
    """The number of the kept key that each key (S, E) joins, of kept positions (n,).

    It is the nearest one. No key joins those that are asked for, (n,) bool.
    """
    squares = np.where(asked, np.inf, np.sum(key[kept] ** 2, axis=1))
    number = np.argmin(squares - 2 * key @ key[kept].T, axis=1)
    number[kept] = np.arange(len(kept))
    return number


def fit(weights, value, mass, kept, number):
    """Values (n, D) and relative masses (n,) of the kept keys, by ridge regression.

    weights : (m, S), the weights P of the queries on the keys that the kept ones stand for
    value, mass : (S, D) and (S,), the values and masses of these keys
    kept, number : the positions (n,) of the kept keys, and which of them each key joins (S,)

    The kept keys give A Z in place of T = P (V, 1), where A has their columns of P, and Z their
    values and masses, relative to the masses that they have. The fit starts from Z_0, in which a
    kept key also stands for the share JOINED of the keys that joined it. It minimises

        |A Z - T|^2 + nu sum_s |Z_s - Z_0,s|^2 / C_s,

    with C_s the relative mass of the keys that joined. So a key that no other joined hardly
    changes. A mass stays above the share LEAST of that in Z_0, so it has a logarithm.
    """
    A, V1 = weights[:, kept], np.concatenate([value, np.ones((len(value), 1))], axis=1)
    there = mass[kept] > 0
    own = np.where(there, mass[kept], 1)
    joined = np.zeros((len(kept), V1.shape[1]))
    np.add.at(joined, number, (mass / own[number])[:, None] * V1)
    joined -= there[:, None] * V1[kept]
    start = V1[kept] + JOINED * joined
    Z = start + ridge(A, weights @ V1 - A @ start, np.maximum(joined[:, -1], STIFF))
    masses = np.maximum(Z[:, -1:], LEAST * start[:, -1:])
    return Z[:, :-1] / masses, masses[:, 0]


def compress_cache(query, key, value, log_mass, scale, size, recent=RECENT):
    """The cache of at most `size` keys that the latest queries, and so the next ones, need."""
    S = len(key)
    if size >= S:
        return Cached(key, value, log_mass, np.arange(S))
    n = S - recent
    weights = weights_of(query, key, log_mass, scale)[..., :n]
    early, asked = choose(weights, value[:n], log_mass[:n] > -np.inf, size - recent)
    number = nearest(key[:n], early, asked)
    weights = weights.reshape(-1, n)
    mass = np.exp(log_mass[:n] - max(log_mass[:n].max(), -1e300))  # only ratios count
    values, masses = fit(weights, value[:n], mass, early, number)
    kept = np.concatenate([early, np.arange(n, S)])
    fitted, of_kept = value[kept].copy(), log_mass[kept].copy()
    fitted[: size - recent] = values
    of_kept[: size - recent] += np.log(masses)
    return Cached(key[kept], fitted, of_kept, kept)


def causal_attention(query, key, value, scale, size, block, recent):
    """Output (G, T, D) of causal attention, for queries (G, T, E) of G heads that share the keys.

    Tokens are read in blocks. A query attends to the tokens of its block up to its own, and to what
    is kept of all blocks before. Then the block joins what is kept, and that is compressed for the
    latest queries. So no output depends on a later token.
    """
    G, T, _ = query.shape
    output = np.empty((G, T, value.shape[1]))
    kept = Cached(key[:0], value[:0], np.zeros(0), np.arange(0))
    for start in range(0, T, block):
        here = np.arange(start, min(start + block, T))
        keys, values = (
            np.concatenate([kept[i], array[here]]) for i, array in enumerate((key, value))
        )
        log_mass = np.concatenate([kept.log_mass, np.zeros(len(here))])
        for t in here:
            seen = len(kept.key) + t - start + 1
            weights = weights_of(query[:, t], keys[:seen], log_mass[:seen], scale)
            output[:, t] = weights @ values[:seen]
        latest = query[:, max(0, here[-1] + 1 - QUERIES) : here[-1] + 1]
        kept = compress_cache(latest, keys, values, log_mass, scale, size, recent)
    return output
